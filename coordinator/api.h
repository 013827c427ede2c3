/* SPDX-License-Identifier: MIT
 * The OpenAI-compatible interface: routes of http.h to requests of engine.h. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_API_H
#define TANDEM_COORDINATOR_API_H

#include <stdint.h>

struct api;
struct config;
struct config_http;
struct engine;
struct err;
struct http;
struct tokenizer;

/* Listens as 'http' of the config says. All borrowed until api_close. The engine's stages may still be starting: until they are
 * ready, requests that need them get 503. */
int api_open(const struct config *c, struct engine *e, const struct tokenizer *t, struct api **ret, struct err *err);
/* Running requests end with an error, which is sent for at most a second. NULL is fine. Not inside a callback of the loop. */
void api_close(struct api *a);
const struct http *api_http(const struct api *a);
/* The most that the tree of a request's body may take, for the plan: bodies that could take more are refused unread. One exists at
 * a time, of a running request only its stop strings stay. */
uint64_t api_json_bytes(const struct config_http *c);

#endif

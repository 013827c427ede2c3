/* SPDX-License-Identifier: MIT
 * engine.h without processes: logits and tokens by formula. Linked in place of engine.c. */
#ifndef TANDEM_TESTS_COORDINATOR_FAKE_ENGINE_H
#define TANDEM_TESTS_COORDINATOR_FAKE_ENGINE_H

#include <stdint.h>

#define FAKE_ENGINE_CONTEXT 64u
#define FAKE_ENGINE_VOCAB 4096u

struct fake_engine_script {
    uint32_t tokens[16]; /* what every request generates, after the choice's offset */
    uint32_t n_tokens;
    int fail_after;                  /* the n-th request from now fails; < 0 = never */
    int signal;                      /* engine_run ends with it */
    uint32_t n_submitted, n_at_once; /* seen: requests, and the most at the same time */
    uint32_t last_prompt[64], n_last_prompt;
};
extern struct fake_engine_script fake_engine_script;

float fake_engine_logit(uint32_t token, uint32_t pos, uint32_t id);

#endif

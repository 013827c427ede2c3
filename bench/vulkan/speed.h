/* SPDX-License-Identifier: MIT
 * Speed of the shaders on shapes of Gemma 3 27B. One thread. */
#ifndef TANDEM_BENCH_VULKAN_SPEED_H
#define TANDEM_BENCH_VULKAN_SPEED_H

#include <stddef.h>
#include <stdint.h>

#include "bench/vulkan/device.h"

struct speed_options {
    const char *type; /* NULL: all */
    size_t bytes;     /* of weights at once, to exceed caches */
    uint32_t layers, repeats;
    uint32_t hidden, ffn, vocab;
    double settle;   /* seconds that a measurement lasts at least: clocks rise only under load */
    double deadline; /* speed_now() after which nothing new is begun */
};

double speed_now(void);
/* Whether a measurement begun at `begin` goes on after `done` passes. */
bool speed_more(const struct speed_options *o, double begin, uint32_t done);

/* Equal matrices one after the other in a device buffer. */
struct speed_weights {
    struct buffer buffer;
    int type;
    uint32_t rows, cols, n, tile_vec4, units;
    size_t bytes; /* of each */
};
struct speed_weights speed_weights_make(struct device *d, int type, uint32_t rows, uint32_t cols, size_t total);
/* Random floats on the device. */
struct buffer speed_floats(struct device *d, size_t n);
/* Tokens prepared for the type. */
struct buffer speed_tokens(struct device *d, int type, uint32_t cols, uint32_t n);

/* Bytes per second read plus written by copying. Prints copy and read. */
double speed_memory(struct device *d, const struct speed_options *o);
void speed_latency(struct device *d, const struct speed_options *o);
void speed_matvec(struct device *d, const struct speed_options *o, double copy);
void speed_ffn(struct device *d, const struct speed_options *o, double copy);

#endif

/* SPDX-License-Identifier: MIT
 * What gpu_worker asks of a device: x = h + post_ffn_norm(FFN(pre_ffn_norm(h))) for one layer, and the head.
 * All functions return 0 or a negative errno with a message; a lost device is a return value, never an abort.
 * Threads: run and head on the data thread; all others on the main thread before it starts or after it ended. */
#ifndef TANDEM_GPU_WORKER_FFN_BACKEND_H
#define TANDEM_GPU_WORKER_FFN_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "model/segment.h"

struct budget;
struct err;
struct trace;

/* Of a backend that has a device of its own. */
struct ffn_device_options {
    const char *name;    /* "auto", a number, or part of a name; borrowed during open */
    bool allow_cpu;      /* auto may take a device that is the processor itself */
    bool validate;       /* ask the API's validation layer */
    bool profile;        /* keep the times of kernels, for ffn_backend.profile */
    const char *without; /* names of features treated as absent, separated by commas, or "all"; NULL: none; borrowed */
    uint32_t subgroup;   /* lanes asked for; 0: as the driver likes */
    uint32_t many;       /* tokens from which on shaders for many are used; 0: measured */
    uint64_t max_buffer; /* bytes of a buffer at most; 0: as the device says */
    uint64_t memory;     /* bytes of device memory at most; 0: what is free */
};

struct ffn_backend_options {
    const struct hparams *hparams;
    struct budget *budget; /* borrowed */
    const uint8_t *types;  /* ggml type ids of all layers and the head, as CONFIGURE carries them; borrowed during open */
    uint32_t n_threads, chunk_tokens, logits_rows;
    bool pin;            /* compute threads stay where they are (pool_pin) */
    const char *variant; /* of CPU kernels */
    struct ffn_device_options device;
    struct trace *trace; /* where a device's work is recorded; NULL: nowhere; borrowed */
};

/* Names: pre_ffn_norm, gate, up, act, down, post_ffn_norm; final_norm (head). NULL in the pipeline. rows: [n_tokens][width]. */
typedef void (*ffn_dump_fn)(void *ctx, const char *name, const float *rows, uint32_t n_tokens, uint32_t width);

typedef void (*ffn_line_fn)(void *ctx, const char *line);

#define FFN_COPIED 1

struct ffn_backend {
    const char *name;
    int (*open)(const struct ffn_backend_options *o, void **ret, struct err *err);
    /* What runs: "cpu avx2"; lives as long as the backend. */
    const char *(*describe)(void *b);
    /* Whether load_segment will copy segments of up to `largest` bytes. NULL: it never does. */
    bool (*copies)(void *b, uint64_t largest);
    /* data: the segment, 4096-aligned. Returns 0: borrowed until close; FFN_COPIED: needed no longer. */
    int (*load_segment)(void *b, uint32_t layer, const struct segment_layout *l, const void *data,
                        struct err *err); /* FFN or HEAD by l->kind */
    /* Layers that pass through slots: data is where the layer will lie whenever it is run, always the same; nothing is there yet.
     * All are announced before the first is loaded. Optional: load_segment does it, and nothing is copied. */
    int (*announce_streamed)(void *b, uint32_t layer, const struct segment_layout *l, const void *data, struct err *err);
    int (*load_streamed)(void *b, uint32_t layer, struct err *err);
    /* Data thread: such a layer is there, and is run next. 0: it is used where it lies; FFN_COPIED: its place may be filled again.
     */
    int (*refill)(void *b, uint32_t layer, struct err *err);
    /* Tokens that run takes at once with a dump; NULL: chunk_tokens. */
    uint32_t (*dump_most)(void *b);
    /* h, x: [n_tokens][hidden] f32; may be the same array. */
    int (*run)(void *b, uint32_t layer, uint32_t n_tokens, const float *h, float *x, ffn_dump_fn dump, void *dump_ctx,
               struct err *err);
    /* Final norm and output matrix of n_rows <= logits_rows rows x[n_rows][hidden] -> logits [n_rows][vocab]. */
    int (*head)(void *b, uint32_t n_rows, const float *x, float *logits, ffn_dump_fn dump, void *dump_ctx, struct err *err);
    /* A table of the device's time by kernels, line by line; the device was opened with `profile`. Weights are let go: only close
     * may follow. NULL: the backend keeps no times. */
    int (*profile)(void *b, ffn_line_fn line, void *ctx, struct err *err);
    void (*close)(void *b); /* NULL is fine */
};

struct ffn_open {
    const struct ffn_backend *backend;
    void *device;
};
/* The backend of that name, or of "auto" the first that opens; what auto passes over is logged once, as
 * a warning unless there is no device. */
int ffn_open(const char *wanted, const struct ffn_backend_options *o, struct ffn_open *ret, struct err *err);

extern const struct ffn_backend ffn_cpu;
/* Where the program was built with it (TANDEM_HAVE_VULKAN). */
extern const struct ffn_backend ffn_vulkan;
/* Devices with their limits, and which one these options choose and why. */
int ffn_vulkan_list(const struct ffn_device_options *o, FILE *f, struct err *err);
/* One line about the chosen one: "unified" or "own", free bytes, bytes of a segment that it can use in place (0: it copies), name,
 * separated by tabs. -ENODEV: none. */
int ffn_vulkan_choose(const struct ffn_device_options *o, FILE *f, struct err *err);

#endif

/* SPDX-License-Identifier: MIT
 * The conversion as a stream: readers fill aligned buffers, threads quantize rows straight into a window that slides over the
 * output, and the caller hands the finished front of the window to a sink, in order, in whole pages. The memory is one block,
 * sized by pipeline_size before anything is read; nothing else is allocated while it runs.
 * Who converts a row, and in which order, never changes its bytes. */
#ifndef TANDEM_QUANTIZER_PIPELINE_H
#define TANDEM_QUANTIZER_PIPELINE_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "quantizer/rows.h"

struct err;
struct io_file;

#define PIPELINE_PAGE 4096u
#define PIPELINE_MAX_THREADS 64

/* A tensor, or bytes that are there already (metadata), at its place in the stream. Pieces lie one behind the other. */
struct pipeline_piece {
    const char *name;     /* for messages and progress */
    const uint8_t *bytes; /* n_rows of them, copied; or NULL, and then: */
    struct io_file *file;
    uint64_t offset; /* of the first row */
    struct rows rows;
    uint64_t n_rows;
    uint64_t begin, end; /* in the stream; between the last row and end are zeros */
};

/* Sizes of the one block of memory. */
struct pipeline_size {
    size_t block;  /* bytes of input that are read and converted at once */
    size_t window; /* bytes of output between the first unfinished row and the disk */
    size_t chunk;  /* most that the sink gets at once */
    unsigned n_blocks, n_threads;
    size_t scratch; /* bytes for one thread */
    size_t total;   /* of all of it, a multiple of the page */
};

struct pipeline_options {
    const struct pipeline_piece *pieces;
    uint32_t n_pieces;
    struct pipeline_size size;
    uint64_t from;                     /* a multiple of the page: what lies before is there already */
    const volatile sig_atomic_t *stop; /* looked at several times a second; may be NULL */
    /* In order and without gaps, n a multiple of the page (the end of the stream is one too). On the caller's thread. */
    int (*sink)(void *ctx, uint64_t at, const uint8_t *data, size_t n, struct err *err);
    void (*progress)(void *ctx, uint64_t done, const char *name); /* done: bytes of the stream; may be NULL */
    void *ctx;
};

struct pipeline_stats {
    double read_s, convert_s, sink_s; /* spent by all threads of the kind */
    uint64_t bytes_read;
};

/* The largest sizes that are of use and fit into limit bytes. -ENOSPC: they do not; ret has the smallest then. */
int pipeline_fit(const struct pipeline_piece *pieces, uint32_t n, unsigned n_threads, uint64_t limit, struct pipeline_size *ret);
/* -ECANCELED when *stop was set; -EINVAL for a number that a type cannot hold; or what reading or the sink returned. What was
 * finished before goes to the sink first, unless the sink failed. */
int pipeline_run(const struct pipeline_options *o, struct pipeline_stats *ret, struct err *err);

#endif

/* SPDX-License-Identifier: MIT
 * How long a conversion will take, from a short trial of this machine: reading and converting the first bytes of the input.
 * Threads: one. */
#ifndef TANDEM_QUANTIZER_ESTIMATE_H
#define TANDEM_QUANTIZER_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct plan;

struct estimate {
    double seconds;
    double read_bytes_s;    /* of input, by one reader */
    double convert_bytes_s; /* of input, on all threads; 0: nothing has to be converted */
};

/* Takes some tens of milliseconds and 2 MiB. A failure to read is one. */
int estimate_make(const struct plan *p, unsigned n_threads, bool search, struct estimate *ret, struct err *err);

#endif

/* SPDX-License-Identifier: MIT
 * Two models (checkpoint folders or GGUF files) tensor by tensor, as numbers. Threads: one. */
#ifndef TANDEM_QUANTIZER_COMPARE_H
#define TANDEM_QUANTIZER_COMPARE_H

#include <stdint.h>
#include <stdio.h>

struct err;

struct compare_sum {
    uint64_t n;
    double aa, bb, ab, dd; /* sums of a * a, b * b, a * b, (a - b)^2 */
    double max;            /* of |a - b| */
};

double compare_rmse(const struct compare_sum *s);
double compare_cosine(const struct compare_sum *s); /* 1 when both are zero */
/* One line for each tensor on f (may be NULL), then the sum of the matrices. -EINVAL when the models' shapes differ. */
int compare_run(const char *a, const char *b, FILE *f, struct compare_sum *ret, struct err *err);

#endif

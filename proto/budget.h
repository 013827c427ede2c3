/* SPDX-License-Identifier: MIT
 * Every large allocation of a process goes through one budget: a limit, and used/peak per category.
 * Threads: take/give/alloc/free from any thread (atomics). It is also the memory fault injection point of the tests. */
#ifndef TANDEM_PROTO_BUDGET_H
#define TANDEM_PROTO_BUDGET_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct err;

enum budget_category { BUDGET_WEIGHTS, BUDGET_KV, BUDGET_SCRATCH, BUDGET_RING, BUDGET_DEVICE, BUDGET_CATEGORIES };

struct budget {
    char process[24];
    uint64_t limit; /* bytes, 0 = none */
    _Atomic uint64_t used[BUDGET_CATEGORIES], peak[BUDGET_CATEGORIES];
    _Atomic uint64_t total, total_peak;
    _Atomic int64_t fail_after; /* tests: the n-th take from now fails; < 0 = never */
};

void budget_init(struct budget *b, const char *process, uint64_t limit);
/* 0, or -ENOMEM with a message naming process, category, asked, used, limit. */
int budget_take(struct budget *b, enum budget_category cat, uint64_t bytes, struct err *err);
void budget_give(struct budget *b, enum budget_category cat, uint64_t bytes);
/* Zeroed, page-aligned, anonymous memory charged to the budget. Free with the same size. */
int budget_alloc(struct budget *b, enum budget_category cat, size_t bytes, void **ret, struct err *err);
void budget_free(struct budget *b, enum budget_category cat, void *p, size_t bytes);
const char *budget_category_name(enum budget_category cat);

#endif

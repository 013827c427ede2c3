/* SPDX-License-Identifier: MIT
 * Which layers of a worker stay in memory and which pass through slots: a pure function of three numbers, so that the plan, the
 * coordinator and the worker agree. Streamed layers are spread evenly, so that one is read while pinned ones compute. The k-th of
 * them lies in slot k modulo n_slots, in every pass: their number is a multiple of n_slots. Threads: any. */
#ifndef TANDEM_MODEL_RESIDENCY_H
#define TANDEM_MODEL_RESIDENCY_H

#include <stdbool.h>
#include <stdint.h>

#define RESIDENCY_PINNED UINT32_MAX
#define RESIDENCY_SLOTS_MAX 8u

struct residency {
    uint32_t n_layers, n_streamed, n_slots; /* n_streamed 0: all are pinned */
};

bool residency_valid(const struct residency *r);
/* Number of the layer among the streamed ones, or RESIDENCY_PINNED. */
uint32_t residency_index(const struct residency *r, uint32_t layer);
uint32_t residency_layer(const struct residency *r, uint32_t index); /* the reverse */
/* So many that may be streamed with these slots: the least that is not below n, or the most there is; 0 where streaming would save
 * nothing. */
uint32_t residency_round(uint32_t n_layers, uint32_t n, uint32_t n_slots);

#endif

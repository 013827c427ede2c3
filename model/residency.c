/* SPDX-License-Identifier: MIT
 * Layer l is streamed when the line of slope n_streamed / n_layers crosses a whole number between l and l + 1 (Bresenham). */
#include "model/residency.h"

#include "proto/util.h"

bool residency_valid(const struct residency *r)
{
    if (r->n_streamed == 0)
        return r->n_layers > 0;
    return r->n_slots > 0 && r->n_slots <= RESIDENCY_SLOTS_MAX && r->n_streamed <= r->n_layers && r->n_streamed > r->n_slots &&
           r->n_streamed % r->n_slots == 0;
}

uint32_t residency_index(const struct residency *r, uint32_t layer)
{
    uint64_t before = (uint64_t)layer * r->n_streamed / r->n_layers, after = (uint64_t)(layer + 1) * r->n_streamed / r->n_layers;
    return after > before ? (uint32_t)before : RESIDENCY_PINNED;
}

uint32_t residency_layer(const struct residency *r, uint32_t index)
{
    return (uint32_t)((((uint64_t)index + 1) * r->n_layers + r->n_streamed - 1) / r->n_streamed) - 1;
}

uint32_t residency_round(uint32_t n_layers, uint32_t n, uint32_t n_slots)
{
    uint32_t most = n_layers / n_slots * n_slots, up = (uint32_t)MIN(util_round_up(n, n_slots), (size_t)most);
    if (n == 0 || most < 2 * n_slots)
        return 0;
    return MAX(up, 2 * n_slots);
}

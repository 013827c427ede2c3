/* SPDX-License-Identifier: MIT
 * One row from one type to another: through f32, checked to be finite and within what the type can hold. The only place of the
 * quantizer that knows the kernels. No allocation, no state. Threads: any. */
#ifndef TANDEM_QUANTIZER_ROWS_H
#define TANDEM_QUANTIZER_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rows {
    int src_type, dst_type;
    size_t cols, src_row, dst_row; /* bytes of a row */
    float add, limit;
    const float *weights; /* [cols], importance of columns; NULL: none. Used by the search. */
    bool search, copy;    /* copy: same type, bytes go over as they are */
};

/* search: where the type has one. Not q8_0: its error is small, and the reference's scale is next to the best. */
void rows_init(struct rows *r, int src_type, int dst_type, size_t cols, float add, const float *weights, bool search);
bool rows_has_search(int type);
/* f32 that rows_convert needs per thread. */
size_t rows_scratch(size_t cols);
/* False when an element is not finite or too large for the type; dst is then undefined. */
bool rows_convert(const struct rows *r, const void *src, void *dst, float *scratch);
/* Of a row that rows_convert refused: the first such column and its value. */
size_t rows_find_bad(const struct rows *r, const void *src, float *scratch, float *ret_value);

#endif

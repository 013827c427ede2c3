/* SPDX-License-Identifier: MIT
 * The operators of the simulated NPU with the argument order and the limits of the public designs (mlir-aie, IRON): what those
 * would refuse at build time is refused here at run time. All arithmetic in f32, results rounded to bf16. Device's thread; the
 * device's view of memory alone. */
#include "tests/npu_sim/sim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/npu_sim/sim_stream.h"

#define RUN_TRANSACTION 3u /* opcode, the kernel's first argument */
#define ARGUMENTS 5u
#define REGISTERS_BEFORE 5u /* opcode u64, address of the instructions u64, their number u32 */
#define NORM_WIDTH_MAX 4096u
#define ROPE_MULTIPLE 32u
#define GEMV_K_MULTIPLE 16u
#define GEMM_ROWS 4u /* rows of the array of compute tiles */
#define DIM_MAX (1u << 20)

struct run {
    const uint32_t *p; /* parameters */
    uint64_t at[ARGUMENTS];
};

static float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

/* bo<i> as n values of `bytes` each; NULL where the buffer is smaller. */
static void *argument(const struct run *r, unsigned i, uint64_t n, size_t bytes)
{
    if (n > UINT64_MAX / 8)
        return NULL;
    pthread_mutex_lock(&sim_lock);
    void *p = sim_memory_at(r->at[i], (size_t)n * bytes);
    pthread_mutex_unlock(&sim_lock);
    return p;
}

static bool dims_ok(const uint32_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (p[i] == 0 || p[i] > DIM_MAX)
            return false;
    }
    return true;
}

static bool gemm(const struct run *r)
{
    const uint32_t *p = r->p;
    uint64_t m = p[0], k = p[1], n = p[2], tile_m = p[4], tile_k = p[5], tile_n = p[6], columns = p[7];
    if (!dims_ok(p, 3) || p[3] > 1 || !dims_ok(p + 4, 4) || m % (GEMM_ROWS * tile_m) || k % tile_k || n % (tile_n * columns))
        return false;
    const uint16_t *a = argument(r, 0, m * k, 2), *b = argument(r, 1, k * n, 2);
    uint16_t *c = argument(r, 2, m * n, 2);
    return a && b && c && sim_gemm(a, b, c, m, k, n, p[3] == 1, sim_fault(SIM_CORNER));
}

static bool gemv(const struct run *r)
{
    uint64_t m = r->p[0], k = r->p[1], tile_m = r->p[2], columns = r->p[3];
    if (!dims_ok(r->p, 4) || k % GEMV_K_MULTIPLE || m % (tile_m * columns))
        return false;
    const uint16_t *a = argument(r, 0, m * k, 2), *x = argument(r, 1, k, 2);
    uint16_t *y = argument(r, 2, m, 2);
    if (!a || !x || !y)
        return false;
    for (uint64_t i = 0; i < m; i++) {
        float sum = 0;
        for (uint64_t j = 0; j < k; j++)
            sum += sim_float(a[i * k + j]) * sim_float(x[j]);
        y[i] = sim_bf16(sum);
    }
    return true;
}

static bool rms_norm(const struct run *r)
{
    uint64_t rows = r->p[0], width = r->p[1];
    float epsilon = float_of(r->p[2]);
    if (!dims_ok(r->p, 2) || width > NORM_WIDTH_MAX || !(epsilon > 0))
        return false;
    const uint16_t *x = argument(r, 0, rows * width, 2), *w = argument(r, 1, width, 2);
    uint16_t *y = argument(r, 2, rows * width, 2);
    if (!x || !w || !y)
        return false;
    for (uint64_t i = 0; i < rows; i++, x += width, y += width) {
        float sum = 0;
        for (uint64_t j = 0; j < width; j++)
            sum += sim_float(x[j]) * sim_float(x[j]);
        float scale = 1 / sqrtf(sum / (float)width + epsilon);
        for (uint64_t j = 0; j < width; j++)
            y[j] = sim_bf16(sim_float(x[j]) * scale * sim_float(w[j]));
    }
    return true;
}

static bool rope(const struct run *r)
{
    uint64_t rows = r->p[0], width = r->p[1];
    if (!dims_ok(r->p, 2) || width % ROPE_MULTIPLE || r->p[2] > 1)
        return false;
    const uint16_t *x = argument(r, 0, rows * width, 2), *angles = argument(r, 1, rows * width, 2);
    uint16_t *y = argument(r, 2, rows * width, 2);
    if (!x || !angles || !y)
        return false;
    for (uint64_t i = 0; i < rows; i++, x += width, angles += width, y += width) {
        for (uint64_t j = 0; j < width / 2; j++) {
            uint64_t first = r->p[2] ? 2 * j : j, second = r->p[2] ? 2 * j + 1 : j + width / 2;
            float cosine = sim_float(angles[2 * j]), sine = sim_float(angles[2 * j + 1]);
            float u = sim_float(x[first]), v = sim_float(x[second]);
            y[first] = sim_bf16(u * cosine - v * sine);
            y[second] = sim_bf16(u * sine + v * cosine);
        }
    }
    return true;
}

/* One query over the keys that it sees; weights: room for all keys. */
static void attend(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *o, size_t from, size_t to, size_t d,
                   float scale, float *weights)
{
    float top = -INFINITY, sum = 0;
    for (size_t i = from; i < to; i++) {
        float dot = 0;
        for (size_t j = 0; j < d; j++)
            dot += sim_float(q[j]) * sim_float(k[i * d + j]);
        weights[i] = dot * scale;
        top = fmaxf(top, weights[i]);
    }
    for (size_t i = from; i < to; i++)
        sum += weights[i] = expf(weights[i] - top);
    for (size_t j = 0; j < d; j++) {
        float value = 0;
        for (size_t i = from; i < to; i++)
            value += weights[i] * sim_float(v[i * d + j]);
        o[j] = sim_bf16(sum > 0 ? value / sum : 0);
    }
}

static bool attention(const struct run *r)
{
    const uint32_t *p = r->p;
    size_t tokens = p[0], keys = p[1], heads = p[2], kv_heads = p[3], d = p[4], window = p[5];
    if (!dims_ok(p, 5) || window > DIM_MAX || heads % kv_heads || !(float_of(p[6]) > 0))
        return false;
    const uint16_t *q = argument(r, 0, (uint64_t)heads * tokens * d, 2), *k = argument(r, 1, (uint64_t)kv_heads * keys * d, 2);
    const uint16_t *v = argument(r, 2, (uint64_t)kv_heads * keys * d, 2);
    const int32_t *at = argument(r, 3, 4, 4);
    uint16_t *o = argument(r, 4, (uint64_t)heads * tokens * d, 2);
    float *weights = malloc(keys * sizeof(float));
    bool ok = q && k && v && at && o && weights && at[2] >= 0 && (size_t)at[2] <= tokens && at[3] >= 0 && (size_t)at[3] <= keys;
    for (size_t h = 0; ok && h < (sim_fault(SIM_CORNER) ? 1 : heads); h++) {
        size_t kv = h / (heads / kv_heads) * keys * d;
        for (int32_t t = 0; t < at[2]; t++) {
            int64_t pos = (int64_t)at[0] + t, to = pos - at[1] + 1, from = window ? to - (int64_t)window : 0;
            to = to < 0 ? 0 : to > at[3] ? at[3] : to;
            from = from < 0 ? 0 : from > to ? to : from;
            size_t row = (h * tokens + (size_t)t) * d;
            attend(q + row, k + kv, v + kv, o + row, (size_t)from, (size_t)to, d, float_of(p[6]), weights);
        }
    }
    free(weights);
    return ok;
}

bool sim_operators_run(const uint32_t *registers, unsigned n_registers)
{
    static bool (*const operators[SIM_OPERATORS])(const struct run *) = {gemm, gemv, rms_norm, rope, attention};
    uint64_t opcode, address;
    struct run r;
    if (n_registers < REGISTERS_BEFORE + 2 * ARGUMENTS)
        return false;
    memcpy(&opcode, registers, sizeof(opcode));
    memcpy(&address, registers + 2, sizeof(address));
    memcpy(r.at, registers + REGISTERS_BEFORE, sizeof(r.at));
    uint32_t words = registers[4];
    pthread_mutex_lock(&sim_lock);
    const uint32_t *in = words <= SIM_STREAM_WORDS_MAX ? sim_memory_at(address, words * sizeof(uint32_t)) : NULL;
    pthread_mutex_unlock(&sim_lock);
    if (opcode != RUN_TRANSACTION || !in || words < SIM_STREAM_HEADER || in[0] != SIM_STREAM_MAGIC || in[1] != SIM_STREAM_VERSION ||
        in[2] >= SIM_OPERATORS || in[3] != sim_stream_params[in[2]] || words != SIM_STREAM_HEADER + in[3])
        return false;
    r.p = in + SIM_STREAM_HEADER;
    return operators[in[2]](&r);
}

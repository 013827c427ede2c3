/* SPDX-License-Identifier: MIT
 * The gpu_worker program: a stage under the coordinator, or alone the FFN of one layer, or final norm and logits. */
#include <errno.h>
#include <math.h>

#include "gpu_worker/ffn_backend.h"
#include "gpu_worker/gpu.h"
#include "kernels/cpu.h"
#include "model/npy.h"
#include "proto/err.h"
#include "proto/sandbox.h"
#include "proto/util.h"
#include "stage/single.h"

#define CHUNK 128
#define LOGITS_ROWS 4
#define PROFILE_RUNS 10 /* of each chunk: the first finds caches cold */

static struct ffn_device_options device_options(const struct config_device *d, uint64_t memory)
{
    return (struct ffn_device_options){.name = d->name,
                                       .allow_cpu = d->allow_cpu,
                                       .validate = d->validate,
                                       .without = d->without,
                                       .subgroup = d->subgroup,
                                       .many = d->many,
                                       .max_buffer = d->max_buffer,
                                       .memory = memory};
}

struct work {
    struct single *s;
    struct ffn_open opened;
    const struct segment_layout *layout;
    const void *segment;
    uint32_t layer, chunk;
    bool profile;
};

static int open_backend(struct work *w, const char *name, struct err *err)
{
    struct single *s = w->s;
    struct ffn_device_options device = device_options(&s->config->device, s->config->gpu.memory);
    device.profile = w->profile;
    const struct ffn_backend_options o = {.hparams = &s->hparams,
                                          .budget = &s->budget,
                                          .types = s->types,
                                          .n_threads = s->config->gpu.threads ? s->config->gpu.threads : (uint32_t)cpu_count(),
                                          .chunk_tokens = w->chunk,
                                          .logits_rows = w->chunk,
                                          .variant = s->variant,
                                          .device = device};
    int r = ffn_open(name, &o, &w->opened, err);
    if (r == 0 && w->profile && !w->opened.backend->profile)
        r = err_set(err, -ENOTSUP, "--profile: backend '%s' keeps no times of kernels; expected a Vulkan device (--backend vulkan)",
                    w->opened.backend->name);
    if (r == 0)
        r = w->opened.backend->load_segment(w->opened.device, w->layer, w->layout, w->segment, err);
    return MIN(r, 0);
}

/* One chunk of rows: a layer, or the head. */
static int compute(struct work *w, const float *rows, uint32_t n, float *y, ffn_dump_fn dump, struct err *err)
{
    const struct ffn_backend *b = w->opened.backend;
    return w->s->head ? b->head(w->opened.device, n, rows, y, dump, w->s, err)
                      : b->run(w->opened.device, w->layer, n, rows, y, dump, w->s, err);
}

struct difference {
    double largest, of_row; /* of_row: largest over the size (RMS) of its row */
    size_t row, column;
};

/* Two numbers that are none are alike; one alone is infinitely far. */
static double distance(double a, double b)
{
    double d = fabs(a - b);
    return a == b || (isnan(a) && isnan(b)) ? 0 : isnan(d) ? HUGE_VAL : d;
}

static void add_difference(struct difference *d, const float *a, const float *b, size_t first_row, size_t rows, size_t width)
{
    for (size_t r = 0; r < rows; r++) {
        double size = 0, top = 0;
        size_t at = 0;
        for (size_t i = 0; i < width; i++) {
            double e = distance(a[r * width + i], b[r * width + i]);
            size += (double)b[r * width + i] * (double)b[r * width + i];
            if (e > top) {
                top = e;
                at = i;
            }
        }
        if (top > d->largest) {
            d->largest = top;
            d->row = first_row + r;
            d->column = at;
        }
        if (top > 0)
            d->of_row = MAX(d->of_row, distance(top / sqrt(size / (double)width), 0));
    }
}

static int all_rows(struct work *w, struct work *other, const float *rows, size_t n, struct err *err)
{
    struct single *s = w->s;
    size_t in = s->hparams.hidden, out = s->head ? s->hparams.vocab : in;
    struct difference d = {0};
    struct npy_writer *writer = NULL;
    auto_free float *y = malloc(w->chunk * out * sizeof(float)), *z = malloc(w->chunk * out * sizeof(float));
    if (!y || !z)
        return err_set(err, -ENOMEM, "out of memory for %u rows of %zu", w->chunk, out);
    int r = npy_writer_open(s->out, n, out, &writer, err);
    for (size_t at = 0; r == 0 && at < n; at += w->chunk) {
        uint32_t m = (uint32_t)MIN(w->chunk, n - at);
        for (int i = 0; r == 0 && i < (w->profile ? PROFILE_RUNS : 1); i++)
            r = compute(w, rows + at * in, m, y, s->dump ? single_dump : NULL, err);
        if (r == 0 && other)
            r = compute(other, rows + at * in, m, z, NULL, err);
        if (r == 0 && other)
            add_difference(&d, y, z, at, m, out);
        for (uint32_t i = 0; r == 0 && i < m; i++)
            r = npy_writer_row(writer, at + i, y + i * out, err);
    }
    if (r == 0 && other)
        printf("%s beside %s, %zu rows: largest difference %.3g (row %zu, column %zu); at most %.3g of a row's RMS\n",
               w->opened.backend->describe(w->opened.device), other->opened.backend->describe(other->opened.device), n, d.largest,
               d.row, d.column, d.of_row);
    if (r == 0)
        return npy_writer_finish(writer, err);
    npy_writer_abort(writer);
    return r;
}

static void print_line(void *ctx, const char *line)
{
    fprintf(ctx, "%s\n", line);
}

static int run(struct single *s, struct err *err)
{
    auto_free float *rows = NULL;
    void *data = NULL;
    struct segment_layout l;
    size_t n = 0;
    struct work w = {.s = s, .layout = &l}, other;
    int r = s->head ? 0 : single_layer(s, &w.layer, err);
    if (r == 0)
        r = single_rows(s, &rows, &n, err);
    if (r == 0 && s->dump && n > 1024)
        r = err_set(err, -E2BIG, "--dump: '%s' has %zu rows; expected at most 1024", s->in, n);
    if (r < 0)
        return r;
    uint32_t chunk = s->config->chunk_tokens ? s->config->chunk_tokens : CHUNK;
    w.chunk = (uint32_t)MIN(n, s->dump ? 1024u : s->head ? LOGITS_ROWS : chunk);
    r = single_segment(s, s->head ? SEGMENT_HEAD : SEGMENT_FFN, w.layer, &l, &data, err);
    w.segment = data;
    other = w;
    w.profile = s->profile;
    if (r == 0)
        r = open_backend(&w, s->backend ? s->backend : s->config->gpu.backend, err);
    if (r == 0 && s->compare)
        r = open_backend(&other, s->compare, err);
    if (r == 0)
        r = all_rows(&w, s->compare ? &other : NULL, rows, n, err);
    if (r == 0 && w.profile)
        r = w.opened.backend->profile(w.opened.device, print_line, stdout, err);
    if (other.opened.backend)
        other.opened.backend->close(other.opened.device);
    if (w.opened.backend)
        w.opened.backend->close(w.opened.device);
    single_free_segment(s, &l, data);
    return r;
}

static int list(struct single *s, enum single_list what, struct err *err)
{
#ifdef TANDEM_HAVE_VULKAN
    const struct ffn_device_options o = device_options(&s->config->device, 0);
    struct sandbox box = {.profile = SANDBOX_DRIVER, .off = !s->config->sandbox};
    if (what == SINGLE_LIST_CHOOSE) /* as the stage will find it */
        sandbox_begin(&box, "");
    return what == SINGLE_LIST_CHOOSE ? ffn_vulkan_choose(&o, stdout, err) : ffn_vulkan_list(&o, stdout, err);
#else
    (void)s;
    (void)what;
    return err_set(err, -ENOTSUP, "this gpu_worker was built without its vulkan backend: it knows the processor alone");
#endif
}

int main(int argc, char **argv)
{
    static const struct single_program program = {.name = "gpu_worker",
                                                  .summary = "computes x = h + post_norm(FFN(norm(h))) of a layer, and the logits",
                                                  .options = SINGLE_LAYER | SINGLE_IN | SINGLE_DUMP | SINGLE_HEAD | SINGLE_DEVICE |
                                                             SINGLE_BACKEND,
                                                  .ops = &gpu_ops,
                                                  .run = run,
                                                  .list = list};
    return single_main(&program, argc, argv);
}

/* SPDX-License-Identifier: MIT
 * One conversion from beginning to end: everything is checked and laid out first, then the buffers are taken, then the stream runs
 * from the point that an earlier run reached. Owns the order of these steps and the link from the stream to files, checksums and
 * journal. Called by the command line on one thread. It decides what a failure leaves: nothing when the input can never be
 * converted, everything that is done when a later run may succeed. */
#include "quantizer/convert.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "kernels/quant.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"
#include "quantizer/estimate.h"
#include "quantizer/fit.h"
#include "quantizer/imatrix.h"
#include "quantizer/journal.h"
#include "quantizer/ledger.h"
#include "quantizer/memory.h"
#include "quantizer/output.h"
#include "quantizer/pipeline.h"
#include "quantizer/plan.h"
#include "quantizer/source.h"

#define FORMAT 1            /* changes when the same arguments give other bytes */
#define SLACK (2ull << 20)  /* thread stacks, journal, hash states */
#define GROUP_NS 1000000000 /* between two entries of the journal */
#define GROUP_MIN (4u << 20)
#define VERIFY (4u << 20)

struct conversion {
    const struct convert_options *o;
    struct source *source;
    struct recipe recipe;
    struct imatrix *imatrix;
    struct plan plan;
    struct pipeline_piece *pieces;
    uint32_t n_pieces;
    struct pipeline_size size;
    struct journal *journal;
    struct output *output;
    struct ledger *ledger;
    uint64_t identity;          /* of the input when the conversion began */
    uint64_t synced, synced_ns; /* the last entry of the journal: stream offset and time */
    uint64_t kept;
};

static void say(const struct conversion *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(const struct conversion *c, const char *format, ...)
{
    char line[512];
    va_list args;
    if (!c->o->say)
        return;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    c->o->say(c->o->ctx, line);
}

/* ---- before anything is written ---- */

/* source NULL: not open yet. */
static int check_output(const struct conversion *c, const char *path, struct err *err)
{
    struct stat st, from;
    const char *const read[] = {c->o->in, c->o->imatrix};
    bool exists = stat(path, &st) == 0;
    for (size_t i = 0; exists && i < ARRAY_LEN(read); i++) {
        if (read[i] && stat(read[i], &from) == 0 && from.st_dev == st.st_dev && from.st_ino == st.st_ino)
            return err_set(err, -EINVAL, "output '%s' is the %s; choose another name", path, i ? "importance matrix" : "input");
    }
    if (exists && c->source && source_has(c->source, path))
        return err_set(err, -EINVAL, "output '%s' is a file of the input '%s'; choose another name", path, c->o->in);
    return io_may_replace(path, "GGUF", 4, "a GGUF file", err);
}

static int check_folder(const char *out, struct err *err)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(out, '/');
    int n = slash ? snprintf(folder, sizeof(folder), "%.*s", (int)MAX(slash - out, 1), out) : snprintf(folder, sizeof(folder), ".");
    if (n >= (int)sizeof(folder))
        return err_set(err, -ENAMETOOLONG, "output '%.64s...': the name is too long", out);
    if (access(folder, W_OK | X_OK) < 0)
        return err_set_errno(err, -errno, "output '%s': folder '%s' cannot be written to (make it, or choose another)", out,
                             folder);
    return 0;
}

static int check_requantize(const struct conversion *c, struct err *err)
{
    for (uint32_t i = 0; i < source_n(c->source); i++) {
        const struct source_tensor *t = source_at(c->source, i);
        if (quant_block_elems(t->type) > 1 && t->type != c->recipe.types[i] && !c->o->allow_requantize)
            return err_set(err, -EINVAL,
                           "tensor '%s' is %s already, and its errors would add to those of %s; convert from the original "
                           "checkpoint, or give --allow-requantize",
                           t->name, quant_name(t->type), quant_name(c->recipe.types[i]));
    }
    return 0;
}

static int make_pieces(struct conversion *c, struct err *err)
{
    const struct plan *p = &c->plan;
    c->pieces = calloc(p->n_tensors + p->n_files, sizeof(*c->pieces));
    if (!c->pieces)
        return err_set(err, -ENOMEM, "out of memory");
    for (uint32_t f = 0; f < p->n_files; f++) {
        const struct plan_file *file = &p->files[f];
        c->pieces[c->n_pieces++] =
            (struct pipeline_piece){.name = "metadata", .bytes = file->header, .n_rows = file->header_bytes, .begin = file->begin};
        for (uint32_t i = file->first; i < file->first + file->n_tensors; i++) {
            const struct plan_tensor *t = &p->tensors[i];
            struct pipeline_piece *x = &c->pieces[c->n_pieces++];
            *x = (struct pipeline_piece){.name = t->src->origin,
                                         .file = t->src->file,
                                         .offset = t->src->offset,
                                         .n_rows = t->src->rows,
                                         .begin = file->begin + t->offset};
            rows_init(&x->rows, t->src->type, t->type, t->src->cols, t->src->add, imatrix_weights(c->imatrix, t->source_index),
                      !c->o->no_search);
        }
    }
    for (uint32_t i = 0; i < c->n_pieces; i++)
        c->pieces[i].end = i + 1 < c->n_pieces ? c->pieces[i + 1].begin : p->stream_bytes;
    return 0;
}

static int fit_memory(struct conversion *c, struct err *err)
{
    uint64_t limit = c->o->memory ? c->o->memory : CONVERT_MEMORY;
    uint64_t base = memory_now() + SLACK, before = memory_peak();
    unsigned n = (unsigned)MIN(c->o->n_threads, PIPELINE_MAX_THREADS);
    int r = pipeline_fit(c->pieces, c->n_pieces, n, limit > base ? limit - base : 0, &c->size);
    uint64_t total = MAX(base + c->size.total, before);
    if (c->o->group_bytes) /* the journal has an entry after a chunk at the earliest */
        c->size.chunk = MIN(c->size.chunk, (size_t)util_round_up(MIN(c->o->group_bytes, c->size.chunk), PIPELINE_PAGE));
    if (r < 0 || total > limit) {
        if (r == 0) /* the metadata were the most; the smallest buffers are then of no interest */
            pipeline_fit(c->pieces, c->n_pieces, n, 0, &c->size);
        total = MAX(base + c->size.total, before);
        return err_set(err, -ENOSPC, "memory of %" PRIu64 " MiB is too little; expected at least %" PRIu64 " MiB for %u threads%s",
                       limit >> 20, (uint64_t)(util_round_up(total, 1u << 20) >> 20) + 1, n,
                       n > 1 ? " (fewer threads need less: --threads)" : "");
    }
    char out[16], memory[16], buffers[16];
    say(c, "output: %s in %u file%s, %u tensors, %s%s", util_format_bytes(out, sizeof(out), c->plan.bytes), c->plan.n_files,
        c->plan.n_files > 1 ? "s" : "", c->plan.n_tensors, c->o->fit ? "types chosen by size" : "mostly ",
        c->o->fit ? "" : c->plan.type);
    if (c->recipe.n_fallback)
        say(c, "types: the rows of %u tensors do not fit the type that '%s' gives them; they get the next larger one that fits",
            c->recipe.n_fallback, c->plan.type);
    say(c, "memory: at most %s (buffers %s: %u blocks of %zu KiB, window of %zu KiB), %u threads",
        util_format_bytes(memory, sizeof(memory), total), util_format_bytes(buffers, sizeof(buffers), c->size.total),
        c->size.n_blocks, c->size.block >> 10, c->size.window >> 10, c->size.n_threads);
    return 0;
}

static void say_time(const struct conversion *c, const struct estimate *e)
{
    uint64_t s = (uint64_t)(e->seconds + 0.999);
    say(c,
        "time: about %" PRIu64 " min %" PRIu64 " s (converting %.2f GB/s of input on %u threads; one reader got %.2f GB/s, and "
        "writing is taken to be as fast)",
        s / 60, s % 60, e->convert_bytes_s / 1e9, c->size.n_threads, e->read_bytes_s / 1e9);
}

/* Everything that decides on the output's bytes and is not in the input: the metadata hold types, names and layout. */
static uint64_t arguments_hash(const struct conversion *c)
{
    const uint64_t facts[] = {FORMAT, !c->o->no_search, c->plan.n_files, c->plan.bytes, c->imatrix ? imatrix_hash(c->imatrix) : 0};
    uint64_t h = XXH3_64bits(facts, sizeof(facts));
    for (uint32_t i = 0; i < c->plan.n_files; i++)
        h = XXH3_64bits_withSeed(c->plan.files[i].header, c->plan.files[i].header_bytes, h);
    return h;
}

static void extra_keys(void *ctx, struct gguf_write *w)
{
    const struct conversion *c = ctx;
    if (c->imatrix)
        imatrix_write_keys(c->imatrix, w);
}

static int lay_out(struct conversion *c, struct err *err)
{
    const struct plan_options o = {.out = c->o->out,
                                   .name = c->o->name,
                                   .alignment = c->o->alignment,
                                   .split_bytes = c->o->split_bytes,
                                   .split_layers = c->o->split_layers,
                                   .extra_keys = extra_keys,
                                   .ctx = c};
    return plan_make(c->source, &c->recipe, &o, &c->plan, err);
}

/* The smallest form says what the metadata take; what is left is for better types. */
static int choose_by_size(struct conversion *c, struct err *err)
{
    char line[160];
    int r = fit_smallest(c->source, &c->o->recipe, &c->recipe, err);
    if (r == 0)
        r = lay_out(c, err);
    uint64_t bytes = c->plan.bytes;
    if (r < 0)
        return r;
    plan_fini(&c->plan);
    r = fit_improve(c->source, bytes, c->o->fit, c->o->alignment, &c->recipe, err);
    for (unsigned i = 0; r == 0 && i < FIT_KINDS; i++) {
        if (fit_describe(c->source, &c->recipe, i, line, sizeof(line)))
            say(c, "fit: %s", line);
    }
    return r;
}

static int choose_types(struct conversion *c, struct err *err)
{
    int r = c->o->imatrix ? imatrix_open(c->o->imatrix, c->source, &c->imatrix, err) : 0;
    if (r == 0 && c->imatrix)
        say(c, "importance: weights for %u tensors", imatrix_n(c->imatrix));
    if (r == 0)
        r = c->o->fit ? choose_by_size(c, err) : recipe_make(c->source, &c->o->recipe, &c->recipe, err);
    return r;
}

static int check_parts(const struct conversion *c, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < c->plan.n_files; i++)
        r = check_output(c, c->plan.files[i].path, err);
    return r;
}

static int prepare(struct conversion *c, struct err *err)
{
    struct estimate e;
    int r = check_output(c, c->o->out, err);
    if (r == 0)
        r = check_folder(c->o->out, err);
    if (r == 0)
        r = source_open(c->o->in, &c->source, err);
    if (r == 0)
        r = choose_types(c, err);
    if (r == 0)
        r = check_requantize(c, err);
    if (r == 0)
        r = lay_out(c, err);
    if (r == 0)
        r = check_parts(c, err);
    if (r < 0)
        return r;
    if (c->o->fit && c->plan.bytes > c->o->fit)
        return err_set(err, -ENOSPC, "the metadata of %u parts take the output beyond the size to fit; choose larger parts",
                       c->plan.n_files);
    source_forget_keys(c->source);
    c->identity = source_identity(c->source);
    if (c->o->table)
        plan_print(&c->plan, c->o->table);
    r = make_pieces(c, err);
    if (r == 0)
        r = fit_memory(c, err);
    if (r == 0 && c->o->say)
        r = estimate_make(&c->plan, c->size.n_threads, !c->o->no_search, &e, err);
    if (r == 0 && c->o->say)
        say_time(c, &e);
    return r;
}

/* ---- going on after an earlier run ---- */

/* Reads back what the journal says is there, group by group, as far as the sums agree. */
static int verify_groups(struct conversion *c, uint32_t *ret_good, struct err *err)
{
    uint32_t good = 0;
    uint8_t *buf = aligned_alloc(IO_ALIGN, VERIFY);
    int r = buf ? 0 : err_set(err, -ENOMEM, "out of memory");
    for (; r == 0 && good < journal_n(c->journal); good++) {
        struct journal_record x = journal_at(c->journal, good);
        while (r == 0 && ledger_at(c->ledger) < x.end) {
            size_t n = (size_t)MIN(VERIFY, x.end - ledger_at(c->ledger));
            if (c->o->stop && *c->o->stop)
                r = err_set(err, -ECANCELED, "interrupted");
            if (r == 0)
                r = output_read(c->output, ledger_at(c->ledger), buf, n, err);
            if (r == 0)
                ledger_feed(c->ledger, buf, n);
        }
        if (r < 0 || ledger_group(c->ledger) != x.hash)
            break;
        ledger_mark(c->ledger);
    }
    ledger_back(c->ledger);
    free(buf);
    *ret_good = good;
    return r;
}

static bool is_complete(const struct journal *j)
{
    return journal_n(j) > 0 && journal_at(j, journal_n(j) - 1).kind == JOURNAL_COMPLETE;
}

/* What a journal tells of is ours to drop, in however many parts; without one, a partial file is somebody else's. */
static int begin_new(struct conversion *c, struct err *err)
{
    if (journal_is_new(c->journal)) {
        auto_free char *left = output_find_left(c->o->out);
        if (left)
            return err_set(err, -EEXIST,
                           "'%s' exists, and no journal beside '%s' tells that an earlier run left it; remove it, or wait for the "
                           "run that writes it",
                           left, c->o->out);
    } else {
        output_remove_left(c->o->out);
    }
    int r = journal_cut(c->journal, 0, err);
    return r < 0 ? r : output_open(&c->plan, OUTPUT_NEW, &c->output, err);
}

static int continue_old(struct conversion *c, struct err *err)
{
    char kept[16], all[16];
    bool complete = is_complete(c->journal);
    uint32_t good = 0, n = journal_n(c->journal);
    int r = output_open(&c->plan, complete ? OUTPUT_RENAMED : OUTPUT_CONTINUE, &c->output, err);
    if (r == -ENOENT)
        return begin_new(c, err);
    if (r == 0)
        r = verify_groups(c, &good, err);
    if (r < 0)
        return r;
    if (complete && good < n) { /* files that have their name already are not touched again */
        output_close(take_ptr(&c->output));
        ledger_close(c->ledger);
        c->ledger = ledger_open(&c->plan);
        say(c, "the files of an earlier run have changed since; beginning again");
        return c->ledger ? begin_new(c, err) : err_set(err, -ENOMEM, "out of memory");
    }
    c->kept = ledger_at(c->ledger);
    say(c, "continuing: %s of %s are there and verified%s", util_format_bytes(kept, sizeof(kept), c->kept),
        util_format_bytes(all, sizeof(all), c->plan.stream_bytes),
        good < n ? "; what the earlier run wrote after that is not what it noted, and is made again" : "");
    return good < n ? journal_cut(c->journal, good, err) : 0;
}

static int open_output(struct conversion *c, struct err *err)
{
    const struct journal_identity id = {
        .source = c->identity, .arguments = arguments_hash(c), .stream_bytes = c->plan.stream_bytes};
    c->ledger = ledger_open(&c->plan);
    if (!c->ledger)
        return err_set(err, -ENOMEM, "out of memory");
    int r = journal_open(c->o->out, &id, c->o->restart, &c->journal, err);
    if (r < 0)
        return r;
    r = journal_n(c->journal) ? continue_old(c, err) : begin_new(c, err);
    if (r == 0)
        say(c, "reading %s, writing %s",
            io_is_direct(source_at(c->source, 0)->file) ? "past the page cache (O_DIRECT)" : "through the page cache",
            output_is_direct(c->output) ? "past it (O_DIRECT)" : "through it, in steps");
    c->synced = ledger_at(c->ledger);
    c->synced_ns = util_now_ns();
    return r;
}

/* ---- the stream ---- */

/* A group is noted only if the input was still the one that the journal knows, after all of the group had been read. */
static int note(struct conversion *c, struct err *err)
{
    uint64_t at = ledger_at(c->ledger);
    int r = source_unchanged(c->source, err);
    if (r == 0)
        r = output_sync(c->output, err);
    if (r == 0 && at > c->synced)
        r = journal_add(c->journal, JOURNAL_GROUP, at, ledger_group(c->ledger), err);
    c->synced = at;
    c->synced_ns = util_now_ns();
    return r;
}

static int on_output(void *ctx, uint64_t at, const uint8_t *data, size_t n, struct err *err)
{
    struct conversion *c = ctx;
    int r = output_write(c->output, at, data, n, err);
    if (r < 0)
        return r;
    ledger_feed(c->ledger, data, n);
    uint64_t since = at + n - c->synced;
    bool due = c->o->group_bytes ? since >= c->o->group_bytes : since >= GROUP_MIN && util_now_ns() - c->synced_ns >= GROUP_NS;
    return due ? note(c, err) : 0;
}

static void on_progress(void *ctx, uint64_t done, const char *name)
{
    const struct conversion *c = ctx;
    if (c->o->progress)
        c->o->progress(c->o->ctx, done, c->plan.stream_bytes, name);
}

static int stream(struct conversion *c, struct err *err)
{
    const struct pipeline_options o = {.pieces = c->pieces,
                                       .n_pieces = c->n_pieces,
                                       .size = c->size,
                                       .from = ledger_at(c->ledger),
                                       .stop = c->o->stop,
                                       .sink = on_output,
                                       .progress = on_progress,
                                       .ctx = c};
    struct pipeline_stats stats = {0};
    int r = 0;
    memory_trim(); /* of what the trial and the verification took */
    if (o.from < c->plan.stream_bytes) {
        r = pipeline_run(&o, &stats, err);
        int noted = r != -EDOM ? note(c, r == 0 ? err : NULL) : 0; /* after a failure: as much as can be kept */
        r = r < 0 ? r : noted;
    }
    if (r == 0 && !is_complete(c->journal))
        r = journal_add(c->journal, JOURNAL_COMPLETE, c->plan.stream_bytes, ledger_group(c->ledger), err);
    return r < 0 ? r : output_finish(c->output, ledger_checksums(c->ledger), err);
}

/* What a failure leaves, and how it is told. */
static int leave(struct conversion *c, int r, struct err *err)
{
    char text[ERR_TEXT_MAX];
    bool begun = c->output != NULL;
    if (!c->journal)
        return r;
    if (r == -EDOM || !begun) { /* another run would end the same way, or there is nothing to keep */
        if (begun)
            output_remove(&c->plan);
        if (begun || journal_n(c->journal) == 0)
            journal_remove(take_ptr(&c->journal));
        return r;
    }
    snprintf(text, sizeof(text), "%s", err ? err->text : "");
    if (r == -ESTALE)
        return err_set(
            err, r,
            "%.500s; what was read before is kept beside '%.128s': put the file back as it was (its time, too) and start "
            "again with the same arguments, or begin anew with --restart",
            text, c->o->out);
    return err_set(err, r, "%.500s; what is done is kept beside '%.128s': start again with the same arguments to continue", text,
                   c->o->out);
}

static void release(struct conversion *c)
{
    output_close(c->output);
    journal_close(c->journal);
    ledger_close(c->ledger);
    free(c->pieces);
    plan_fini(&c->plan);
    recipe_fini(&c->recipe);
    imatrix_close(c->imatrix);
    source_close(c->source);
}

int convert_run(const struct convert_options *o, struct convert_result *ret, struct err *err)
{
    struct conversion c = {.o = o};
    int r = prepare(&c, err);
    if (r == 0 && !o->dry_run) {
        r = open_output(&c, err);
        if (r == 0)
            r = stream(&c, err);
        if (r < 0)
            r = leave(&c, r, err);
        else
            journal_remove(take_ptr(&c.journal));
    }
    if (r == 0)
        *ret = (struct convert_result){.h = *source_hparams(c.source),
                                       .n_tensors = c.plan.n_tensors,
                                       .n_vision_skipped = source_n_skipped(c.source),
                                       .n_files = c.plan.n_files,
                                       .bytes_in = source_bytes(c.source),
                                       .bytes_out = c.plan.bytes,
                                       .bytes_kept = c.kept};
    release(&c);
    return r;
}

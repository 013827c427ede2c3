/* SPDX-License-Identifier: MIT
 * Dispatch of commands, and those that start no stage: plan, tokenize, detokenize. Called by main.c on the main thread; errors
 * go back to it, results go to standard output. */
#include "coordinator/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "coordinator/engine.h"
#include "coordinator/line.h"
#include "coordinator/lines.h"
#include "coordinator/machine.h"
#include "coordinator/plan.h"
#include "coordinator/report.h"
#include "coordinator/tokenizer.h"
#include "model/collect.h"
#include "proto/err.h"
#include "proto/util.h"

#define FILE_MAX_BYTES ((size_t)256 << 20)
#define FILE_TIMES 4 /* its size, while it is read and split into tokens; 3.5 were measured with 8 MB of English */

void commands_request(const struct command *c, struct request_params *ret)
{
    *ret = (struct request_params){.max_tokens = c->options->max_tokens, .sample = c->options->sample};
}

/* What will not fit is refused before any of it is read: no cap holds yet. A pipe tells no size. */
static int check_size(int fd, const char *path, struct err *err)
{
    char bytes[32], most[32], have[32];
    struct machine m;
    struct stat st;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return 0;
    uint64_t size = (uint64_t)st.st_size;
    util_format_bytes(bytes, sizeof(bytes), size);
    if (size >= FILE_MAX_BYTES)
        return err_set(err, -EFBIG, "file '%s' has %s; expected less than %s of text: take a part of it", path, bytes,
                       util_format_bytes(most, sizeof(most), FILE_MAX_BYTES));
    machine_memory(&m);
    if (m.total && size * FILE_TIMES > m.available)
        return err_set(
            err, -ENOMEM,
            "file '%s' has %s, for which up to %s of memory are taken until it is split into tokens; %s are free: take a "
            "part of it, or close other programs",
            path, bytes, util_format_bytes(most, sizeof(most), size * FILE_TIMES),
            util_format_bytes(have, sizeof(have), m.available));
    return 0;
}

static int read_file(const char *path, char **ret, size_t *ret_n, struct err *err)
{
    size_t n = 0, room = 64 << 10;
    auto_free char *buf = malloc(room);
    auto_fd fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, -errno, "file '%s': cannot be opened", path);
    int fits = check_size(fd, path, err);
    if (fits < 0)
        return fits;
    while (buf) {
        if (n + 1 == room) {
            char *p = room < FILE_MAX_BYTES ? realloc(buf, room * 2) : NULL;
            if (!p)
                return err_set(err, -EFBIG, "file '%s': does not fit in memory; expected at most %zu bytes of text", path,
                               FILE_MAX_BYTES);
            buf = p;
            room *= 2;
        }
        ssize_t got = read(fd, buf + n, room - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, -errno, "file '%s': cannot be read", path);
        if (got == 0)
            break;
        n += (size_t)got;
    }
    if (!buf)
        return err_set(err, -ENOMEM, "file '%s': out of memory", path);
    buf[n] = '\0';
    *ret = take_ptr(&buf);
    *ret_n = n;
    return 0;
}

static int run_plan(const struct command *c, struct err *err)
{
    auto_free struct plan *p = malloc(sizeof(*p));
    if (!p)
        return err_set(err, -ENOMEM, "plan: out of memory");
    struct gpu_device gpu;
    struct npu_device npu;
    struct plan_machine machine = {.gpu = &gpu, .npu = &npu};
    struct hparams h;
    uint64_t serve = 0;
    machine_memory(&machine.memory);
    int printed = 0, r = gpu_device_find(c->config, NULL, &gpu, err);
    if (r == 0)
        r = npu_device_find(c->config, NULL, &npu, err);
    if (r == 0)
        r = gemma3_hparams(c->gguf, &h, err);
    if (r == 0 && strcmp(c->config->http.listen, "none") != 0)
        serve = cmd_serve_bytes(c->config, h.vocab); /* `serve` is what this configuration is for */
    if (r == 0)
        r = plan_make(c->config, c->gguf, &machine, serve, p, err);
    if (r < 0 && r != -ENOMEM)
        return r;
    if (!p->gpu.vulkan)
        p->read_rate = machine_read_rate(MAX(p->npu_threads, p->gpu_threads), p->machine.available);
    p->disk_rate = machine_disk_rate(c->config->model);
    if (c->options->json)
        printed = plan_print_json(p, stdout, r < 0 ? NULL : err);
    else
        plan_print(p, stdout); /* one that does not fit, too: it shows what to change */
    return r < 0 ? r : printed;
}

static int print_ids_json(const struct tokenizer *t, const uint32_t *ids, size_t n, struct err *err)
{
    json_t *j = json_object(), *list = json_array(), *pieces = json_array();
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(list, json_integer(ids[i]));
        json_array_append_new(pieces, json_string(tokenizer_piece(t, ids[i])));
    }
    json_object_set_new(j, "ids", list);
    json_object_set_new(j, "pieces", pieces);
    return report_print_json(j, stdout, err);
}

static int run_tokenize(const struct command *c, struct err *err)
{
    const struct options *o = c->options;
    auto_free uint32_t *ids = NULL;
    size_t n_ids;
    int r = tokenizer_encode(c->tokenizer, o->file ? c->file : o->text, o->file ? c->file_bytes : strlen(o->text), !o->no_markers,
                             &ids, &n_ids, err);
    if (r < 0)
        return r;
    if (o->json)
        return print_ids_json(c->tokenizer, ids, n_ids, err);
    for (size_t i = 0; i < n_ids; i++)
        printf("%s%u", i ? "," : "", ids[i]);
    putchar('\n');
    return 0;
}

static int run_detokenize(const struct command *c, struct err *err)
{
    const struct options *o = c->options;
    auto_free char *text = NULL;
    size_t n;
    for (uint32_t i = 0; i < o->n_ids; i++) {
        if (o->ids[i] >= tokenizer_vocab(c->tokenizer))
            return err_set(err, -EINVAL, "option '--ids': element %u is %u; expected less than the vocabulary's %u", i, o->ids[i],
                           tokenizer_vocab(c->tokenizer));
    }
    int r = tokenizer_decode(c->tokenizer, o->ids, o->n_ids, &text, &n, err);
    if (r < 0)
        return r;
    if (o->json)
        return report_print_json(json_pack("{s:s%}", "text", text, n), stdout, err);
    puts(text);
    return 0;
}

static bool starts_stages(enum options_command k)
{
    return k != OPTIONS_PLAN && k != OPTIONS_TOKENIZE && k != OPTIONS_DETOKENIZE;
}

static bool needs_tokenizer(enum options_command k)
{
    return k != OPTIONS_PLAN && k != OPTIONS_EVAL && k != OPTIONS_BENCH;
}

static int dispatch(struct command *c, struct err *err)
{
    switch (c->options->command) {
    case OPTIONS_CHAT:
        return c->options->resume ? cmd_resume_run(c, err) : cmd_chat_run(c, err);
    case OPTIONS_GENERATE:
        return cmd_generate_run(c, err);
    case OPTIONS_EVAL:
        return cmd_eval_run(c, err);
    case OPTIONS_PERPLEXITY:
        return cmd_perplexity_run(c, err);
    case OPTIONS_IMATRIX:
        return cmd_imatrix_run(c, err);
    case OPTIONS_BENCH:
        return cmd_bench_run(c, err);
    case OPTIONS_SERVE:
        return cmd_serve_run(c, err);
    case OPTIONS_PLAN:
        return run_plan(c, err);
    case OPTIONS_TOKENIZE:
        return run_tokenize(c, err);
    case OPTIONS_DETOKENIZE:
        return run_detokenize(c, err);
    case OPTIONS_SAMPLE_CONFIG: /* main.c answers these: there is no config, or it is another coordinator's */
    case OPTIONS_CLIENT:
    case OPTIONS_STATS:
    case OPTIONS_TOP:
    case OPTIONS_COMMANDS:
    default:
        return err_set(err, -EINVAL, "command '%s' cannot be run here", options_command_name(c->options->command));
    }
}

static bool reads_text(enum options_command k)
{
    return k == OPTIONS_PERPLEXITY || k == OPTIONS_IMATRIX;
}

/* What perplexity and imatrix hold in the coordinator beside the pipeline. */
static uint64_t command_bytes(const struct command *c)
{
    struct hparams h;
    if (c->options->command == OPTIONS_PERPLEXITY)
        return cmd_perplexity_bytes(c->options, c->n_ids);
    return c->n_ids * sizeof(uint32_t) +
           (gemma3_hparams(c->gguf, &h, NULL) == 0 ? collect_bytes(&h, SEGMENT_ATTN) + collect_bytes(&h, SEGMENT_FFN) : 0);
}

int commands_run(const struct options *o, const struct config *config, const struct gguf *g, int *ret_signal, struct err *err)
{
    auto_free char *file = NULL;
    struct command c = {.options = o, .config = config, .gguf = g};
    int r = o->file ? read_file(o->file, &file, &c.file_bytes, err) : 0;
    if (r < 0)
        return r;
    c.file = file;
    auto_free uint32_t *ids = NULL;
    r = needs_tokenizer(o->command) ? tokenizer_open(g, &c.tokenizer, err) : 0;
    if (r < 0)
        r = err_wrap(err, r, "model '%s'", config->model);
    uint64_t bytes = 0;
    if (r == 0 && reads_text(o->command)) { /* before caps hold: the text is gone when they do */
        r = tokenizer_encode(c.tokenizer, c.file, c.file_bytes, true, &ids, &c.n_ids, err);
        free(take_ptr(&file));
        c.ids = ids;
        bytes = command_bytes(&c);
    }
    if (o->command == OPTIONS_CHAT && !o->resume)
        bytes = line_possible() ? LINE_MEMORY_BYTES : 2 * LINES_MAX_BYTES; /* a line, and the turn that it becomes */
    if (r == 0 && c.tokenizer && starts_stages(o->command))
        tokenizer_bound(c.tokenizer, &(struct tokenizer_bounds){.tokens = config->context});
    struct engine_options eo = {.command_bytes = bytes, .trace = o->trace, .ret_signal = ret_signal};
    if (r == 0 && o->command == OPTIONS_SERVE)
        r = cmd_serve_prepare(&c, &eo, err);
    if (r == 0 && o->resume)
        r = cmd_resume_prepare(&c, &eo, err);
    if (r == 0 && starts_stages(o->command))
        r = engine_open(config, g, &eo, &c.engine, err);
    if (r < 0 && c.done) {
        *err = (struct err){0};
        r = 0;
    } else if (r == 0)
        r = dispatch(&c, err);
    if (c.engine)
        *ret_signal = engine_signal(c.engine);
    if (r == 0 && (fflush(stdout) == EOF || ferror(stdout)))
        r = err_set(err, -EIO, "standard output: cannot be written");
    engine_close(c.engine);
    free(c.resume); /* of an engine that did not come so far */
    tokenizer_close(c.tokenizer);
    return r;
}

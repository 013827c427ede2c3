/* SPDX-License-Identifier: MIT
 * `bench`: prompt processing (ppN) and generation (tgM) as llama-bench does them, one sequence, ids fixed and arbitrary. One
 * warm-up, then R repetitions of each. Runs on the main thread. Rates come from the request's own clock; stage times, ring waits
 * and hops are what the chunks collected on their way (proto/chunk.h), divided by the tokens or chunks they carried. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/commands.h"
#include "coordinator/engine.h"
#include "coordinator/monitor.h"
#include "coordinator/monitor_json.h"
#include "coordinator/report.h"
#include "model/gguf.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/util.h"

struct bench_test {
    char name[24];             /* "pp512" */
    uint32_t n_prompt, n_gen;  /* one of them counts: n_gen 0 = prompt test */
    uint32_t n_passes;         /* tokens that went through the pipeline in one repetition */
    double sum, squares, best; /* tokens/s */
    struct chunk_times times;  /* summed over repetitions */
    uint64_t chunks;
    uint32_t repetitions;
};

struct bench_run {
    struct request *request;
    struct request_result result;
    struct err error;
};

static void on_finished(void *ctx, const struct request_result *r)
{
    struct bench_run *run = ctx;
    run->request = NULL;
    run->result = *r;
    run->result.err = NULL;
    if (r->finish == ENGINE_FINISH_ERROR)
        run->error = r->err ? *r->err : (struct err){.code = -EIO, .text = "request failed"};
}

static void add_times(struct chunk_times *to, const struct chunk_times *t)
{
    to->loader_ns += t->loader_ns;
    to->npu_ns += t->npu_ns;
    to->gpu_ns += t->gpu_ns;
    to->npu_wait_ns += t->npu_wait_ns;
    to->gpu_wait_ns += t->gpu_wait_ns;
    to->hops += t->hops;
}

static int run_once(struct command *c, const uint32_t *ids, struct bench_test *t, bool count, struct err *err)
{
    struct bench_run run = {0};
    struct request_params q = {
        .ids = ids, .n_ids = t->n_prompt, .max_tokens = t->n_gen, .ignore_end = true, .finished = on_finished, .ctx = &run};
    sample_params_default(&q.sample);
    q.sample.temperature = 0.0f;
    int r = engine_submit(c->engine, &q, &run.request, err);
    if (r == 0)
        r = engine_run(c->engine, err);
    if (r == 0 && run.error.code)
        r = err_set(err, run.error.code, "%s", run.error.text);
    if (run.request)
        engine_cancel(c->engine, run.request);
    if (r < 0 || !count)
        return r;
    uint64_t ns = run.result.prefill_ns + run.result.decode_ns;
    double rate = (double)t->n_passes * 1e9 / (double)MAX(ns, (uint64_t)1);
    t->sum += rate;
    t->squares += rate * rate;
    t->best = MAX(t->best, rate);
    add_times(&t->times, &run.result.prefill_times);
    add_times(&t->times, &run.result.decode_times);
    t->chunks += run.result.prefill_chunks + run.result.decode_chunks;
    t->repetitions++;
    return 0;
}

static double mean(const struct bench_test *t)
{
    return t->sum / t->repetitions;
}

static double deviation(const struct bench_test *t)
{
    double n = t->repetitions, v = n > 1 ? (t->squares - t->sum * t->sum / n) / (n - 1) : 0.0;
    return v > 0.0 ? sqrt(v) : 0.0;
}

/* Tokens whose chunks were collected: a chunk of the generation carries one. */
static double counted_tokens(const struct bench_test *t)
{
    return MAX(t->n_gen ? (double)t->chunks : (double)t->n_passes * t->repetitions, 1.0);
}

static void print_test(const struct bench_test *t)
{
    double n = counted_tokens(t), chunks = (double)MAX(t->chunks, UINT64_C(1)), ms = 1e-6 / n;
    printf("%-10s %10.2f +- %-8.2f %10.2f  %9.4f %9.4f %9.4f  %9.4f %9.4f  %8.2f %8.2f\n", t->name, mean(t), deviation(t), t->best,
           (double)t->times.loader_ns * ms, (double)t->times.npu_ns * ms, (double)t->times.gpu_ns * ms,
           (double)t->times.npu_wait_ns * ms, (double)t->times.gpu_wait_ns * ms, t->times.hops / n, t->times.hops / chunks);
}

static json_t *test_json(const struct bench_test *t)
{
    double n = counted_tokens(t), chunks = (double)MAX(t->chunks, UINT64_C(1)), ms = 1e-6 / n;
    return json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:{s:f, s:f, s:f}, s:{s:f, s:f}, s:f, s:f, s:I}", "test", t->name,
                     "prompt_tokens", (int)t->n_prompt, "gen_tokens", (int)t->n_gen, "repetitions", (int)t->repetitions,
                     "tokens_per_s", mean(t), "tokens_per_s_deviation", deviation(t), "tokens_per_s_best", t->best,
                     "stage_ms_per_token", "loader", (double)t->times.loader_ns * ms, "npu_worker", (double)t->times.npu_ns * ms,
                     "gpu_worker", (double)t->times.gpu_ns * ms, "ring_wait_ms_per_token", "npu_worker",
                     (double)t->times.npu_wait_ns * ms, "gpu_worker", (double)t->times.gpu_wait_ns * ms, "hops_per_token",
                     t->times.hops / n, "hops_per_chunk", t->times.hops / chunks, "chunks", (json_int_t)t->chunks);
}

static int print_results(struct command *c, const struct bench_test *tests, unsigned n, struct err *err)
{
    struct monitor_snapshot stats;
    const struct plan *p = engine_plan(c->engine);
    int r = engine_stats(c->engine, &stats, err);
    if (r < 0)
        return r;
    if (c->options->json) {
        json_t *list = json_array();
        for (unsigned i = 0; i < n; i++)
            json_array_append_new(list, test_json(&tests[i]));
        return report_print_json(json_pack("{s:s, s:i, s:i, s:i, s:I, s:o, s:o}", "model", c->config->model, "chunk_tokens",
                                           (int)p->chunk_tokens, "npu_threads", (int)p->npu_threads, "gpu_threads",
                                           (int)p->gpu_threads, "tensor_bytes", (json_int_t)p->tensor_bytes, "tests", list,
                                           "processes", monitor_json_processes(&stats)),
                                 stdout, err);
    }
    printf("model %s, chunks of %u tokens, threads: npu_worker %u, gpu_worker %u\n\n", c->config->model, p->chunk_tokens,
           p->npu_threads, p->gpu_threads);
    printf("%-10s %10s    %-8s %10s  %29s  %19s  %17s\n", "", "tokens/s", "", "best", "stage ms/token", "ring wait ms/token",
           "ring hops per");
    printf("%-10s %10s    %-8s %10s  %9s %9s %9s  %9s %9s  %8s %8s\n", "test", "mean", "dev", "", "loader", "npu", "gpu", "npu",
           "gpu", "token", "chunk");
    for (unsigned i = 0; i < n; i++)
        print_test(&tests[i]);
    putchar('\n');
    report_processes(&stats, stdout);
    return 0;
}

/* <bos>, then ids of a small multiplicative sequence; any ids do, the same in every run. */
static uint32_t *make_ids(struct command *c, uint32_t n)
{
    uint32_t bos = 2, vocab = engine_plan(c->engine)->hparams.vocab;
    uint64_t x = 88172645463325252u;
    uint32_t *ids = malloc(n * sizeof(*ids));
    if (!ids)
        return NULL;
    gguf_get_u32(c->gguf, "tokenizer.ggml.bos_token_id", &bos, NULL);
    for (uint32_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (uint32_t)(x >> 33) % vocab;
    }
    ids[0] = bos < vocab ? bos : 0;
    return ids;
}

static int check_context(struct command *c, uint32_t tokens, struct err *err)
{
    const struct plan *p = engine_plan(c->engine);
    if (tokens <= p->context)
        return 0;
    if (tokens > p->hparams.context_max)
        return err_set(err, -EINVAL, "bench: a test of %u tokens; the model was made for at most %u", tokens,
                       p->hparams.context_max);
    return err_set(err, -EINVAL, "bench: a test of %u tokens exceeds 'context', %u; use --set context=%u", tokens, p->context,
                   tokens);
}

int cmd_bench_run(struct command *c, struct err *err)
{
    const struct options *o = c->options;
    struct bench_test tests[2] = {{.n_prompt = 0}};
    unsigned n = 0;
    uint32_t longest = MAX(o->prompt_tokens, o->gen_tokens ? o->gen_tokens + 1 : 0);
    int r = check_context(c, longest, err);
    if (r < 0)
        return r;
    if (o->prompt_tokens) {
        tests[n] = (struct bench_test){.n_prompt = o->prompt_tokens, .n_passes = o->prompt_tokens};
        snprintf(tests[n++].name, sizeof(tests[0].name), "pp%u", o->prompt_tokens);
    }
    if (o->gen_tokens) {
        tests[n] = (struct bench_test){.n_prompt = 1, .n_gen = o->gen_tokens, .n_passes = o->gen_tokens};
        snprintf(tests[n++].name, sizeof(tests[0].name), "tg%u", o->gen_tokens);
    }
    auto_free uint32_t *ids = make_ids(c, MAX(o->prompt_tokens, 1u));
    if (!ids)
        return err_set(err, -ENOMEM, "bench: out of memory for %u ids", o->prompt_tokens);
    for (unsigned i = 0; i < n && r == 0; i++) {
        for (uint32_t k = 0; k <= o->repetitions && r == 0; k++)
            r = run_once(c, ids, &tests[i], k > 0, err);
    }
    return r < 0 ? r : print_results(c, tests, n, err);
}

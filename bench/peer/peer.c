/* SPDX-License-Identifier: MIT
 * Drives llama.cpp's prebuilt shared library, so that its tokens, logits and speed can be put beside ours. Nothing of it is linked
 * or included: the few functions and structs used are declared below as llama.cpp v0.5.0 (include/llama.h) has them, and the
 * defaults that the library fills in are compared with what that version documents, so that another layout ends with a message
 * instead of nonsense. Called by compare.py, one run per process; prints one line of JSON. Never part of the build.
 * Build: cc -O2 -o peer peer.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <glob.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct model_params {
    void *devices;
    const void *tensor_buft_overrides;
    int32_t n_gpu_layers, split_mode, load_mode, lazy_mode, main_gpu;
    const float *tensor_split;
    void *progress_callback, *progress_data;
    const void *kv_overrides;
    bool vocab_only, check_tensors, use_extra_bufts, no_host, no_alloc, load_mtp;
};

struct context_params {
    uint32_t n_ctx, n_batch, n_ubatch, n_seq_max, n_rs_seq, n_outputs_max, n_outputs_max_per_seq;
    int32_t n_threads, n_threads_batch;
    int32_t context_type, rope_scaling_type, pooling_type, attention_type, flash_attention;
    float rope_base, rope_scale, yarn_ext, yarn_attn, yarn_fast, yarn_slow;
    uint32_t yarn_orig_context;
    float defrag_threshold;
    void *eval_callback, *eval_data;
    int32_t type_k, type_v;
    void *abort_callback, *abort_data;
    bool embeddings, offload_kqv, no_perf, op_offload, swa_full, kv_unified;
    void *samplers;
    size_t n_samplers;
    void *other;
};

struct batch {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos, *n_seq_id, **seq_id;
    int8_t *logits;
};

struct imatrix_data {
    const char *name;
    const float *data;
    size_t size;
};

struct quantize_params {
    int32_t n_threads, file_type, output_type, embedding_type;
    bool allow_requantize, quantize_output, only_copy, pure, keep_split, dry_run;
    const struct imatrix_data *imatrix; /* the last has no name */
    const void *kv_overrides, *type_overrides;
    const int32_t *prune_layers;
    size_t max_buffer;
};

struct gguf_params {
    bool no_alloc;
    void **tensors;
};

static struct {
    void (*load_backends)(const char *folder);
    void (*log_set)(void (*fn)(int level, const char *text, void *data), void *data);
    void (*init)(void);
    struct model_params (*model_defaults)(void);
    struct context_params (*context_defaults)(void);
    void *(*model_load)(const char *path, struct model_params p);
    void *(*context_new)(void *model, struct context_params p);
    const void *(*vocab)(const void *model);
    int32_t (*n_vocab)(const void *vocab);
    int32_t (*decode)(void *context, struct batch b);
    float *(*logits_at)(void *context, int32_t i);
    void *(*memory)(const void *context);
    void (*memory_clear)(void *memory, bool data);
    void (*synchronize)(void *context);
    void (*context_free)(void *context);
    void (*model_free)(void *model);
    struct quantize_params (*quantize_defaults)(void);
    uint32_t (*quantize)(const char *in, const char *out, const struct quantize_params *p);
    void *(*gguf_open)(const char *path, struct gguf_params p);
    int64_t (*gguf_n_tensors)(const void *gguf);
    const char *(*gguf_tensor_name)(const void *gguf, int64_t i);
    void *(*tensor)(void *tensors, const char *name);
    int64_t (*tensor_size)(const void *tensor);
    float *(*tensor_data)(const void *tensor);
} api;

static int fail(const char *what, const char *detail)
{
    fprintf(stderr, "peer: %s: %s\n", what, detail);
    return -1;
}

static void on_log(int level, const char *text, void *data)
{
    (void)data;
    if (level == 4) /* errors; 5 continues a line of progress dots */
        fputs(text, stderr);
}

static int load_library(const char *folder)
{
    char pattern[4096];
    glob_t found = {0};
    snprintf(pattern, sizeof(pattern), "%s/libllama.*so", folder);
    if (glob(pattern, 0, NULL, &found))
        return fail(folder, "no libllama*.so is there");
    void *handle = dlopen(found.gl_pathv[0], RTLD_NOW | RTLD_GLOBAL);
    globfree(&found);
    if (!handle)
        return fail(folder, dlerror());
    const struct {
        const char *name;
        void *slot;
    } symbols[] = {
        {"ggml_backend_load_all_from_path", &api.load_backends},
        {"llama_log_set", &api.log_set},
        {"llama_backend_init", &api.init},
        {"llama_model_default_params", &api.model_defaults},
        {"llama_context_default_params", &api.context_defaults},
        {"llama_model_load_from_file", &api.model_load},
        {"llama_init_from_model", &api.context_new},
        {"llama_model_get_vocab", &api.vocab},
        {"llama_vocab_n_tokens", &api.n_vocab},
        {"llama_decode", &api.decode},
        {"llama_get_logits_ith", &api.logits_at},
        {"llama_get_memory", &api.memory},
        {"llama_memory_clear", &api.memory_clear},
        {"llama_synchronize", &api.synchronize},
        {"llama_free", &api.context_free},
        {"llama_model_free", &api.model_free},
        {"llama_model_quantize_default_params", &api.quantize_defaults},
        {"llama_model_quantize", &api.quantize},
        {"gguf_init_from_file", &api.gguf_open},
        {"gguf_get_n_tensors", &api.gguf_n_tensors},
        {"gguf_get_tensor_name", &api.gguf_tensor_name},
        {"ggml_get_tensor", &api.tensor},
        {"ggml_nelements", &api.tensor_size},
        {"ggml_get_data_f32", &api.tensor_data},
    };
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *p = dlsym(handle, symbols[i].name);
        if (!p)
            return fail(symbols[i].name, "the library has no such function");
        memcpy(symbols[i].slot, &p, sizeof(p));
    }
    api.log_set(on_log, NULL);
    api.load_backends(folder);
    api.init();
    struct model_params m = api.model_defaults();
    struct context_params c = api.context_defaults();
    struct quantize_params q = api.quantize_defaults();
    if (m.n_gpu_layers != -1 || m.split_mode != 1 || !m.use_extra_bufts || m.load_mtp || c.n_ctx != 512 || c.n_batch != 2048 ||
        c.n_ubatch != 512 || c.n_seq_max != 1 || c.n_outputs_max_per_seq != 1 || c.type_k != 1 || c.type_v != 1 || !c.swa_full ||
        c.other || q.file_type != 7 || !q.quantize_output || q.pure || q.imatrix || !q.max_buffer)
        return fail(folder, "the library's defaults are not those of llama.cpp v0.5.0; its structs have another layout");
    return 0;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* "2,17,5" or @file with ids separated by commas or white space. */
static int parse_ids(const char *text, int32_t **ret, int *ret_n)
{
    char *content = NULL;
    size_t size = 0;
    if (*text == '@') {
        FILE *f = fopen(text + 1, "r");
        if (!f || getdelim(&content, &size, 0, f) < 0)
            return fail(text + 1, strerror(errno));
        fclose(f);
    } else {
        content = strdup(text);
    }
    int n = 0;
    int32_t *ids = malloc((strlen(content) + 1) * sizeof(*ids));
    char *save = NULL;
    for (char *p = strtok_r(content, ", \t\n", &save); p; p = strtok_r(NULL, ", \t\n", &save))
        ids[n++] = atoi(p);
    free(content);
    *ret = ids;
    *ret_n = n;
    return n ? 0 : fail(text, "no token ids");
}

enum want { WANT_LAST, WANT_ALL };

static int decode(void *context, int32_t *ids, int n, int pos0, enum want want)
{
    int32_t *pos = malloc((size_t)n * sizeof(*pos)), *n_seq = malloc((size_t)n * sizeof(*n_seq)), zero = 0;
    int32_t **seq = malloc((size_t)n * sizeof(*seq));
    int8_t *logits = malloc((size_t)n);
    for (int i = 0; i < n; i++) {
        pos[i] = pos0 + i;
        n_seq[i] = 1;
        seq[i] = &zero;
        logits[i] = want == WANT_ALL || i == n - 1;
    }
    int r = api.decode(context, (struct batch){n, ids, NULL, pos, n_seq, seq, logits});
    free(pos);
    free(n_seq);
    free(seq);
    free(logits);
    return r ? fail("llama_decode", "failed") : 0;
}

static int argmax(const float *v, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = v[i] > v[best] ? i : best;
    return best;
}

/* Greedy continuation with the gap between the two best logits at each step. */
static int run_generate(void *context, int n_vocab, int32_t *ids, int n, int n_new)
{
    if (decode(context, ids, n, 0, WANT_LAST))
        return -1;
    printf("{\"steps\": [");
    for (int i = 0; i < n_new; i++) {
        const float *l = api.logits_at(context, -1);
        int32_t id = argmax(l, n_vocab);
        float second = -1e30f;
        for (int j = 0; j < n_vocab; j++)
            second = j != id && l[j] > second ? l[j] : second;
        printf("%s[%d, %.6f]", i ? ", " : "", id, (double)(l[id] - second));
        if (i + 1 < n_new && decode(context, &id, 1, n + i, WANT_LAST))
            return -1;
    }
    printf("]}\n");
    return 0;
}

static int run_logits(void *context, int n_vocab, int32_t *ids, int n, const char *out)
{
    FILE *f = fopen(out, "wb");
    if (!f)
        return fail(out, strerror(errno));
    for (int i = 0; i < n; i += 32) {
        int count = n - i < 32 ? n - i : 32;
        if (decode(context, ids + i, count, i, WANT_ALL))
            return -1;
        for (int j = 0; j < count; j++) {
            if (fwrite(api.logits_at(context, j), sizeof(float), (size_t)n_vocab, f) != (size_t)n_vocab)
                return fail(out, strerror(errno));
        }
    }
    if (fclose(f))
        return fail(out, strerror(errno));
    printf("{\"tokens\": %d, \"vocab\": %d}\n", n, n_vocab);
    return 0;
}

/* One warm-up, then `repetitions` timed runs each of a prompt of n_prompt and of n_gen single tokens. */
static int run_bench(void *context, int n_vocab, int n_prompt, int n_gen, int repetitions)
{
    int most = n_prompt > n_gen ? n_prompt : n_gen;
    int32_t *ids = malloc((size_t)most * sizeof(*ids));
    srand(1);
    for (int i = 0; i < most; i++)
        ids[i] = n_vocab / 4 + rand() % (n_vocab / 2);
    const char *separator = "{";
    for (int phase = 0; phase < 2; phase++) {
        int n = phase ? n_gen : n_prompt;
        printf("%s\"%s\": [", separator, phase ? "tg" : "pp");
        for (int r = -1; n && r < repetitions; r++) {
            api.memory_clear(api.memory(context), true);
            double start = now();
            for (int i = 0; i < n; i += phase ? 1 : n) {
                if (decode(context, ids + i, phase ? 1 : n, i, WANT_LAST))
                    return -1;
                if (phase)
                    api.synchronize(context);
            }
            api.synchronize(context);
            if (r >= 0)
                printf("%s%.3f", r ? ", " : "", n / (now() - start));
        }
        printf("]");
        separator = ", ";
    }
    printf("}\n");
    free(ids);
    return 0;
}

/* An importance matrix file by the library's own GGUF reader, as means per column; it lives as long as the process. The mean is
 * what llama-quantize passes on (tools/quantize/quantize.cpp). */
static struct imatrix_data *read_imatrix(const char *path)
{
    static const char suffix[] = ".in_sum2";
    void *tensors = NULL, *gguf = api.gguf_open(path, (struct gguf_params){false, &tensors});
    int64_t n_tensors = gguf ? api.gguf_n_tensors(gguf) : 0;
    struct imatrix_data *list = calloc((size_t)n_tensors + 1, sizeof(*list));
    size_t n = 0;
    for (int64_t i = 0; i < n_tensors; i++) {
        const char *name = api.gguf_tensor_name(gguf, i);
        size_t length = strlen(name);
        if (length < sizeof(suffix) || strcmp(name + length - strlen(suffix), suffix))
            continue;
        char counts_name[256], *matrix = strndup(name, length - strlen(suffix));
        snprintf(counts_name, sizeof(counts_name), "%s.counts", matrix);
        void *sums = api.tensor(tensors, name), *counts = api.tensor(tensors, counts_name);
        if (!counts || api.tensor_size(counts) != 1) {
            fail(counts_name, "expected a tensor of one number");
            return NULL;
        }
        float *data = api.tensor_data(sums), count = *api.tensor_data(counts);
        list[n] = (struct imatrix_data){matrix, data, (size_t)api.tensor_size(sums)};
        for (size_t j = 0; j < list[n].size; j++)
            data[j] = count > 0 ? data[j] / count : 1;
        n++;
    }
    if (!n)
        fail(path, "no importance matrix");
    return n ? list : NULL;
}

/* Its own quantizer. imatrix: a file, or NULL. */
static int run_quantize(const char *in, const char *type, const char *out, int n_threads, bool pure, const char *imatrix)
{
    static const struct {
        const char *name;
        int32_t file_type;
    } types[] = {{"f32", 0},  {"f16", 1},     {"q4_0", 2},    {"q4_1", 3},  {"q8_0", 7}, {"q5_0", 8},
                 {"q5_1", 9}, {"q4_k_m", 15}, {"q5_k_m", 17}, {"q6_k", 18}, {"bf16", 32}};
    struct quantize_params q = api.quantize_defaults();
    size_t i = 0, n = sizeof(types) / sizeof(types[0]);
    while (i < n && strcmp(types[i].name, type))
        i++;
    if (i == n)
        return fail(type, "not a type that is known here");
    q.n_threads = n_threads;
    q.file_type = types[i].file_type;
    q.pure = pure;
    q.imatrix = imatrix ? read_imatrix(imatrix) : NULL;
    if (imatrix && !q.imatrix)
        return -1;
    if (api.quantize(in, out, &q))
        return fail(in, "the peer does not quantize it");
    printf("{\"type\": \"%s\", \"pure\": %s}\n", type, pure ? "true" : "false");
    return 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: peer LIBRARY_FOLDER MODEL.gguf THREADS KV_TYPE(0 f32, 1 f16) COMMAND\n"
                    "  generate IDS COUNT        greedy token ids and top-two gaps\n"
                    "  logits IDS OUT            f32, tokens x vocabulary\n"
                    "  bench PROMPT GEN REPEAT   tokens/s of each repetition\n"
                    "  quantize TYPE OUT pure|mixed [IMATRIX.gguf]    another GGUF file; KV_TYPE does not count\n"
                    "IDS: 2,17,5 or @file\n");
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 7)
        return usage();
    const char *command = argv[5];
    bool generate = !strcmp(command, "generate"), logits = !strcmp(command, "logits"), bench = !strcmp(command, "bench");
    if (!strcmp(command, "quantize")) {
        bool pure = argc > 8 && !strcmp(argv[8], "pure");
        if (argc < 9 || argc > 10 || (!pure && strcmp(argv[8], "mixed")))
            return usage();
        return load_library(argv[1]) || run_quantize(argv[2], argv[6], argv[7], atoi(argv[3]), pure, argv[9]) ? 1 : 0;
    }
    if (!(generate || logits || bench) || argc != (bench ? 9 : 8))
        return usage();
    int32_t *ids = NULL;
    int n = 0;
    if (load_library(argv[1]) || (!bench && parse_ids(argv[6], &ids, &n)))
        return 1;
    struct model_params mp = api.model_defaults();
    mp.n_gpu_layers = 0;
    if (getenv("TANDEM_PEER_NO_REPACK")) /* repacked weights are memory of its own beside the mapped file */
        mp.use_extra_bufts = false;
    void *model = api.model_load(argv[2], mp);
    if (!model)
        return fail(argv[2], "the peer does not load it"), 1;
    int n_vocab = api.n_vocab(api.vocab(model));
    int room = bench ? (atoi(argv[6]) > atoi(argv[7]) ? atoi(argv[6]) : atoi(argv[7])) : n + (generate ? atoi(argv[7]) : 0);
    struct context_params cp = api.context_defaults();
    cp.n_ctx = (uint32_t)room + 1;
    cp.n_batch = bench ? 2048 : (uint32_t)(generate ? n : 32);
    cp.n_threads = cp.n_threads_batch = atoi(argv[3]);
    cp.type_k = cp.type_v = atoi(argv[4]);
    cp.flash_attention = bench ? -1 : 0;
    cp.swa_full = false;
    cp.n_outputs_max_per_seq = logits ? 0 : 1;
    cp.offload_kqv = cp.op_offload = false;
    void *context = api.context_new(model, cp);
    if (!context)
        return fail(argv[2], "the peer makes no context"), 1;
    int r = generate ? run_generate(context, n_vocab, ids, n, atoi(argv[7]))
            : logits ? run_logits(context, n_vocab, ids, n, argv[7])
                     : run_bench(context, n_vocab, atoi(argv[6]), atoi(argv[7]), atoi(argv[8]));
    free(ids);
    api.context_free(context);
    api.model_free(model);
    return r ? 1 : 0;
}

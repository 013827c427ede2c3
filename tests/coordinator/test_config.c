/* SPDX-License-Identifier: MIT
 * The configuration: a table of files that load and of files that must be refused, each with the sentence a user then reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/config.h"
#include "proto/err.h"
#include "proto/util.h"

static char dir[64], path[80];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/tandem-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/c.yaml", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

static int load_bytes(const char *text, size_t n, const char *set, struct config **ret, struct err *err)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    return config_load(path, &set, set ? 1 : 0, ret, err);
}

static struct config *load(const char *text, const char *set)
{
    struct err err = {0};
    struct config *c = NULL;
    if (load_bytes(text, strlen(text), set, &c, &err) < 0)
        fail_msg("'%s': %s", text, err.text);
    return c;
}

static void test_spawn(void **state)
{
    (void)state;
    struct config *c = load("model: a\n", NULL);
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        assert_true(c->spawn[i]);
    assert_string_equal(c->stage_socket, "");
    config_free(c);
    c = load("model: a\nloader: {spawn: false}\nnpu: {spawn: true}\nstage_socket: run/s\n", "gpu.spawn=false");
    assert_false(c->spawn[CONFIG_LOADER]);
    assert_true(c->spawn[CONFIG_NPU]);
    assert_false(c->spawn[CONFIG_GPU]);
    char want[128];
    snprintf(want, sizeof(want), "%s/run/s", dir);
    assert_string_equal(c->stage_socket, want);
    config_free(c);
}

static void test_defaults(void **state)
{
    (void)state;
    struct config *c = load("model: sub/a.gguf\n", NULL);
    char model[128];
    snprintf(model, sizeof(model), "%s/sub/a.gguf", dir);
    assert_string_equal(c->model, model);
    assert_string_equal(c->path, path);
    assert_int_equal(c->context, 2048);
    assert_int_equal(c->sequences, 4);
    assert_int_equal(c->chunk_tokens, 0);
    assert_int_equal(c->kv_type, 1);
    assert_true(c->pin_threads);
    assert_true(c->sandbox);
    assert_true(c->checksums);
    assert_int_equal(c->stream_slots, 0);
    assert_int_equal(c->npu.streamed, CONFIG_AUTO);
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        assert_int_equal(c->caps[i], 0);
    assert_string_equal(c->npu.backend, "auto");
    assert_int_equal(c->npu.memory, 0);
    assert_int_equal(c->npu.threads, 0);
    assert_int_equal(c->gpu.memory, 0);
    config_free(c);
}

static void test_all_keys(void **state)
{
    (void)state;
    struct config *c =
        load("# comment\nmodel: /m/a.gguf\ncontext: 1048576\nsequences: 64\nchunk_tokens: 1024\nkv_type: f32\npin_threads: "
             "off\nsandbox: off\n"
             "memory: {coordinator: 256MiB, loader: 512MiB, npu_worker: 2560MiB, gpu_worker: 1GiB}\n"
             "npu: {backend: cpu, memory: 3GiB, threads: 7}\ngpu:\n  backend: auto\n  memory: auto\n  threads: auto\n"
             "http: {listen: '[::1]:0', api_key_file: /k, tls_cert: /c, tls_key: k, cors: '*', model_name: m, insecure: true, "
             "max_body: 64MiB, max_connections: 4096, max_queue: 1, timeout: 1, request_timeout: 86400}\n",
             NULL);
    assert_string_equal(c->http.listen, "[::1]:0");
    assert_string_equal(c->http.api_key_file, "/k");
    assert_string_equal(c->http.tls_cert, "/c");
    assert_string_equal(strrchr(c->http.tls_key, '/'), "/k");
    assert_string_equal(c->http.cors, "*");
    assert_string_equal(c->http.model_name, "m");
    assert_true(c->http.insecure);
    assert_int_equal(c->http.max_body, 64u << 20);
    assert_int_equal(c->http.max_connections, 4096);
    assert_int_equal(c->http.max_queue, 1);
    assert_int_equal(c->http.timeout, 1);
    assert_int_equal(c->http.request_timeout, 86400);
    assert_string_equal(c->model, "/m/a.gguf");
    assert_int_equal(c->context, 1048576);
    assert_int_equal(c->sequences, 64);
    assert_int_equal(c->chunk_tokens, 1024);
    assert_int_equal(c->kv_type, 0);
    assert_false(c->pin_threads);
    assert_false(c->sandbox);
    assert_int_equal(c->caps[CONFIG_COORDINATOR], 256ull << 20);
    assert_int_equal(c->caps[CONFIG_LOADER], 512ull << 20);
    assert_int_equal(c->caps[CONFIG_NPU], 2560ull << 20);
    assert_int_equal(c->caps[CONFIG_GPU], 1ull << 30);
    assert_string_equal(c->npu.backend, "cpu");
    assert_int_equal(c->npu.memory, 3ull << 30);
    assert_int_equal(c->npu.threads, 7);
    assert_int_equal(c->gpu.memory, 0);
    assert_int_equal(c->gpu.threads, 0);
    config_free(c);
}

static void test_overrides(void **state)
{
    (void)state;
    static const char *const sets[] = {"gpu.threads=3",      "context=5",   "gpu.threads=4", "memory=auto",
                                       "memory.loader=7MiB", "kv_type=f32", "model=b=c.gguf"};
    struct config *c = load("model: a\nmemory: {npu_worker: 9MiB}\ngpu: {threads: 2}\n", NULL);
    config_free(c);
    assert_int_equal(config_load(path, sets, (int)ARRAY_LEN(sets), &c, NULL), 0);
    assert_int_equal(c->gpu.threads, 4);
    assert_int_equal(c->context, 5);
    assert_int_equal(c->caps[CONFIG_NPU], 0);
    assert_int_equal(c->caps[CONFIG_LOADER], 7u << 20);
    assert_int_equal(c->kv_type, 0);
    assert_non_null(strstr(c->model, "/b=c.gguf"));
    config_free(c);
}

static void test_kv_types(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int id;
    } types[] = {{"model: a\nkv_type: f32\n", 0}, {"model: a\nkv_type: f16\n", 1}, {"model: a\nkv_type: q8_0\n", 8}};
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        struct config *c = load(types[i].text, NULL);
        assert_int_equal(c->kv_type, types[i].id);
        config_free(c);
    }
}

static void test_sample_is_the_defaults(void **state)
{
    (void)state;
    char text[4096];
    config_sample("it's.gguf", text, sizeof(text));
    struct config *s = load(text, NULL), *d = load("model: \"it's.gguf\"\n", NULL);
    assert_string_equal(s->model, d->model);
    assert_int_equal(s->context, d->context);
    assert_int_equal(s->sequences, d->sequences);
    assert_int_equal(s->chunk_tokens, d->chunk_tokens);
    assert_int_equal(s->kv_type, d->kv_type);
    assert_int_equal(s->pin_threads, d->pin_threads);
    assert_int_equal(s->sandbox, d->sandbox);
    assert_int_equal(s->checksums, d->checksums);
    assert_memory_equal(s->caps, d->caps, sizeof(s->caps));
    assert_memory_equal(&s->npu, &d->npu, sizeof(s->npu));
    assert_memory_equal(&s->gpu, &d->gpu, sizeof(s->gpu));
    assert_memory_equal(&s->http, &d->http, sizeof(s->http));
    config_free(s);
    config_free(d);
}

static const struct bad {
    const char *text, *set, *expected;
} bad[] = {
    {"", NULL, "line 1: expected one mapping"},
    {"context: 3\n", NULL, "key 'model' is missing; expected 'model: FILE.gguf'"},
    {"model:\n", NULL, "line 1: key 'model': found ''; expected the path"},
    {"model: a\nmodle: b\n", NULL, "line 2: unknown key 'modle'; did you mean 'model'?"},
    {"model: a\nnpu: {treads: 3}\n", NULL,
     "line 2: unknown key 'npu.treads'; did you mean 'npu.threads'? (known: spawn, backend, memory, threads, streamed, manifest, "
     "device, many, timeout_ms)"},
    {"model: a\n\nzzzzz: 3\n", NULL,
     "line 3: unknown key 'zzzzz'; expected one of model, context, sequences, chunk_tokens, kv_type, pin_threads, sandbox, "
     "checksums, stream_slots, memory, loader, npu, gpu"},
    {"model: a\nthreads: 3\n", NULL, "did you mean 'npu.threads'"},
    {"model: a\nmodel: b\n", NULL, "line 2: key 'model' is given twice, first in line 1"},
    {"model: a\nmemory: {loader: 3MiB}\nmemory: auto\n", NULL, "line 3: key 'memory' is given twice, first in line 2"},
    {"model: a\nmemory: auto\nmemory: {loader: 3MiB}\n", NULL, "line 3: key 'memory' is given twice, first in line 2"},
    {"model: a\nnpu: {threads: 1}\nnpu: {threads: 1}\n", NULL, "line 3: key 'npu' is given twice"},
    {"model: a\ncontext: 0\n", NULL, "line 2: key 'context': found '0'; expected a whole number from 1 to 1048576"},
    {"model: a\ncontext: 1048577\n", NULL, "found '1048577'"},
    {"model: a\ncontext: 99999999999999999999999\n", NULL, "expected a whole number from 1 to 1048576"},
    {"model: a\ncontext: 2e3\n", NULL, "found '2e3'"},
    {"model: a\ncontext: -1\n", NULL, "found '-1'"},
    {"model: a\ncontext: auto\n", NULL, "found 'auto'"},
    {"model: a\nsequences: 65\n", NULL, "expected a whole number from 1 to 64"},
    {"model: a\nchunk_tokens: 1025\n", NULL, "expected auto or a whole number from 1 to 1024"},
    {"model: a\nkv_type: q4_0\n", NULL, "key 'kv_type': found 'q4_0'; expected f32, f16 or q8_0"},
    {"model: a\nstream_slots: 1\n", NULL, "found '1'; expected auto or a whole number from 2 to 8"},
    {"model: a\nnpu: {streamed: 513}\n", NULL, "found '513'; expected auto or a number of layers from 0 to 512"},
    {"model: a\npin_threads: on\n", NULL, "found 'on'; expected auto or off"},
    {"model: a\nsandbox: strict\n", NULL, "key 'sandbox': found 'strict'; expected auto or off"},
    {"model: a\nkv_type: f17\n", NULL, "found 'f17'; expected f32, f16 or q8_0"},
    {"model: a\nnpu: {many: 0}\n", NULL, "line 2: key 'npu.many': found '0'; expected auto or a number of tokens from 1 to 4096"},
    {"model: a\nnpu: {device: 16}\n", NULL, "key 'npu.device': found '16'; expected a number of npu_worker --list-devices"},
    {"model: a\nnpu: {backend: vulkan}\n", NULL, "key 'npu.backend': found 'vulkan'; expected auto, xrt or cpu"},
    {"model: a\ngpu: {backend: cuda}\n", NULL, "key 'gpu.backend': found 'cuda'; expected auto, vulkan or cpu"},
    {"model: a\ngpu: {device: ''}\n", NULL, "key 'gpu.device': found ''; expected auto, a number"},
    {"model: a\ngpu: {allow_cpu_device: maybe}\n", NULL, "found 'maybe'; expected true or false"},
    {"model: a\ngpu: {subgroup: 3}\n", NULL, "key 'gpu.subgroup': found '3'; expected auto or a number of lanes from 4 to 128"},
    {"model: a\ngpu: {many: 5000}\n", NULL, "key 'gpu.many': found '5000'; expected auto or a number of tokens from 1 to 4096"},
    {"model: a\ngpu: {max_buffer: 1KiB}\n", NULL, "key 'gpu.max_buffer': found '1KiB'; expected a size from 1MiB to 256TiB"},
    {"model: a\nnpu: {validate: true}\n", NULL, "unknown key 'npu.validate'; did you mean 'gpu.validate'"},
    {"model: a\nnpu: {spawn: maybe}\n", NULL, "line 2: key 'npu.spawn': found 'maybe'; expected true or false"},
    {"model: a\nloader: {spawn: 0}\n", NULL, "line 2: key 'loader.spawn': found '0'; expected true or false"},
    {"model: a\nloader: false\n", NULL, "key 'loader' has a single value; expected a mapping with any of spawn"},
    {"model: a\nloader: {spwan: true}\n", NULL, "did you mean 'loader.spawn'"},
    {"model: a\nloader: {spawn: true}\nloader: {spawn: true}\n", NULL, "line 3: key 'loader' is given twice, first in line 2"},
    {"model: a\nstage_socket: [x]\n", NULL, "key 'stage_socket' has a list; expected the path of a socket"},
    {"model: a\nhttp: {listen: ''}\n", NULL, "line 2: key 'http.listen': found ''; expected none, or address and port"},
    {"model: a\nhttp: {max_body: 65MiB}\n", NULL, "key 'http.max_body': found '65MiB'; expected a size from 1KiB to 64MiB"},
    {"model: a\nhttp: {max_body: 1023}\n", NULL, "key 'http.max_body': found '1023'; expected a size from 1KiB to 64MiB"},
    {"model: a\nhttp: {timeout: 0}\n", NULL, "key 'http.timeout': found '0'; expected seconds from 1 to 86400"},
    {"model: a\nhttp: {listn: none}\n", NULL, "did you mean 'http.listen'"},
    {"model: a\nhttp: {cors: none}\nhttp: {cors: none}\n", NULL, "line 3: key 'http' is given twice, first in line 2"},
    {"model: a\nnpu: cpu\n", NULL, "key 'npu' has a single value; expected a mapping with any of spawn, backend, memory, threads"},
    {"model: a\nmemory: 2GiB\n", NULL, "key 'memory': found '2GiB'; expected auto, or a mapping"},
    {"model: a\nmemory: [1]\n", NULL, "key 'memory' has a list"},
    {"model: a\nmemory: {loader: 5}\n", NULL, "key 'memory.loader': found '5'; expected a size from 1MiB to 256TiB"},
    {"model: a\nmemory: {loader: 5 parsec}\n", NULL, "found '5 parsec'"},
    {"model: a\nmemory: {loader: 99999999999GiB}\n", NULL, "key 'memory.loader'"},
    {"model: a\nmemory: {loadr: 5GiB}\n", NULL, "did you mean 'memory.loader'"},
    {"model: {a: b}\n", NULL, "key 'model' has a mapping"},
    {"model: a\nnpu: {backend: {x: y}}\n", NULL, "key 'npu.backend' has a mapping; expected auto, xrt or cpu"},
    {"model: a\n? [x]\n: y\n", NULL, "found a list or mapping as key"},
    {"model: &a b\ncontext: *a\n", NULL, "line 1: found an anchor"},
    {"model: a\ncontext: *a\n", NULL, "line 2: found an alias"},
    {"model: !!binary a\n", NULL, "found a tag"},
    {"model: \"a\\0b\"\n", NULL, "found a NUL byte"},
    {"model: a\n--- \nb: c\n", NULL, "line 2: expected the end of the file"},
    {"- model\n", NULL, "expected one mapping"},
    {"model\n", NULL, "expected one mapping"},
    {"model: a\n\tb: c\n", NULL, "line 2, column 1: not valid YAML"},
    {"model: 'a\n", NULL, "not valid YAML"},
    {"\xff\xfe\x01", NULL, "expected YAML in UTF-8"},
    {"model: a\x01\n", NULL, "expected YAML in UTF-8"},
    {"\x7f"
     "ELF\x02\x01\x01",
     NULL, "expected YAML in UTF-8"},
    {"model: a\n", "context", "--set 'context': expected key=value"},
    {"model: a\n", "=3", "expected key=value"},
    {"model: a\n", "context=0", "--set 'context=0': key 'context': found '0'; expected a whole number from 1 to 1048576"},
    {"model: a\n", "npu=3", "key 'npu' has keys below it"},
    {"model: a\n", "http=3", "as http.KEY=VALUE (known: listen, "},
    {"model: a\n", "memory={total: 4GiB}",
     "key 'memory' has keys below it; expected one of them at a time, as memory.KEY=VALUE (known: total"},
    {"model: a\n", "memory.total=257TiB", "found '257TiB'; expected a size from 1MiB to 256TiB"},
    {"model: a\n", "npu.memory=18446744073709551615", "expected a size from 1MiB to 256TiB"},
    {"model: a\n", "http.max_queue=0", "key 'http.max_queue': found '0'; expected a whole number from 1 to 4096"},
    {"model: a\n", "gpu.bakend=cpu", "did you mean 'gpu.backend'"},
    {"model: a\n", "gpu.backend=metal", "found 'metal'; expected auto, vulkan or cpu"},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct err err = {0};
        struct config *c;
        int r = load_bytes(bad[i].text, strlen(bad[i].text), bad[i].set, &c, &err);
        if (r != -EINVAL || r != err.code || !strstr(err.text, bad[i].expected))
            fail_msg("case %zu: %d '%s'; expected '%s'", i, r, r < 0 ? err.text : "loaded", bad[i].expected);
        if (!bad[i].set && !strstr(err.text, path))
            fail_msg("case %zu: '%s' does not name the file", i, err.text);
    }
}

static void test_files(void **state)
{
    (void)state;
    struct err err = {0};
    struct config *c;
    assert_int_equal(config_load("/nonexistent/c.yaml", NULL, 0, &c, &err), -ENOENT);
    assert_non_null(strstr(err.text, "config '/nonexistent/c.yaml': cannot be opened"));
    assert_int_equal(config_load(dir, NULL, 0, &c, &err), -EISDIR);
    char *big = malloc(65537);
    memset(big, '#', 65537);
    memcpy(big + 65527, "\nmodel: a", 9);
    assert_int_equal(load_bytes(big, 65536, NULL, &c, &err), 0);
    config_free(c);
    assert_int_equal(load_bytes(big, 65537, NULL, &c, &err), -EFBIG);
    free(big);
}

/* Nesting, and random damage to a good file: an error or a configuration, nothing else. */
static void test_hostile(void **state)
{
    (void)state;
    struct err err = {0};
    struct config *c;
    char deep[60000];
    memset(deep, '[', sizeof(deep));
    memcpy(deep, "model: ", 7);
    assert_int_equal(load_bytes(deep, sizeof(deep), NULL, &c, &err), -EINVAL);
    memset(deep + 7, '{', sizeof(deep) - 7);
    assert_int_equal(load_bytes(deep, sizeof(deep), NULL, &c, &err), -EINVAL);

    char good[4096], text[4096];
    config_sample("m.gguf", good, sizeof(good));
    size_t n = strlen(good);
    uint32_t x = 7;
    unsigned loaded = 0, refused = 0;
    for (int i = 0; i < 2000; i++) {
        memcpy(text, good, n);
        for (int k = 0; k < 3; k++) {
            x = x * 1664525u + 1013904223u;
            text[(x >> 8) % n] = (char)(x >> 24);
        }
        int r = load_bytes(text, n, NULL, &c, &err);
        if (r == 0)
            config_free(c);
        ++*(r == 0 ? &loaded : &refused);
    }
    assert_true(loaded > 10 && refused > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spawn),    cmocka_unit_test(test_defaults),  cmocka_unit_test(test_all_keys),
        cmocka_unit_test(test_kv_types), cmocka_unit_test(test_overrides), cmocka_unit_test(test_sample_is_the_defaults),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_files),     cmocka_unit_test(test_hostile),
    };
    return cmocka_run_group_tests_name("config", tests, setup, teardown);
}

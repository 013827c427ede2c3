/* SPDX-License-Identifier: MIT
 * The commands on an engine whose logits and tokens are known in advance (fake_engine.c): what they submit, what they print, and
 * that nothing is left behind when the engine fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/commands.h"
#include "coordinator/tokenizer.h"
#include "model/gguf.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/util.h"
#include "tests/coordinator/fake_engine.h"
#include "tests/coordinator/vocab_file.h"

static char dir[64], vocab_path[96], out_path[96], in_path[96], npy_path[96];
static struct gguf *gguf;
static struct tokenizer *tok;
static struct config config;

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/tandem-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(vocab_path, sizeof(vocab_path), "%s/vocab.gguf", dir);
    snprintf(out_path, sizeof(out_path), "%s/out", dir);
    snprintf(in_path, sizeof(in_path), "%s/in", dir);
    snprintf(npy_path, sizeof(npy_path), "%s/o.npy", dir);
    struct vocab v = vocab_of_model(TANDEM_SOURCE_DIR "/models/demo/tokenizer.model");
    vocab_write(&v, vocab_path);
    vocab_free(&v);
    config.model = vocab_path;
    config.context = 2048;
    assert_int_equal(gguf_open(vocab_path, false, &gguf, NULL), 0);
    assert_int_equal(tokenizer_open(gguf, &tok, NULL), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_close(tok);
    gguf_close(gguf);
    unlink(vocab_path);
    unlink(out_path);
    unlink(in_path);
    return rmdir(dir); /* fails when a command left a file */
}

static void write_input(const char *text)
{
    FILE *f = fopen(in_path, "wb");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static char *read_whole(const char *path, size_t *ret_n)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    assert_int_equal(fstat(fd, &st), 0);
    char *data = calloc(1, (size_t)st.st_size + 1);
    assert_int_equal(read(fd, data, (size_t)st.st_size), st.st_size);
    close(fd);
    if (ret_n)
        *ret_n = (size_t)st.st_size;
    return data;
}

/* Run a command line with standard output into a file and standard input from in_path; *ret_text is what was printed. */
static int run(char *const *words, char **ret_text, int *ret_signal, struct err *err)
{
    char *argv[32] = {(char *)(uintptr_t) "coordinator", (char *)(uintptr_t) "--config", (char *)(uintptr_t) "f"};
    int argc = 3, signal_number = 0;
    struct options o;
    while (*words)
        argv[argc++] = *words++;
    argv[argc] = NULL;
    int r = options_parse(&o, argc, argv, err);
    if (r < 0)
        fail_msg("%s", err->text);
    fflush(stdout);
    int saved_out = dup(STDOUT_FILENO), saved_in = dup(STDIN_FILENO);
    int out = open(out_path, O_RDWR | O_CREAT | O_TRUNC, 0600), in = open(in_path, O_RDONLY | O_CREAT, 0600);

    dup2(out, STDOUT_FILENO);
    dup2(in, STDIN_FILENO);
    r = commands_run(&o, &config, gguf, &signal_number, err);
    fflush(stdout);
    dup2(saved_out, STDOUT_FILENO);
    dup2(saved_in, STDIN_FILENO);
    close(saved_out);
    close(saved_in);
    close(out);
    close(in);
    options_free(&o);
    if (ret_signal)
        *ret_signal = signal_number;
    *ret_text = read_whole(out_path, NULL);
    return r;
}

#define RUN(text, err, ...) run((char *[]){__VA_ARGS__, NULL}, text, NULL, err)
#define W(s) ((char *)(uintptr_t)(s))

static json_t *run_json(char *const *words)
{
    struct err err = {0};
    json_error_t e;
    char *text;
    if (run(words, &text, NULL, &err) < 0)
        fail_msg("%s", err.text);
    json_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &e);
    if (!j)
        fail_msg("not JSON: '%s'", text);
    free(text);
    return j;
}
#define RUN_JSON(...) run_json((char *[]){__VA_ARGS__, NULL})

static void expect_near(double found, double expected)
{
    if (!(fabs(found - expected) < 1e-6))
        fail_msg("found %.9g, expected %.9g", found, expected);
}

static void reset_script(void)
{
    fake_engine_script = (struct fake_engine_script){.tokens = {516, 477, 272, 436, 9}, .n_tokens = 5, .fail_after = -1};
}

static void test_generate_text(void **state)
{
    (void)state;
    char *text;
    struct err err = {0};
    reset_script();
    assert_int_equal(RUN(&text, &err, W("generate"), W("--prompt"), W("Hi")), 0);
    assert_string_equal(text, "Once upon a time\n");
    assert_int_equal(fake_engine_script.last_prompt[0], 2);
    free(text);
    assert_int_equal(RUN(&text, &err, W("generate"), W("--prompt"), W("Hi"), W("--max-tokens"), W("2"), W("--report")), 0);
    assert_ptr_equal(strstr(text, "Once upon\n\n"), text);
    assert_non_null(strstr(text, "answer 2 tokens"));
    assert_non_null(strstr(text, "npu_worker"));
    assert_non_null(strstr(text, "kernel"));
    free(text);
}

static void test_generate_json(void **state)
{
    (void)state;
    reset_script();
    json_t *j = RUN_JSON(W("generate"), W("--ids"), W("2,17,5"), W("--json")), *p = json_object_get(j, "processes"), *t;
    assert_string_equal(json_string_value(json_object_get(j, "text")), "Once upon a time");
    assert_string_equal(json_string_value(json_object_get(j, "finish_reason")), "stop");
    assert_int_equal(json_array_size(json_object_get(j, "prompt_ids")), 3);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(j, "prompt_ids"), 1)), 17);
    assert_int_equal(json_array_size(json_object_get(j, "output_ids")), 4);
    t = json_object_get(j, "timings");
    expect_near(json_real_value(json_object_get(t, "prefill_tokens_per_s")), 3000.0);
    expect_near(json_real_value(json_object_get(t, "decode_tokens_per_s")), 1000.0); /* 4 passes in 4 ms */
    assert_int_equal(json_array_size(p), 4);
    p = json_array_get(p, 2);
    assert_string_equal(json_string_value(json_object_get(p, "name")), "npu_worker");
    assert_int_equal(json_integer_value(json_object_get(p, "peak_bytes")), 900);
    assert_int_equal(json_integer_value(json_object_get(p, "cap_bytes")), 1000);
    assert_true(json_is_true(json_object_get(p, "cap_enforced")));
    assert_true(json_is_true(json_object_get(p, "spawned")));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(p, "budget"), "total")), 11);
    json_decref(j);
}

static void test_generate_parallel(void **state)
{
    (void)state;
    reset_script();
    json_t *j = RUN_JSON(W("generate"), W("--prompt"), W("a"), W("--parallel"), W("3"), W("--json"), W("--max-tokens"), W("2"));
    json_t *list = json_object_get(j, "choices");
    assert_int_equal(json_array_size(list), 3);
    for (size_t i = 0; i < 3; i++) {
        json_t *one = json_array_get(list, i), *ids = json_object_get(one, "output_ids");
        assert_int_equal(json_integer_value(json_object_get(one, "choice")), i);
        assert_int_equal(json_integer_value(json_array_get(ids, 0)), 516 + i);
        assert_string_equal(json_string_value(json_object_get(one, "finish_reason")), "length");
    }
    assert_int_equal(fake_engine_script.n_submitted, 3);
    json_decref(j);
}

static void test_chat_template_and_lines(void **state)
{
    (void)state;
    char *text;
    struct err err = {0};
    uint32_t *ids;
    size_t n;
    struct tokenizer_message m[2] = {{"system", "Be kind."}, {"user", "Tell more"}};
    reset_script();
    assert_int_equal(tokenizer_chat(tok, m, 2, &ids, &n, NULL), 0);
    assert_int_equal(RUN(&text, &err, W("generate"), W("--chat"), W("--system"), W("Be kind."), W("--prompt"), W("Tell more")), 0);
    assert_int_equal(fake_engine_script.n_last_prompt, n);
    assert_memory_equal(fake_engine_script.last_prompt, ids, n * sizeof(*ids));
    free(text);
    reset_script();
    write_input("first\n\n  \nTell more"); /* the last line without a newline; each its own chat */
    assert_int_equal(RUN(&text, &err, W("--system"), W("Be kind.")), 0);
    assert_string_equal(text, "Once upon a time\nOnce upon a time\n");
    assert_int_equal(fake_engine_script.n_submitted, 2);
    assert_int_equal(fake_engine_script.n_last_prompt, n);
    assert_memory_equal(fake_engine_script.last_prompt, ids, n * sizeof(*ids));
    free(text);
    free(ids);
}

static void test_failures(void **state)
{
    (void)state;
    char *text;
    struct err err = {0};
    int signal_number;
    reset_script();
    fake_engine_script.fail_after = 0;
    assert_int_equal(RUN(&text, &err, W("generate"), W("--prompt"), W("Hi"), W("--json")), -EIO);
    assert_string_equal(err.text, "the fake engine failed as told");
    assert_non_null(strstr(text, "\"finish_reason\":\"error\""));
    assert_non_null(strstr(text, "\"error\":\"the fake engine failed as told\""));
    free(text);
    fake_engine_script.fail_after = 0;
    assert_int_equal(RUN(&text, &err, W("eval"), W("--ids"), W("2,3"), W("--logits"), npy_path), -EIO);
    assert_int_equal(access(npy_path, F_OK), -1);
    free(text);
    write_input("Once upon a time there was a girl. She had a cat and a dog and a red kite. ");
    fake_engine_script.fail_after = 1;
    assert_int_equal(RUN(&text, &err, W("perplexity"), W("--file"), in_path, W("--window"), W("8")), -EIO);
    free(text);
    fake_engine_script.fail_after = -1;
    fake_engine_script.signal = 2;
    assert_int_equal(
        run((char *[]){W("generate"), W("--prompt"), W("Hi"), W("--parallel"), W("3"), NULL}, &text, &signal_number, &err), -EINTR);
    assert_int_equal(signal_number, 2);
    free(text);
    reset_script();
    assert_int_equal(RUN(&text, &err, W("perplexity"), W("--file"), in_path, W("--window"), W("65")), -EINVAL);
    assert_non_null(strstr(err.text, "'--window': found 65; expected at most the context of 64"));
    free(text);
    assert_int_equal(RUN(&text, &err, W("perplexity"), W("--file"), W("/nonexistent")), -ENOENT);
    free(text);
    assert_int_equal(RUN(&text, &err, W("bench"), W("--gen-tokens"), W("64")), -EINVAL);
    free(text);
}

static void test_eval(void **state)
{
    (void)state;
    char *text, *data;
    size_t n;
    struct err err = {0};
    float row[2];
    reset_script();
    if (RUN(&text, &err, W("eval"), W("--ids"), W("2,300,17"), W("--logits"), npy_path) < 0)
        fail_msg("%s", err.text);
    free(text);
    data = read_whole(npy_path, &n);
    unlink(npy_path);
    assert_memory_equal(data, "\x93NUMPY\x01\x00", 8);
    assert_non_null(strstr(data + 10, "(3, 4096)"));
    size_t start = n - 3u * FAKE_ENGINE_VOCAB * sizeof(float);
    memcpy(row, data + start + (FAKE_ENGINE_VOCAB + 5) * sizeof(float), sizeof(row));
    assert_true(row[0] == fake_engine_logit(300, 1, 5) && row[1] == fake_engine_logit(300, 1, 6));
    free(data);
}

static double nll(uint32_t token, uint32_t pos, uint32_t target)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < FAKE_ENGINE_VOCAB; i++)
        sum += exp((double)fake_engine_logit(token, pos, i));
    return log(sum) - (double)fake_engine_logit(token, pos, target);
}

/* Both methods, written the other way round: per token of the text, which window and position score it. */
static void test_perplexity(void **state)
{
    (void)state;
    static const char story[] =
        "Once upon a time there was a little girl named Lily. She had a red kite and a big dog. One day they went to the park "
        "and saw a bird. The bird was sad, so they sang a song for it and it was happy again.\n";
    uint32_t *ids;
    size_t n;
    const uint32_t size = 16;
    write_input(story);
    assert_int_equal(tokenizer_encode(tok, story, strlen(story), true, &ids, &n, NULL), 0);
    assert_true(n > 50);
    double sum = 0.0;
    size_t scored = 0;
    for (size_t i = 0; i < n; i++, scored++) {
        uint32_t pos = (uint32_t)(i % (size - 1));
        sum += nll(pos ? ids[i - 1] : 2, pos, ids[i]);
    }
    reset_script();
    json_t *j = RUN_JSON(W("perplexity"), W("--file"), in_path, W("--window"), W("16"), W("--json"));
    assert_int_equal(json_integer_value(json_object_get(j, "scored_tokens")), scored);
    assert_int_equal(json_integer_value(json_object_get(j, "text_tokens")), n);
    assert_true(fabs(json_real_value(json_object_get(j, "mean_nll")) - sum / (double)scored) < 1e-9);
    assert_true(fabs(json_real_value(json_object_get(j, "ppl")) / exp(sum / (double)scored) - 1.0) < 1e-9);
    assert_true(json_real_value(json_object_get(j, "standard_error")) > 0.0);
    assert_true(fake_engine_script.n_at_once >= 2);
    json_decref(j);
    sum = 0.0;
    scored = 0;
    for (size_t i = 0; i < n; i++) { /* ids[i] is element i + 1 of <bos> + ids */
        size_t chunk = (i + 1) / size, in_chunk = (i + 1) % size;
        if (chunk >= (n + 1) / size || in_chunk < size / 2 + 1)
            continue;
        sum += nll(ids[i - 1], (uint32_t)in_chunk - 1, ids[i]);
        scored++;
    }
    j = RUN_JSON(W("perplexity"), W("--file"), in_path, W("--window"), W("16"), W("--method"), W("llama.cpp"), W("--json"));
    assert_int_equal(json_integer_value(json_object_get(j, "scored_tokens")), scored);
    assert_int_equal(scored, (n + 1) / size * (size - 1 - size / 2));
    assert_true(fabs(json_real_value(json_object_get(j, "mean_nll")) - sum / (double)scored) < 1e-9);
    json_decref(j);
    free(ids);
}

static void test_bench(void **state)
{
    (void)state;
    reset_script();
    json_t *j =
        RUN_JSON(W("bench"), W("--prompt-tokens"), W("32"), W("--gen-tokens"), W("4"), W("--repetitions"), W("2"), W("--json"));
    json_t *tests = json_object_get(j, "tests"), *pp = json_array_get(tests, 0), *tg = json_array_get(tests, 1);
    assert_string_equal(json_string_value(json_object_get(pp, "test")), "pp32");
    assert_string_equal(json_string_value(json_object_get(tg, "test")), "tg4");
    expect_near(json_real_value(json_object_get(pp, "tokens_per_s")), 32000.0);
    expect_near(json_real_value(json_object_get(tg, "tokens_per_s")), 4.0 / 5e-3);
    assert_int_equal(json_integer_value(json_object_get(pp, "repetitions")), 2);
    expect_near(json_real_value(json_object_get(pp, "hops_per_chunk")), 7.0);
    expect_near(json_real_value(json_object_get(pp, "hops_per_token")), 7.0 / 32);
    assert_int_equal(fake_engine_script.n_submitted, 6); /* a warm-up and two of each */
    json_decref(j);
}

static void test_tokenize(void **state)
{
    (void)state;
    char *text;
    struct err err = {0};
    reset_script();
    assert_int_equal(RUN(&text, &err, W("tokenize"), W("--text"), W("Once upon")), 0);
    assert_string_equal(text, "516,477\n");
    free(text);
    assert_int_equal(RUN(&text, &err, W("detokenize"), W("--ids"), W("516,477")), 0);
    assert_string_equal(text, "Once upon\n");
    free(text);
    assert_int_equal(RUN(&text, &err, W("detokenize"), W("--ids"), W("4096")), -EINVAL);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate_text),     cmocka_unit_test(test_generate_json),
        cmocka_unit_test(test_generate_parallel), cmocka_unit_test(test_chat_template_and_lines),
        cmocka_unit_test(test_failures),          cmocka_unit_test(test_eval),
        cmocka_unit_test(test_perplexity),        cmocka_unit_test(test_bench),
        cmocka_unit_test(test_tokenize),
    };
    return cmocka_run_group_tests_name("commands", tests, setup, teardown);
}

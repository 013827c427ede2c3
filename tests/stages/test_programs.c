/* SPDX-License-Identifier: MIT
 * The stage programs on their own: what they compute from files, and what they say about bad command lines and bad files (one line,
 * a status, nothing half-written). Starts the real binaries. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/npy.h"
#include "proto/err.h"
#include "proto/util.h"
#include "stage/positions.h"
#include "tests/stages/rig.h"

#define ARGS_MAX 20

static char folder[64], output[8192];

static char *in_folder(const char *name)
{
    static char paths[256][128]; /* more than a test asks for */
    static size_t next;
    char *p = paths[next++ % ARRAY_LEN(paths)];
    snprintf(p, sizeof(paths[0]), "%s/%s", folder, name);
    return p;
}

/* Runs a program to its end; stdout and stderr land in `output`. Arguments end with NULL. */
static int run(const char *program, ...)
{
    char path[4096];
    const char *argv[ARGS_MAX] = {program};
    int pipe_fds[2], status, n = 1;
    va_list ap;
    va_start(ap, program);
    while ((argv[n] = va_arg(ap, const char *)))
        n++;
    va_end(ap);
    snprintf(path, sizeof(path), "%s/%s", TANDEM_BIN_DIR, program);
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pipe_fds[1], 1);
        dup2(pipe_fds[1], 2);
        execv(path, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(pipe_fds[1]);
    size_t used = 0;
    for (ssize_t got; (got = read(pipe_fds[0], output + used, sizeof(output) - 1 - used)) > 0;)
        used += (size_t)got;
    output[used] = '\0';
    close(pipe_fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status))
        fail_msg("%s ended by signal %d: %s", program, WTERMSIG(status), output);
    return WEXITSTATUS(status);
}

/* One line "<program>: error: ..." with the word in it. */
static void said(const char *program, const char *word)
{
    char start[64];
    snprintf(start, sizeof(start), "%s: error: ", program);
    if (strncmp(output, start, strlen(start)) != 0 || strchr(output, '\n') != output + strlen(output) - 1 || !strstr(output, word))
        fail_msg("expected one line from %s with '%s'; got: %s", program, word, output);
}

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/tandem-stages-XXXXXX");
    assert_non_null(mkdtemp(folder));
    FILE *f = fopen(in_folder("c.yaml"), "w");
    fprintf(f, "model: %s\nkv_type: f32\ncontext: 200\n", rig_model_path("tiny-27b-f32"));
    fclose(f);
    float rows[160 * 6];
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        rows[i] = (float)((int)(i * 37 % 101) - 50) / 10.0f;
    assert_int_equal(npy_write(in_folder("x.npy"), rows, 6, 160, NULL), 0);
    assert_int_equal(npy_write(in_folder("wrong.npy"), rows, 6, 100, NULL), 0);
    f = fopen(in_folder("broken.npy"), "w");
    fprintf(f, "this is no array");
    fclose(f);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -r %s", folder);
    return system(command);
}

static void read_npy(const char *name, float **ret, size_t rows, size_t cols)
{
    struct err err = {0};
    size_t r, c;
    if (npy_read(in_folder(name), ret, &r, &c, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(r, rows);
    assert_int_equal(c, cols);
}

static void test_they_compute(void **state)
{
    (void)state;
    struct golden *g = rig_golden("tiny-27b/golden.safetensors");
    size_t n;
    float *want = rig_golden_read(g, "embed", &n), *got;
    float *ids = rig_golden_read(g, "ids", &n);
    char list[64];
    uint32_t first[3];
    memcpy(first, ids, sizeof(first));
    snprintf(list, sizeof(list), "%u,%u,%u", first[0], first[1], first[2]);
    assert_int_equal(run("loader", "--config", in_folder("c.yaml"), "--ids", list, "--out", in_folder("e.npy"), NULL), 0);
    read_npy("e.npy", &got, 3, 160);
    rig_close_to("embed", got, want, 3 * 160, 1e-6f);
    free(got);
    free(want);
    free(ids);

    const char *in = in_folder("in.npy"), *out = in_folder("out.npy"), *config = in_folder("c.yaml");
    want = rig_golden_read(g, "layer.4.ffn", &n);
    assert_int_equal(npy_write(in, want, 100, 160, NULL), 0);
    free(want);
    assert_int_equal(
        run("npu_worker", "--config", config, "--layer", "5", "--in", in, "--out", out, "--set", "chunk_tokens=7", NULL), 0);
    want = rig_golden_read(g, "layer.5.attn", &n);
    read_npy("out.npy", &got, 100, 160);
    rig_close_to("layer 5, attention", got, want, n, 1e-3f);
    free(got);
    assert_int_equal(npy_write(in, want, 100, 160, NULL), 0);
    free(want);
    assert_int_equal(run("gpu_worker", "--config", config, "--layer", "5", "--in", in, "--out", out, NULL), 0);
    want = rig_golden_read(g, "layer.5.ffn", &n);
    read_npy("out.npy", &got, 100, 160);
    rig_close_to("layer 5, FFN", got, want, n, 1e-3f);
    free(got);
    free(want);
    want = rig_golden_read(g, "layer.7.ffn", &n);
    assert_int_equal(npy_write(in, want, 100, 160, NULL), 0);
    free(want);
    assert_int_equal(run("gpu_worker", "--config", config, "--head", "--in", in, "--out", out, NULL), 0);
    want = rig_golden_read(g, "logits", &n);
    read_npy("out.npy", &got, 100, 512);
    rig_close_to("head", got, want, n, 1e-3f);
    free(got);
    free(want);
    rig_golden_close(g);
}

static void test_positions_option(void **state)
{
    (void)state;
    float *plain, *range, *again;
    const char *x = in_folder("x.npy"), *c = in_folder("c.yaml");
    assert_int_equal(run("npu_worker", "--config", c, "--layer", "0", "--in", x, "--out", in_folder("a.npy"), NULL), 0);
    assert_int_equal(
        run("npu_worker", "--config", c, "--layer", "0", "--in", x, "--out", in_folder("b.npy"), "--positions", "0..5", NULL), 0);
    assert_int_equal(
        run("npu_worker", "--config", c, "--layer", "0", "--in", x, "--out", in_folder("d.npy"), "--positions", "0,1,2,1..3", NULL),
        0);
    read_npy("a.npy", &plain, 6, 160);
    read_npy("b.npy", &range, 6, 160);
    read_npy("d.npy", &again, 6, 160);
    assert_memory_equal(plain, range, 6 * 160 * sizeof(float));
    assert_memory_equal(plain, again, 3 * 160 * sizeof(float));
    assert_memory_not_equal(plain + 3 * 160, again + 3 * 160, 160 * sizeof(float));
    free(plain);
    free(range);
    free(again);
    assert_int_equal(
        run("npu_worker", "--config", c, "--layer", "0", "--in", x, "--out", in_folder("z.npy"), "--positions", "0..4", NULL), 1);
    said("npu_worker", "lists 5 positions");
    assert_int_equal(
        run("npu_worker", "--config", c, "--layer", "0", "--in", x, "--out", in_folder("z.npy"), "--positions", "4..9", NULL), 1);
    said("npu_worker", "missing");
    assert_int_equal(
        run("npu_worker", "--config", c, "--layer", "0", "--in", x, "--out", in_folder("z.npy"), "--positions", "0..x", NULL), 1);
    said("npu_worker", "--positions '0..x'");
    assert_int_equal(access(in_folder("z.npy"), F_OK), -1);
}

static void test_dump(void **state)
{
    (void)state;
    static const char *const attn[] = {"in_norm", "q", "k", "v", "q_norm", "k_norm", "heads", "o", "post_attn_norm"};
    static const char *const ffn[] = {"pre_ffn_norm", "gate", "up", "act", "down", "post_ffn_norm"};
    const char *x = in_folder("x.npy"), *c = in_folder("c.yaml");
    struct stat st;
    char name[64];
    assert_int_equal(
        run("npu_worker", "--config", c, "--layer", "1", "--in", x, "--out", in_folder("a.npy"), "--dump", folder, NULL), 0);
    assert_int_equal(
        run("gpu_worker", "--config", c, "--layer", "1", "--in", x, "--out", in_folder("b.npy"), "--dump", folder, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(attn) + ARRAY_LEN(ffn); i++) {
        snprintf(name, sizeof(name), "%s.npy", i < ARRAY_LEN(attn) ? attn[i] : ffn[i - ARRAY_LEN(attn)]);
        assert_int_equal(stat(in_folder(name), &st), 0);
    }
    float *q_norm, *with_dump, *without;
    read_npy("q_norm.npy", &q_norm, 4 * 6, 32);
    free(q_norm);
    assert_int_equal(run("gpu_worker", "--config", c, "--layer", "1", "--in", x, "--out", in_folder("d.npy"), NULL), 0);
    read_npy("b.npy", &with_dump, 6, 160);
    read_npy("d.npy", &without, 6, 160);
    assert_memory_equal(with_dump, without, 6 * 160 * sizeof(float));
    free(with_dump);
    free(without);
    assert_int_equal(
        run("gpu_worker", "--config", c, "--layer", "1", "--in", x, "--out", in_folder("d.npy"), "--dump", "/nonexistent", NULL),
        1);
    said("gpu_worker", "/nonexistent");
}

static void test_bad_files(void **state)
{
    (void)state;
    const char *c = in_folder("c.yaml"), *out = in_folder("none.npy"), *x = in_folder("x.npy");
    static const char *const programs[] = {"npu_worker", "gpu_worker"};
    for (size_t i = 0; i < 2; i++) {
        const char *p = programs[i];
        assert_int_equal(run(p, "--config", c, "--layer", "8", "--in", x, "--out", out, NULL), 1);
        said(p, "expected 0 to 7");
        assert_int_equal(run(p, "--config", c, "--layer", "0", "--in", in_folder("wrong.npy"), "--out", out, NULL), 1);
        said(p, "expected tokens x 160");
        assert_int_equal(run(p, "--config", c, "--layer", "0", "--in", in_folder("broken.npy"), "--out", out, NULL), 1);
        said(p, "broken.npy");
        assert_int_equal(run(p, "--config", c, "--layer", "0", "--in", in_folder("absent.npy"), "--out", out, NULL), 1);
        said(p, "absent.npy");
        assert_int_equal(run(p, "--config", in_folder("absent.yaml"), "--layer", "0", "--in", x, "--out", out, NULL), 1);
        said(p, "absent.yaml");
        assert_int_equal(run(p, "--config", c, "--set", "model=absent.gguf", "--layer", "0", "--in", x, "--out", out, NULL), 1);
        said(p, "absent.gguf");
        assert_int_equal(run(p, "--config", c, "--set", "modle=a", "--layer", "0", "--in", x, "--out", out, NULL), 1);
        said(p, "modle");
        assert_int_equal(run(p, "--config", c, "--layer", "0", "--in", x, "--out", "/nonexistent/o.npy", NULL), 1);
        said(p, "/nonexistent/o.npy");
    }
    assert_int_equal(run("loader", "--config", c, "--ids", "2,512", "--out", out, NULL), 1);
    said("loader", "expected less than 512");
    assert_int_equal(run("loader", "--config", c, "--ids", "", "--out", out, NULL), 1);
    said("loader", "--ids");
    assert_int_equal(access(out, F_OK), -1);
}

static void test_bad_command_lines(void **state)
{
    (void)state;
    static const char *const programs[] = {"loader", "npu_worker", "gpu_worker"};
    for (size_t i = 0; i < 3; i++) {
        const char *p = programs[i];
        assert_int_equal(run(p, NULL), 2);
        said(p, "--config is missing");
        assert_int_equal(run(p, "--frob", NULL), 2);
        said(p, "'--frob'");
        assert_int_equal(run(p, "--config", NULL), 2);
        said(p, "needs a value");
        assert_int_equal(run(p, "stray", NULL), 2);
        said(p, "'stray'");
        assert_int_equal(run(p, "--stage-fd", "x", NULL), 2);
        said(p, "--stage-fd 'x'");
        assert_int_equal(run(p, "--stage-fd", "900", NULL), 1);
        said(p, "--stage-fd 900");
        assert_int_equal(run(p, "--config", "c", NULL), 2);
        said(p, "is missing");
        assert_int_equal(run(p, "--help", NULL), 0);
        assert_non_null(strstr(output, "--config FILE"));
        assert_int_equal(run(p, "--version", NULL), 0);
        assert_int_equal(strncmp(output, p, strlen(p)), 0);
    }
    assert_int_equal(run("npu_worker", "--config", "c", "--layer", "-1", "--in", "a", "--out", "b", NULL), 2);
    said("npu_worker", "--layer '-1'");
    assert_int_equal(run("npu_worker", "--config", "c", "--head", NULL), 2);
    said("npu_worker", "'--head'");
    assert_int_equal(run("gpu_worker", "--config", "c", "--head", "--layer", "1", "--in", "a", "--out", "b", NULL), 2);
    said("gpu_worker", "together");
}

static void test_positions_parse(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t n, v[5];
    } good[] = {{"0", 1, {0}}, {"2,17,5", 3, {2, 17, 5}}, {"0..3", 4, {0, 1, 2, 3}}, {"7..7,99,1..2", 4, {7, 99, 1, 2}}};
    static const char *const bad[] = {"",
                                      ",",
                                      "1,",
                                      ",1",
                                      "1..",
                                      "..1",
                                      "1-2",
                                      "3..1",
                                      "100",
                                      "0..100",
                                      "4294967296",
                                      "18446744073709551616",
                                      "1,2,3,4,5,6",
                                      "0..5",
                                      "0x1",
                                      "1 2",
                                      "-1"};
    struct err err;
    uint32_t *v;
    size_t n;
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        assert_int_equal(positions_parse("--ids", good[i].text, 100, 5, &v, &n, &err), 0);
        assert_int_equal(n, good[i].n);
        assert_memory_equal(v, good[i].v, n * sizeof(*v));
        free(v);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        memset(&err, 0, sizeof(err));
        assert_true(positions_parse("--ids", bad[i], 100, 5, &v, &n, &err) < 0);
        assert_non_null(strstr(err.text, "--ids"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_they_compute), cmocka_unit_test(test_positions_option),  cmocka_unit_test(test_dump),
        cmocka_unit_test(test_bad_files),    cmocka_unit_test(test_bad_command_lines), cmocka_unit_test(test_positions_parse),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

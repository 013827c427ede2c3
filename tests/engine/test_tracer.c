/* SPDX-License-Identifier: MIT
 * The file of a trace without a pipeline: this test records as stages would. What was lost is said, what a dead stage recorded is
 * there, what a hostile one writes stays JSON, no file is replaced, and a full disk leaves an array with its end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "coordinator/tracer.h"
#include "proto/err.h"
#include "proto/shm.h"
#include "proto/trace.h"
#include "proto/util.h"

#define CONTROL_ROOM 256

static char folder[64], path[96];

static int setup(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/tandem-tracer-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof(path), "%s/trace.json", folder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static struct tracer *open_tracer(void)
{
    struct tracer *t = NULL;
    struct err err = {0};
    if (tracer_open(path, &t, &err) < 0)
        print_error("%s\n", err.text);
    assert_non_null(t);
    return t;
}

/* A stage's side of what it is handed. */
static struct trace *open_stage(struct tracer *t, enum msg_role role, int pid, uint32_t restarts)
{
    struct trace *stage;
    auto_fd fd = tracer_stage(t, role, pid, restarts, NULL);
    assert_true(fd >= 0);
    assert_int_equal(trace_map(fd, &stage, NULL), 0);
    return stage;
}

static json_t *load(void)
{
    json_error_t why;
    json_t *j = json_load_file(path, 0, &why);
    if (!j)
        print_error("line %d: %s\n", why.line, why.text);
    assert_true(json_is_array(j));
    return j;
}

/* Events of this name; *ret_last: the last of them, borrowed. */
static size_t count(json_t *all, const char *name, json_t **ret_last)
{
    size_t n = 0, i;
    json_t *e;
    json_array_foreach(all, i, e)
    {
        const char *s = json_string_value(json_object_get(e, "name"));
        assert_non_null(s);
        if (strcmp(s, name) != 0)
            continue;
        n++;
        *ret_last = e;
    }
    return n;
}

static json_int_t argument(json_t *e, const char *key)
{
    return json_integer_value(json_object_get(json_object_get(e, "args"), key));
}

static void put(struct trace *t, enum trace_lane lane, enum trace_kind kind, uint64_t n)
{
    trace_put(t, lane,
              &(struct trace_event){
                  .kind = (uint8_t)kind, .start_ns = 1000 * n + 7, .end_ns = 1000 * n + 1012, .id = n, .layer = (uint16_t)n});
}

static void test_lost_and_dead(void **state)
{
    (void)state;
    json_t *e = NULL;
    struct tracer *t = open_tracer();
    struct trace *first = open_stage(t, MSG_ROLE_GPU, 100, 0);
    for (uint64_t i = 0; i < 100000; i++) /* more than anybody could write meanwhile */
        put(first, TRACE_CONTROL, TRACE_LOAD, i);
    trace_unmap(first);
    tracer_stage_ended(t, MSG_ROLE_GPU);
    struct trace *second = open_stage(t, MSG_ROLE_GPU, 101, 1);
    put(second, TRACE_DATA, TRACE_CHUNK, 3);
    trace_unmap(second);
    tracer_close(t);
    json_t *all = load();
    size_t loads = count(all, "load weights", &e);
    assert_true(loads >= CONTROL_ROOM && loads < 100000);
    assert_int_equal(json_integer_value(json_object_get(e, "pid")), 100);
    json_int_t lost = 0;
    size_t i;
    json_array_foreach(all, i, e)
    {
        if (strcmp(json_string_value(json_object_get(e, "name")), "events lost") == 0)
            lost += argument(e, "events");
    }
    assert_int_equal((json_int_t)loads + lost, 100000);
    assert_int_equal(count(all, "ffn 3", &e), 1);
    assert_int_equal(json_integer_value(json_object_get(e, "pid")), 101);
    assert_true(json_real_value(json_object_get(e, "ts")) == 3.007 && json_real_value(json_object_get(e, "dur")) == 1.005);
    assert_int_equal(count(all, "process_name", &e), 3);
    assert_string_equal(json_string_value(json_object_get(json_object_get(e, "args"), "name")), "gpu_worker, restart 1");
    json_decref(all);
}

/* Whatever bits an event has: every lane, every process, every kind that passes the reader. */
static void test_any_bits(void **state)
{
    (void)state;
    uint64_t random = 88172645463325252u;
    struct tracer *t = open_tracer();
    for (int role = 0; role < MSG_ROLES; role++) {
        struct trace *stage = open_stage(t, (enum msg_role)role, INT32_MAX, UINT32_MAX);
        for (int i = 0; i < 1700; i++) {
            union {
                struct trace_event e;
                uint64_t words[4];
            } any;
            for (int w = 0; w < 4; w++) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                any.words[w] = i % 5 ? random : UINT64_MAX;
            }
            any.e.kind = (uint8_t)(i % (TRACE_KINDS + 2));
            any.e.start_ns = i % 3 ? any.e.start_ns : 0;
            any.e.end_ns = i % 7 ? UINT64_MAX : any.e.end_ns;
            trace_put(stage, (enum trace_lane)(i % TRACE_LANES), &any.e);
        }
        trace_unmap(stage);
    }
    tracer_close(t);
    json_t *all = load();
    assert_true(json_array_size(all) > 3000);
    json_decref(all);
}

static void test_existing_file(void **state)
{
    (void)state;
    struct err err = {0};
    struct tracer *t = NULL;
    struct stat st;
    auto_fd fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && write(fd, "mine", 4) == 4);
    assert_int_equal(tracer_open(path, &t, &err), -EEXIST);
    assert_non_null(strstr(err.text, path));
    assert_null(t);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, 4);
    assert_int_equal(tracer_open(folder, &t, &err), -EEXIST);
    assert_int_equal(tracer_open("/nowhere/trace.json", &t, &err), -ENOENT);
    tracer_close(NULL);
    tracer_stage_ended(NULL, MSG_ROLE_NPU);
    assert_null(tracer_own(NULL));
}

static void test_full_disk(void **state)
{
    (void)state;
    struct rlimit before, few;
    json_t *e;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    struct tracer *t = open_tracer();
    struct trace *stage = open_stage(t, MSG_ROLE_NPU, 100, 0);
    few = (struct rlimit){.rlim_cur = 100000, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &few), 0);
    for (uint64_t i = 0; i < 4000; i++)
        put(stage, TRACE_DATA, TRACE_CHUNK, i % 8);
    tracer_stage_ended(t, MSG_ROLE_NPU);
    trace_unmap(stage);
    tracer_close(t);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    json_t *all = load();
    size_t n = count(all, "attention 5", &e);
    assert_true(n > 0 && n < 500);
    json_decref(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lost_and_dead, setup, teardown),
        cmocka_unit_test_setup_teardown(test_any_bits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_existing_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

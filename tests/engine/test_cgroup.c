/* SPDX-License-Identifier: MIT
 * coordinator/cgroup on a made-up tree of cgroup v2: plain files in place of the kernel's, so what is written where is seen, and
 * nothing of what the kernel does with it. docs/OPERATIONS.md tells what a real v2 did. */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/cgroup.h"
#include "proto/err.h"
#include "proto/util.h"
#include "tests/unit/unit_test.h"

static char root[] = "/tmp/tandem-cgroup-XXXXXX";

__attribute__((format(printf, 2, 3))) static void put(const char *text, const char *format, ...)
{
    char path[512];
    va_list ap;
    va_start(ap, format);
    int n = snprintf(path, sizeof(path), "%s/", root);
    vsnprintf(path + n, sizeof(path) - (size_t)n, format, ap);
    va_end(ap);
    for (char *p = path + n; (p = strchr(p, '/')); p++) {
        *p = '\0';
        assert_true(mkdir(path, 0755) == 0 || errno == EEXIST);
        *p = '/';
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

__attribute__((format(printf, 2, 3))) static void expect(const char *text, const char *format, ...)
{
    char path[512], got[256] = "";
    va_list ap;
    va_start(ap, format);
    int n = snprintf(path, sizeof(path), "%s/", root);
    vsnprintf(path + n, sizeof(path) - (size_t)n, format, ap);
    va_end(ap);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_true(fread(got, 1, sizeof(got) - 1, f) > 0 || !*text);
    fclose(f);
    assert_string_equal(got, text);
}

static void make_tree(const char *group, const char *controllers)
{
    char mounts[300], self[100];
    int pid = (int)getpid();
    snprintf(mounts, sizeof(mounts), "proc /proc proc rw 0 0\ncgroup2 %s/cg cgroup2 rw,nosuid 0 0\n", root);
    snprintf(self, sizeof(self), "0::/%s\n", group);
    put(mounts, "proc/mounts");
    put(self, "proc/cgroup");
    put(controllers, "cg/%s/cgroup.subtree_control", group);
    put("", "cg/%s/cgroup.procs", group);
    put("", "cg/%s/tandem-%d/cgroup.subtree_control", group, pid);
    put("max", "cg/%s/tandem-%d/memory.max", group, pid);
    static const char *const files[] = {"memory.max", "memory.swap.max", "memory.oom.group", "cgroup.procs"};
    for (size_t i = 0; i < ARRAY_LEN(files); i++)
        put("", "cg/%s/tandem-%d/npu_worker/%s", group, pid, files[i]);
    put("100000\n", "cg/%s/tandem-%d/npu_worker/memory.current", group, pid);
    put("123456\n", "cg/%s/tandem-%d/npu_worker/memory.peak", group, pid);
    put("low 0\nhigh 3\nmax 17\noom 2\noom_kill 1\noom_group_kill 1\n", "cg/%s/tandem-%d/npu_worker/memory.events", group, pid);
}

static struct cgroup *open_tree(void)
{
    char proc[300];
    struct cgroup *g = NULL;
    struct err err = {0};
    snprintf(proc, sizeof(proc), "%s/proc", root);
    assert_int_equal(cgroup_open(proc, &g, &err), 0);
    return g;
}

static void test_caps(void **state)
{
    (void)state;
    make_tree("user.slice/run-1.scope", "cpu");
    struct cgroup *g = open_tree();
    struct err err = {0};
    int pid = (int)getpid();
    char expected[400];
    snprintf(expected, sizeof(expected), "%s/cg/user.slice/run-1.scope/tandem-%d", root, pid);
    assert_string_equal(cgroup_version(g), "v2");
    assert_string_equal(cgroup_path(g), expected);
    expect("+memory", "cg/user.slice/run-1.scope/cgroup.subtree_control");
    expect("+memory", "cg/user.slice/run-1.scope/tandem-%d/cgroup.subtree_control", pid);
    assert_int_equal(cgroup_add(g, "npu_worker", 4242, 1 << 30, &err), 0);
    expect("1073741824", "cg/user.slice/run-1.scope/tandem-%d/npu_worker/memory.max", pid);
    expect("0", "cg/user.slice/run-1.scope/tandem-%d/npu_worker/memory.swap.max", pid);
    expect("1", "cg/user.slice/run-1.scope/tandem-%d/npu_worker/memory.oom.group", pid);
    expect("4242", "cg/user.slice/run-1.scope/tandem-%d/npu_worker/cgroup.procs", pid);
    assert_int_equal(cgroup_usage(g, "npu_worker"), 100000);
    assert_int_equal(cgroup_peak(g, "npu_worker"), 123456);
    assert_int_equal(cgroup_peak(g, "gpu_worker"), 0);
    assert_int_equal(cgroup_kills(g, "npu_worker"), 1);
    assert_int_equal(cgroup_kills(g, "gpu_worker"), 0);
    cgroup_close(g);
}

/* A kernel with the dmem controller and a device: its memory is capped. put's files take the last write, so one region is told. */
static void test_device(void **state)
{
    (void)state;
    int pid = (int)getpid();
    struct err err = {0};
    make_tree("d", "memory");
    put("cpu memory dmem", "cg/d/cgroup.controllers");
    put("drm/0000:03:00.0/vram0 8514437120\n", "cg/dmem.capacity");
    put("", "cg/d/tandem-%d/npu_worker/dmem.max", pid);
    struct cgroup *g = open_tree();
    expect("+dmemry", "cg/d/tandem-%d/cgroup.subtree_control", pid); /* over "+memory": these files keep what lies behind */
    assert_int_equal(cgroup_add(g, "npu_worker", 4242, 1 << 30, &err), 0);
    assert_true(cgroup_cap_device(g, "npu_worker", 1 << 20));
    expect("drm/0000:03:00.0/vram0 1048576", "cg/d/tandem-%d/npu_worker/dmem.max", pid);
    assert_false(cgroup_cap_device(g, "loader", 1 << 20)); /* has no such file */
    cgroup_close(g);
    make_tree("e", "memory"); /* without the controller nothing is tried */
    put("cpu memory", "cg/e/cgroup.controllers");
    put("", "cg/e/tandem-%d/npu_worker/dmem.max", pid);
    g = open_tree();
    assert_int_equal(cgroup_add(g, "npu_worker", 4242, 1 << 30, &err), 0);
    assert_false(cgroup_cap_device(g, "npu_worker", 1 << 20));
    expect("", "cg/e/tandem-%d/npu_worker/dmem.max", pid);
    cgroup_close(g);
}

/* The least of all groups around us counts, up to the mount and not above it, in either hierarchy or both. */
static void test_limits_around(void **state)
{
    (void)state;
    char proc[300], mounts[700];
    uint64_t left;
    snprintf(proc, sizeof(proc), "%s/proc", root);
    snprintf(mounts, sizeof(mounts), "proc /proc proc rw 0 0\ncgroup2 %s/v2 cgroup2 rw,nosuid 0 0\n", root);
    put(mounts, "proc/mounts");
    put("0::/outer/middle/inner\n", "proc/cgroup");
    put("1000\n", "memory.max"); /* above the mount: nothing of a cgroup */
    put("max\n", "v2/outer/middle/inner/memory.max");
    put("max\n", "v2/outer/memory.max");
    assert_int_equal(cgroup_limit(proc, &left), 0); /* none; the one between has no such file, as that of the mount */
    put("8589934592\n", "v2/outer/memory.max");
    assert_int_equal(cgroup_limit(proc, &left), 8589934592);
    put("4294967296\n", "v2/outer/middle/memory.max");
    assert_int_equal(cgroup_limit(proc, &left), 4294967296);
    put("6442450944\n", "v2/outer/middle/inner/memory.max");
    assert_int_equal(cgroup_limit(proc, &left), 4294967296);
    put("2147483648\n", "v2/outer/middle/inner/memory.max");
    assert_int_equal(cgroup_limit(proc, &left), 2147483648);
    put("3221225472\n", "v2/memory.max"); /* of a container that sees its own group as the root */
    put("0::/\n", "proc/cgroup");
    assert_int_equal(cgroup_limit(proc, &left), 3221225472);
    put("0::/outer\n", "proc/cgroup");
    assert_int_equal(cgroup_limit(proc, &left), 3221225472);

    snprintf(mounts, sizeof(mounts),
             "cgroup2 %s/v2 cgroup2 rw 0 0\ncgroup %s/v1cpu cgroup rw,cpu 0 0\ncgroup %s/v1 cgroup rw,memory 0 0\n", root, root,
             root);
    put(mounts, "proc/mounts");
    put("5:cpu:/elsewhere\n4:memory:/box/job\n0::/outer\n", "proc/cgroup");
    put("9223372036854771712\n", "v1/box/job/memory.limit_in_bytes"); /* v1's word for none */
    put("1073741824\n", "v1/box/memory.limit_in_bytes");
    put("7\n", "v1cpu/elsewhere/memory.limit_in_bytes");
    assert_int_equal(cgroup_limit(proc, &left), 1073741824);
    put("5368709120\n", "v1/box/memory.limit_in_bytes");
    assert_int_equal(cgroup_limit(proc, &left), 3221225472);

    put("proc /proc proc rw 0 0\n", "proc/mounts");
    assert_int_equal(cgroup_limit(proc, &left), 0);
}

/* What a group has left is less than its limit, and more than what its page cache says; the fullest around us counts. */
static void test_left_around(void **state)
{
    (void)state;
    char proc[300], mounts[700];
    uint64_t left = 0;
    snprintf(proc, sizeof(proc), "%s/proc", root);
    snprintf(mounts, sizeof(mounts), "cgroup2 %s/l2 cgroup2 rw 0 0\ncgroup %s/l1 cgroup rw,memory 0 0\n", root, root);
    put(mounts, "proc/mounts");
    put("0::/a/b\n", "proc/cgroup");
    put("max\n", "l2/a/b/memory.max");
    assert_int_equal(cgroup_limit(proc, &left), 0);
    assert_true(left == UINT64_MAX);
    put("1000000\n", "l2/a/b/memory.max");
    assert_int_equal(cgroup_limit(proc, &left), 1000000); /* without figures: all of it */
    assert_int_equal(left, 1000000);
    put("700000\n", "l2/a/b/memory.current");
    put("anon 500000\nfile 200000\ninactive_file 150000\n", "l2/a/b/memory.stat");
    assert_int_equal(cgroup_limit(proc, &left), 1000000);
    assert_int_equal(left, 450000);
    put("2000000\n", "l2/a/memory.max"); /* larger, and fuller */
    put("1900000\n", "l2/a/memory.current");
    assert_int_equal(cgroup_limit(proc, &left), 1000000);
    assert_int_equal(left, 100000);
    put("4:memory:/box\n0::/a/b\n", "proc/cgroup");
    put("3000000\n", "l1/box/memory.limit_in_bytes");
    put("3100000\n", "l1/box/memory.usage_in_bytes"); /* above it for a moment */
    put("inactive_file 5\ntotal_inactive_file 40000\n", "l1/box/memory.stat");
    assert_int_equal(cgroup_limit(proc, &left), 1000000);
    assert_int_equal(left, 0);
}

/* Who was too small when the kernel killed: the cap itself, the nearest group above that reached its limit since, or none of them.
 */
static void test_why_killed(void **state)
{
    (void)state;
    int pid = (int)getpid();
    char proc[300], expected[400];
    struct err err = {0};
    struct cgroup_counts before;
    struct cgroup_kill kill;
    make_tree("f/g", "memory");
    put("8000000\n", "cg/f/memory.max");
    put("low 0\noom 5\noom_kill 5\n", "cg/f/memory.events");
    put("low 0\noom 1\n", "cg/f/memory.events.local"); /* what happened to groups below is not its own */
    put("max\n", "cg/f/g/memory.max");
    put("low 0\noom 3\noom_kill 3\n", "cg/f/g/memory.events");
    struct cgroup *g = open_tree();
    assert_int_equal(cgroup_add(g, "npu_worker", 4242, 1 << 20, &err), 0);
    cgroup_count(g, NULL, "npu_worker", &before);
    assert_false(cgroup_killed(g, NULL, "npu_worker", &before, &kill)); /* what was killed earlier is told no more */
    put("oom 2\noom_kill 2\n", "cg/f/g/tandem-%d/npu_worker/memory.events", pid);
    put("low 0\noom 6\n", "cg/f/memory.events");
    assert_true(cgroup_killed(g, NULL, "npu_worker", &before, &kill));
    assert_int_equal(kill.cause, CGROUP_MACHINE);
    assert_true(kill.capped && kill.peak == 123456);
    put("oom 2\n", "cg/f/memory.events.local");
    assert_true(cgroup_killed(g, NULL, "npu_worker", &before, &kill));
    assert_int_equal(kill.cause, CGROUP_LIMIT);
    assert_int_equal(kill.limit, 8000000);
    snprintf(expected, sizeof(expected), "%s/cg/f", root);
    assert_string_equal(kill.group, expected);
    put("oom 3\noom_kill 2\n", "cg/f/g/tandem-%d/npu_worker/memory.events", pid);
    assert_true(cgroup_killed(g, NULL, "npu_worker", &before, &kill));
    assert_int_equal(kill.cause, CGROUP_CAP);
    cgroup_close(g);

    snprintf(proc, sizeof(proc), "%s/proc", root); /* without groups of ours, and v1: in the one that all are in */
    snprintf(expected, sizeof(expected), "cgroup %s/w1 cgroup rw,memory 0 0\n", root);
    put(expected, "proc/mounts");
    put("4:memory:/box/job\n", "proc/cgroup");
    put("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "w1/box/job/memory.oom_control");
    put("9223372036854771712\n", "w1/box/job/memory.limit_in_bytes");
    put("3\n", "w1/box/memory.failcnt");
    put("6000000\n", "w1/box/memory.limit_in_bytes");
    cgroup_count(NULL, proc, "npu_worker", &before);
    put("4\n", "w1/box/memory.failcnt");
    assert_false(cgroup_killed(NULL, proc, "npu_worker", &before, &kill)); /* taken back from files, perhaps */
    put("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "w1/box/job/memory.oom_control");
    assert_true(cgroup_killed(NULL, proc, "npu_worker", &before, &kill));
    assert_true(kill.cause == CGROUP_LIMIT && kill.limit == 6000000 && !kill.capped && kill.peak == 0);
    snprintf(expected, sizeof(expected), "%s/w1/box", root);
    assert_string_equal(kill.group, expected);
    put("3\n", "w1/box/memory.failcnt"); /* a limit of memory and swap together */
    put("4951424\n", "w1/box/memory.memsw.max_usage_in_bytes");
    put("6000000\n", "w1/box/memory.memsw.limit_in_bytes");
    assert_true(cgroup_killed(NULL, proc, "npu_worker", &before, &kill) && kill.cause == CGROUP_LIMIT);
    put("4951423\n", "w1/box/memory.memsw.max_usage_in_bytes");
    assert_true(cgroup_killed(NULL, proc, "npu_worker", &before, &kill) && kill.cause == CGROUP_MACHINE);
}

static void test_no_controller(void **state)
{
    (void)state;
    char proc[300], file[400];
    struct cgroup *g = NULL;
    struct err err = {0};
    make_tree("b", "memory");
    snprintf(proc, sizeof(proc), "%s/proc", root);
    snprintf(file, sizeof(file), "%s/cg/b/tandem-%d/memory.max", root, (int)getpid());
    assert_int_equal(unlink(file), 0); /* the controller is not there for us */
    assert_true(cgroup_open(proc, &g, &err) < 0);
    assert_non_null(strstr(err.text, "systemd-run --user"));
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(root) ? 0 : -1;
}

static int tear_down(void **state)
{
    char command[400];
    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_caps),          cmocka_unit_test(test_device),
                                       cmocka_unit_test(test_limits_around), cmocka_unit_test(test_left_around),
                                       cmocka_unit_test(test_why_killed),    cmocka_unit_test(test_no_controller)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

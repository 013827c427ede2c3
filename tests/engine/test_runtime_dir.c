/* SPDX-License-Identifier: MIT
 * The runtime folder: private, gone after close, and cleaned up after a coordinator that was killed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "coordinator/cgroup.h"
#include "coordinator/runtime_dir.h"
#include "proto/err.h"
#include "proto/util.h"

static char base[64];

static int setup(void **state)
{
    (void)state;
    snprintf(base, sizeof(base), "/tmp/tandem-test-XXXXXX");
    return mkdtemp(base) && setenv("TANDEM_RUNTIME_DIR", base, 1) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(base); /* fails when anything was left */
}

static void test_private_and_gone(void **state)
{
    (void)state;
    struct runtime_dir *r;
    struct err err = {0};
    struct stat st;
    char path[4096];
    assert_int_equal(runtime_dir_open(&r, &err), 0);
    snprintf(path, sizeof(path), "%s", runtime_dir_path(r));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    runtime_dir_close(r);
    assert_int_equal(stat(path, &st), -1);
}

static void test_stale_is_removed(void **state)
{
    (void)state;
    int pipes[2];
    char cgroup[4096] = "";
    assert_int_equal(pipe(pipes), 0);
    pid_t pid = fork();
    if (pid == 0) { /* a coordinator that is killed */
        struct runtime_dir *r;
        struct cgroup *g;
        struct err err;
        if (runtime_dir_open(&r, &err) == 0 && cgroup_open(NULL, &g, &err) == 0 &&
            cgroup_add(g, "stage", (int)getpid(), 1u << 30, &err) == 0) {
            runtime_dir_note_cgroup(r, cgroup_path(g), &err);
            runtime_dir_note_config(r, "/x.yaml", &err);
            snprintf(cgroup, sizeof(cgroup), "%s", cgroup_path(g));
        }
        if (write(pipes[1], cgroup, sizeof(cgroup)) < 0)
            _exit(1);
        for (;;)
            pause();
    }
    size_t got = 0;
    while (got < sizeof(cgroup)) {
        ssize_t n = read(pipes[0], cgroup + got, sizeof(cgroup) - got);
        assert_true(n > 0);
        got += (size_t)n;
    }
    char stale[256];
    struct stat st;
    snprintf(stale, sizeof(stale), "%s/tandem-%u/%d", base, (unsigned)geteuid(), (int)pid);
    assert_int_equal(stat(stale, &st), 0);

    struct runtime_dir *r;
    struct err err = {0};
    assert_int_equal(runtime_dir_open(&r, &err), 0); /* alive: stays */
    runtime_dir_close(r);
    assert_int_equal(stat(stale, &st), 0);

    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(runtime_dir_open(&r, &err), 0); /* dead: goes */
    runtime_dir_close(r);
    assert_int_equal(stat(stale, &st), -1);
    if (*cgroup)
        assert_int_equal(stat(cgroup, &st), -1);
    else
        print_message("cgroups cannot be made here: only the folder was checked\n");
    close(pipes[0]);
    close(pipes[1]);
}

static void test_found_by_config(void **state)
{
    (void)state;
    struct runtime_dir *r;
    struct err err = {0};
    char config[128], path[4096];
    int pid = 0, fd;
    struct sockaddr_un address;
    snprintf(config, sizeof(config), "%s/../x.yaml", base); /* not there: noted as it is */
    assert_int_equal(runtime_dir_find(config, 0, path, sizeof(path), &pid, &err), -ESRCH);
    assert_int_equal(runtime_dir_open(&r, &err), 0);
    assert_int_equal(runtime_dir_find(config, 0, path, sizeof(path), &pid, &err), -ESRCH); /* says nothing of its config yet */
    assert_int_equal(runtime_dir_note_config(r, config, &err), 0);
    assert_int_equal(runtime_dir_find(config, 0, path, sizeof(path), &pid, &err), 0);
    assert_int_equal(pid, getpid());
    assert_string_equal(path, runtime_dir_path(r));
    assert_int_equal(runtime_dir_find(config, pid, path, sizeof(path), &pid, &err), 0);
    assert_int_equal(runtime_dir_find(config, pid + 1, path, sizeof(path), &pid, &err), -ESRCH);
    assert_int_equal(runtime_dir_find("/other", pid, path, sizeof(path), &pid, &err), -ESRCH);
    assert_non_null(strstr(err.text, config));
    assert_int_equal(runtime_dir_address(path, &address, &fd, &err), 0);
    assert_int_equal(fd, -1);
    snprintf(path, sizeof(path), "%s/control", runtime_dir_path(r));
    assert_string_equal(address.sun_path, path);
    runtime_dir_close(r);
}

static void test_foreign_folder_is_refused(void **state)
{
    (void)state;
    char path[256];
    struct runtime_dir *r;
    struct err err = {0};
    snprintf(path, sizeof(path), "%s/tandem-%u", base, (unsigned)geteuid());
    assert_int_equal(mkdir(path, 0755), 0);
    assert_true(runtime_dir_open(&r, &err) < 0);
    assert_non_null(strstr(err.text, "0700"));
    rmdir(path);
}

static void test_cgroup_path_is_checked(void **state)
{
    (void)state;
    char path[256];
    struct stat st;
    snprintf(path, sizeof(path), "%s/tandem-1", base); /* not below a cgroup mount */
    assert_int_equal(mkdir(path, 0700), 0);
    cgroup_remove_stale(path);
    assert_int_equal(stat(path, &st), 0);
    rmdir(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_private_and_gone),       cmocka_unit_test(test_stale_is_removed),
        cmocka_unit_test(test_found_by_config),        cmocka_unit_test(test_foreign_folder_is_refused),
        cmocka_unit_test(test_cgroup_path_is_checked),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

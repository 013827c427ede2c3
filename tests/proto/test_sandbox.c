/* SPDX-License-Identifier: MIT
 * Each profile of the sandbox, in a child of its own: what it forbids is refused or ends the process, on threads that were there
 * before as well, and what a stage goes on doing works. Where the kernel has no Landlock, or a sanitizer is built in, the tests of
 * what they refuse are left out and say so. */
#include "tests/proto/proto_test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include "proto/sandbox.h"
#include "proto/shm.h"

#define PASSED 200 /* exit status of a child whose call was not refused; below: the errno */
#define BROKEN 250 /* something before the call went wrong */

static char cache[64];

static int run_attempt(int (*attempt)(void))
{
    errno = 0;
    return attempt() < 0 ? errno : PASSED;
}

/* ---- what is tried: -1 and errno, or not ---- */

static int try_open(void)
{
    return open("/proc/self/status", O_RDONLY | O_CLOEXEC);
}
static int try_openat(void)
{
    return (int)syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY | O_CLOEXEC);
}
static int try_create(void)
{
    char path[96];
    snprintf(path, sizeof(path), "/tmp/tandem-sandbox-%d", (int)getppid());
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0)
        unlink(path);
    return fd;
}
static int try_read_home(void) /* a file of the user's, readable to the process otherwise */
{
    return open(TANDEM_SOURCE_DIR "/README.md", O_RDONLY | O_CLOEXEC);
}
static int try_write_system(void)
{
    return open("/usr/lib/tandem-sandbox", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}
static int try_truncate(void)
{
    return truncate(TANDEM_SOURCE_DIR "/tests/golden/README.md", 1 << 20);
}
static int try_stat(void)
{
    struct stat st;
    return stat("/etc/passwd", &st);
}
static int try_unlink(void)
{
    return unlink("/tmp/tandem-sandbox-that-is-not-there");
}
static int try_mkdir_away(void)
{
    return mkdir("/tmp/tandem-sandbox-folder", 0700);
}
static int try_inet(void)
{
    return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
}
static int try_inet6(void)
{
    return socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}
static int try_netlink(void)
{
    return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
}
static int try_unix(void)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}
static int try_connect(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = 1};
    return connect(3, (struct sockaddr *)&a, sizeof(a));
}
static int try_exec(void)
{
    return execl("/bin/true", "true", (char *)NULL);
}
static int try_execveat(void)
{
    return (int)syscall(SYS_execveat, AT_FDCWD, "/bin/true", (char *[]){(char[]){"true"}, NULL}, NULL, 0);
}
static int try_fork(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    return pid;
}
static int try_fork_call(void)
{
#ifdef SYS_fork
    long pid = syscall(SYS_fork);
    if (pid == 0)
        _exit(0);
    return (int)pid;
#else
    return try_fork();
#endif
}
static int try_namespace(void)
{
    return unshare(CLONE_NEWUSER);
}
static int try_ptrace(void)
{
    return (int)ptrace(PTRACE_SEIZE, getppid(), NULL, NULL);
}
static int try_peek(void)
{
    char here[8], *there = here;
    struct iovec a = {here, sizeof(here)}, b = {there, sizeof(here)};
    return (int)syscall(SYS_process_vm_readv, getppid(), &a, 1, &b, 1, 0);
}
static int try_kill_parent(void)
{
    return kill(getppid(), 0);
}
static int try_kill_all(void)
{
    return kill(-1, 0);
}
static int try_pidfd(void)
{
    return (int)syscall(SYS_pidfd_send_signal, -1, 0, NULL, 0);
}
static int try_map_code(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}
static char page[8192];
static int try_make_code(void)
{
    char *at = page + (4096 - (uintptr_t)page % 4096);
    return mprotect(at, 4096, PROT_READ | PROT_EXEC);
}
static int try_io_uring(void)
{
    char params[120] = {0};
    return (int)syscall(SYS_io_uring_setup, 1, params);
}
static int try_bpf(void)
{
    return (int)syscall(SYS_bpf, 0, NULL, 0);
}
static int try_mount(void)
{
    return (int)syscall(SYS_mount, "none", "/nowhere", "tmpfs", 0, NULL);
}
static int try_setuid(void)
{
    return (int)syscall(SYS_setuid, getuid());
}
static int try_terminal(void)
{
    return ioctl(0, TIOCSTI, "x");
}
static int try_limit(void)
{
    struct rlimit l = {0, 0};
    return setrlimit(RLIMIT_CORE, &l);
}
static int try_limit_of_another(void)
{
    struct rlimit l;
    return (int)syscall(SYS_prlimit64, getppid(), RLIMIT_NOFILE, NULL, &l);
}
static int try_read_limit(void)
{
    struct rlimit l;
    return (int)syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &l);
}
static int try_outlive(void)
{
    return prctl(PR_SET_PDEATHSIG, 0);
}
static int try_owner(void)
{
    return fcntl(1, F_SETOWN, getppid());
}
static int try_owner_ex(void)
{
    struct f_owner_ex o = {F_OWNER_PID, getppid()};
    return fcntl(1, F_SETOWN_EX, &o);
}
static int try_owner_signal(void)
{
    return fcntl(1, F_SETSIG, SIGKILL);
}
/* The kernel looks at 32 bits of these arguments, and a filter is given 64. */
static int try_owner_wide(void)
{
    return (int)syscall(SYS_fcntl, 1, 1UL << 32 | F_SETOWN, getppid());
}
static int try_owner_ex_wide(void)
{
    struct f_owner_ex o = {F_OWNER_PID, getppid()};
    return (int)syscall(SYS_fcntl, 1, 1UL << 32 | F_SETOWN_EX, &o);
}
static int try_owner_signal_wide(void)
{
    return (int)syscall(SYS_fcntl, 1, 1UL << 32 | F_SETSIG, SIGKILL);
}
static int try_outlive_wide(void)
{
    return (int)syscall(SYS_prctl, 1UL << 32 | PR_SET_PDEATHSIG, 0);
}
static int try_owner_of_socket(void)
{
    int pid = getppid();
    return (int)syscall(SYS_ioctl, 1, FIOSETOWN, &pid);
}
static int try_group_of_socket(void)
{
    int pid = getppid();
    return (int)syscall(SYS_ioctl, 1, 1UL << 32 | SIOCSPGRP, &pid);
}
static int try_console(void)
{
    char c[2] = {2, 0}; /* puts what is selected there into its input */
    return ioctl(0, TIOCLINUX, c);
}
static int try_kill_thread(void)
{
    return (int)syscall(SYS_tgkill, getppid(), getppid(), 0);
}
static int try_kill_self(void)
{
    return kill(getpid(), 0) < 0 ? -1 : (int)syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), 0);
}
static int try_clone3(void)
{
    return (int)syscall(SYS_clone3, NULL, 0);
}
static int try_memfd(void)
{
    return memfd_create("sandbox", MFD_CLOEXEC);
}
static int try_nothing(void)
{
    return 0;
}

/* ---- children ---- */

struct waiting {
    pthread_barrier_t ready;
    int (*attempt)(void);
    int result;
};

static void *attempt_later(void *arg)
{
    struct waiting *w = arg;
    pthread_barrier_wait(&w->ready); /* exists */
    pthread_barrier_wait(&w->ready); /* sealed */
    w->result = run_attempt(w->attempt);
    return NULL;
}

enum how { BEGUN, SEALED, ON_OLD_THREAD };

static int child_main(enum sandbox_profile profile, enum how how, int (*attempt)(void))
{
    struct sandbox s = {.profile = profile};
    struct waiting w = {.attempt = attempt};
    pthread_t t;
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    if (attempt == try_connect && dup2(socket(AF_INET, SOCK_STREAM, 0), 3) != 3)
        return BROKEN;
    pthread_barrier_init(&w.ready, NULL, 2);
    sandbox_begin(&s, "");
    if (how == ON_OLD_THREAD) {
        if (pthread_create(&t, NULL, attempt_later, &w) != 0)
            return BROKEN;
        pthread_barrier_wait(&w.ready);
    }
    if (how != BEGUN)
        sandbox_seal(&s);
    if (how != BEGUN && s.seccomp != 1)
        return BROKEN;
    if (how != ON_OLD_THREAD)
        return run_attempt(attempt);
    pthread_barrier_wait(&w.ready);
    pthread_join(t, NULL);
    return w.result;
}

static int wait_status(enum sandbox_profile profile, enum how how, int (*attempt)(void))
{
    int status;
    pid_t pid = fork();
    if (pid == 0)
        _exit(child_main(profile, how, attempt));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

struct trial {
    const char *name;
    int (*attempt)(void);
    int strict, driver; /* errno; KILLED; PASSED */
};
#define KILLED (-1)

static const struct trial trials[] = {
    {"open", try_open, EACCES, PASSED},
    {"openat", try_openat, EACCES, PASSED},
    {"create a file", try_create, EACCES, EACCES},
    {"read what is the user's", try_read_home, EACCES, EACCES},
    {"write where the system is", try_write_system, EACCES, EACCES},
    {"stat", try_stat, EACCES, PASSED},
    {"truncate", try_truncate, KILLED, EPERM},
    {"unlink", try_unlink, KILLED, ENOENT},
    {"mkdir", try_mkdir_away, KILLED, EACCES},
    {"socket inet", try_inet, KILLED, EPERM},
    {"socket inet6", try_inet6, KILLED, EPERM},
    {"socket netlink", try_netlink, KILLED, EPERM},
    {"socket unix", try_unix, KILLED, EPERM},
    {"connect", try_connect, KILLED, EPERM},
    {"execve", try_exec, KILLED, EPERM},
    {"execveat", try_execveat, KILLED, EPERM},
    {"fork by clone", try_fork, KILLED, EPERM},
    {"fork", try_fork_call, KILLED, EPERM},
    {"unshare", try_namespace, KILLED, EPERM},
    {"ptrace", try_ptrace, KILLED, EPERM},
    {"process_vm_readv", try_peek, KILLED, EPERM},
    {"kill another", try_kill_parent, KILLED, EPERM},
    {"kill all", try_kill_all, KILLED, EPERM},
    {"pidfd_send_signal", try_pidfd, KILLED, EPERM},
    {"mmap code", try_map_code, KILLED, PASSED},
    {"mprotect code", try_make_code, KILLED, PASSED},
    {"io_uring", try_io_uring, KILLED, EPERM},
    {"bpf", try_bpf, KILLED, EPERM},
    {"mount", try_mount, KILLED, EPERM},
    {"setuid", try_setuid, KILLED, EPERM},
    {"TIOCSTI", try_terminal, KILLED, EPERM},
    {"TIOCLINUX", try_console, KILLED, EPERM},
    {"prlimit of another", try_limit_of_another, KILLED, EPERM},
    {"prlimit, to read", try_read_limit, PASSED, PASSED},
    {"PR_SET_PDEATHSIG", try_outlive, KILLED, EPERM},
    {"F_SETOWN", try_owner, KILLED, EPERM},
    {"F_SETOWN_EX", try_owner_ex, KILLED, EPERM},
    {"F_SETSIG", try_owner_signal, KILLED, EPERM},
    {"F_SETOWN, wide", try_owner_wide, KILLED, EPERM},
    {"F_SETOWN_EX, wide", try_owner_ex_wide, KILLED, EPERM},
    {"F_SETSIG, wide", try_owner_signal_wide, KILLED, EPERM},
    {"PR_SET_PDEATHSIG, wide", try_outlive_wide, KILLED, EPERM},
    {"FIOSETOWN", try_owner_of_socket, KILLED, EPERM},
    {"SIOCSPGRP, wide", try_group_of_socket, KILLED, EPERM},
    {"tgkill another", try_kill_thread, KILLED, EPERM},
    {"kill itself with nothing", try_kill_self, PASSED, PASSED},
    {"clone3", try_clone3, ENOSYS, ENOSYS},
    {"setrlimit", try_limit, KILLED, PASSED},
    {"memfd_create", try_memfd, KILLED, PASSED},
    {"nothing", try_nothing, PASSED, PASSED},
};

/* Every call that drivers are refused, whatever its arguments, by name: what leaves the list of the filter has to leave this one.
 */
#define CALL(name)            \
    {                         \
#name, SCMP_SYS(name) \
    }
static const struct {
    const char *name;
    int number;
} denied[] = {CALL(execve),
              CALL(execveat),
              CALL(fork),
              CALL(vfork),
              CALL(ptrace),
              CALL(process_vm_readv),
              CALL(process_vm_writev),
              CALL(process_madvise),
              CALL(kcmp),
              CALL(pidfd_getfd),
              CALL(pidfd_send_signal),
              CALL(socket),
              CALL(bind),
              CALL(listen),
              CALL(accept),
              CALL(accept4),
              CALL(connect),
              CALL(socketpair),
              CALL(sendto),
              CALL(sendmmsg),
              CALL(mount),
              CALL(umount2),
              CALL(move_mount),
              CALL(open_tree),
              CALL(fsopen),
              CALL(fsmount),
              CALL(fsconfig),
              CALL(fspick),
              CALL(mount_setattr),
              CALL(pivot_root),
              CALL(chroot),
              CALL(unshare),
              CALL(setns),
              CALL(init_module),
              CALL(finit_module),
              CALL(delete_module),
              CALL(kexec_load),
              CALL(kexec_file_load),
              CALL(reboot),
              CALL(swapon),
              CALL(swapoff),
              CALL(acct),
              CALL(quotactl),
              CALL(quotactl_fd),
              CALL(settimeofday),
              CALL(clock_settime),
              CALL(adjtimex),
              CALL(clock_adjtime),
              CALL(sethostname),
              CALL(setdomainname),
              CALL(syslog),
              CALL(iopl),
              CALL(ioperm),
              CALL(mknod),
              CALL(mknodat),
              CALL(nfsservctl),
              CALL(vhangup),
              CALL(personality),
              CALL(open_by_handle_at),
              CALL(name_to_handle_at),
              CALL(io_uring_setup),
              CALL(io_uring_enter),
              CALL(io_uring_register),
              CALL(bpf),
              CALL(perf_event_open),
              CALL(userfaultfd),
              CALL(add_key),
              CALL(request_key),
              CALL(keyctl),
              CALL(fanotify_init),
              CALL(lookup_dcookie),
              CALL(tkill),
              CALL(rt_sigqueueinfo),
              CALL(rt_tgsigqueueinfo),
              CALL(shmget),
              CALL(shmat),
              CALL(shmctl),
              CALL(semget),
              CALL(semop),
              CALL(semtimedop),
              CALL(semctl),
              CALL(msgget),
              CALL(msgsnd),
              CALL(msgrcv),
              CALL(msgctl),
              CALL(mq_open),
              CALL(mq_unlink),
              CALL(setpriority),
              CALL(sched_setaffinity),
              CALL(sched_setscheduler),
              CALL(sched_setparam),
              CALL(sched_setattr),
              CALL(ioprio_set),
              CALL(migrate_pages),
              CALL(move_pages),
              CALL(setpgid),
              CALL(setsid),
              CALL(setuid),
              CALL(setgid),
              CALL(setreuid),
              CALL(setregid),
              CALL(setresuid),
              CALL(setresgid),
              CALL(setfsuid),
              CALL(setfsgid),
              CALL(setgroups),
              CALL(capset),
              CALL(chown),
              CALL(fchown),
              CALL(lchown),
              CALL(fchownat),
              CALL(truncate),
              CALL(inotify_add_watch),
              CALL(fchmod),
              CALL(fsetxattr),
              CALL(fremovexattr),
              CALL(chmod),
              CALL(fchmodat),
              CALL(utime),
              CALL(utimes),
              CALL(utimensat),
              CALL(futimesat),
              CALL(setxattr),
              CALL(lsetxattr),
              CALL(removexattr),
              CALL(lremovexattr),
              {"fchmodat2", 452},
              {"setxattrat", 463},
              {"removexattrat", 466},
              {"open_tree_attr", 467},
              {"file_setattr", 469}};

static int number; /* of the call that is tried */
static int try_number(void)
{
    return (int)syscall(number, -1L, -1L, -1L, -1L, -1L, -1L);
}

static bool lists(enum sandbox_list list, int call)
{
    size_t n;
    const int *calls = sandbox_calls(list, &n);
    for (size_t i = 0; i < n; i++) {
        if (calls[i] == call)
            return true;
    }
    return false;
}

/* Depends on its arguments: among the trials above. */
static bool has_conditions(int call)
{
    static const int some[] = {SCMP_SYS(mmap), SCMP_SYS(mprotect), SCMP_SYS(clone),      SCMP_SYS(clone3),    SCMP_SYS(tgkill),
                               SCMP_SYS(kill), SCMP_SYS(fcntl),    SCMP_SYS(newfstatat), SCMP_SYS(prlimit64), SCMP_SYS(prctl)};
    for (size_t i = 0; i < sizeof(some) / sizeof(*some); i++) {
        if (some[i] == call)
            return true;
    }
    return false;
}

static int landlock_version(void)
{
    return (int)syscall(444 /* landlock_create_ruleset */, NULL, 0, 1);
}

static void check(const struct trial *t, enum sandbox_profile profile, enum how how, int want)
{
    int status = wait_status(profile, how, t->attempt);
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS;
    bool as_wanted = want == KILLED ? killed : WIFEXITED(status) && WEXITSTATUS(status) == want;
    if (!as_wanted)
        print_error("%s, profile %d, how %d: wait status 0x%x; expected %d\n", t->name, profile, how, (unsigned)status, want);
    assert_true(as_wanted);
}

/* Refused by Landlock alone, which the machine may not have. */
static bool by_landlock(int want)
{
    return want == EACCES && landlock_version() < 1;
}

static void test_denies(void **state)
{
    (void)state;
    if (sandbox_only_reports())
        skip();
    for (size_t i = 0; i < sizeof(trials) / sizeof(*trials); i++) {
        const struct trial *t = &trials[i];
        for (enum how how = SEALED; how <= ON_OLD_THREAD; how++) {
            check(t, SANDBOX_STRICT, how, t->strict);
            if (!by_landlock(t->driver) && !(t->attempt == try_truncate && landlock_version() < 3))
                check(t, SANDBOX_DRIVER, how, t->driver);
        }
    }
}

/* Call by call. */
static void test_denies_each(void **state)
{
    size_t n;
    (void)state;
    sandbox_calls(SANDBOX_DRIVER_REFUSES, &n);
    assert_int_equal(n, sizeof(denied) / sizeof(*denied));
    if (sandbox_only_reports())
        skip();
    for (size_t i = 0; i < n; i++) {
        const struct trial t = {denied[i].name, try_number, 0, 0};
        number = denied[i].number;
        if (!lists(SANDBOX_DRIVER_REFUSES, number))
            print_error("%s is refused to drivers no longer\n", t.name);
        assert_true(lists(SANDBOX_DRIVER_REFUSES, number));
        assert_false(lists(SANDBOX_STRICT_ALLOWS, number));
        if (number < 0) /* not on this processor */
            continue;
        check(&t, SANDBOX_DRIVER, SEALED, EPERM);
        check(&t, SANDBOX_STRICT, SEALED, lists(SANDBOX_STRICT_REFUSES, number) ? EACCES : KILLED);
    }
}

/* uretprobe and uprobe of x86-64: the kernel's own trampolines make these calls, filters do not see them (since Linux 6.12), and
 * from anywhere else they do nothing. */
static bool is_unfiltered(int call)
{
    return call == 335 || call == 336;
}

/* Whatever number there is, or may come to be: it is on a list, or ends the process. */
static void test_strict_knows_no_other(void **state)
{
    (void)state;
    if (sandbox_only_reports())
        skip();
    for (number = 0; number < 520; number++) {
        char name[32];
        const struct trial t = {name, try_number, 0, 0};
        snprintf(name, sizeof(name), "call %d", number);
        if (!lists(SANDBOX_STRICT_ALLOWS, number) && !has_conditions(number) && !is_unfiltered(number))
            check(&t, SANDBOX_STRICT, SEALED, lists(SANDBOX_STRICT_REFUSES, number) ? EACCES : KILLED);
    }
}

/* Before the filter, while a model or a device is opened, Landlock stands alone. */
static void test_files_before_sealing(void **state)
{
    (void)state;
    if (sandbox_only_reports() || landlock_version() < 1) {
        print_message("no Landlock here: left out\n");
        skip();
    }
    static const struct trial begun[] = {{"open", try_openat, EACCES, PASSED},    {"create", try_create, EACCES, EACCES},
                                         {"read", try_read_home, EACCES, EACCES}, {"write", try_write_system, EACCES, EACCES},
                                         {"exec", try_exec, EACCES, EACCES},      {"socket", try_inet, PASSED, PASSED}};
    for (size_t i = 0; i < sizeof(begun) / sizeof(*begun); i++) {
        check(&begun[i], SANDBOX_STRICT, BEGUN, begun[i].strict);
        check(&begun[i], SANDBOX_DRIVER, BEGUN, begun[i].driver);
    }
}

static void *idle(void *arg)
{
    prctl(PR_SET_NAME, "late");
    return arg;
}

/* What a stage does after START: threads, memory, shared memory, messages with descriptors, reads of what is open, and an end. */
static int live(void)
{
    struct err err = {0};
    int pair[2], got = -1, memory = shm_make("sandbox", 1 << 16, true, &err), file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (memory < 0 || file < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return BROKEN;
    struct sandbox s = {.profile = SANDBOX_STRICT};
    sandbox_begin(&s, "");
    sandbox_seal(&s);
    pthread_t t;
    for (int i = 0; i < 20; i++) {
        if (pthread_create(&t, NULL, idle, NULL) != 0 || pthread_join(t, NULL) != 0)
            return 1;
    }
    void *p = malloc(64 << 20), *mapped;
    if (!p)
        return 2;
    memset(p, 1, 64 << 20);
    free(p);
    if (shm_map(memory, 1 << 16, true, &mapped, &err) < 0)
        return 3;
    shm_unmap(mapped, 1 << 16);
    if (shm_seal_write(memory, &err) < 0)
        return 4;
    char byte[4], control[CMSG_SPACE(sizeof(int))];
    struct iovec io = {byte, 1};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &memory, sizeof(memory));
    if (sendmsg(pair[0], &m, 0) != 1 || recvmsg(pair[1], &m, MSG_CMSG_CLOEXEC) != 1)
        return 5;
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(got));
    if (shm_map(got, 1 << 16, false, &mapped, &err) < 0)
        return 6;
    if (pread(file, byte, 4, 0) != 4 || memcmp(byte, "\177ELF", 4) != 0)
        return 7;
    if (poll(&(struct pollfd){.fd = pair[0], .events = POLLOUT}, 1, 0) != 1 || usleep(1) < 0 || sched_yield() < 0)
        return 8;
    return s.seccomp == 1 && prctl(PR_GET_NAME, control) == 0 ? 0 : 9;
}

static void test_goes_on(void **state)
{
    int status;
    (void)state;
    pid_t pid = fork();
    if (pid == 0)
        _exit(live());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* A crash stays a crash: its signal is its own, not that of the filter. */
static int do_abort(void)
{
    abort();
}

static void test_abort(void **state)
{
    (void)state;
    int status = wait_status(SANDBOX_STRICT, ON_OLD_THREAD, do_abort);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

static int write_cache(void)
{
    char path[128], to[128];
    snprintf(path, sizeof(path), "%s/tandem/deep", cache);
    snprintf(to, sizeof(to), "%s/tandem/kept", cache);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    return fd < 0 || rename(path, to) < 0 || unlink(to) < 0 ? -1 : 0;
}

static void test_cache(void **state)
{
    (void)state;
    int status = wait_status(SANDBOX_DRIVER, SEALED, write_cache);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), PASSED);
}

/* A manifest of the Vulkan loader in a folder with other things, which names a library in another such folder. */
static char files[64];

static int read_there(const char *name)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", files, name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static int read_manifest(void)
{
    return read_there("icd.json");
}
static int read_library(void)
{
    return read_there("lib/driver.so");
}
static int read_absolute(void)
{
    return read_there("lib/layer.so");
}
static int read_beside(void)
{
    return read_there("secret");
}
static int read_beside_library(void)
{
    return read_there("lib/secret");
}

static void test_manifests(void **state)
{
    static const char *const names[] = {"icd.json",      "layer.json",   "broken.json", "secret",
                                        "lib/driver.so", "lib/layer.so", "lib/secret"};
    static const struct trial read[] = {{"manifest", read_manifest, EACCES, PASSED},
                                        {"its library", read_library, EACCES, PASSED},
                                        {"an absolute one, of a layer", read_absolute, EACCES, PASSED},
                                        {"what lies beside it", read_beside, EACCES, EACCES},
                                        {"what lies beside the library", read_beside_library, EACCES, EACCES}};
    char path[128], list[256];
    (void)state;
    if (sandbox_only_reports() || landlock_version() < 1)
        skip();
    snprintf(files, sizeof(files), "/tmp/tandem-test-files-XXXXXX");
    assert_non_null(mkdtemp(files));
    snprintf(path, sizeof(path), "%s/lib", files);
    assert_int_equal(mkdir(path, 0700), 0);
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        snprintf(path, sizeof(path), "%s/%s", files, names[i]);
        FILE *f = fopen(path, "we");
        assert_non_null(f);
        if (i == 0)
            fputs("{\"ICD\": {\"library_path\": \"./lib/driver.so\"}}", f);
        if (i == 1)
            fprintf(f, "{\"layers\": [{\"library_path\": \"bare.so\"}, {\"library_path\": \"%s/lib/layer.so\"}]}", files);
        if (i == 2)
            fputs("{\"ICD\": {\"library_path\": [\"./secret\"]}, ", f);
        fclose(f);
    }
    snprintf(list, sizeof(list), "/nowhere:%s/broken.json:%s/icd.json", files, files);
    setenv("VK_DRIVER_FILES", list, 1);
    snprintf(list, sizeof(list), "%s/layer.json", files);
    setenv("VK_ADD_LAYER_PATH", list, 1);
    for (size_t i = 0; i < sizeof(read) / sizeof(*read); i++) {
        check(&read[i], SANDBOX_DRIVER, SEALED, read[i].driver);
        check(&read[i], SANDBOX_STRICT, SEALED, read[i].strict);
    }
    unsetenv("VK_DRIVER_FILES");
    unsetenv("VK_ADD_LAYER_PATH");
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        snprintf(path, sizeof(path), "%s/%s", files, names[i]);
        unlink(path);
    }
    snprintf(path, sizeof(path), "%s/lib", files);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rmdir(files), 0);
}

static int in_core_folder(void)
{
    return open("core.test", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}

/* Where the user asked for core files, and the kernel writes them as plain files into the working folder, they can be written. */
static void test_core(void **state)
{
    char pattern[64] = "", folder[] = "/tmp/tandem-test-core-XXXXXX";
    int status;
    (void)state;
    int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, pattern, sizeof(pattern) - 1);
    close(fd);
    if (sandbox_only_reports() || landlock_version() < 1 || n <= 0 || pattern[0] == '|' || pattern[0] == '@' ||
        strchr(pattern, '/')) {
        print_message("core files do not go to the working folder here: left out\n");
        skip();
    }
    assert_non_null(mkdtemp(folder));
    for (rlim_t limit = 0; limit < 2; limit++) {
        pid_t pid = fork();
        if (pid == 0) {
            struct rlimit l = {limit << 20, limit << 20};
            struct sandbox s = {.profile = SANDBOX_STRICT};
            if (chdir(folder) < 0 || setrlimit(RLIMIT_CORE, &l) < 0)
                _exit(BROKEN);
            sandbox_begin(&s, "");
            _exit(run_attempt(in_core_folder));
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        if (limit == 0 || WEXITSTATUS(status) != BROKEN) /* a hard limit of 0 cannot be raised by a user */
            assert_int_equal(WEXITSTATUS(status), limit ? PASSED : EACCES);
    }
    char file[64];
    snprintf(file, sizeof(file), "%s/core.test", folder);
    unlink(file);
    assert_int_equal(rmdir(folder), 0);
}

static void test_says_what_is_in_force(void **state)
{
    char text[SANDBOX_TEXT];
    (void)state;
    sandbox_describe(&(struct sandbox){.off = true}, text);
    assert_string_equal(text, "off");
    assert_false(sandbox_text_lacks(text));
    struct sandbox s = {.profile = SANDBOX_DRIVER, .landlock = -EOPNOTSUPP, .seccomp = -EINVAL};
    sandbox_describe(&s, text);
    assert_string_equal(text, "driver: no seccomp (Invalid argument), no Landlock (Operation not supporte)");
    assert_true(sandbox_text_lacks(text));
    s.seccomp = 1;
    sandbox_describe(&s, text);
    assert_true(sandbox_text_lacks(text));
    s = (struct sandbox){.landlock = 2, .seccomp = -EINVAL};
    sandbox_describe(&s, text);
    assert_true(sandbox_text_lacks(text));
    s = (struct sandbox){.seccomp = 1}; /* as sanitizers leave it */
    sandbox_describe(&s, text);
    assert_false(sandbox_text_lacks(text));
    s = (struct sandbox){.landlock = 2, .seccomp = 1};
    sandbox_describe(&s, text);
    assert_string_equal(text, sandbox_only_reports() ? "strict: seccomp only reports, Landlock 2" : "strict: seccomp, Landlock 2");
    assert_false(sandbox_text_lacks(text));
}

/* Off is off: no filter, no rules, not even no_new_privs. */
static void test_off(void **state)
{
    (void)state;
    struct sandbox s = {.off = true};
    int privileges = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), filters = prctl(PR_GET_SECCOMP);
    sandbox_begin(&s, "");
    sandbox_seal(&s);
    assert_int_equal(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), privileges);
    assert_int_equal(prctl(PR_GET_SECCOMP), filters);
    int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    close(fd);
}

static int count_rings(void)
{
    int n = 0;
    for (int fd = 0; fd < 64; fd++) {
        char name[32], target[64] = "";
        snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
        n += readlink(name, target, sizeof(target) - 1) > 0 && strstr(target, "[io_uring]");
    }
    return n;
}

/* Before anything else is known of the configuration; an event loop then does without. */
static void test_without_rings(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        uv_loop_t loop;
        sandbox_without_rings();
        bool refused = try_io_uring() < 0 && errno == ENOSYS;
        bool works = uv_loop_init(&loop) == 0 && uv_run(&loop, UV_RUN_DEFAULT) == 0;
        _exit(refused && works && count_rings() == 0 ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* The user's own cache is not touched. */
static int make_cache(void **state)
{
    (void)state;
    snprintf(cache, sizeof(cache), "/tmp/tandem-test-cache-XXXXXX");
    return mkdtemp(cache) && setenv("XDG_CACHE_HOME", cache, 1) == 0 ? 0 : -1;
}

static int remove_cache(void **state)
{
    char path[96];
    (void)state;
    static const char *const folders[] = {"/tandem/drivers", "/tandem", ""};
    for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
        snprintf(path, sizeof(path), "%s%s", cache, folders[i]);
        rmdir(path);
    }
    return access(cache, F_OK) == 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {FD_TEST(test_denies),
                                       FD_TEST(test_denies_each),
                                       FD_TEST(test_strict_knows_no_other),
                                       FD_TEST(test_manifests),
                                       FD_TEST(test_files_before_sealing),
                                       FD_TEST(test_goes_on),
                                       FD_TEST(test_abort),
                                       FD_TEST(test_cache),
                                       FD_TEST(test_core),
                                       FD_TEST(test_says_what_is_in_force),
                                       FD_TEST(test_off),
                                       FD_TEST(test_without_rings)};
    return cmocka_run_group_tests(tests, make_cache, remove_cache);
}

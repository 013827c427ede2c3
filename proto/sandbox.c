/* SPDX-License-Identifier: MIT
 * The two profiles, as lists of system calls (libseccomp) and of paths (landlock.c). Called by proto/stage.c alone, on the main
 * thread, at three moments in the life of a stage. Owns nothing afterwards; never logs, because the coordinator says for each stage
 * what is in force.
 *
 * Threads may be started in both profiles, processes not. The flags of clone can be seen by a filter, those of clone3 lie in
 * memory: it is answered with ENOSYS, upon which the C library uses clone. */
#include "proto/sandbox.h"

#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <sched.h>
#include <seccomp.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "proto/driver_files.h"
#include "proto/landlock.h"
#include "proto/place.h"
#include "proto/util.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ONLY_REPORTS true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define ONLY_REPORTS true
#endif
#endif
#ifndef ONLY_REPORTS
#define ONLY_REPORTS false
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif

#define MANIFEST_MAX (1 << 20) /* bytes; those of drivers have some hundred */

bool sandbox_only_reports(void)
{
    return ONLY_REPORTS;
}

/* ---- files ---- */

/* What drivers and the libraries under them read, wherever they are installed. */
static const char *const system_paths[] = {
    "/usr", "/lib", "/lib32", "/lib64", "/opt", "/nix/store", "/gnu/store", "/sys", "/run/udev", "/run/opengl-driver",
    "/etc/ld.so.cache", "/etc/alternatives", "/etc/vulkan", "/etc/glvnd", "/etc/drirc", "/etc/drirc.d", "/etc/nvidia", "/etc/xdg",
    "/etc/localtime", "/etc/passwd", "/etc/nsswitch.conf",
    /* /proc/self is this process's folder: those of others, with their environments, stay closed */
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/devices", "/proc/modules",
    "/proc/filesystems", "/proc/driver", "/proc/sys/kernel", "/proc/sys/vm"};

/* Devices that compute, and those that every program uses. */
static const char *const device_paths[] = {"/dev/null",    "/dev/zero",      "/dev/full",  "/dev/random",   "/dev/urandom",
                                           "/dev/dri",     "/dev/accel",     "/dev/kfd",   "/dev/nvidia*",  "/dev/nvmap",
                                           "/dev/nvhost*", "/dev/mali*",     "/dev/kgsl*", "/dev/dxg",      "/dev/pvr_sync",
                                           "/dev/udmabuf", "/dev/dma_heap*", "/dev/xdma*", "/dev/xclmgmt*", "/dev/infiniband"};

/* Where the environment tells drivers to look (their variables, not ours): lists of folders, and of the Vulkan loader's manifests.
 */
static const char *const path_variables[] = {"LD_LIBRARY_PATH",  "XILINX_XRT",    "VK_DRIVER_FILES",  "VK_ADD_DRIVER_FILES",
                                             "VK_ICD_FILENAMES", "VK_LAYER_PATH", "VK_ADD_LAYER_PATH"};

static void allow_glob(struct landlock_rules *r, const char *pattern)
{
    glob_t g;
    if (glob(pattern, 0, NULL, &g) == 0) {
        for (size_t i = 0; i < g.gl_pathc; i++)
            landlock_allow(r, g.gl_pathv[i], LANDLOCK_DEVICE);
        globfree(&g);
    }
}

/* The folder that a file lies in; of a link, also that of the file it points to. */
static void allow_folder_of(struct landlock_rules *r, const char *file)
{
    auto_free char *real = realpath(file, NULL);
    const char *const names[] = {file, real};
    if (!real)
        return;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char folder[PATH_MAX];
        const char *slash = strrchr(names[i], '/');
        if (!slash || slash == names[i] || (size_t)(slash - names[i]) >= sizeof(folder))
            continue;
        snprintf(folder, sizeof(folder), "%.*s", (int)(slash - names[i]), names[i]);
        landlock_allow(r, folder, LANDLOCK_READ);
    }
}

static void allow_library(void *rules, const char *path)
{
    landlock_allow(rules, path, LANDLOCK_READ);
}

/* Folders as they are; of a file itself, and the library that it names if it is a manifest. Not the folder around it, which may be
 * the user's own. */
static void allow_variable(struct landlock_rules *r, const char *name)
{
    const char *list = getenv(name);
    for (size_t n; list && *list; list += n + (list[n] == ':')) {
        char path[PATH_MAX];
        struct stat st;
        n = strcspn(list, ":");
        if (n == 0 || n >= sizeof(path))
            continue;
        snprintf(path, sizeof(path), "%.*s", (int)n, list);
        landlock_allow(r, path, LANDLOCK_READ);
        if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= MANIFEST_MAX)
            driver_files_named(path, allow_library, r);
    }
}

/* The folder that a core file goes to where the user asked for one (ulimit -c) and no program takes it: the kernel writes it as
 * this process. */
static void allow_core(struct landlock_rules *r)
{
    struct rlimit l;
    char pattern[256] = "";
    auto_fd fd = open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, pattern, sizeof(pattern) - 1);
    if (n <= 0 || pattern[0] == '|' || pattern[0] == '@' || getrlimit(RLIMIT_CORE, &l) < 0 || l.rlim_cur == 0)
        return;
    char *slash = strrchr(pattern, '/');
    if (slash)
        slash[slash == pattern] = '\0';
    landlock_allow(r, slash ? pattern : ".", LANDLOCK_CORE);
}

/* The folder of caches, with those of Mesa and NVIDIA's driver below our own, unless the user has placed them elsewhere. */
static bool make_cache(char folder[PATH_MAX])
{
    char of_driver[PATH_MAX + 16];
    if (util_cache_folder(folder, PATH_MAX) < 0)
        return false;
    snprintf(of_driver, sizeof(of_driver), "%s/drivers", folder);
    if (mkdir(of_driver, 0700) == 0 || errno == EEXIST) {
        setenv("MESA_SHADER_CACHE_DIR", of_driver, 0);
        setenv("__GL_SHADER_DISK_CACHE_PATH", of_driver, 0);
    }
    return true;
}

static void allow_driver(struct landlock_rules *r, const char *reads)
{
    char modules[PATH_MAX];
    if (place_folder(PLACE_MODULES, modules, sizeof(modules), NULL) == 0)
        landlock_allow(r, modules, LANDLOCK_READ);
    for (size_t i = 0; i < ARRAY_LEN(system_paths); i++)
        landlock_allow(r, system_paths[i], LANDLOCK_READ);
    for (size_t i = 0; i < ARRAY_LEN(device_paths); i++)
        allow_glob(r, device_paths[i]);
    for (size_t i = 0; i < ARRAY_LEN(path_variables); i++)
        allow_variable(r, path_variables[i]);
    if (*reads)
        allow_folder_of(r, reads);
}

void sandbox_without_rings(void)
{
    scmp_filter_ctx f = seccomp_init(SCMP_ACT_ALLOW);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (f && seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(io_uring_setup), 0) == 0)
        seccomp_load(f);
    seccomp_release(f);
}

void sandbox_begin(struct sandbox *s, const char *reads)
{
    char cache[PATH_MAX];
    if (s->off)
        return;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    bool writes = s->profile == SANDBOX_DRIVER && make_cache(cache);
    if (ONLY_REPORTS)
        return;
    struct landlock_rules *r = landlock_open(&s->landlock);
    if (!r)
        return;
    if (s->profile == SANDBOX_DRIVER)
        allow_driver(r, reads);
    else
        landlock_allow(r, "/sys/devices/system/cpu", LANDLOCK_READ); /* where threads are to be placed */
    if (writes)
        landlock_allow(r, cache, LANDLOCK_WRITE);
    allow_core(r);
    int e = landlock_enforce(r);
    if (e < 0)
        s->landlock = e;
}

/* ---- system calls ---- */

#define CALL(name) SCMP_SYS(name)

/* Later than libseccomp 2.5 of Debian 12: Linux 6.6, 6.13, 6.15, 6.17. The numbers are the same on every processor. */
#define FCHMODAT2 452
#define SETXATTRAT 463
#define REMOVEXATTRAT 466
#define OPEN_TREE_ATTR 467
#define FILE_SETATTR 469

/* Without conditions. */
static const int strict_calls[] = {
    /* files, sockets and memfds that are open */
    CALL(read), CALL(write), CALL(readv), CALL(writev), CALL(pread64), CALL(preadv), CALL(lseek), CALL(close), CALL(fstat),
    CALL(fadvise64), CALL(recvmsg), CALL(sendmsg), CALL(shutdown), CALL(epoll_wait), CALL(epoll_pwait), CALL(epoll_ctl), CALL(poll),
    CALL(ppoll),
    /* memory; mmap and mprotect below */
    CALL(munmap), CALL(mremap), CALL(madvise), CALL(brk), CALL(msync), CALL(mincore),
    /* threads and time */
    CALL(futex), CALL(set_robust_list), CALL(get_robust_list), CALL(rseq), CALL(set_tid_address), CALL(gettid), CALL(getpid),
    CALL(getppid), CALL(sched_yield), CALL(sched_getaffinity), CALL(getcpu), CALL(membarrier), CALL(clock_gettime),
    CALL(clock_getres), CALL(clock_nanosleep), CALL(nanosleep), CALL(gettimeofday), CALL(time), CALL(getrusage), CALL(times),
    CALL(restart_syscall), CALL(exit), CALL(exit_group),
    /* signals to itself */
    CALL(rt_sigaction), CALL(rt_sigprocmask), CALL(rt_sigreturn), CALL(sigaltstack), CALL(rt_sigpending),
    /* what the C library asks */
    CALL(getrandom), CALL(getrlimit), CALL(sysinfo), CALL(uname), CALL(getuid), CALL(geteuid), CALL(getgid), CALL(getegid)};

/* Refused with EACCES: the C library opens a file now and then (malloc reads /proc/sys/vm/overcommit_memory when it gives memory
 * back) and does without. */
static const int strict_refused[] = {
    CALL(open),     CALL(openat),     CALL(openat2),          CALL(creat),     CALL(stat),
    CALL(lstat),    CALL(statx),      CALL(access),           CALL(faccessat), CALL(faccessat2),
    CALL(readlink), CALL(readlinkat), CALL(sched_setaffinity)}; /* it takes any process; threads have their places by now */

/* Refused to drivers; sockets, processes and signals to others are below. */
static const int driver_refused[] = {
    CALL(execve), CALL(execveat), CALL(fork), CALL(vfork), CALL(ptrace), CALL(process_vm_readv), CALL(process_vm_writev),
    CALL(process_madvise), CALL(kcmp), CALL(pidfd_getfd), CALL(pidfd_send_signal), CALL(socket), CALL(bind), CALL(listen),
    CALL(accept), CALL(accept4), CALL(connect), CALL(socketpair), CALL(sendto), CALL(sendmmsg),
    /* the machine */
    CALL(mount), CALL(umount2), CALL(move_mount), CALL(open_tree), OPEN_TREE_ATTR, CALL(fsopen), CALL(fsmount), CALL(fsconfig),
    CALL(fspick), CALL(mount_setattr), CALL(pivot_root), CALL(chroot), CALL(unshare), CALL(setns), CALL(init_module),
    CALL(finit_module), CALL(delete_module), CALL(kexec_load), CALL(kexec_file_load), CALL(reboot), CALL(swapon), CALL(swapoff),
    CALL(acct), CALL(quotactl), CALL(quotactl_fd), CALL(settimeofday), CALL(clock_settime), CALL(adjtimex), CALL(clock_adjtime),
    CALL(sethostname), CALL(setdomainname), CALL(syslog), CALL(iopl), CALL(ioperm), CALL(mknod), CALL(mknodat), CALL(nfsservctl),
    CALL(vhangup), CALL(personality), CALL(open_by_handle_at), CALL(name_to_handle_at),
    /* ways around a filter, and parts of the kernel that no driver needs */
    CALL(io_uring_setup), CALL(io_uring_enter), CALL(io_uring_register), CALL(bpf), CALL(perf_event_open), CALL(userfaultfd),
    CALL(add_key), CALL(request_key), CALL(keyctl), CALL(fanotify_init), CALL(lookup_dcookie), CALL(tkill), CALL(rt_sigqueueinfo),
    CALL(rt_tgsigqueueinfo),
    /* what other processes share, by number or by name */
    CALL(shmget), CALL(shmat), CALL(shmctl), CALL(semget), CALL(semop), CALL(semtimedop), CALL(semctl), CALL(msgget), CALL(msgsnd),
    CALL(msgrcv), CALL(msgctl), CALL(mq_open), CALL(mq_unlink),
    /* other processes of the same user, by number */
    CALL(setpriority), CALL(sched_setaffinity), CALL(sched_setscheduler), CALL(sched_setparam), CALL(sched_setattr),
    CALL(ioprio_set), CALL(migrate_pages), CALL(move_pages), CALL(setpgid), CALL(setsid),
    /* other users */
    CALL(setuid), CALL(setgid), CALL(setreuid), CALL(setregid), CALL(setresuid), CALL(setresgid), CALL(setfsuid), CALL(setfsgid),
    CALL(setgroups), CALL(capset), CALL(chown), CALL(fchown), CALL(lchown), CALL(fchownat),
    /* what Landlock does not see of files, or not in all its versions */
    CALL(truncate), CALL(inotify_add_watch), CALL(chmod), CALL(fchmod), CALL(fchmodat), CALL(utime), CALL(utimes), CALL(utimensat),
    CALL(futimesat), CALL(setxattr), CALL(lsetxattr), CALL(fsetxattr), CALL(removexattr), CALL(lremovexattr), CALL(fremovexattr),
    FCHMODAT2, SETXATTRAT, REMOVEXATTRAT, FILE_SETATTR};

const int *sandbox_calls(enum sandbox_list list, size_t *ret_n)
{
    static const struct {
        const int *calls;
        size_t n;
    } lists[] = {[SANDBOX_STRICT_ALLOWS] = {strict_calls, ARRAY_LEN(strict_calls)},
                 [SANDBOX_STRICT_REFUSES] = {strict_refused, ARRAY_LEN(strict_refused)},
                 [SANDBOX_DRIVER_REFUSES] = {driver_refused, ARRAY_LEN(driver_refused)}};
    *ret_n = lists[list].n;
    return lists[list].calls;
}

static struct scmp_arg_cmp equal(unsigned arg, scmp_datum_t value)
{
    return (struct scmp_arg_cmp){.arg = arg, .op = SCMP_CMP_EQ, .datum_a = value};
}

static struct scmp_arg_cmp unequal(unsigned arg, scmp_datum_t value)
{
    return (struct scmp_arg_cmp){.arg = arg, .op = SCMP_CMP_NE, .datum_a = value};
}

static struct scmp_arg_cmp masked(unsigned arg, scmp_datum_t mask, scmp_datum_t value)
{
    return (struct scmp_arg_cmp){.arg = arg, .op = SCMP_CMP_MASKED_EQ, .datum_a = mask, .datum_b = value};
}

static int add(scmp_filter_ctx f, uint32_t action, int call)
{
    return seccomp_rule_add(f, action, call, 0);
}

static int add_if(scmp_filter_ctx f, uint32_t action, int call, struct scmp_arg_cmp condition)
{
    return seccomp_rule_add(f, action, call, 1, condition);
}

/* Threads, but no processes and no namespaces. */
#define CLONE_NEW \
    (CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_PTRACE)

static int strict_conditions(scmp_filter_ctx f)
{
    static const int fcntls[] = {F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GET_SEALS, F_ADD_SEALS};
    static const int prctls[] = {PR_SET_NAME, PR_GET_NAME, PR_SET_VMA};
    pid_t self = getpid();
    int r = add_if(f, SCMP_ACT_ALLOW, CALL(mmap), masked(2, PROT_EXEC, 0));
    r = r ? r : add_if(f, SCMP_ACT_ALLOW, CALL(mprotect), masked(2, PROT_EXEC, 0));
    r = r ? r : add_if(f, SCMP_ACT_ALLOW, CALL(clone), masked(0, CLONE_THREAD | CLONE_NEW, CLONE_THREAD));
    r = r ? r : add_if(f, SCMP_ACT_ALLOW, CALL(tgkill), equal(0, (scmp_datum_t)self));
    r = r ? r : add_if(f, SCMP_ACT_ALLOW, CALL(kill), equal(0, (scmp_datum_t)self));
    r = r ? r : add_if(f, SCMP_ACT_ALLOW, CALL(newfstatat), masked(3, AT_EMPTY_PATH, AT_EMPTY_PATH));
    if (!ONLY_REPORTS)
        r = r ? r : add_if(f, SCMP_ACT_ERRNO(EACCES), CALL(newfstatat), masked(3, AT_EMPTY_PATH, 0));
    /* a limit of its own is read, none is set */
    r = r ? r : seccomp_rule_add(f, SCMP_ACT_ALLOW, CALL(prlimit64), 2, equal(0, 0), equal(2, 0));
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(fcntls); i++)
        r = add_if(f, SCMP_ACT_ALLOW, CALL(fcntl), equal(1, (scmp_datum_t)fcntls[i]));
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(prctls); i++)
        r = add_if(f, SCMP_ACT_ALLOW, CALL(prctl), equal(0, (scmp_datum_t)prctls[i]));
    return r;
}

static int driver_conditions(scmp_filter_ctx f, uint32_t refuse)
{
    pid_t self = getpid();
    int r = add_if(f, refuse, CALL(clone), masked(0, CLONE_THREAD, 0));
    r = r ? r : add_if(f, refuse, CALL(tgkill), unequal(0, (scmp_datum_t)self));
    r = r ? r : add_if(f, refuse, CALL(kill), unequal(0, (scmp_datum_t)self));
    r = r ? r : add_if(f, refuse, CALL(prlimit64), unequal(0, 0));
    /* of these arguments the kernel looks at 32 bits */
    r = r ? r : add_if(f, refuse, CALL(prctl), masked(0, UINT32_MAX, PR_SET_PDEATHSIG));
    r = r ? r : add_if(f, refuse, CALL(fcntl), masked(1, UINT32_MAX, F_SETOWN));
    r = r ? r : add_if(f, refuse, CALL(fcntl), masked(1, UINT32_MAX, F_SETOWN_EX));
    r = r ? r : add_if(f, refuse, CALL(fcntl), masked(1, UINT32_MAX, F_SETSIG));
    r = r ? r : add_if(f, refuse, CALL(ioctl), masked(1, UINT32_MAX, FIOSETOWN));
    r = r ? r : add_if(f, refuse, CALL(ioctl), masked(1, UINT32_MAX, SIOCSPGRP));
    /* input put into the terminal would be read by a shell */
    r = r ? r : add_if(f, refuse, CALL(ioctl), masked(1, UINT32_MAX, TIOCSTI));
    r = r ? r : add_if(f, refuse, CALL(ioctl), masked(1, UINT32_MAX, TIOCLINUX));
    return r;
}

static int fill(scmp_filter_ctx f, enum sandbox_profile profile)
{
    uint32_t refuse = ONLY_REPORTS ? SCMP_ACT_LOG : SCMP_ACT_ERRNO(EPERM);
    int r = seccomp_attr_set(f, SCMP_FLTATR_ACT_BADARCH, ONLY_REPORTS ? SCMP_ACT_LOG : SCMP_ACT_KILL_PROCESS);
    r = r ? r : seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, 1);
    if (!ONLY_REPORTS)
        r = r ? r : add(f, SCMP_ACT_ERRNO(ENOSYS), CALL(clone3));
    if (profile == SANDBOX_STRICT) {
        for (size_t i = 0; r == 0 && i < ARRAY_LEN(strict_calls); i++)
            r = add(f, SCMP_ACT_ALLOW, strict_calls[i]);
        for (size_t i = 0; r == 0 && !ONLY_REPORTS && i < ARRAY_LEN(strict_refused); i++)
            r = add(f, SCMP_ACT_ERRNO(EACCES), strict_refused[i]);
        return r ? r : strict_conditions(f);
    }
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(driver_refused); i++)
        r = add(f, refuse, driver_refused[i]);
    return r ? r : driver_conditions(f, refuse);
}

void sandbox_seal(struct sandbox *s)
{
    if (s->off || s->seccomp)
        return;
    uint32_t other = s->profile == SANDBOX_DRIVER ? SCMP_ACT_ALLOW : ONLY_REPORTS ? SCMP_ACT_LOG : SCMP_ACT_KILL_PROCESS;
    scmp_filter_ctx f = seccomp_init(other);
    int r = f ? fill(f, s->profile) : -ENOMEM;
    if (r == 0)
        r = seccomp_load(f);
    seccomp_release(f);
    s->seccomp = r < 0 ? r : 1;
}

void sandbox_describe(const struct sandbox *s, char text[SANDBOX_TEXT])
{
    char files[40] = "no Landlock (sanitizer)", calls[40] = "seccomp";
    if (s->landlock > 0)
        snprintf(files, sizeof(files), "Landlock %d", s->landlock);
    else if (s->landlock < 0)
        snprintf(files, sizeof(files), "no Landlock (%.22s)", strerror(-s->landlock));
    if (s->seccomp <= 0)
        snprintf(calls, sizeof(calls), "no seccomp (%.22s)", strerror(-s->seccomp));
    else if (ONLY_REPORTS)
        snprintf(calls, sizeof(calls), "seccomp only reports");
    /* sandbox_text_lacks reads this */
    if (s->off)
        snprintf(text, SANDBOX_TEXT, "off");
    else
        snprintf(text, SANDBOX_TEXT, "%s: %s, %s", s->profile == SANDBOX_DRIVER ? "driver" : "strict", calls, files);
}

bool sandbox_text_lacks(const char *text)
{
    const char *files = strstr(text, "no Landlock (");
    return strstr(text, "no seccomp (") || (files && strncmp(files + strlen("no Landlock ("), "sanitizer)", 10) != 0);
}

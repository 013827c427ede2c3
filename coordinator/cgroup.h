/* SPDX-License-Identifier: MIT
 * A kernel memory cap per process: one cgroup "tandem-<pid>" below our own, with a child per process. cgroup v2 (memory.max) or v1
 * (memory.limit_in_bytes), whichever the system has and lets us use. Pages are charged to the cgroup of the process that
 * touches them first (kernel documentation: admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst). Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_CGROUP_H
#define TANDEM_COORDINATOR_CGROUP_H

#include <stdbool.h>
#include <limits.h>
#include <stdint.h>

struct cgroup;
struct err;

#define CGROUP_ABOVE_MAX 16 /* groups that a process lies in and that are looked at, from the nearest on */

/* What the kernel has counted so far; all of it grows only. */
struct cgroup_counts {
    uint64_t kills;                   /* processes of the group that it ended for memory, */
    uint64_t full;                    /* and how often the group's own cap was reached; */
    uint64_t above[CGROUP_ABOVE_MAX]; /* likewise the limits of those above */
};

enum cgroup_cause {
    CGROUP_CAP,    /* its own was too small, */
    CGROUP_LIMIT,  /* or that of a group above it, which holds others as well, */
    CGROUP_MACHINE /* or none that can be seen from here: the machine's memory, or what it lies in */
};

/* Why the kernel ended a process for memory. */
struct cgroup_kill {
    enum cgroup_cause cause;
    bool capped;          /* false: it lay in a group with others, so that the kill may have been of another one */
    uint64_t peak, limit; /* peak: the most that the process's own group held, 0: not known; limit: of `group` */
    char group[PATH_MAX]; /* of CGROUP_LIMIT */
};

/* -ENOTSUP or another error when caps cannot be enforced here; err says why and what would allow it. v2: a group that has processes
 * cannot have capped children (cgroup-v2.rst, "No Internal Process Constraint"), so this process moves into a child of its own
 * first; where others are in our group, root makes the groups below the root of the hierarchy.
 * proc: NULL, or a folder with files `mounts` and `cgroup` in place of /proc/self, for tests. */
int cgroup_open(const char *proc, struct cgroup **ret, struct err *err);
const char *cgroup_path(const struct cgroup *g);    /* of the parent folder, for the runtime directory */
const char *cgroup_version(const struct cgroup *g); /* "v1" or "v2" */
/* The least memory that a group which we are in may use, with those above it (a container, a service); 0: no limit is known.
 * ret_left: the least that any of them has left, without a limit UINT64_MAX. proc: as for cgroup_open. */
uint64_t cgroup_limit(const char *proc, uint64_t *ret_left);
/* A child group with a cap, and the process in it. A group that is there already keeps its cap, and what it is charged with: it
 * outlives the process that was in it. */
int cgroup_add(struct cgroup *g, const char *name, int pid, uint64_t cap, struct err *err);
/* v2 with a dmem controller (Linux 6.14): the child's memory on devices, in each region that there is; elsewhere nothing. Best
 * effort: true where a limit holds. */
bool cgroup_cap_device(struct cgroup *g, const char *name, uint64_t cap);
/* Usage now, and the highest that the kernel saw; 0 when not known. */
uint64_t cgroup_usage(const struct cgroup *g, const char *name);
uint64_t cgroup_peak(const struct cgroup *g, const char *name);
/* How many processes of that child the kernel ended for memory, whosesoever was missing. */
uint64_t cgroup_kills(const struct cgroup *g, const char *name);
/* What is counted now for that child; g NULL: caps are not the kernel's, and our own group is looked at, in which all processes
 * are. proc: as for cgroup_open. */
void cgroup_count(const struct cgroup *g, const char *proc, const char *name, struct cgroup_counts *ret);
/* Whether the kernel ended a process there since `before`, and why. */
bool cgroup_killed(const struct cgroup *g, const char *proc, const char *name, const struct cgroup_counts *before,
                   struct cgroup_kill *ret);
/* Move ourselves out again and remove all folders (the processes must be gone). NULL is fine. */
void cgroup_close(struct cgroup *g);
/* Whether the kernel ended a process of that child for memory, in what a killed coordinator left at `path`, its cap, and why; of
 * groups above, whether their limits were reached ever. */
bool cgroup_stale_kill(const char *path, const char *name, uint64_t *ret_cap, struct cgroup_kill *ret);
/* Remove what a killed coordinator left at `path`; only a folder named tandem-<number> below a cgroup mount is touched. */
void cgroup_remove_stale(const char *path);

#endif

/* SPDX-License-Identifier: MIT
 * A kernel memory cap per process: one cgroup "tandem-<pid>" below our own, with a child per process. cgroup v2 (memory.max) or v1
 * (memory.limit_in_bytes), whichever the system has and lets us use. Pages are charged to the cgroup of the process that
 * touches them first (kernel documentation: admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst). Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_CGROUP_H
#define TANDEM_COORDINATOR_CGROUP_H

#include <stdbool.h>
#include <stdint.h>

struct cgroup;
struct err;

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
/* How many processes of that child the kernel ended because they passed its cap. */
uint64_t cgroup_kills(const struct cgroup *g, const char *name);
/* Move ourselves out again and remove all folders (the processes must be gone). NULL is fine. */
void cgroup_close(struct cgroup *g);
/* Whether the kernel ended a process of that child for memory, in what a killed coordinator left at `path`, and its figures; peak
 * 0: not known. */
bool cgroup_stale_kill(const char *path, const char *name, uint64_t *ret_cap, uint64_t *ret_peak);
/* Remove what a killed coordinator left at `path`; only a folder named tandem-<number> below a cgroup mount is touched. */
void cgroup_remove_stale(const char *path);

#endif

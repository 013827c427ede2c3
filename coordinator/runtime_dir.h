/* SPDX-License-Identifier: MIT
 * A 0700 folder per running coordinator with a lock file (flock) that dies with it. Opening removes the folders, and
 * the cgroups named in them, of coordinators that were killed. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_RUNTIME_DIR_H
#define TANDEM_COORDINATOR_RUNTIME_DIR_H

#include <stddef.h>
#include <sys/un.h>

struct err;
struct runtime_dir;

#define RUNTIME_DIR_SOCKET "control"     /* the control socket in it */
#define RUNTIME_DIR_STAGES "stages.sock" /* and the one for stages that others start, with its token beside it */

/* What a killed coordinator left of requests in progress (files request-*, coordinator/journal.h) is kept, in folders journal-*
 * beside ours. Base folder: TANDEM_RUNTIME_DIR, else /run/user/<uid>, else /run for root, else /tmp; below it "tandem-<uid>". */
int runtime_dir_open(struct runtime_dir **ret, struct err *err);
const char *runtime_dir_path(const struct runtime_dir *r);
const char *runtime_dir_base(const struct runtime_dir *r); /* "<...>/tandem-<uid>" */
/* Note the cgroup folder, so that a later start can remove it, and the config, so that runtime_dir_find finds us. */
int runtime_dir_note_cgroup(struct runtime_dir *r, const char *cgroup_path, struct err *err);
int runtime_dir_note_config(struct runtime_dir *r, const char *config_path, struct err *err);
void runtime_dir_close(struct runtime_dir *r); /* removes the folder; NULL is fine */

/* The folder of the coordinator that runs with a config, as a real path; pid 0: there is one only. -ESRCH: none, -ENOTUNIQ:
 * several. Removes nothing. */
int runtime_dir_find(const char *config_path, int pid, char *ret_path, size_t size, int *ret_pid, struct err *err);
/* The address of the socket in such a folder. A path too long for one goes by way of *ret_fd, the caller's to close after use, or
 * -1. */
int runtime_dir_address(const char *path, struct sockaddr_un *ret, int *ret_fd, struct err *err);

#endif

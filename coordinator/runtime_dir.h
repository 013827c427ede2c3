/* SPDX-License-Identifier: MIT
 * A 0700 folder per running coordinator with a lock file (flock) that dies with it. Opening removes the folders, and
 * the cgroups named in them, of coordinators that were killed. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_RUNTIME_DIR_H
#define TANDEM_COORDINATOR_RUNTIME_DIR_H

struct err;
struct runtime_dir;

/* What a killed coordinator left of requests in progress (files request-*, coordinator/journal.h) is kept, in folders journal-*
 * beside ours. Base folder: TANDEM_RUNTIME_DIR, else /run/user/<uid>, else /run for root, else /tmp; below it "tandem-<uid>". */
int runtime_dir_open(struct runtime_dir **ret, struct err *err);
const char *runtime_dir_path(const struct runtime_dir *r);
const char *runtime_dir_base(const struct runtime_dir *r); /* "<...>/tandem-<uid>" */
/* Note the cgroup folder so that a later start can remove it. */
int runtime_dir_note_cgroup(struct runtime_dir *r, const char *cgroup_path, struct err *err);
void runtime_dir_close(struct runtime_dir *r); /* removes the folder; NULL is fine */

#endif

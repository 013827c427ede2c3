/* SPDX-License-Identifier: MIT
 * Opens a manifest and what it names, for who reads it and for who asks beforehand whether it could be read. Threads: any. */
#ifndef TANDEM_NPU_WORKER_MANIFEST_FILE_H
#define TANDEM_NPU_WORKER_MANIFEST_FILE_H

struct err;

/* An fd for reading, or -errno with what the file is, why it cannot be opened and the remedy. what: "xclbin"; manifest: the path of
 * the manifest that names it. -EINVAL: no regular file; a FIFO is not waited for. */
int manifest_file_open(const char *what, const char *path, const char *manifest, struct err *err);

#endif

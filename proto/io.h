/* SPDX-License-Identifier: MIT
 * Bounded file input and atomic file output. Reader: pread in large aligned pieces, O_DIRECT where the file system
 * takes it, buffered where not. Writer: temporary name, fsync, rename. Threads: io_read from any; a writer has one. */
#ifndef TANDEM_PROTO_IO_H
#define TANDEM_PROTO_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct io_file;

/* Open for reading. direct: try O_DIRECT for io_read. */
int io_open(const char *path, bool direct, struct io_file **ret, struct err *err);
void io_close(struct io_file *f); /* NULL is fine */
uint64_t io_size(const struct io_file *f);
const char *io_path(const struct io_file *f);
/* Exactly n bytes at offset into buf; a short file is -EIO with offset, wanted and file size in the message.
 * With direct, reads go through an internal aligned bounce buffer (1 MiB per call site, on the heap of the call)
 * unless buf, offset and n are all 4096-aligned. */
int io_read(struct io_file *f, uint64_t offset, void *buf, size_t n, struct err *err);

/* May an output take the name `path`? Yes if there is nothing, an empty file, or one that begins with `magic` (n <= 16 bytes): a
 * slip must not cost somebody another file. kind: "a GGUF file", for the message. 0 or a negative errno. */
int io_may_replace(const char *path, const void *magic, size_t n, const char *kind, struct err *err);

struct io_out;
/* Creates "<path>.tmp-<pid>" beside path (never path itself); where path is a link, beside the file that it points to. */
int io_out_open(const char *path, struct io_out **ret, struct err *err);
int io_out_write(struct io_out *o, const void *data, size_t n, struct err *err); /* at the current end */
int io_out_pwrite(struct io_out *o, uint64_t offset, const void *data, size_t n, struct err *err);
int io_out_commit(struct io_out *o, struct err *err); /* fsync, rename, fsync of the folder; frees o on success or failure */
void io_out_abort(struct io_out *o);                  /* removes the temporary file, frees o; NULL is fine */

#endif

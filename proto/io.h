/* SPDX-License-Identifier: MIT
 * Bounded file input and atomic file output. Reader: pread in large aligned pieces, O_DIRECT where the file system
 * takes it, buffered where not. Writer: temporary name, fsync, rename. Threads: io_read from any; a writer has one. */
#ifndef TANDEM_PROTO_IO_H
#define TANDEM_PROTO_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sys/types.h>

struct err;
struct io_file;

#define IO_ALIGN 4096u /* of offsets, lengths and addresses under O_DIRECT */

/* The system calls that all file data goes through; a test puts its own in place to cut transfers short and to fail them. */
struct io_system {
    ssize_t (*pread)(int fd, void *buf, size_t n, off_t at);
    ssize_t (*pwrite)(int fd, const void *buf, size_t n, off_t at);
    int (*sync)(int fd);
};
void io_set_system(const struct io_system *s); /* borrows; NULL: the real ones. Before other threads exist. */

/* On a descriptor of the caller's, interrupted and partial calls continued. pread: a count, less than n only at the end of the
 * file, or a negative errno. The others: 0 or a negative errno. */
ssize_t io_pread(int fd, uint64_t offset, void *buf, size_t n);
int io_pwrite(int fd, uint64_t offset, const void *data, size_t n);
int io_sync(int fd);

/* Open for reading. direct: try O_DIRECT for io_read. */
int io_open(const char *path, bool direct, struct io_file **ret, struct err *err);
void io_close(struct io_file *f); /* NULL is fine */
uint64_t io_size(const struct io_file *f);
const char *io_path(const struct io_file *f);
/* Exactly n bytes at offset into buf; a short file is -EIO with offset, wanted and file size in the message.
 * With direct, reads go through an internal aligned bounce buffer (1 MiB per call site, on the heap of the call)
 * unless buf, offset and n are all 4096-aligned. */
int io_read(struct io_file *f, uint64_t offset, void *buf, size_t n, struct err *err);
/* Whether the open file is as it was at io_open: -ESTALE with what differs (size, time of change). */
int io_unchanged(const struct io_file *f, struct err *err);
bool io_is_direct(const struct io_file *f); /* O_DIRECT is in use, as far as is known yet */
/* As io_read, without a bounce buffer: buf is aligned and has n + 2 * IO_ALIGN bytes, and the data begin at buf + *ret_skip.
 * Without O_DIRECT the pages leave the cache again, so that a large file does not fill it. */
int io_read_extent(struct io_file *f, uint64_t offset, size_t n, void *buf, size_t *ret_skip, struct err *err);

/* May an output take the name `path`? Yes if there is nothing, an empty file, or one that begins with `magic` (n <= 16 bytes): a
 * slip must not cost somebody another file. kind: "a GGUF file", for the message. 0 or a negative errno. */
int io_may_replace(const char *path, const void *magic, size_t n, const char *kind, struct err *err);

struct io_out;
/* Creates "<path>.tmp-<pid>" beside path (never path itself); where path is a link, beside the file that it points to. */
int io_out_open(const char *path, struct io_out **ret, struct err *err);
/* Private: mode 0600. New: io_out_commit replaces nothing, -EEXIST. */
enum { IO_OUT_PRIVATE = 1, IO_OUT_NEW = 2 };
int io_out_open_as(const char *path, unsigned flags, struct io_out **ret, struct err *err);
int io_out_write(struct io_out *o, const void *data, size_t n, struct err *err); /* at the current end */
int io_out_pwrite(struct io_out *o, uint64_t offset, const void *data, size_t n, struct err *err);
int io_out_commit(struct io_out *o, struct err *err); /* fsync, rename, fsync of the folder; frees o on success or failure */
void io_out_abort(struct io_out *o);                  /* removes the temporary file, frees o; NULL is fine */

#endif

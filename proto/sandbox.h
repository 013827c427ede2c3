/* SPDX-License-Identifier: MIT
 * What a stage may still do once it has what it needs: no_new_privs, Landlock for files, seccomp for system calls, in two profiles.
 *
 * strict: the loader and CPU backends. Files cannot be opened, nothing can be run, connected, traced or made executable; what
 *   computing, the control socket and threads need goes on, reads of files that are open as well. To open a file fails with
 *   EACCES, because the C library tries it now and then; anything else ends the process (SIGSYS).
 * driver: backends with a driver, which opens files, compiles and starts threads whenever it likes. It may read what belongs to the
 *   system, use devices of its kind, and write below its cache folder; no program can be run, no process made or traced, no
 *   socket opened. A refused call fails with EPERM (EACCES from Landlock), because drivers try things and go on.
 *
 * Built with a sanitizer, seccomp reports to the kernel's log and refuses nothing but rings, and Landlock is left out: sanitizers
 * open files when they have something to say. Main thread. */
#ifndef TANDEM_PROTO_SANDBOX_H
#define TANDEM_PROTO_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>

enum sandbox_profile { SANDBOX_STRICT, SANDBOX_DRIVER };

struct sandbox {
    enum sandbox_profile profile;
    bool off;     /* the configuration says so: nothing below is done */
    int landlock; /* version in force, or a negative errno */
    int seccomp;  /* 1: in force; 0: not yet; or a negative errno */
};

#define SANDBOX_TEXT 96

/* Before the event loop is made: io_uring_setup fails with ENOSYS, whatever is configured later. What a ring is asked for no filter
 * sees; libuv makes one with each loop (since 1.45; from 1.50 on whatever UV_USE_IO_URING says), and does without where it gets
 * none. Sets no_new_privs. */
void sandbox_without_rings(void);
/* Before threads are started that it shall hold: no_new_privs and Landlock. reads: a file whose folder a driver may read (a
 * manifest), or "". What a kernel does not have is noted in s, and left out. */
void sandbox_begin(struct sandbox *s, const char *reads);
/* After the warm-up: seccomp, for all threads of the process. A second call does nothing. */
void sandbox_seal(struct sandbox *s);
/* "strict: seccomp, Landlock 7", or what is missing and why. */
void sandbox_describe(const struct sandbox *s, char text[SANDBOX_TEXT]);
/* Such a text: something is missing that was not left out on purpose. */
bool sandbox_text_lacks(const char *text);
/* What the filters name, whatever its arguments are, so that tests can try each: numbers of system calls; a negative one does not
 * exist on this processor. */
enum sandbox_list { SANDBOX_STRICT_ALLOWS, SANDBOX_STRICT_REFUSES, SANDBOX_DRIVER_REFUSES };
const int *sandbox_calls(enum sandbox_list list, size_t *ret_n);
/* Sanitizers are built in: calls are reported, not refused. */
bool sandbox_only_reports(void);

#endif

/* SPDX-License-Identifier: MIT
 * Failures on demand, in every build, off unless asked for: "stage:event@when[:always]", such as npu_worker:abort@100. The
 * coordinator takes them from its command line and hands each stage its own in CONFIGURE; the stage's skeleton asks here at the
 * places where things fail. docs/OPERATIONS.md lists events and moments. */
#ifndef TANDEM_PROTO_FAULT_H
#define TANDEM_PROTO_FAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct faults;

#define FAULT_LIST 512 /* bytes of a list, as CONFIGURE carries it */

/* Lines of --help: what the words mean. */
extern const char *const fault_help;

/* One of the command line: 0, or -EINVAL with what was expected. */
int fault_check(const char *text, struct err *err);
/* Likewise, for a model of so many layers: -EINVAL where the stage never has a chunk of the layer that is named. */
int fault_check_layer(const char *text, uint32_t n_layers, struct err *err);
/* Those of `texts` that are this stage's, as a list. first: it was not restarted; otherwise only those that say ":always", and
 * without a device (it goes on with the processor) none is lost. */
int fault_list(const char *const *texts, int n, const char *stage, bool first, bool device, char ret[FAULT_LIST], struct err *err);

/* In the stage. *ret is NULL for an empty list. control_fd: borrowed, for corrupt-message. Main thread, before the model is opened
 * and before other threads exist. */
int fault_open(const char *list, int control_fd, struct faults **ret, struct err *err);
void fault_close(struct faults *f); /* NULL is fine */
/* Those @start. 0, or -ENODEV for a device that is lost. Main thread. */
int fault_start(struct faults *f, struct err *err);
/* The data thread took a chunk: those whose moment it is. Likewise. */
int fault_chunk(struct faults *f, uint32_t layer, struct err *err);
/* Is the slot that is about to be committed to be spoiled? Once for each time that the event came. Data thread. */
bool fault_slot(struct faults *f);
/* Is the chunk that was taken to be lost, without a word? Likewise. */
bool fault_drops(struct faults *f);
/* Is this message to be dropped? Likewise. ctx: the struct faults. Main thread; a conn_filter. */
bool fault_message(void *ctx);

#endif

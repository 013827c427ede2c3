/* SPDX-License-Identifier: MIT
 * The other end of control.h: asks the running coordinator of a config. Blocks; a signal ends it with -EINTR. Thread: main. */
#ifndef TANDEM_COORDINATOR_CONTROL_CLIENT_H
#define TANDEM_COORDINATOR_CONTROL_CLIENT_H

#include <limits.h>
#include <signal.h>
#include <stdint.h>

struct err;
struct json_t;

struct control_client { /* caller's storage */
    char dir[PATH_MAX]; /* its runtime folder */
    int pid;
};

/* Finds it; pid 0: there is one only. -ESRCH and -ENOTUNIQ as runtime_dir_find, -errno of the config's path. */
int control_client_find(const char *config, uint32_t pid, struct control_client *ret, struct err *err);
/* One request and its answer, on a connection of its own. signals: blocked by the caller, and let in while this waits; NULL: as
 * they are. -ESRCH: it has ended. An answer that is an error is one here. */
int control_client_ask(const struct control_client *c, const char *request, const sigset_t *signals, struct json_t **ret,
                       struct err *err);

#endif

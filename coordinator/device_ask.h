/* SPDX-License-Identifier: MIT
 * Asks a stage's program about its device (--choose-device) before the plan is made: a driver that hangs or crashes while it is
 * asked takes a short-lived process with it and nothing else. Thread: main, before the loop runs. */
#ifndef TANDEM_COORDINATOR_DEVICE_ASK_H
#define TANDEM_COORDINATOR_DEVICE_ASK_H

#include <stdbool.h>
#include <stddef.h>

#define DEVICE_ASK_TEXT 4096

struct device_ask {
    char text[DEVICE_ASK_TEXT]; /* what the program wrote */
    char reason[768];           /* why there is no device; "" when there is one */
    bool crashed;               /* the program did, or hung, or could not be started */
};

/* words: the program's path and its options, NULL at the end. False: *ret has the reason. */
bool device_ask(const char *const words[], struct device_ask *ret);
/* The last line of the text that begins with this word and a tab, behind them; NULL: none. */
const char *device_ask_line(const struct device_ask *a, const char *word);

#endif

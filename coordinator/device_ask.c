/* SPDX-License-Identifier: MIT
 * Runs the program and keeps what it said. A child that crashes or hangs is an answer. Owns nothing afterwards. */
#include "coordinator/device_ask.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "proto/ask.h"
#include "proto/err.h"

#define WAIT_MS 20000 /* a driver's first start may compile, or load firmware */

bool device_ask(const char *const words[], struct device_ask *ret)
{
    static const char error[] = ": error: ";
    struct err said = {0};
    int status = 0;
    *ret = (struct device_ask){0};
    int r = ask_program(words, WAIT_MS, ret->text, sizeof(ret->text), &status, &said);
    if (r == -ETIMEDOUT)
        err_set(&said, r, "its driver did not answer within %d s", WAIT_MS / 1000);
    if (r == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    ret->crashed = r < 0 || !WIFEXITED(status);
    const char *sentence = strstr(ret->text, error);
    sentence = sentence ? sentence + sizeof(error) - 1 : ret->text;
    if (r < 0)
        snprintf(ret->reason, sizeof(ret->reason), "%.*s", (int)sizeof(ret->reason) - 1, said.text);
    else if (WIFSIGNALED(status))
        snprintf(ret->reason, sizeof(ret->reason), "the driver crashed while it was asked (signal %d)", WTERMSIG(status));
    else
        snprintf(ret->reason, sizeof(ret->reason), "%.*s", (int)strcspn(sentence, "\n"), sentence);
    return false;
}

const char *device_ask_line(const struct device_ask *a, const char *word)
{
    const char *ret = NULL;
    size_t n = strlen(word);
    for (const char *p = a->text; p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        if (strncmp(p, word, n) == 0 && p[n] == '\t')
            ret = p + n + 1;
    }
    return ret;
}

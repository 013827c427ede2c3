/* SPDX-License-Identifier: MIT
 * Starts npu_worker --choose-device and reads the last line of its output: XRT itself prints warnings before it. Owns nothing
 * afterwards. Called by npu_worker as a stage before it opens a device, and by whoever plans for one. */
#include "npu_worker/xrt_probe.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "proto/ask.h"
#include "proto/err.h"

static bool parse(const char *text, struct xrt_probe_answer *ret)
{
    const char *line = text;
    for (const char *p = text; (p = strchr(p, '\n')) && p[1]; p++)
        line = p + 1;
    return sscanf(line, "npu\t%31[a-z_]\t%15[0-9.]\t%255[^\n]", ret->flavour, ret->version, ret->name) == 3;
}

int xrt_probe(const char *program, unsigned index, int timeout_ms, struct xrt_probe_answer *ret, struct err *err)
{
    char device[32], text[2048];
    const char *const words[] = {program ? program : "/proc/self/exe", "--choose-device", "--set", device, NULL};
    int status = 0;
    struct xrt_probe_answer a;
    struct err said = {0};
    snprintf(device, sizeof(device), "npu.device=%u", index);
    int r = ask_program(words, timeout_ms, text, sizeof(text), &status, &said);
    if (r == -ETIMEDOUT)
        return err_set(err, -ENODEV, "the NPU's driver did not answer within %d ms when it was opened", timeout_ms);
    if (r < 0)
        return err_set(err, -ENODEV, "%s", said.text);
    if (WIFSIGNALED(status))
        return err_set(err, -ENODEV, "the NPU's driver crashed when it was opened (signal %d)", WTERMSIG(status));
    if (WEXITSTATUS(status) == 0 && parse(text, &a)) {
        *ret = a;
        return 0;
    }
    const char *sentence = strstr(text, "error: ");
    sentence = sentence ? sentence + 7 : *text ? text : "no answer";
    /* What the child wrote is for people; of its two kinds of failure only "no XRT" is worth a code of its own. */
    bool absent = strstr(sentence, "built without XRT") || strstr(sentence, "XRT cannot be loaded");
    return err_set(err, absent ? -ENOSYS : -ENODEV, "%.*s", (int)strcspn(sentence, "\n"), sentence);
}

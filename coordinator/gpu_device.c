/* SPDX-License-Identifier: MIT
 * Runs `gpu_worker --choose-device` and reads its one line. A child that crashes or hangs is an answer. */
#include "coordinator/gpu_device.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "coordinator/supervise.h"
#include "proto/ask.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/util.h"

#define WAIT_MS 20000 /* a driver's first start may compile */
#define TEXT_BYTES 4096

/* "unified\t123\t45\tname\n", the last line. */
static bool parse(const char *text, struct gpu_device *d)
{
    char kind[16];
    const char *line = text;
    for (const char *p = text; (p = strchr(p, '\n')) && p[1]; p++)
        line = p + 1;
    if (sscanf(line, "%15[a-z]\t%" SCNu64 "\t%" SCNu64 "\t%255[^\n]", kind, &d->room, &d->importable, d->name) != 4)
        return false;
    d->unified = strcmp(kind, "unified") == 0;
    return d->unified || strcmp(kind, "own") == 0;
}

static void say(struct gpu_device *d, const char *text, int status)
{
    const char *sentence = strstr(text, "gpu_worker: error: ");
    sentence = sentence ? sentence + strlen("gpu_worker: error: ") : text;
    if (WIFSIGNALED(status))
        snprintf(d->reason, sizeof(d->reason), "the driver crashed while it was asked (signal %d)", WTERMSIG(status));
    else
        snprintf(d->reason, sizeof(d->reason), "%.*s", (int)strcspn(sentence, "\n"), sentence);
}

int gpu_device_find(const struct config *c, const char *stage_dir, struct gpu_device *ret, struct err *err)
{
    const struct config_device *o = &c->device;
    char path[PATH_MAX], device[160], without[160], buffer[64], subgroup[64], allow[64], text[TEXT_BYTES] = "";
    int status = 0;
    memset(ret, 0, sizeof(*ret));
    if (strcmp(c->gpu.backend, "cpu") == 0)
        return 0;
    int r = supervise_stage_path(stage_dir, "gpu_worker", path, sizeof(path), err);
    if (r < 0)
        return r;
    snprintf(device, sizeof(device), "gpu.device=%s", o->name);
    snprintf(without, sizeof(without), "gpu.without=%s", o->without);
    snprintf(allow, sizeof(allow), "gpu.allow_cpu_device=%s", o->allow_cpu ? "true" : "false");
    snprintf(subgroup, sizeof(subgroup), o->subgroup ? "gpu.subgroup=%u" : "gpu.subgroup=auto", o->subgroup);
    snprintf(buffer, sizeof(buffer), o->max_buffer ? "gpu.max_buffer=%" PRIu64 : "gpu.max_buffer=auto", o->max_buffer);
    const char *const words[] = {path,  "--choose-device", "--set",  device,  "--set", without, "--set",
                                 allow, "--set",           subgroup, "--set", buffer,  NULL};
    struct err said = {0};
    r = ask_program(words, WAIT_MS, text, sizeof(text), &status, &said);
    if (r == -ETIMEDOUT)
        err_set(&said, r, "its driver did not answer within %d s", WAIT_MS / 1000);
    if (r == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 && parse(text, ret)) {
        ret->vulkan = true;
        return 0;
    }
    if (r < 0)
        snprintf(ret->reason, sizeof(ret->reason), "%.*s", (int)sizeof(ret->reason) - 1, said.text);
    else
        say(ret, text, status);
    ret->surprise = r < 0 || !WIFEXITED(status) || strcmp(o->name, "auto") != 0 || o->without[0] || o->subgroup || o->max_buffer;
    if (strcmp(c->gpu.backend, "auto") == 0)
        return 0;
    return err_set(err, -ENODEV, "'gpu.backend' is vulkan, but %s; 'gpu_worker --list-devices' shows what is there", ret->reason);
}

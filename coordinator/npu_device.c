/* SPDX-License-Identifier: MIT
 * Runs `npu_worker --choose-device` with the model and the manifest, and reads its two lines. */
#include "coordinator/npu_device.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/device_ask.h"
#include "coordinator/child.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/memlock.h"
#include "proto/util.h"

/* "products\tscratch\tmoved\tkept\tfixed\tM:BYTES,M:BYTES\n" and "npu\tflavour\tversion\tname\n" */
static bool parse(const struct device_ask *a, struct npu_device *d)
{
    const char *products = device_ask_line(a, "products"), *npu = device_ask_line(a, "npu");
    char flavour[32];
    int at = 0, n = 0;
    if (!products || !npu || sscanf(npu, "%31[^\t]\t%*[^\t]\t%255[^\n]", flavour, d->name) != 2 ||
        sscanf(products, "%" SCNu64 "\t%" SCNu64 "\t%" SCNu64 "\t%" SCNu64 "\t%n", &d->scratch, &d->moved, &d->kept, &d->fixed,
               &at) != 4)
        return false;
    d->heap = strcmp(flavour, "hw_context") == 0 ? MEMLOCK_NPU_HEAP : 0;
    for (int i = 0; i < NPU_DEVICE_GROUPS; i++, at += n) {
        n = 0;
        if (sscanf(products + at, "%" SCNu32 ":%" SCNu64 "%n", &d->groups[i].tokens, &d->groups[i].bytes, &n) != 2 || !n ||
            d->groups[i].tokens == 0)
            return false;
        if (products[at + n] != ',')
            return products[at + n] == '\n';
        n++;
    }
    return false;
}

uint64_t npu_device_bytes(const struct npu_device *d, uint32_t chunk_tokens)
{
    uint64_t bytes = d->fixed;
    for (int i = 0; d->xrt && i < NPU_DEVICE_GROUPS && d->groups[i].tokens; i++)
        bytes += (chunk_tokens + d->groups[i].tokens - 1) / d->groups[i].tokens * d->groups[i].bytes;
    return bytes;
}

int npu_device_find(const struct config *c, const char *stage_dir, struct npu_device *ret, struct err *err)
{
    char path[PATH_MAX], model[PATH_MAX + 16], manifest[sizeof(c->xrt.manifest) + 16], device[32], context[32];
    struct device_ask a;
    bool any = strcmp(c->npu.backend, "auto") == 0;
    *ret = (struct npu_device){0};
    if (strcmp(c->npu.backend, "cpu") == 0 || (any && !c->xrt.manifest[0]))
        return 0;
    if (!c->xrt.manifest[0])
        return err_set(
            err, -EINVAL,
            "'npu.backend' is xrt, but 'npu.manifest' is empty; expected the path of a manifest of operators (docs/NPU.md)");
    int r = child_path(stage_dir, "npu_worker", path, sizeof(path), err);
    if (r < 0)
        return r;
    snprintf(model, sizeof(model), "model=%s", c->model);
    snprintf(manifest, sizeof(manifest), "npu.manifest=%s", c->xrt.manifest);
    snprintf(device, sizeof(device), "npu.device=%u", c->xrt.index);
    snprintf(context, sizeof(context), "context=%u", c->context);
    const char *sandbox = c->sandbox ? "sandbox=auto" : "sandbox=off";
    const char *const words[] = {path,   "--choose-device", "--set", model,   "--set", manifest, "--set",
                                 device, "--set",           context, "--set", sandbox, NULL};
    if (device_ask(words, &a)) {
        if (parse(&a, ret)) {
            ret->xrt = true;
            ret->lockable = c->spawn[CONFIG_NPU] ? memlock_limit() : MEMLOCK_UNLIMITED; /* what others start has its own */
            return 0;
        }
        *ret = (struct npu_device){0};
        snprintf(a.reason, sizeof(a.reason), "npu_worker's answer was not understood; are all programs of one build?");
    }
    snprintf(ret->reason, sizeof(ret->reason), "%s", a.reason);
    if (any)
        return 0;
    return err_set(err, -ENODEV,
                   "'npu.backend' is xrt, but %s; 'npu_worker --list-devices' and '--list-operators' show what is there",
                   ret->reason);
}

/* SPDX-License-Identifier: MIT
 * Which backends this program has, and which one runs. Owns nothing. Main thread. */
#include <errno.h>
#include <string.h>

#include "npu_worker/attn_backend.h"
#include "proto/err.h"
#include "proto/log.h"

int attn_open(const char *wanted, const struct attn_backend_options *o, struct attn_open *ret, struct err *err)
{
    bool any = strcmp(wanted, "auto") == 0, xrt = any ? o->device.manifest[0] != '\0' : strcmp(wanted, attn_xrt.name) == 0;
    int r = 0;
    *ret = (struct attn_open){0};
    if (!any && !xrt && strcmp(wanted, attn_cpu.name) != 0)
        return err_set(err, -ENOTSUP, "backend '%s' is not part of this program; expected auto, xrt or cpu", wanted);
    if (xrt) {
        struct attn_backend_options with = *o;
        with.device.keep_going = any;
        r = attn_xrt.open(&with, &ret->device, err);
        if (r == 0)
            ret->backend = &attn_xrt;
        else if (any)
            log_warn("npu", "backend 'xrt' is not used: %s", err->text);
    }
    if (!ret->backend && (any || !xrt)) {
        r = attn_cpu.open(o, &ret->device, err);
        ret->backend = r == 0 ? &attn_cpu : NULL;
    }
    return r < 0 ? err_wrap(err, r, "backend '%s'", wanted) : 0;
}

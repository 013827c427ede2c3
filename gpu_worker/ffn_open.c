/* SPDX-License-Identifier: MIT
 * Which backends this program has, best first, and which one runs. Owns nothing. Main thread. */
#include <errno.h>
#include <string.h>

#include "gpu_worker/ffn_backend.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

static const struct ffn_backend *const backends[] = {
#ifdef TANDEM_HAVE_VULKAN
    &ffn_vulkan,
#endif
    &ffn_cpu,
};

int ffn_open(const char *wanted, const struct ffn_backend_options *o, struct ffn_open *ret, struct err *err)
{
    bool any = strcmp(wanted, "auto") == 0, known = false;
    int r = -ENOTSUP;
    *ret = (struct ffn_open){0};
    for (size_t i = 0; i < ARRAY_LEN(backends) && r < 0; i++) {
        const struct ffn_backend *b = backends[i];
        if (!any && strcmp(wanted, b->name) != 0)
            continue;
        known = true;
        r = b->open(o, &ret->device, err);
        if (r == 0)
            ret->backend = b;
        else if (any && i + 1 < ARRAY_LEN(backends))
            log_line(r == -ENODEV ? LOG_INFO : LOG_WARN, "gpu", "backend '%s' is not used: %s", b->name, err->text);
    }
    if (!known)
        return err_set(err, -ENOTSUP, "backend '%s' is not part of this program; expected auto%s or cpu", wanted,
                       ARRAY_LEN(backends) > 1 ? ", vulkan" : "");
    return r < 0 ? err_wrap(err, r, "backend '%s'", wanted) : 0;
}

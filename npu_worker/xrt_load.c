/* SPDX-License-Identifier: MIT
 * Loads the module of XRT (xrt_device.cpp) from the folder of modules and prints what devices there are. Called by main before any
 * thread exists. The module is never unloaded: XRT keeps threads and exit handlers. Nothing global is changed but XILINX_XRT in
 * the environment, and only where it is unset. Opening a device runs a driver, which may crash or hang: npu_worker as a stage does
 * it in a child first (xrt_probe.h). */
#include "npu_worker/xrt_load.h"

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "npu_worker/xrt_device.h"
#include "proto/err.h"
#include "proto/memlock.h"
#include "proto/place.h"
#include "proto/util.h"

#define XRT_HOME "/opt/xilinx/xrt"
#define XRT_CORE "libxrt_coreutil.so.2"
#define DEVICES_MAX 16u

static int check_table(const char *path, const struct xrt_device_ops *t, struct err *err)
{
    if (t && t->abi == XRT_DEVICE_ABI && t->bytes == sizeof(*t))
        return 0;
    if (!t)
        return err_set(err, -ENOSYS, "'%s': '%s' is not in it; it is not a module of Tandem", path, XRT_DEVICE_TABLE);
    return err_set(err, -ENOSYS, "'%s' is of another version (table %u of %u bytes; expected %u of %zu); build or install it again",
                   path, t->abi, t->bytes, XRT_DEVICE_ABI, sizeof(*t));
}

/* libxrt_coreutil would come from where the module was linked, whatever XILINX_XRT says: XRT 2.13 then takes its driver's library
 * from that folder all the same, 2.25 from beside libxrt_coreutil. The one in the folder is loaded first, so that all is of one
 * XRT: the module gets it by its name. */
static int load_core(struct err *err)
{
    char path[PATH_MAX];
    const char *home = getenv("XILINX_XRT"); /* XRT's variable, not ours */
    if (!home || (size_t)snprintf(path, sizeof(path), "%s/lib/" XRT_CORE, home) >= sizeof(path) || access(path, F_OK) < 0)
        return 0;
    if (dlopen(path, RTLD_NOW | RTLD_LOCAL))
        return 0;
    return err_set(err, -ENOSYS, "XRT cannot be loaded: %s; expected a whole XRT in the folder that XILINX_XRT names", dlerror());
}

int xrt_load(const char *path, const struct xrt_device_ops **ret, struct err *err)
{
    char found[PATH_MAX];
    struct err why = {0};
    int r = path ? 0 : place_file(PLACE_MODULES, XRT_LOAD_MODULE, found, sizeof(found), &why);
    if (r < 0 && r != -ENOENT)
        return err_set(err, r, "%s", why.text);
    if (path && access(path, F_OK) < 0)
        r = err_set(&why, -ENOENT, "'%s' is not there", path);
    path = path ? path : found;
    if (r < 0)
        return err_set(err, -ENOSYS,
                       "%s: this npu_worker was built without XRT, or installed without its module; install the package "
                       "tandem-xrt, or XRT (Debian: libxrt-dev) and build again",
                       why.text);
    if (access(XRT_HOME, F_OK) == 0)
        setenv("XILINX_XRT", XRT_HOME, 0);
    r = load_core(err);
    if (r < 0)
        return r;
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module)
        return err_set(err, -ENOSYS,
                       "XRT cannot be loaded: %s; install it (AMD's, in /opt/xilinx/xrt; Debian: libxrt2, libxrt1 in Debian 12)",
                       dlerror());
    const struct xrt_device_ops *t = dlsym(module, XRT_DEVICE_TABLE);
    r = check_table(path, t, err);
    if (r < 0)
        dlclose(module);
    else
        *ret = t;
    return r;
}

static void print_limit(FILE *out)
{
    char text[32];
    uint64_t limit = memlock_limit();
    if (limit == MEMLOCK_UNLIMITED)
        fprintf(out, "locked memory: unlimited\n");
    else
        fprintf(out,
                "locked memory (ulimit -l): %s; a Ryzen AI NPU's buffers (npu.memory) must fit in it, and %u MiB of its driver\n",
                util_format_bytes(text, sizeof(text), limit), (unsigned)(MEMLOCK_NPU_HEAP >> 20));
}

int xrt_load_list(FILE *out, struct err *err)
{
    const struct xrt_device_ops *t = NULL;
    unsigned n = 0;
    int r = xrt_load(NULL, &t, err);
    if (r < 0)
        return r;
    fprintf(out, "XRT %u.%u, %s%s\n", t->xrt_major, t->xrt_minor, t->flavour,
            t->locks_memory ? "" : ": too old for a Ryzen AI NPU, which needs an XRT with hw_context");
    print_limit(out);
    fflush(out);
    for (; r == 0 && n < DEVICES_MAX; n++) {
        struct xrt_device *d = NULL;
        r = t->open(n, &d, err);
        if (r < 0)
            break;
        fprintf(out, "%u  %s\n", n, t->name(d));
        t->close(d);
    }
    return n ? 0 : r;
}

int xrt_load_choose(unsigned index, FILE *out, struct err *err)
{
    const struct xrt_device_ops *t = NULL;
    struct xrt_device *d = NULL;
    int r = xrt_load(NULL, &t, err);
    if (r == 0)
        r = t->open(index, &d, err);
    if (r < 0)
        return r;
    fprintf(out, "npu\t%s\t%u.%u\t%s\n", t->flavour, t->xrt_major, t->xrt_minor, t->name(d));
    t->close(d);
    return 0;
}

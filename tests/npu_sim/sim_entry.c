/* SPDX-License-Identifier: MIT
 * The driver functions that libxrt_coreutil 2.13 calls for what npu_worker does: open, buffers, sync, submit, wait, xclbin. Each
 * checks its arguments, counts, and hands on. XRT calls them on its own threads. */
#include "tests/npu_sim/sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xclbin.h>
#include <xrt.h>

#include "tests/npu_sim/sim_xclbin.h"

struct device {
    void *core;
    struct device *next;
};
static _Atomic uint64_t n_syncs;
static struct device *devices; /* kept until the end: XRT frees buffers after it has closed the device */

unsigned xclProbe(void)
{
    sim_faults_read();
    return sim_fault(SIM_NO_DEVICE) ? 0 : 1;
}

unsigned xclVersion(void);
unsigned xclVersion(void)
{
    return 2;
}

xclDeviceHandle xclOpen(unsigned index, const char *log, enum xclVerbosityLevel level)
{
    (void)log;
    (void)level;
    sim_faults_read();
    if (index != 0 || sim_fault(SIM_NO_DEVICE)) {
        errno = ENODEV;
        return NULL;
    }
    if (sim_fault(SIM_CRASH_OPEN))
        abort();
    if (sim_fault(SIM_MEMLOCK_OPEN))
        sim_glue_refuse_lock();
    while (sim_fault(SIM_HANG_OPEN))
        pause();
    struct device *d = calloc(1, sizeof(*d));
    if (!d)
        return NULL;
    pthread_mutex_lock(&sim_lock);
    sim_queue_restart();
    n_syncs = 0;
    d->next = devices;
    devices = d;
    pthread_mutex_unlock(&sim_lock);
    sim_count(SIM_OPENS, 1);
    d->core = sim_glue_attach(d, index);
    return d->core ? d : NULL;
}

void xclClose(xclDeviceHandle handle)
{
    struct device *d = handle;
    if (d && d->core) {
        sim_glue_detach(d->core);
        d->core = NULL;
    }
    sim_counters_report();
}

static xclBufferHandle make(void *user, size_t bytes, unsigned flags)
{
    pthread_mutex_lock(&sim_lock);
    unsigned bo = sim_memory_alloc(user, bytes, flags);
    int e = errno;
    pthread_mutex_unlock(&sim_lock);
    errno = e;
    return bo ? bo : XRT_NULL_BO;
}

xclBufferHandle xclAllocBO(xclDeviceHandle handle, size_t bytes, int unused, unsigned flags)
{
    (void)handle;
    (void)unused;
    return make(NULL, bytes, flags);
}

xclBufferHandle xclAllocUserPtrBO(xclDeviceHandle handle, void *user, size_t bytes, unsigned flags)
{
    (void)handle;
    return make(user, bytes, flags);
}

void xclFreeBO(xclDeviceHandle handle, xclBufferHandle bo)
{
    (void)handle;
    pthread_mutex_lock(&sim_lock);
    sim_memory_free(bo);
    pthread_mutex_unlock(&sim_lock);
}

/* The buffer when offset and bytes lie in it. */
static struct sim_bo *part(xclBufferHandle bo, size_t offset, size_t bytes)
{
    pthread_mutex_lock(&sim_lock);
    struct sim_bo *b = sim_memory_get(bo);
    pthread_mutex_unlock(&sim_lock);
    return b && offset <= b->bytes && bytes <= b->bytes - offset ? b : NULL;
}

void *xclMapBO(xclDeviceHandle handle, xclBufferHandle bo, bool write)
{
    (void)handle;
    (void)write;
    struct sim_bo *b = part(bo, 0, 0);
    return b ? b->host : NULL;
}

int xclUnmapBO(xclDeviceHandle handle, xclBufferHandle bo, void *address)
{
    (void)handle;
    (void)bo;
    (void)address;
    return 0;
}

int xclSyncBO(xclDeviceHandle handle, xclBufferHandle bo, enum xclBOSyncDirection direction, size_t bytes, size_t offset)
{
    bool to = direction == XCL_BO_SYNC_BO_TO_DEVICE;
    struct sim_bo *b = part(bo, offset, bytes);
    (void)handle;
    if (!b)
        return -EINVAL;
    if (++n_syncs == sim_fault(SIM_SYNC_FAIL))
        return -EIO;
    sim_count(to ? SIM_SYNCS_TO : SIM_SYNCS_FROM, 1);
    sim_count(to ? SIM_BYTES_TO : SIM_BYTES_FROM, bytes);
    char *host = (char *)b->host + offset, *device = (char *)b->device + offset;
    if (host != device)
        memcpy(to ? device : host, to ? host : device, bytes);
    return 0;
}

int xclCopyBO(xclDeviceHandle handle, xclBufferHandle to, xclBufferHandle from, size_t bytes, size_t to_offset, size_t from_offset)
{
    struct sim_bo *a = part(to, to_offset, bytes), *b = part(from, from_offset, bytes);
    (void)handle;
    if (!a || !b)
        return -EINVAL;
    memcpy((char *)a->device + to_offset, (char *)b->device + from_offset, bytes);
    return 0;
}

int xclGetBOProperties(xclDeviceHandle handle, xclBufferHandle bo, struct xclBOProperties *p)
{
    struct sim_bo *b = part(bo, 0, 0);
    (void)handle;
    if (!b)
        return -EINVAL;
    p->handle = bo;
    p->flags = b->flags;
    p->size = b->bytes;
    p->paddr = b->address;
    return 0;
}

size_t xclWriteBO(xclDeviceHandle handle, xclBufferHandle bo, const void *from, size_t bytes, size_t offset)
{
    struct sim_bo *b = part(bo, offset, bytes);
    (void)handle;
    if (!b)
        return (size_t)-EINVAL;
    memcpy((char *)b->host + offset, from, bytes);
    return 0;
}

size_t xclReadBO(xclDeviceHandle handle, xclBufferHandle bo, void *to, size_t bytes, size_t offset)
{
    struct sim_bo *b = part(bo, offset, bytes);
    (void)handle;
    if (!b)
        return (size_t)-EINVAL;
    memcpy(to, (char *)b->host + offset, bytes);
    return 0;
}

int xclExecBuf(xclDeviceHandle handle, xclBufferHandle packet)
{
    (void)handle;
    return sim_queue_submit(packet);
}

int xclExecWait(xclDeviceHandle handle, int timeout_ms)
{
    (void)handle;
    return sim_queue_wait(timeout_ms);
}

int xclLoadXclBin(xclDeviceHandle handle, const struct axlf *top)
{
    struct device *d = handle;
    if (sim_fault(SIM_LOAD_FAIL) || strncmp((const char *)top->m_header.m_platformVBNV, SIM_XCLBIN_PLATFORM, 64) != 0)
        return -EINVAL;
    sim_count(SIM_LOADS, 1);
    return sim_glue_register(d->core, top);
}

int xclOpenContext(xclDeviceHandle handle, const xuid_t id, unsigned index, bool shared)
{
    (void)handle;
    (void)id;
    (void)index;
    (void)shared;
    return 0;
}

int xclCloseContext(xclDeviceHandle handle, const xuid_t id, unsigned index)
{
    (void)handle;
    (void)id;
    (void)index;
    return 0;
}

int xclGetDeviceInfo2(xclDeviceHandle handle, struct xclDeviceInfo2 *info)
{
    (void)handle;
    memset(info, 0, sizeof(*info));
    info->mMagic = 0x586C0C6C;
    info->mHALMajorVersion = 2;
    info->mHALMinorVersion = 1;
    snprintf(info->mName, sizeof(info->mName), SIM_XCLBIN_PLATFORM);
    info->mDataAlignment = 4096;
    info->mDDRSize = 4ull << 30;
    info->mDDRBankCount = 1;
    return 0;
}

xclBufferExportHandle xclExportBO(xclDeviceHandle handle, xclBufferHandle bo)
{
    (void)handle;
    (void)bo;
    return -1;
}

xclBufferHandle xclImportBO(xclDeviceHandle handle, xclBufferExportHandle exported, unsigned flags)
{
    (void)handle;
    (void)exported;
    (void)flags;
    return XRT_NULL_BO;
}

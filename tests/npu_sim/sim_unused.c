/* SPDX-License-Identifier: MIT
 * Driver functions that XRT's device table (device_swemu.o in Debian's libxrt_swemu.a) must find and that no test reaches:
 * registers, profiling, graphs and AI Engine contexts of other devices. Each says that it is not there. Several are C++ functions,
 * named here as the linker sees them; what they take does not matter. */
#include <errno.h>
#include <stddef.h>

#define NOT_THERE(name) \
    long name(void);    \
    long name(void)     \
    {                   \
        return -ENOSYS; \
    }

NOT_THERE(xclRegRead)
NOT_THERE(xclRegWrite)
NOT_THERE(xclP2pEnable)
NOT_THERE(xclReClock2)
NOT_THERE(xclUnmgdPread)
NOT_THERE(xclUnmgdPwrite)
NOT_THERE(_Z22xclUpdateSchedulerStatPv)
NOT_THERE(_Z22xclInternalResetDevicePv12xclResetKind)
NOT_THERE(_Z20xclCloseExportHandlei)
NOT_THERE(_Z12xclCmaEnablePvbm)
NOT_THERE(_Z17xclStartProfilingPviPKcS1_j)
NOT_THERE(_Z17xclLoadXclBinMetaPvPK4axlf)
NOT_THERE(_Z17xclGraphUpdateRTPPvPKcS1_m)
NOT_THERE(_Z17xclGraphTimeStampPv)
NOT_THERE(_Z17xclAIEOpenContextPvN3xrt3aie11access_modeE)
NOT_THERE(_Z16xclStopProfilingPvi)
NOT_THERE(_Z16xclResetAIEArrayPv)
NOT_THERE(_Z16xclReadProfilingPvi)
NOT_THERE(_Z16xclGraphWaitDonePvi)
NOT_THERE(_Z15xclGraphSuspendPv)
NOT_THERE(_Z15xclGraphReadRTPPvPKcPcm)
NOT_THERE(_Z14xclSyncBOAIENBPvRN3xrt2boEPKc18xclBOSyncDirectionmm)
NOT_THERE(_Z14xclGraphResumePv)
NOT_THERE(_Z13xclGraphResetPv)
NOT_THERE(_Z13xclGraphClosePv)
NOT_THERE(_Z12xclSyncBOAIEPvRN3xrt2boEPKc18xclBOSyncDirectionmm)
NOT_THERE(_Z12xclGraphWaitPvm)
NOT_THERE(_Z12xclGraphOpenPvPKhPKcN3xrt5graph11access_modeE)
NOT_THERE(_Z11xclGraphRunPvi)
NOT_THERE(_Z11xclGraphEndPvm)
NOT_THERE(_Z11xclGMIOWaitPvPKc)

/* Bytes read or written: none. */
size_t xclRead(void);
size_t xclRead(void)
{
    return 0;
}
size_t xclWrite(void);
size_t xclWrite(void)
{
    return 0;
}

/* No handle of the software emulator: every query then answers nothing. */
void *_ZN12xclcpuemhal29CpuemShim11handleCheckEPv(void *handle);
void *_ZN12xclcpuemhal29CpuemShim11handleCheckEPv(void *handle)
{
    (void)handle;
    return NULL;
}
int _ZN12xclcpuemhal29CpuemShim11deviceQueryEN8xrt_core5query8key_typeE(void *shim, int key);
int _ZN12xclcpuemhal29CpuemShim11deviceQueryEN8xrt_core5query8key_typeE(void *shim, int key)
{
    (void)shim;
    (void)key;
    return 0;
}

/* SPDX-License-Identifier: MIT
 * Finds the module that speaks to XRT. npu_worker links no XRT: where there is none it starts and computes on the processor.
 * Thread: main. */
#ifndef TANDEM_NPU_WORKER_XRT_LOAD_H
#define TANDEM_NPU_WORKER_XRT_LOAD_H

#include <stdio.h>

struct err;
struct xrt_device_ops;

#define XRT_LOAD_MODULE "tandem_xrt.so" /* in the folder of modules (proto/place.h) */

/* The module's table; it stays loaded. path: the module, NULL: XRT_LOAD_MODULE. XILINX_XRT, by which XRT finds its drivers, is set
 * to /opt/xilinx/xrt where it is unset and that folder exists; libxrt_coreutil is that folder's, where it has one. -ENOSYS with the
 * reason: no module, or no XRT. A driver is first touched by open. */
int xrt_load(const char *path, const struct xrt_device_ops **ret, struct err *err);

/* For npu_worker --list-devices and --choose-device; opens every device, or that one. An error where there is none. */
int xrt_load_list(FILE *out, struct err *err);
/* The line that xrt_probe reads: npu, flavour, XRT, name, by tabs. */
int xrt_load_choose(unsigned index, FILE *out, struct err *err);

#endif

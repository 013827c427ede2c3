/* SPDX-License-Identifier: MIT
 * Whether an NPU can be opened, asked of a child (npu_worker --choose-device): a driver that crashes or hangs takes that child with
 * it and nothing else. Thread: main; blocks. */
#ifndef TANDEM_NPU_WORKER_XRT_PROBE_H
#define TANDEM_NPU_WORKER_XRT_PROBE_H

struct err;

#define XRT_PROBE_MS 20000 /* the first start of a driver may load firmware */

struct xrt_probe_answer {
    char flavour[32], version[16], name[256];
};

/* program: npu_worker; NULL: this program's own file. index: of the NPU. -ENODEV with the reason, also where the child crashed or
 * hung; -ENOSYS where there is no XRT. */
int xrt_probe(const char *program, unsigned index, int timeout_ms, struct xrt_probe_answer *ret, struct err *err);

#endif

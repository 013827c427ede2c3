/* SPDX-License-Identifier: MIT
 * What the tests on the simulated NPU share. Each case runs in a child of its own: XRT keeps devices for the life of a process, and
 * faults are read when one is opened. In a child a failed check prints and returns 1. */
#ifndef TANDEM_TESTS_NPU_SIM_RIG_H
#define TANDEM_TESTS_NPU_SIM_RIG_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "npu_worker/manifest.h"
#include "npu_worker/xrt_device.h"
#include "npu_worker/xrt_load.h"
#include "proto/err.h"

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            return 1;                                                               \
        }                                                                           \
    } while (0)
#define CHECK_OK(call)                                                             \
    do {                                                                           \
        struct err err_ = {0}, *err = &err_;                                       \
        int r_ = (call);                                                           \
        if (r_ < 0) {                                                              \
            fprintf(stderr, "%s:%d: %d: %s\n", __FILE__, __LINE__, r_, err_.text); \
            return 1;                                                              \
        }                                                                          \
    } while (0)
#define CHECK_ERR(call, want, part)                                                                               \
    do {                                                                                                          \
        struct err err_ = {0}, *err = &err_;                                                                      \
        int r_ = (call);                                                                                          \
        if (r_ != (want) || err_.code != (want) || !strstr(err_.text, part)) {                                    \
            fprintf(stderr, "%s:%d: %d '%s'; expected %d '%s'\n", __FILE__, __LINE__, r_, err_.text, want, part); \
            return 1;                                                                                             \
        }                                                                                                         \
    } while (0)

struct rig {
    const struct xrt_device_ops *ops;
    struct xrt_device *device;
    struct xrt_kernel *kernel;
    struct manifest *manifest;
};

/* f(folder) in a child with NPU_SIM=faults and a report; the child ends with _exit of what f returns. */
void rig_case(int (*f)(const char *folder), const char *faults);
/* As rig_case, but the child is expected to die of this signal. */
void rig_dies(int (*f)(const char *folder), const char *faults, int signal);

/* Writes the operators into folder, opens device, kernel and manifest. */
int rig_open(struct rig *r, const char *folder, const char *const *operators, size_t n, struct err *err);
void rig_close(struct rig *r);

/* An operator of the manifest made ready: a buffer for each argument, instructions, a run. */
struct rig_operator {
    const struct manifest_operator *op;
    struct xrt_buffer *instructions, *buffers[MANIFEST_ARGUMENTS_MAX];
    struct xrt_run *run;
};
int rig_operator_open(struct rig *r, size_t i, struct rig_operator *ret, struct err *err);
void rig_operator_close(struct rig *r, struct rig_operator *o);
/* Uploads all arguments, runs, downloads all. */
int rig_operator_run(struct rig *r, struct rig_operator *o, struct err *err);
void *rig_map(const struct rig *r, const struct rig_operator *o, enum manifest_role role);

float rig_random(void); /* -1 to 1, the same in every run */
double rig_bf16(float x);
/* A run that hangs, and one that ends in an error: the first, the fourth and the seventh of what each function does. */
void rig_faults(int (*hangs)(const char *folder), int (*breaks)(const char *folder));

/* A counter of the report that the simulator wrote for this folder; -1 when there is none. */
int64_t rig_report(const char *folder, const char *name);

#endif

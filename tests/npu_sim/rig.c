/* SPDX-License-Identifier: MIT
 * Children, and operators made ready on the simulated NPU. Owns what it opens until it is closed; one thread. */
#include "tests/npu_sim/rig.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/npu_sim/sim.h"
#include "tests/npu_sim/sim_files.h"
#include "tests/unit/unit_test.h"

#define WAIT_MS 60000

static int run_child(int (*f)(const char *folder), const char *faults)
{
    const char *folder = unit_path("");
    char report[4096];
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        snprintf(report, sizeof(report), "%.4000s/report", folder);
        setenv("NPU_SIM", faults, 1);
        setenv("NPU_SIM_REPORT", report, 1);
        int r = f(folder);
        fflush(NULL);
        _exit(r);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

void rig_case(int (*f)(const char *folder), const char *faults)
{
    int status = run_child(f, faults);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("with '%s': the child ended with status 0x%x", faults, (unsigned)status);
}

void rig_dies(int (*f)(const char *folder), const char *faults, int signal)
{
    int status = run_child(f, faults);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != signal)
        fail_msg("with '%s': the child ended with status 0x%x; expected signal %d", faults, (unsigned)status, signal);
}

int rig_open(struct rig *r, const char *folder, const char *const *operators, size_t n, struct err *err)
{
    char path[4096];
    memset(r, 0, sizeof(*r));
    int e = sim_files_write(folder, operators, n, err);
    if (e == 0)
        e = xrt_load(NULL, &r->ops, err);
    if (e == 0)
        e = r->ops->open(0, &r->device, err);
    snprintf(path, sizeof(path), "%.4000s/npu.xclbin", folder);
    if (e == 0)
        e = r->ops->load_kernel(r->device, path, "MLIR_AIE", &r->kernel, err);
    snprintf(path, sizeof(path), "%.4000s/manifest.yaml", folder);
    return e < 0 ? e : manifest_open(path, &r->manifest, err);
}

void rig_close(struct rig *r)
{
    manifest_close(r->manifest);
    r->ops->free_kernel(r->kernel);
    r->ops->close(r->device);
}

int rig_operator_open(struct rig *r, size_t i, struct rig_operator *ret, struct err *err)
{
    const struct manifest_operator *op = manifest_get(r->manifest, i);
    uint32_t *words = NULL;
    size_t n = 0;
    memset(ret, 0, sizeof(*ret));
    ret->op = op;
    int e = manifest_instructions(op, &words, &n, err);
    if (e == 0)
        e = r->ops->make_instructions(r->kernel, words, n, &ret->instructions, err);
    free(words);
    for (unsigned a = 0; e == 0 && a < op->n_arguments; a++)
        e = r->ops->make_buffer(r->kernel, a, manifest_bytes(op, a), &ret->buffers[a], err);
    return e < 0 ? e : r->ops->make_run(r->kernel, ret->instructions, ret->buffers, op->n_arguments, &ret->run, err);
}

void rig_operator_close(struct rig *r, struct rig_operator *o)
{
    r->ops->free_run(o->run);
    for (unsigned a = 0; a < o->op->n_arguments; a++)
        r->ops->free_buffer(o->buffers[a]);
    r->ops->free_buffer(o->instructions);
}

int rig_operator_run(struct rig *r, struct rig_operator *o, struct err *err)
{
    int e = 0;
    for (unsigned a = 0; e == 0 && a < o->op->n_arguments; a++)
        e = r->ops->sync(o->buffers[a], XRT_DEVICE_TO, 0, manifest_bytes(o->op, a), err);
    if (e == 0)
        e = r->ops->start(o->run, err);
    if (e == 0)
        e = r->ops->wait(o->run, WAIT_MS, err);
    for (unsigned a = 0; e == 0 && a < o->op->n_arguments; a++)
        e = r->ops->sync(o->buffers[a], XRT_DEVICE_FROM, 0, manifest_bytes(o->op, a), err);
    return e;
}

void *rig_map(const struct rig *r, const struct rig_operator *o, enum manifest_role role)
{
    return r->ops->map(o->buffers[manifest_argument(o->op, role)]);
}

int64_t rig_report(const char *folder, const char *name)
{
    char path[4096], key[64];
    long long value, found = -1;
    snprintf(path, sizeof(path), "%.4000s/report", folder);
    FILE *f = fopen(path, "r");
    while (f && fscanf(f, "%63s %lld", key, &value) == 2) {
        if (strcmp(key, name) == 0)
            found = value;
    }
    if (f)
        fclose(f);
    return found;
}

float rig_random(void)
{
    static uint32_t seed = 1;
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 20) / 2048 - 1;
}

double rig_bf16(float x)
{
    return (double)sim_float(sim_bf16(x));
}

void rig_faults(int (*hangs)(const char *folder), int (*breaks)(const char *folder))
{
    for (int at = 1; at <= 7; at += 3) {
        char text[32];
        snprintf(text, sizeof(text), "hang_at=%d", at);
        rig_case(hangs, text);
        snprintf(text, sizeof(text), "error_at=%d", at);
        rig_case(breaks, text);
    }
}

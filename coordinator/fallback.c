/* SPDX-License-Identifier: MIT
 * Makes a plan as plan.c does, with everything fixed that running stages and rings depend on, and takes over the part of one
 * worker. Called by engine.c on the loop's thread. */
#include "coordinator/fallback.h"

#include <errno.h>
#include <string.h>

#include "coordinator/configure.h"
#include "coordinator/plan.h"
#include "proto/err.h"
#include "proto/util.h"

static void fix(struct config *c, const struct plan *p)
{
    c->chunk_tokens = p->chunk_tokens;
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        c->caps[i] = p->process[i].cap;
}

int fallback_plan(const struct config *config, const struct gguf *g, enum msg_role role, uint64_t command_bytes, struct plan *plan,
                  struct err *err)
{
    struct config c = *config;
    struct gpu_device gpu = plan->gpu;
    struct npu_device npu = plan->npu;
    struct plan_machine machine = {.gpu = &gpu, .npu = &npu};
    if ((role != MSG_ROLE_GPU || !gpu.vulkan) && (role != MSG_ROLE_NPU || !npu.xrt))
        return err_set(err, -ENOENT, "%s has no further backend", msg_role_name(role));
    fix(&c, plan);
    if (role == MSG_ROLE_GPU) {
        gpu = (struct gpu_device){.vulkan = false};
        memcpy(c.gpu.backend, "cpu", sizeof("cpu"));
    } else {
        npu = (struct npu_device){.xrt = false};
        memcpy(c.npu.backend, "cpu", sizeof("cpu"));
    }
    auto_free struct plan *next = malloc(sizeof(*next));
    if (!next)
        return err_set(err, -ENOMEM, "plan: out of memory");
    int r = plan_make(&c, g, &machine, command_bytes, next, err);
    if (r == 0 && next->kv_pages < plan->kv_pages)
        r = err_set(err, -ENOMEM, "its KV cache would have %u pages instead of %u", next->kv_pages, plan->kv_pages);
    if (r < 0)
        return r;
    enum config_process process = configure_process(role);
    memcpy(&plan->process[process], &next->process[process], sizeof(plan->process[process]));
    if (role == MSG_ROLE_GPU)
        plan->gpu = next->gpu;
    else
        plan->npu = next->npu;
    return 0;
}

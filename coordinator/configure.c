/* SPDX-License-Identifier: MIT
 * Fills a message from plan and config; plain data, no state. Called by the supervisor for every start of a stage. */
#include "coordinator/configure.h"

#include <errno.h>
#include <string.h>

#include "coordinator/plan.h"
#include "model/hparams.h"
#include "proto/err.h"
#include "proto/fault.h"
#include "proto/util.h"

enum config_process configure_process(enum msg_role role)
{
    static const enum config_process process[] = {
        [MSG_ROLE_LOADER] = CONFIG_LOADER, [MSG_ROLE_NPU] = CONFIG_NPU, [MSG_ROLE_GPU] = CONFIG_GPU};
    return process[role];
}

int configure_fill(struct msg_configure *q, enum msg_role role, const struct config *c, const struct plan *p, uint32_t epoch,
                   bool first, struct err *err)
{
    enum config_process process = configure_process(role);

    hparams_to_msg(&p->hparams, q);
    q->budget = p->process[process].cap - p->process[process].fixed;
    q->epoch = epoch;
    q->context = p->context;
    q->kv_pages = p->kv_pages;
    q->pool = role == MSG_ROLE_NPU ? p->npu_pool : 0;
    q->sequences = p->sequences;
    q->chunk_tokens = p->chunk_tokens;
    q->ring_slots = p->ring_slots;
    q->kv_type = (uint32_t)p->kv_type;
    q->logits_rows = p->logits_rows;
    q->threads = role == MSG_ROLE_NPU ? p->npu_threads : role == MSG_ROLE_GPU ? p->gpu_threads : 1;
    if (role != MSG_ROLE_LOADER) {
        q->streamed = p->residency[process].n_streamed;
        q->stream_slots = p->residency[process].n_slots;
    }
    q->sandbox = c->sandbox;
    q->pin = p->pin_threads && role != MSG_ROLE_LOADER;
    const char *gpu = p->gpu.vulkan ? c->gpu.backend : "cpu";
    const char *npu = p->npu.xrt ? c->npu.backend : "cpu";
    const char *backend = role == MSG_ROLE_NPU ? npu : role == MSG_ROLE_GPU ? gpu : "cpu";
    snprintf(q->backend, sizeof(q->backend), "%s", backend);
    if (role == MSG_ROLE_NPU && p->npu.xrt) {
        memcpy(q->manifest, c->xrt.manifest, sizeof(q->manifest));
        q->device_index = c->xrt.index;
        q->device_many = c->xrt.many;
        q->device_timeout_ms = c->xrt.timeout_ms;
        q->device_resident = p->npu_resident;
    }
    if (role == MSG_ROLE_GPU) {
        memcpy(q->device, c->device.name, sizeof(q->device));
        memcpy(q->device_without, c->device.without, sizeof(q->device_without));
        q->device_flags = (c->device.allow_cpu ? 1u : 0) | (c->device.validate ? 2u : 0) | (c->device.profile ? 4u : 0);
        q->device_subgroup = c->device.subgroup;
        q->device_many = c->device.many;
        q->device_max_buffer = c->device.max_buffer;
        q->device_memory = c->gpu.memory;
    }
    const char *variant = util_env(UTIL_ENV_CPU);
    snprintf(q->variant, sizeof(q->variant), "%s", variant ? variant : "auto");
    if (role == MSG_ROLE_LOADER) {
        if (strlen(c->model) >= sizeof(q->model))
            return err_set(err, -ENAMETOOLONG, "model path has %zu bytes; expected fewer than %zu", strlen(c->model),
                           sizeof(q->model));
        memcpy(q->model, c->model, strlen(c->model) + 1);
        q->checksums = c->checksums;
        q->model_bytes = p->model.bytes;
        q->model_time_ns = p->model.time_ns;
        q->model_inode = p->model.inode;
    }
    int r = fault_list(c->faults, c->n_faults, msg_role_name(role), first, strcmp(backend, "cpu") != 0, q->faults, err);
    if (r < 0)
        return r;
    memcpy(q->types, p->types, p->n_types);
    q->types_len = p->n_types;
    return 0;
}

/* SPDX-License-Identifier: MIT
 * The one YAML file, read through libcyaml with a schema; every key but `model` has a default; sizes take KiB/MiB/GiB; unknown
 * keys are errors with line and the nearest known key. Relative paths are relative to the file. Read by the coordinator and by
 * each stage in single-stage mode. Threads: immutable after load. */
#ifndef TANDEM_PROTO_CONFIG_H
#define TANDEM_PROTO_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

struct err;

enum config_process { CONFIG_COORDINATOR, CONFIG_LOADER, CONFIG_NPU, CONFIG_GPU, CONFIG_PROCESSES };

struct config_worker {
    char backend[32];  /* "auto", "cpu", ... */
    uint64_t memory;   /* bytes of the device pool */
    uint32_t threads;  /* 0 = auto */
    uint32_t streamed; /* layers whose weights are not kept; CONFIG_AUTO */
};
#define CONFIG_AUTO UINT32_MAX

struct config_npu {
    char manifest[1024]; /* absolute; "" = none */
    uint32_t index;      /* of the NPU */
    uint32_t many;       /* tokens from which on it is used; 0 = measured */
    uint32_t timeout_ms; /* of one run */
};

struct config_device {   /* of a gpu backend that has one; what is said here of features is said in gpu_worker/vk_device.h */
    char name[128];      /* "auto", a number of gpu_worker --list-devices, or part of a name */
    char without[128];   /* features treated as absent, "int_dot,coopmat"; "" = none */
    bool allow_cpu;      /* auto may take a Vulkan device that is the processor itself */
    bool validate;       /* with the validation layer */
    bool profile;        /* gpu_worker logs the times of kernels at its end */
    uint32_t subgroup;   /* lanes; 0 = as the driver likes */
    uint32_t many;       /* tokens from which on shaders for many are used; 0 = measured */
    uint64_t max_buffer; /* bytes of a buffer at most; 0 = as the device says */
};

struct config_http {
    char listen[128];        /* "none", or address and port: 127.0.0.1:8080, [::1]:8080; port 0: any free one */
    char api_key_file[1024]; /* absolute; "" = no key is asked for */
    char tls_cert[1024], tls_key[1024];
    char cors[256];       /* "none", "*" or one origin */
    char model_name[128]; /* "auto" = the model's file without .gguf */
    bool insecure;        /* may listen beyond loopback without a key */
    uint64_t max_body;    /* bytes */
    uint32_t max_connections;
    uint32_t max_queue;       /* answers that wait for a sequence */
    uint32_t timeout;         /* seconds: to read a request, and between two reads of an answer */
    uint32_t request_timeout; /* seconds: from a request to the end of its answer */
};

struct config {
    char *path;                      /* of the file */
    char *model;                     /* absolute */
    uint32_t context;                /* tokens per sequence, default 2048 */
    uint32_t sequences;              /* default 4, 1..64 */
    uint32_t chunk_tokens;           /* 0 = auto, else 1..1024 */
    int kv_type;                     /* QUANT_F32, QUANT_F16 (default) or QUANT_Q8_0 */
    bool pin_threads;                /* where both workers together have more threads than there are cores; default true */
    bool sandbox;                    /* stages give up what they need no longer; default true */
    bool checksums;                  /* tensors are compared with the file's checksums when they are first read; default true */
    uint64_t caps[CONFIG_PROCESSES]; /* memory: bytes per process, 0 = auto */
    uint64_t total;                  /* memory.total: bytes of all processes together, 0 = no such limit */
    bool spawn[CONFIG_PROCESSES];    /* of stages: the coordinator starts it; default true. false: others do, and it connects */
    char stage_socket[1024];         /* absolute; where it connects; "" = in the runtime folder */
    uint32_t stream_slots;           /* through which streamed layers of a worker pass; 0 = auto, else 2..8 */
    struct config_worker npu, gpu;
    struct config_npu xrt;     /* keys npu.manifest, ... */
    const char *const *faults; /* of the command line, not of the file; borrowed */
    int n_faults;
    struct config_device device; /* keys gpu.device, gpu.without, ... */
    uint32_t restarts;           /* of a stage without progress in between, default 5; 0: its death is the end */
    uint32_t restarts_per_minute;
    bool deadlines;       /* stages that hang are killed; default true */
    uint32_t heartbeat_s; /* without an answer a stage hangs */
    bool journal;         /* requests in progress are noted, so that they can be resumed; default true */
    bool history;         /* prompts typed on a terminal are kept in a file; default true */
    struct config_http http;
};

/* path NULL: no file, all defaults, and `model` may be missing. overrides: "key=value" or "key.sub=value" strings as of --set,
 * applied in order on top of the file. */
int config_load(const char *path, const char *const *overrides, int n_overrides, struct config **ret, struct err *err);
void config_free(struct config *c); /* NULL is fine */
/* What clients call the model: http.model_name, or its file's name without .gguf. */
void config_model_name(const struct config *c, char *buf, unsigned long buf_size);
/* The documented sample with every key and its default, for --help and scripts/demo; `model` is written in. */
void config_sample(const char *model, char *buf, unsigned long buf_size);

#endif

/* SPDX-License-Identifier: MIT
 * The crossover: timing in rising numbers of tokens until the shaders for many win, and the file. Its text says all that the answer
 * depends on, and its name is a checksum of that; it is believed only when it is, byte for byte, what this program would write for
 * one of the few possible answers, so that nothing is parsed. Owns nothing. */
#include "gpu_worker/vk_crossover.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "gpu_worker/vk_device.h"
#include "kernels/quant.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define TEXT_MAX 2048
#define PATH_BYTES 4096

/* Everything but the answer; returns its length. */
static size_t key_text(const struct vk_crossover *c, char buf[TEXT_MAX])
{
    const struct vk_device *d = c->device;
    const VkPhysicalDeviceProperties *p = &d->properties;
    char uuid[2 * VK_UUID_SIZE + 1];
    for (size_t i = 0; i < VK_UUID_SIZE; i++)
        snprintf(uuid + 2 * i, 3, "%02x", p->pipelineCacheUUID[i]);
    int n = snprintf(buf, TEXT_MAX,
                     "tandem crossover 1\n"
                     "device %s\n"
                     "driver %s\n"
                     "ids %08x %08x %08x %s\n"
                     "features %08x subgroup %u %u buffer %llu\n"
                     "shaders %016llx %s\n"
                     "ffn %u x %u, %s %s %s\n"
                     "measured to %u\n",
                     d->name, d->driver, p->vendorID, p->deviceID, p->driverVersion, uuid, d->features, d->subgroup,
                     d->subgroup_required, (unsigned long long)MIN(d->max_range, d->max_bytes), (unsigned long long)c->shaders,
                     c->family, c->hidden, c->ffn, quant_name(c->types[0]), quant_name(c->types[1]), quant_name(c->types[2]),
                     c->tokens);
    return n > 0 && n < TEXT_MAX - 64 ? (size_t)n : 0;
}

/* The whole file; returns its length. buf: begins with `key_bytes` of key_text. */
static size_t file_text(char buf[TEXT_MAX], size_t key_bytes, uint32_t tokens)
{
    int n = snprintf(buf + key_bytes, TEXT_MAX - key_bytes, tokens == VK_CROSSOVER_NEVER ? "many: never\n" : "many: %u\n", tokens);
    size_t bytes = key_bytes + (size_t)n;
    n = snprintf(buf + bytes, TEXT_MAX - bytes, "checksum %016llx\n", (unsigned long long)XXH3_64bits(buf, bytes));
    return bytes + (size_t)n;
}

/* Whether the file says an answer. */
static bool read_file(const char *path, const char *key, size_t key_bytes, uint32_t *ret)
{
    char have[TEXT_MAX], want[TEXT_MAX];
    struct stat st;
    auto_fd fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return false;
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() && st.st_size < TEXT_MAX &&
        pread(fd, have, TEXT_MAX, 0) == (ssize_t)st.st_size) {
        memcpy(want, key, key_bytes);
        for (uint32_t n = VK_CROSSOVER_FIRST; n; n = n > VK_CROSSOVER_LAST    ? 0
                                                     : n == VK_CROSSOVER_LAST ? VK_CROSSOVER_NEVER
                                                                              : 2 * n) {
            if (file_text(want, key_bytes, n) == (size_t)st.st_size && memcmp(have, want, (size_t)st.st_size) == 0) {
                *ret = n;
                return true;
            }
        }
    }
    log_warn("vulkan", "'%s' is damaged or not ours: ignored, and measured again", path);
    return false;
}

static int write_file(const char *path, const char *text, size_t bytes)
{
    char temporary[PATH_BYTES + 16];
    snprintf(temporary, sizeof(temporary), "%s.%d", path, (int)getpid());
    auto_fd fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int r = util_write_all(fd, text, bytes);
    if (r == 0 && rename(temporary, path) < 0)
        r = -errno;
    if (r < 0)
        unlink(temporary);
    return r;
}

/* The first number of tokens at which many win. A number whose measuring would take too long, guessed from the one before, is not
 * measured. */
static int measure(const struct vk_crossover *c, vk_crossover_time_fn time, void *ctx, uint32_t *ret, struct err *err)
{
    uint64_t begin = util_now_ns(), before = begin;
    *ret = VK_CROSSOVER_NEVER;
    for (uint32_t n = VK_CROSSOVER_FIRST; n <= MIN(c->tokens, VK_CROSSOVER_LAST); n *= 2) {
        uint64_t now = util_now_ns();
        double few, many;
        if (n > VK_CROSSOVER_FIRST && now - begin + 2 * (now - before) > VK_CROSSOVER_NS) {
            *ret = MAX(c->fallback, n);
            return 0;
        }
        before = now;
        int r = time(ctx, n, false, &few, err);
        if (r == 0)
            r = time(ctx, n, true, &many, err);
        if (r < 0)
            return r;
        log_debug("vulkan", "%u tokens: %.3f ms by eight, %.3f ms by %s", n, few * 1e3, many * 1e3, c->family);
        if (many < few) {
            *ret = n;
            return 0;
        }
    }
    return 0;
}

int vk_crossover_find(const struct vk_crossover *c, const char *folder, vk_crossover_time_fn time, void *ctx, uint32_t *ret,
                      struct err *err)
{
    char text[TEXT_MAX], path[PATH_BYTES] = "", many[32] = "never";
    size_t key_bytes = key_text(c, text);
    uint64_t begin = util_now_ns();
    if (key_bytes && folder[0]) {
        int n = snprintf(path, sizeof(path), "%s/crossover-%016llx.txt", folder, (unsigned long long)XXH3_64bits(text, key_bytes));
        if (n >= (int)sizeof(path))
            path[0] = '\0';
    }
    if (path[0] && read_file(path, text, key_bytes, ret))
        return 0;
    int r = measure(c, time, ctx, ret, err);
    if (r < 0)
        return r;
    if (*ret != VK_CROSSOVER_NEVER)
        snprintf(many, sizeof(many), "from %u tokens on", *ret);
    log_info("vulkan", "%s shaders for many tokens: %s (measured in %.0f ms)", c->family, many,
             (double)(util_now_ns() - begin) * 1e-6);
    int w = path[0] ? write_file(path, text, file_text(text, key_bytes, *ret)) : 0;
    if (w < 0)
        log_warn("vulkan", "'%s' was not written: %s", path, strerror(-w));
    return 0;
}

/* SPDX-License-Identifier: MIT
 * Reads what the interface between loader and drivers (LoaderDriverInterface.md, LoaderLayerInterface.md of Vulkan-Loader) says of
 * "library_path": absolute, or relative to the manifest's folder, or without a slash a name for the dynamic linker. Called by
 * sandbox.c before a device is opened; the loader reads the file for itself afterwards, so nothing here is trusted with more than
 * what may be read. */
#include "proto/driver_files.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

struct search {
    const char *manifest;
    void (*found)(void *ctx, const char *path);
    void *ctx;
};

static void look_at(const struct search *s, const json_t *object)
{
    char path[PATH_MAX];
    const char *library = json_string_value(json_object_get(object, "library_path")), *slash = strrchr(s->manifest, '/');
    if (!library || !strchr(library, '/'))
        return;
    int folder = *library == '/' || !slash ? 0 : (int)(slash + 1 - s->manifest);
    if (snprintf(path, sizeof(path), "%.*s%s", folder, s->manifest, library) < (int)sizeof(path))
        s->found(s->ctx, path);
}

void driver_files_named(const char *manifest, void (*found)(void *ctx, const char *path), void *ctx)
{
    const struct search s = {manifest, found, ctx};
    json_t *j = json_load_file(manifest, 0, NULL);
    const json_t *layers = json_object_get(j, "layers");
    look_at(&s, json_object_get(j, "ICD"));
    look_at(&s, json_object_get(j, "layer"));
    for (size_t i = 0; i < json_array_size(layers); i++)
        look_at(&s, json_array_get(layers, i));
    json_decref(j);
}

/* SPDX-License-Identifier: MIT
 * Manifests of the Vulkan loader: JSON files that name the library of a driver or of a layer. Threads: any. */
#ifndef TANDEM_PROTO_DRIVER_FILES_H
#define TANDEM_PROTO_DRIVER_FILES_H

/* `found` gets the path of each library that the manifest names by its place, as the Vulkan loader would open it; a bare name is
 * left out, since the dynamic linker looks for it. What is no such manifest names nothing. */
void driver_files_named(const char *manifest, void (*found)(void *ctx, const char *path), void *ctx);

#endif

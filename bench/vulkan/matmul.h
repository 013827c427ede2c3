/* SPDX-License-Identifier: MIT
 * Products of matrices with many tokens: proof and speed. One thread. */
#ifndef TANDEM_BENCH_VULKAN_MATMUL_H
#define TANDEM_BENCH_VULKAN_MATMUL_H

struct device;
struct speed_options;

/* Returns how many exceeded their bound. type: one name, or NULL for all. */
int matmul_check(struct device *d, const char *type);
void matmul_speed(struct device *d, const struct speed_options *o);

#endif

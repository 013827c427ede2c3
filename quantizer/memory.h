/* SPDX-License-Identifier: MIT
 * What this process uses, as the kernel counts it. Threads: any. */
#ifndef TANDEM_QUANTIZER_MEMORY_H
#define TANDEM_QUANTIZER_MEMORY_H

#include <stdint.h>

uint64_t memory_now(void);  /* resident bytes, after giving back what is free */
void memory_trim(void);     /* gives back what is free */
uint64_t memory_peak(void); /* the most that was resident at once */

#endif

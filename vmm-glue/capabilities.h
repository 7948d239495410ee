/* SPDX-License-Identifier: Apache-2.0 */
/* What a process keeps of its rights. Plain system calls, so that it may be called between fork and
 * exec, and by a keeper. */
#ifndef VMM_GLUE_CAPABILITIES_H
#define VMM_GLUE_CAPABILITIES_H

#include <linux/capability.h>
#include <stdint.h>

#define CAPABILITY(number) (UINT64_C(1) << (number))

/* From now on this process has at most the capabilities in `keep` (bits by number), whatever it
 * executes has none, and neither can get new ones. What it did not have before it does not have
 * afterwards. Threads that exist already are not concerned: call it before. 0 or -errno. */
int capabilities_keep(uint64_t keep);

#endif

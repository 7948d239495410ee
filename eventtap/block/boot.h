/* SPDX-License-Identifier: Apache-2.0 */
/* Which run of the host's kernel this is: what was written but not synced is still there as long as
 * it stays the same. */
#ifndef EVENTTAP_BLOCK_BOOT_H
#define EVENTTAP_BLOCK_BOOT_H

#include <stdint.h>

#define BOOT_ID_BYTES 16

/* The kernel's boot_id; zeroes if there is none. */
void boot_identity(uint8_t id[BOOT_ID_BYTES]);

#endif

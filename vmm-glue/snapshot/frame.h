/* SPDX-License-Identifier: Apache-2.0 */
/* What is around the pages of a snapshot that is being written, which comes last; and the look at
 * the whole file as one who restores it has. Any thread. */
#ifndef VMM_GLUE_SNAPSHOT_FRAME_H
#define VMM_GLUE_SNAPSHOT_FRAME_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"
#include "ft/snapshot/mapped_ram.h"
#include "vmm-glue/snapshot/out_file.h"

/* Head, bitmap (of the layout's one block) and tail; state: as mapped_ram_pack_state() made it. */
int frame_write(const struct out_file *file, const struct mapped_ram *layout,
		const _Atomic uint64_t *bitmap, const uint8_t *state, size_t state_len,
		struct ft_err *err);
/* -EBADMSG: RAM in the file has another digest. */
int frame_verify(const struct out_file *file, uint64_t digest, struct ft_err *err);

#endif

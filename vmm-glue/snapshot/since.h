/* SPDX-License-Identifier: Apache-2.0 */
/* Which pages of a guest's RAM may differ from what a snapshot's file has: those that were written
 * since its moment. One dirty tracker (tracker.h), and a set of pages for each of a few files that
 * were written from here lately. For a file that is not among them, or was touched by somebody else
 * since, all pages may differ.
 *
 * The tracker has RAM's userfaultfd: nobody else can have one of it, so who protects the guest, or
 * freezes its RAM, frees this first. One thread at a time. */
#ifndef VMM_GLUE_SNAPSHOT_SINCE_H
#define VMM_GLUE_SNAPSHOT_SINCE_H

#include <stdbool.h>

#include "ft/bitmap.h"
#include "ft/err.h"
#include "vmm-glue/vmm.h"

struct since;

/* As tracker_open(). ram's descriptors stay the caller's. */
int since_new(const struct vmm_ram *ram, struct since **out, struct ft_err *err);
/* The same RAM, of the same process? */
bool since_is_of(const struct since *s, const struct vmm_ram *ram);
/* *dirty becomes what may differ from the file now. Writes from now on are found by since_more(),
 * or the next time. True: it is less than everything. */
int since_begin(struct since *s, const char *path, struct ft_bitmap *dirty, bool *known,
		struct ft_err *err);
/* dirty |= written since the last call. */
int since_more(struct since *s, struct ft_bitmap *dirty, struct ft_err *err);
/* The file, as it is there now, is RAM as it was at the last since_more(). */
void since_saved(struct since *s, const char *path);
/* Accepts NULL. */
void since_free(struct since *s);

#endif

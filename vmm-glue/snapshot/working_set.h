/* SPDX-License-Identifier: Apache-2.0 */
/* Which pages a guest touched first when it was restored lazily, in that order: the next restore
 * from the same snapshot reads them ahead. Beside the snapshot, as PATH.ws:
 *
 *     "KEMARIWS"  u32 version 1  u32 n  n times u64 pfn  u64 XXH3-64 of all before
 *
 * little endian. Only a hint: a file that is absent, damaged or of another snapshot costs time and
 * nothing else. One thread at a time. */
#ifndef VMM_GLUE_SNAPSHOT_WORKING_SET_H
#define VMM_GLUE_SNAPSHOT_WORKING_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/bitmap.h"
#include "ft/err.h"

#define WORKING_SET_MAX	   32768 /* clusters of WORKING_SET_PAGES: 2 GiB */
#define WORKING_SET_PAGES  16	 /* who touches a page touches its neighbours: brought together */
#define WORKING_SET_SUFFIX ".ws"

struct working_set {
	uint32_t n;
	uint64_t *pfns;	     /* room for WORKING_SET_MAX; first page of each cluster */
	struct ft_bitmap in; /* clusters that are in it */
};

/* Empty, for RAM of so many pages. -ENOMEM. */
int working_set_init(struct working_set *ws, uint64_t pages);
void working_set_free(struct working_set *ws);
/* Adds the cluster of a page at its end. False: it is there, or there is no room. */
bool working_set_add(struct working_set *ws, uint64_t pfn);
/* Adds what PATH.ws has. -ENOENT, -EBADMSG: it is as it was. */
int working_set_load(struct working_set *ws, const char *path, struct ft_err *err);
/* Replaces PATH.ws. Not synced: losing it costs nothing. */
int working_set_save(const struct working_set *ws, const char *path, struct ft_err *err);

#endif

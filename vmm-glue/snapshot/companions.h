/* SPDX-License-Identifier: Apache-2.0 */
/* Which disks belong to a snapshot's memory: what its file's description says of them, and what is
 * made of it when a guest is restored. The description is JSON, which QEMU skips:
 *
 *   {"kemari-disks": [{"id": "root", "bytes": 67108864, "file": "web1.snap.root.NUMBER.raw"}]}
 *
 * file: in the folder of the memory's file. A file may be hostile: names are checked. */
#ifndef VMM_GLUE_SNAPSHOT_COMPANIONS_H
#define VMM_GLUE_SNAPSHOT_COMPANIONS_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "ft/err.h"
#include "vmm-glue/snapshot/changes_file.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/vmm.h"

#define COMPANIONS_TEXT_MAX CHANGES_TEXT_MAX

struct companion {
	char id[VMM_NAME_MAX], file[NAME_MAX + 1];
	uint64_t bytes;
	int fd;			/* open and locked against removal; -1: not opened */
	struct source *layered; /* with what lies over it (disk_source.h); NULL: nothing does */
};

struct companions {
	unsigned n;
	struct companion disks[VMM_DISKS_MAX];
};

/* The description; to be freed. NULL: out of memory. */
char *companions_describe(const struct companions *c);
/* -EBADMSG: says something of disks that makes no sense. No disks: 0, and c->n is 0. */
int companions_parse(const char *text, size_t len, struct companions *c, struct ft_err *err);

/* Those of a snapshot's file, opened. Changes that lie over its memory have changes of the disks
 * beside them (disk_source.h). */
int companions_open(const struct source *s, struct companions *c, struct ft_err *err);
void companions_close(struct companions *c);
/* Where the disk is, in the folder of `path`. -ENAMETOOLONG */
int companions_path(const char *path, const struct companion *d, char out[CHANGES_PATH_MAX],
		    struct ft_err *err);
/* The disk with this id; NULL: there is none. */
const struct companion *companions_find(const struct companions *c, const char *id);
/* What becomes of an image that has other content. */
enum companions_how {
	COMPANIONS_REFUSE, /* -EEXIST */
	COMPANIONS_SPARE,  /* nothing for now, unless its size is another: OVERWRITE follows */
	COMPANIONS_OVERWRITE
};
/* Makes `image` what the disk was, holes included: a copy, so any number of guests may be restored
 * from one file. A file that is not there is made. Nothing is done to one that is so already.
 * -EBUSY: an agent has it open, or a QEMU, which OVERWRITE does not look for: it may be the one
 * that waits for this. While it is written it is Inconsistent (eventtap/store.h): one that was cut
 * short does not start. */
int companions_put(const struct companion *disk, const char *image, enum companions_how how,
		   struct ft_err *err);

#endif

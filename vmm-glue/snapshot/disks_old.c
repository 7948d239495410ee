// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/disks_old.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/snapshot/companions.h"
#include "vmm-glue/snapshot/disk_source.h"
#include "vmm-glue/snapshot/layers.h"

static int too_long(const char *path, struct ft_err *err)
{
	return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", path);
}

/* The file that has disk i as it is in the snapshot: the image, or the newest changes over it. */
static int name(const struct source *s, unsigned i, const struct companion *c, struct disk_old *d,
		const char *changes, bool in_place, struct ft_err *err)
{
	const char *newest = NULL, *layer;
	int rc = companions_path(s->path, c, d->known_as, err);

	for (unsigned k = 0; (layer = layers_path(s, k)); k++)
		newest = layer;
	if (rc)
		return rc;
	if ((newest && !disk_changes_path(newest, i, d->known_as)) ||
	    !disk_changes_path(changes, i, d->changes))
		return too_long(changes, err);
	memcpy(d->saved_as, in_place ? d->known_as : d->changes, sizeof d->saved_as);
	memcpy(d->id, c->id, sizeof d->id);
	return 0;
}

static int take_source(struct companion *c, struct disk_old *d, struct ft_err *err)
{
	int rc;

	d->source = c->layered;
	c->layered = NULL;
	if (d->source)
		return 0;
	d->source = malloc(sizeof *d->source);
	if (!d->source)
		return ft_err_set(err, ENOMEM, "out of memory");
	rc = disk_source_open(c->fd, c->file, d->source, err);
	if (rc) {
		free(d->source);
		d->source = NULL;
	}
	return rc;
}

static int open_all(const struct source *s, struct companions *c, const char *changes,
		    bool in_place, struct disks_old *out, struct ft_err *err)
{
	int rc = 0;

	while (out->n < c->n && !rc) {
		unsigned i = out->n;
		struct disk_old *d = calloc(1, sizeof *d);

		if (!d)
			return ft_err_set(err, ENOMEM, "out of memory");
		out->all[out->n++] = d;
		rc = name(s, i, &c->disks[i], d, changes, in_place, err);
		if (!rc)
			rc = take_source(&c->disks[i], d, err);
	}
	return rc;
}

int disks_old_open(const struct source *s, const char *changes, bool in_place,
		   struct disks_old *out, struct ft_err *err)
{
	struct companions c;
	int rc;

	*out = (struct disks_old){0};
	rc = companions_open(s, &c, err);
	if (rc)
		return rc;
	rc = open_all(s, &c, changes, in_place, out, err);
	if (!rc && c.n && !(out->description = companions_describe(&c)))
		rc = ft_err_set(err, ENOMEM, "out of memory");
	companions_close(&c);
	return rc;
}

const struct disk_old *disks_old_find(const struct disks_old *d, const char *id)
{
	for (unsigned i = 0; i < d->n; i++)
		if (!strcmp(d->all[i]->id, id))
			return d->all[i];
	return NULL;
}

void disks_old_close(struct disks_old *d)
{
	for (unsigned i = 0; i < d->n; i++) {
		if (d->all[i]->source)
			source_close(d->all[i]->source);
		free(d->all[i]->source);
		free(d->all[i]);
	}
	free(d->description);
	*d = (struct disks_old){0};
}

// SPDX-License-Identifier: Apache-2.0
/* The standby's copies of the disks: where each is, whether it may be overwritten, and their life
 * from set-up to the end of the session. durable.c has their journal. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "eventtap/block/journal.h"
#include "ft/log.h"
#include "tools/agent/agent.h"

static const struct config_disk *config_disk(struct agent *a, const char *id)
{
	for (unsigned i = 0; i < a->config.disks_n; i++)
		if (!strcmp(a->config.disks[i].id, id))
			return &a->config.disks[i];
	return NULL;
}

/* Whole paths or leading folders, as in qemu { replace }. */
static void local_path(struct agent *a, const char *path, char out[VMM_PATH_MAX])
{
	const struct config_list *r = &a->config.qemu.replace;

	snprintf(out, VMM_PATH_MAX, "%s", path);
	for (unsigned i = 0; i + 1 < r->n; i += 2) {
		size_t n = strlen(r->item[i]);

		if (strncmp(path, r->item[i], n) ||
		    (path[n] && path[n] != '/' && r->item[i][n - 1] != '/'))
			continue;
		snprintf(out, VMM_PATH_MAX, "%s%s", r->item[i + 1], path + n);
		return;
	}
}

static bool allowed_path(struct agent *a, const char *path)
{
	const struct config_list *d = &a->config.qemu.directories;

	if (strstr(path, "/../"))
		return false;
	for (unsigned i = 0; i < d->n; i++) {
		size_t n = strlen(d->item[i]);

		if (!strncmp(path, d->item[i], n) && (path[n] == '/' || (n && path[n - 1] == '/')))
			return true;
	}
	return false;
}

/* The place of a disk's image here, and whether it may be overwritten. */
static int store_path(struct agent *a, const Ft__Setup *setup, const Ft__Disk *d,
		      char path[VMM_PATH_MAX], struct ft_err *err)
{
	const struct config_disk *c = config_disk(a, d->id);

	if (c && c->image[0]) {
		snprintf(path, VMM_PATH_MAX, "%s", c->image);
	} else {
		local_path(a, d->image, path);
		if (!allowed_path(a, path))
			return ft_err_set(err, EPERM,
					  "disk %.64s: %s: not below a folder of qemu { "
					  "directories }",
					  d->id, path);
	}
	/* An older history must not overwrite a newer one, unless an operator said so. */
	if (!a->force && setup->generation && store_generation(path) > setup->generation)
		return ft_err_set(err, ESTALE,
				  "disk %.64s: %s is of generation %llu, the primary acts under "
				  "%llu: the copy here is the newer one (--force gives it up)",
				  d->id, path, (unsigned long long)store_generation(path),
				  (unsigned long long)setup->generation);
	if (c && (c->mode == STORE_SHARED) != d->shared)
		return ft_err_set(err, EINVAL, "disk %.64s: %s here, %s at the primary", d->id,
				  c->mode == STORE_SHARED ? "shared" : "replicated",
				  d->shared ? "shared" : "replicated");
	return 0;
}

int stores_open(struct agent *a, const Ft__Setup *setup, struct ft_err *err)
{
	a->journal_path[0] = 0;
	if (setup->n_disks > VMM_DISKS_MAX)
		return ft_err_set(err, EPROTO, "set-up: %zu disks: at most %d", setup->n_disks,
				  VMM_DISKS_MAX);
	for (unsigned i = 0; i < setup->n_disks; i++) {
		const Ft__Disk *d = setup->disks[i];
		char path[VMM_PATH_MAX];
		int rc = store_path(a, setup, d, path, err);

		if (!rc && !d->shared && !a->journal_path[0]) {
			snprintf(a->journal_path, sizeof a->journal_path, "%s%s", path,
				 JOURNAL_SUFFIX);
			/* Of another session: what it has must never be replayed again. */
			rc = journal_remove(a->journal_path, err);
		}
		if (rc)
			return rc;
		rc = store_open(d->id, path, d->shared ? STORE_SHARED : STORE_REPLICATED, d->bytes,
				a->config.uuid, &a->stores[i], err);
		if (rc)
			return rc;
		a->stores_n = i + 1;
		rc = store_join(a->stores[i], setup->session, d->since, err);
		if (rc)
			return rc;
	}
	return durable_begin(a, err);
}

void stores_free(struct agent *a)
{
	struct ft_err err = {0};

	if (a->stores_n) {
		history_give_up(a, "the standby has ended");
		snapshot_stop_writing(a, "the standby has ended");
	}
	if (durable_settle(a, &err))
		ft_warn("%s: %s", a->config.name, err.text);
	for (unsigned i = 0; i < a->stores_n; i++)
		store_free(a->stores[i]);
	durable_end(a);
	a->stores_n = a->sums_disk = 0;
	a->sums_at = 0;
}

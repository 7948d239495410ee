// SPDX-License-Identifier: Apache-2.0
/* durability = "disk": the standby's journal, beside the first image that is replicated. It lives
 * from SETUP until the stores end, in whichever way; what is left of it after a power cut is
 * replayed by the next agent. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "eventtap/block/journal.h"
#include "ft/log.h"
#include "tools/agent/agent.h"

static void path_beside(const char *image, char out[VMM_PATH_MAX + 16])
{
	snprintf(out, VMM_PATH_MAX + 16, "%s%s", image, JOURNAL_SUFFIX);
}

int durable_recover(struct agent *a, struct ft_err *err)
{
	struct store_disk disks[VMM_DISKS_MAX];
	const char *first = NULL;
	char path[VMM_PATH_MAX + 16];

	for (unsigned i = 0; i < a->config.disks_n; i++) {
		const struct config_disk *d = &a->config.disks[i];

		disks[i].id = d->id;
		disks[i].image = d->mode == STORE_REPLICATED && d->image[0] ? d->image : NULL;
		first = first ? first : disks[i].image;
	}
	if (!first)
		return 0;
	path_beside(first, path);
	return store_recover(path, disks, a->config.disks_n, err);
}

static void on_news(void *ctx)
{
	struct agent *a = ctx;

	if (!atomic_exchange(&a->journaled, true))
		taps_wake(a);
}

int durable_begin(struct agent *a, struct ft_err *err)
{
	struct journal_disk disks[VMM_DISKS_MAX];
	bool any = false;

	for (unsigned i = 0; i < a->stores_n; i++) {
		disks[i] = (struct journal_disk){store_id(a->stores[i]), store_image(a->stores[i])};
		any |= disks[i].image != NULL;
	}
	if (!a->config.ft.durable || !any)
		return 0;
	return journal_new(a->journal_path, disks, a->stores_n, JOURNAL_BYTES_MAX, on_news, a,
			   &a->journal, err);
}

int durable_settle(struct agent *a, struct ft_err *err)
{
	int rc = a->journal ? journal_finish(a->journal) : 0;

	return rc ? ft_err_set(err, -rc, "disks: flush: %s", strerror(-rc)) : 0;
}

void durable_end(struct agent *a)
{
	journal_free(a->journal, false);
	a->journal = NULL;
}

int durable_stage(struct agent *a, const struct tap_record *rec, struct ft_err *err)
{
	/* A shared disk's writes are the primary's own affair. */
	if (!a->journal || rec->device >= a->stores_n || !store_image(a->stores[rec->device]))
		return 0;
	return journal_add(a->journal, rec, err);
}

int durable_staged(struct agent *a, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	if (a->journal)
		return journal_seal(a->journal, generation, epoch, err);
	a->stored_epoch = epoch;
	on_news(a);
	return 0;
}

void durable_news(struct agent *a)
{
	uint64_t epoch = a->stored_epoch;
	struct ft_err err = {0};
	int error = 0;

	if (a->journal && !journal_take(a->journal, &epoch, &error))
		return;
	if (error)
		ft_err_set(&err, -error, "journal %s: %s", a->journal_path, strerror(-error));
	ft_engine_stored(a->engine, epoch, error ? &err : NULL);
}

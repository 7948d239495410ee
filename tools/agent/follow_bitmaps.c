// SPDX-License-Identifier: Apache-2.0
/* The named bitmaps of a guest that moves before its memory does: between the engine's calls
 * (env->describe, ->arm, ->pages_*), the disks' taps, and what moves the maps
 * (eventtap/block/bitmaps_follow.h). */
#include <errno.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/store.h"
#include "ft/log.h"
#include "tools/agent/agent.h"

void follow_bitmaps_init(struct agent *a)
{
	bitmaps_giver_init(&a->pages.giver);
	bitmaps_taker_init(&a->pages.taker);
}

void follow_bitmaps_free(struct agent *a)
{
	bitmaps_giver_free(&a->pages.giver);
	bitmaps_taker_free(&a->pages.taker);
}

/* ---- source ---- */

void follow_describe(struct agent *a)
{
	for (unsigned i = 0; i < a->vm_info.disks_n; i++)
		if (a->disk_taps[i])
			bitmaps_giver_describe(&a->pages.giver, i,
					       disk_tap_bitmaps(a->disk_taps[i]),
					       &a->setup_disks[i]);
	a->pages.described = true;
}

void follow_handed(struct agent *a)
{
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (a->disk_taps[i])
			disk_tap_backups_end(a->disk_taps[i]);
}

/* ---- target ---- */

int follow_expect(struct agent *a, const Ft__Setup *setup, struct ft_err *err)
{
	int rc = 0;

	bitmaps_taker_end(&a->pages.taker);
	for (unsigned i = 0; i < a->stores_n && !rc; i++) {
		rc = bitmaps_taker_expect(&a->pages.taker, i, store_bitmaps(a->stores[i]),
					  setup->disks[i], err);
		if (rc)
			ft_err_context(err, "disk %s", store_id(a->stores[i]));
	}
	return rc;
}

void follow_bitmaps_begin(struct agent *a)
{
	struct bitmaps *sets[VMM_DISKS_MAX] = {0};

	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (a->disk_taps[i])
			sets[i] = disk_tap_bitmaps(a->disk_taps[i]);
	bitmaps_taker_begin(&a->pages.taker, sets);
}

int follow_give_up(struct agent *a, unsigned i, const char *name, struct ft_err *err)
{
	struct ft_engine_status s;

	if (!bitmaps_taker_awaits_this(&a->pages.taker, i, name))
		return 0;
	ft_engine_status(a->engine, &s);
	if (!s.pages_cut)
		return ft_err_set(err, EBUSY, "bitmap %.64s: is still arriving", name);
	bitmaps_taker_give_up(&a->pages.taker, i, name);
	if (a->pages.client)
		page_client_look(a->pages.client);
	return 0;
}

/* ---- both ---- */

void follow_tap_ends(struct agent *a, unsigned i)
{
	bitmaps_giver_forget(&a->pages.giver, i);
	bitmaps_taker_forget(&a->pages.taker, i);
}

void follow_bitmaps_end(struct agent *a)
{
	bool took = a->pages.taker.n;
	struct ft_err err = {0};

	bitmaps_giver_end(&a->pages.giver);
	a->pages.described = false;
	bitmaps_taker_end(&a->pages.taker);
	for (unsigned i = 0; i < VMM_DISKS_MAX && took; i++)
		if (a->disk_taps[i] && disk_tap_bitmaps_keep(a->disk_taps[i], &err))
			ft_error("%s: %s", a->config.name, err.text);
}

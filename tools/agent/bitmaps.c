// SPDX-License-Identifier: Apache-2.0
/* `ftctl bitmap`: named dirty bitmaps of the guest's disks, and `ftctl backup`, what they are for.
 * A disk that has one, or of which a backup is made, keeps its tap also when the guest is solo; a
 * standby has those of the last checkpoint, to be looked at. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "ft/log.h"
#include "tools/agent/agent.h"

#define DIGEST_HEX (2 * BITMAPS_SHA256 + 1)

/* ---- taps ---- */

static int add_tap(struct agent *a, unsigned i, struct ft_err *err)
{
	return a->disk_taps[i] ? 0 : taps_disk_in(a, i, false, err);
}

/* A protected guest's taps go with its protection. */
static void drop_tap(struct agent *a, unsigned i)
{
	struct ft_err err = {0};

	if (!a->disk_taps[i] || taps_disk_in_use(a, i))
		return;
	disk_tap_backups_end(a->disk_taps[i]);
	if (!a->taps_made && !(taps_disks_stay(a) & 1u << i) && taps_disk_out(a, i, &err))
		ft_warn("%s: %s", a->config.name, err.text);
}

/* ---- requests ---- */

static int find_disk(struct agent *a, const char *id, unsigned *disk, struct ft_err *err)
{
	for (unsigned i = 0; i < a->vm_info.disks_n; i++) {
		if (strcmp(a->vm_info.disks[i].id, id))
			continue;
		*disk = i;
		return 0;
	}
	return ft_err_set(err, ENOENT, "bitmap: the guest has no disk '%.64s'", id);
}

/* To be looked at; NULL: the disk has none. */
static struct bitmaps *set_of(struct agent *a, unsigned i)
{
	if (i < a->stores_n)
		return store_bitmaps(a->stores[i]);
	return a->disk_taps[i] ? disk_tap_bitmaps(a->disk_taps[i]) : NULL;
}

static int check_changeable(struct agent *a, struct ft_err *err)
{
	enum ft_state state = ft_engine_state(a->engine);

	if (state == FT_STANDBY || state == FT_TAKEOVER)
		return ft_err_set(err, EINVAL,
				  "bitmap: this is the standby: ask the primary's agent");
	if (state != FT_SOLO && state != FT_SYNCING && state != FT_PROTECTED)
		return ft_err_set(err, EINVAL, "bitmap: the guest is %s", ft_state_name(state));
	return 0;
}

static int add(struct agent *a, unsigned i, const Ctl__Request *r, struct ft_err *err)
{
	uint32_t granularity = r->granularity ? r->granularity : FT_DIRTY_GRANULARITY;
	int rc = add_tap(a, i, err);

	if (!rc)
		rc = bitmaps_add(disk_tap_bitmaps(a->disk_taps[i]), r->bitmap, granularity, err);
	if (!rc && !taps_serve_backups(a, i, err)) {
		a->disks_stay |= a->taps_made ? 0 : 1u << i;
		return 0;
	}
	if (!rc)
		(void)bitmaps_remove(disk_tap_bitmaps(a->disk_taps[i]), r->bitmap, NULL);
	drop_tap(a, i);
	return -err->code;
}

static int change(struct agent *a, unsigned i, const Ctl__Request *r, struct ft_err *err)
{
	struct bitmaps *s;
	int rc;

	if (!strcmp(r->action, "add") && a->pages.described)
		return ft_err_set(err, EBUSY, "bitmap %.64s: the guest is being migrated",
				  r->bitmap);
	if (!strcmp(r->action, "add")) {
		rc = add(a, i, r, err);
	} else {
		if (!a->disk_taps[i])
			return ft_err_set(err, ENOENT, "bitmap %.64s: there is none of that name",
					  r->bitmap);
		s = disk_tap_bitmaps(a->disk_taps[i]);
		if (!strcmp(r->action, "remove"))
			rc = follow_give_up(a, i, r->bitmap, err) ||
					     bitmaps_remove(s, r->bitmap, err)
				     ? -err->code
				     : 0;
		else if (!strcmp(r->action, "clear"))
			rc = bitmaps_clear(s, r->bitmap, err);
		else
			rc = bitmaps_enable(s, r->bitmap, !strcmp(r->action, "enable"), err);
	}
	if (!rc)
		rc = disk_tap_bitmaps_keep(a->disk_taps[i], err);
	if (!strcmp(r->action, "remove"))
		drop_tap(a, i);
	return rc;
}

/* What a backup client reads from now on is of one moment; until the end. */
static int back_up(struct agent *a, unsigned i, const Ctl__Request *r, struct ft_err *err)
{
	char socket[VMM_PATH_MAX];
	struct ft_err why;
	int rc;

	if (!strcmp(r->action, "begin") && a->pages.described)
		return ft_err_set(err, EBUSY, "backup: the guest is being migrated");
	taps_backup_path(a, i, socket);
	if (!strcmp(r->action, "begin")) {
		rc = add_tap(a, i, err);
		if (!rc)
			rc = disk_tap_backup_begin(a->disk_taps[i], r->bitmap, socket, err);
		if (!rc)
			a->disks_stay |= a->taps_made ? 0 : 1u << i;
		else
			drop_tap(a, i);
		return rc;
	}
	if (!a->disk_taps[i])
		return ft_err_set(err, EINVAL, "backup: none of disk %.64s is under way", r->disk);
	rc = disk_tap_backup_end(a->disk_taps[i], !strcmp(r->action, "end"), err);
	if (!rc && taps_serve_backups(a, i, &why))
		ft_warn("%s: disk %s: %s", a->config.name, r->disk, why.text);
	if (!rc && bitmaps_count(disk_tap_bitmaps(a->disk_taps[i])))
		rc = disk_tap_bitmaps_keep(a->disk_taps[i], err);
	drop_tap(a, i);
	return rc;
}

/* Of the map as bytes (ft/dirty_bitmap.h), in hexadecimal. */
static int sha256(struct agent *a, unsigned disk, const char *name, char hex[DIGEST_HEX],
		  struct ft_err *err)
{
	struct bitmaps *s = set_of(a, disk);
	uint8_t raw[BITMAPS_SHA256];
	int rc;

	if (bitmaps_taker_awaits_this(&a->pages.taker, disk, name))
		return ft_err_set(err, EBUSY, "bitmap %.64s: is still arriving", name);
	rc = s ? bitmaps_sha256(s, name, raw) : -ENOENT;
	if (rc == -ENOENT)
		return ft_err_set(err, ENOENT, "bitmap %.64s: there is none of that name", name);
	for (unsigned i = 0; !rc && i < sizeof raw; i++)
		snprintf(hex + (size_t)2 * i, 3, "%02x", raw[i]);
	return rc ? ft_err_set(err, EIO, "bitmap %.64s: cannot be digested", name) : 0;
}

static unsigned fill_list(struct bitmaps *s, Ctl__Bitmap *out, Ctl__Bitmap **ptrs,
			  struct bitmap_info *infos)
{
	unsigned n = 0;

	for (; s && n < BITMAPS_MAX && bitmaps_info(s, n, &infos[n]); n++) {
		out[n] = (Ctl__Bitmap)CTL__BITMAP__INIT;
		out[n].name = infos[n].name;
		out[n].granularity = infos[n].granularity;
		out[n].enabled = infos[n].enabled;
		out[n].inconsistent = infos[n].inconsistent;
		out[n].busy = infos[n].busy;
		out[n].arriving = infos[n].arriving;
		out[n].dirty_bytes = infos[n].dirty_bytes;
		ptrs[n] = &out[n];
	}
	return n;
}

/* Every good answer has the list as it is now. */
static void reply(struct agent *a, struct ctl_call *call, unsigned disk, const char *digest)
{
	Ctl__Bitmap bitmaps[BITMAPS_MAX], *ptrs[BITMAPS_MAX];
	struct bitmap_info infos[BITMAPS_MAX];
	char socket[VMM_PATH_MAX], uri[VMM_PATH_MAX + 2 * VMM_NAME_MAX];
	Ctl__Reply out = CTL__REPLY__INIT;

	out.n_bitmaps = fill_list(set_of(a, disk), bitmaps, ptrs, infos);
	out.bitmaps = ptrs;
	out.sha256 = (char *)(uintptr_t)digest;
	if (!a->stores_n && a->disk_taps[disk] && taps_disk_in_use(a, disk)) {
		taps_backup_path(a, disk, socket);
		snprintf(uri, sizeof uri, "nbd+unix:///%s?socket=%s", a->vm_info.disks[disk].id,
			 socket);
		out.export_uri = uri;
	}
	ctl_reply(call, &out);
}

static bool is_one_of(const char *action, const char *const *actions)
{
	for (size_t i = 0; actions[i]; i++)
		if (!strcmp(action, actions[i]))
			return true;
	return false;
}

static bool is_action(const Ctl__Request *r, bool backup)
{
	static const char *const of_bitmaps[] = {"add",	  "remove", "enable", "disable",
						 "clear", "list",   "sha256", NULL};
	static const char *const of_backups[] = {"begin", "end", "abort", NULL};

	return is_one_of(r->action, backup ? of_backups : of_bitmaps);
}

void bitmap_request(struct agent *a, struct ctl_call *call, const Ctl__Request *r)
{
	bool looks = !strcmp(r->action, "list") || !strcmp(r->action, "sha256");
	bool backup = !strcmp(r->command, "backup");
	char hex[DIGEST_HEX] = "";
	struct ft_err err = {0};
	unsigned disk = 0;
	int rc;

	if (!is_action(r, backup)) {
		ctl_reply_error(call, CTL_ERR_USAGE, "%s: '%.32s': no such action",
				backup ? "backup" : "bitmap", r->action);
		return;
	}
	rc = a->vmm ? find_disk(a, r->disk, &disk, &err)
		    : ft_err_set(&err, EINVAL, "bitmap: there is no guest here");
	if (!rc && !strcmp(r->action, "sha256"))
		rc = sha256(a, disk, r->bitmap, hex, &err);
	if (!rc && !looks)
		rc = check_changeable(a, &err);
	if (!rc && !looks)
		rc = backup ? back_up(a, disk, r, &err) : change(a, disk, r, &err);
	if (rc)
		requests_fail(call, &err);
	else
		reply(a, call, disk, hex);
}

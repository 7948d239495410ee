// SPDX-License-Identifier: Apache-2.0
/* The disks of a guest that is saved or restored (vmm-glue/snapshot/disks.h, companions.h). A guest
 * that runs alone has nothing between it and its disks: it gets taps for the snapshot's time, and
 * keeps them after an incremental one, so that the next one knows what was written. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ft/log.h"
#include "tools/agent/agent.h"
#include "vmm-glue/snapshot/companions.h"
#include "vmm-glue/snapshot/disks.h"

/* ---- into files ---- */

/* The engine takes its own taps out as soon as it may, and must not do so under a snapshot. */
static int taps_in(struct agent *a, struct ft_err *err)
{
	int rc;

	if (a->taps_made)
		return ft_err_set(err, EBUSY,
				  "snapshot: the guest's disks are still on the taps of its "
				  "protection: try again in a moment");
	rc = taps_make_disks(a, err);
	if (rc)
		return rc;
	rc = vmm_taps_in(a->vmm, &a->points, err);
	if (rc)
		taps_part(a);
	a->snapshot.taps_ours = !rc;
	return rc;
}

/* What is written is known from now on. */
static int note(struct agent *a, struct disks_config *out, struct ft_err *err)
{
	if (!a->snapshot.disks_since)
		a->snapshot.disks_since = disks_since_new();
	out->since = a->snapshot.disks_since;
	return out->since ? 0 : ft_err_set(err, ENOMEM, "snapshot: out of memory");
}

static void find_disks(struct agent *a, bool standby, struct disks_config *out)
{
	out->stall_max_ms = standby ? SNAPSHOT_STANDBY_STALL_MS : SNAPSHOT_STALL_MAX_MS;
	out->n = standby ? a->stores_n : a->vm_info.disks_n;
	for (unsigned i = 0; i < out->n; i++) {
		out->disks[i].id = standby ? store_id(a->stores[i]) : a->vm_info.disks[i].id;
		out->disks[i].image =
			standby ? store_image_path(a->stores[i]) : a->vm_info.disks[i].image;
		out->disks[i].tap = standby ? NULL : a->disk_taps[i];
		out->disks[i].store = standby ? a->stores[i] : NULL;
	}
}

int snapshot_disks_of_standby(struct agent *a, struct disks_config *out, struct ft_err *err)
{
	*out = (struct disks_config){0};
	find_disks(a, true, out);
	return note(a, out, err);
}

int snapshot_disks_begin(struct agent *a, bool standby, const Ctl__Request *request,
			 struct disks_config *out, struct ft_err *err)
{
	int rc = 0;

	*out = (struct disks_config){
		.path = a->snapshot.path, .direct = request->direct, .verify = request->verify};
	if (!a->vm_info.disks_n || request->no_disks)
		return 0;
	if (!standby)
		rc = taps_in(a, err);
	if (rc)
		return rc;
	if (!standby)
		a->snapshot.disks_noted = request->incremental;
	find_disks(a, standby, out);
	return request->incremental ? note(a, out, err) : 0;
}

void snapshot_disks_end(struct agent *a)
{
	struct ft_err err = {0};

	if (!a->snapshot.taps_ours)
		return;
	a->disks_stay = taps_disks_stay(a);
	if (a->vmm && vmm_taps_out(a->vmm, a->disks_stay, &err)) {
		ft_warn("%s: the taps of a snapshot stay for now: %s", a->config.name, err.text);
		return;
	}
	a->snapshot.taps_ours = false;
	taps_part(a);
}

void snapshot_disks_refused(struct agent *a)
{
	a->snapshot.disks_noted = a->snapshot.disks_noted_before;
	snapshot_disks_end(a);
}

void snapshot_disks_look(struct agent *a)
{
	if (!a->snapshot.writing && !a->snapshot.updating)
		snapshot_disks_end(a);
}

/* ---- out of them ---- */

static int check_fit(struct agent *a, struct ft_err *err)
{
	const struct companions *c = &a->restore.disks;

	if (c->n && c->n != a->config.disks_n)
		return ft_err_set(err, EINVAL, "restore: disks: %u here, %u in the snapshot",
				  a->config.disks_n, c->n);
	for (unsigned i = 0; i < c->n; i++) {
		const struct config_disk *to = &a->config.disks[i];
		const struct companion *from = companions_find(c, to->id);

		if (!from)
			return ft_err_set(err, EINVAL, "restore: disk %s: is not in the snapshot",
					  to->id);
		if (to->size && to->size != from->bytes)
			return ft_err_set(
				err, EINVAL,
				"restore: disk %s: size: %llu bytes here, %llu in the snapshot",
				to->id, (unsigned long long)to->size,
				(unsigned long long)from->bytes);
	}
	return 0;
}

static int put_all(struct agent *a, enum companions_how how, struct ft_err *err)
{
	const struct companions *c = &a->restore.disks;
	int rc = 0;

	for (unsigned i = 0; i < c->n && !rc; i++)
		rc = companions_put(companions_find(c, a->config.disks[i].id),
				    a->config.disks[i].image, how, err);
	return rc ? ft_err_context(err, "restore") : 0;
}

int snapshot_disks_restore(struct agent *a, const struct source *s, struct ft_err *err)
{
	int rc = companions_open(s, &a->restore.disks, err);

	if (!rc)
		rc = check_fit(a, err);
	return rc ? rc : put_all(a, a->force ? COMPANIONS_SPARE : COMPANIONS_REFUSE, err);
}

int snapshot_disks_overwrite(struct agent *a, struct ft_err *err)
{
	int rc = a->force ? put_all(a, COMPANIONS_OVERWRITE, err) : 0;

	for (unsigned i = 0; i < a->restore.disks.n && !rc; i++)
		ft_info("%s: disk %s: %s is what %s is", a->config.name, a->config.disks[i].id,
			a->config.disks[i].image,
			companions_find(&a->restore.disks, a->config.disks[i].id)->file);
	if (!rc && !a->restore.disks.n && a->config.disks_n)
		ft_info("%s: the snapshot has no disks: they have to be what they were",
			a->config.name);
	return rc;
}

// SPDX-License-Identifier: Apache-2.0
/* What operators see of an agent (interface: `ftctl status`). */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "ft/log.h"
#include "tools/agent/agent.h"

static void figures(Ctl__Figures *out, const struct ft_figure *f)
{
	*out = (Ctl__Figures)CTL__FIGURES__INIT;
	out->last = f->last;
	out->p50 = f->p50;
	out->p99 = f->p99;
	out->max = f->max;
}

/* Wall clock of a point of the monotonic one. */
static uint64_t wall_ms(uint64_t mono_ns)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000 -
	       (agent_now_ns() - mono_ns) / 1000000;
}

static const char *disk_state(struct agent *a, unsigned i)
{
	static const char *const names[] = {"",		"Inconsistent", "Outdated",
					    "UpToDate", "Protected",	"Consistent"};

	return i < a->stores_n && a->stores[i] ? names[store_state(a->stores[i])] : "UpToDate";
}

static unsigned fill_disks(struct agent *a, Ctl__Disk *disks, Ctl__Disk **ptrs)
{
	unsigned n = a->vmm ? a->vm_info.disks_n : 0;

	for (unsigned i = 0; i < n; i++) {
		struct tap_stats stats = {0};

		disks[i] = (Ctl__Disk)CTL__DISK__INIT;
		disks[i].name = a->vm_info.disks[i].id;
		disks[i].mode = (char *)(uintptr_t)(taps_disk_mode(a, disks[i].name) == STORE_SHARED
							    ? "shared"
							    : "replicated");
		disks[i].state = (char *)(uintptr_t)disk_state(a, i);
		if (a->disk_taps[i])
			a->disk_taps[i]->ops->stats(a->disk_taps[i], &stats);
		disks[i].bytes_behind = stats.behind_bytes;
		ptrs[i] = &disks[i];
	}
	return n;
}

void status_reply(struct agent *a, struct ctl_call *call)
{
	static const char *const arbiters[] = {"none", "file", "etcd"};
	struct ft_engine_status s;
	Ctl__Status out = CTL__STATUS__INIT;
	Ctl__Reply reply = CTL__REPLY__INIT;
	Ctl__Arbiter arbiter = CTL__ARBITER__INIT;
	Ctl__Vmm vmm = CTL__VMM__INIT;
	Ctl__Figures pause, commit, dirty;
	Ctl__Disk disks[VMM_DISKS_MAX], *disk_ptrs[VMM_DISKS_MAX];
	Ctl__Snapshot snapshot = CTL__SNAPSHOT__INIT;
	struct migrate_status migration;
	char peer[URI_TEXT_MAX + 1] = "";

	ft_engine_status(a->engine, &s);
	out.name = a->config.name;
	out.uuid = a->config.uuid;
	out.state = (char *)(uintptr_t)ft_state_name(s.state);
	out.reason = (char *)(uintptr_t)s.reason;
	out.since_ms = wall_ms(s.state_since_ns);
	out.role = (char *)(uintptr_t)(s.is_primary ? "primary" : "standby");
	if (s.is_primary && a->has_peer)
		uri_format(&a->peer, peer, sizeof peer);
	out.peer = s.is_primary && a->has_peer ? peer : (char *)(uintptr_t)s.peer;
	out.epoch_open = s.epoch_open;
	out.epoch_committed = s.epoch_committed;
	figures(&pause, &s.pause_us);
	figures(&commit, &s.commit_us);
	figures(&dirty, &s.dirty_pages);
	out.pause_us = &pause;
	out.commit_us = &commit;
	out.dirty_pages = &dirty;
	out.bytes_raw = s.bytes_raw;
	out.bytes_sent = s.bytes_sent;
	out.checkpoints = s.checkpoints;
	out.checkpoints_failed = s.checkpoints_failed;
	out.held_outputs = s.taps.held_outputs;
	out.held_bytes = s.taps.held_bytes;
	out.overhead = s.overhead;
	out.generation = s.generation;
	out.deciding = s.waiting_for_decision;
	out.rounds = s.rounds;
	out.disk_alike = s.disk_bytes_alike;
	out.disk_known = s.disk_bytes_known;
	out.disk_copied = s.disk_bytes_copied;
	out.home = (char *)(uintptr_t)s.home;
	arbiter.type = (char *)(uintptr_t)arbiters[a->config.arbiter.type];
	arbiter.state = (char *)(uintptr_t)s.arbiter_state;
	arbiter.holder = (char *)(uintptr_t)s.arbiter_holder;
	out.arbiter = &arbiter;
	vmm.kind = (char *)(uintptr_t)(a->config.vmm == CONFIG_VMM_POCKET ? "pocket" : "qemu");
	vmm.pid = a->vmm ? a->vm_info.pid : 0;
	if (a->vmm)
		vmm_moments(a->vmm, &vmm.stopped_us, &vmm.resumed_us);
	vmm.status = (char *)(uintptr_t)(a->vmm ? vmm_status(a->vmm) : "none");
	out.vmm = &vmm;
	out.n_disks = fill_disks(a, disks, disk_ptrs);
	out.disks = disk_ptrs;
	out.last_error = (char *)(uintptr_t)(a->keeper_lost ? AGENT_KEEPER_LOST : s.last_error);
	if (a->snapshot.writing || a->snapshot.updating || a->snapshot.reading) {
		snapshot_fill_status(a, &snapshot);
		out.snapshot = &snapshot;
	}
	out.mode = (char *)(uintptr_t)s.mode;
	if (migrate_fill_status(a, &s, &migration))
		out.migration = &migration.migration;
	reply.status = &out;
	ctl_reply(call, &reply);
}

// SPDX-License-Identifier: Apache-2.0
/* A guest into a file while it runs (ftctl snapshot), and a guest out of one (ft-agent --restore).
 * Threads of vmm-glue/snapshot do the work; here is what an operator and the agent's life have to
 * do with it. Only a guest that runs alone is saved: the standby of a protected one is the better
 * place to take a copy from. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ft/log.h"
#include "tools/agent/agent.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/snapshot/working_set.h"

#define RESTORE_JOBS 2

/* Any thread. */
static void on_done(void *ctx)
{
	struct agent *a = ctx;

	eventfd_write(a->snapshot.ended_fd, 1);
}

/* Forgets the one that has ended, and tells who asked. */
static void end_writing(struct agent *a)
{
	struct agent_snapshot *s = &a->snapshot;
	struct snapshot *ended = s->writing;
	struct ft_err err = {0};
	int rc;

	rc = snapshot_end(ended, &s->last, &err);
	s->writing = NULL;
	snapshot_disks_end(a);
	s->was_update = false;
	if (rc)
		ft_warn("%s: %s", a->config.name, err.text);
	else
		ft_info("%s: snapshot %s: %llu MiB of %llu MiB of memory, %llu MiB of %u disks, "
			"pause %.1f ms",
			a->config.name, s->path,
			(unsigned long long)(s->last.pages_written * VMM_PAGE_BYTES >> 20),
			(unsigned long long)(s->last.pages * VMM_PAGE_BYTES >> 20),
			(unsigned long long)(s->last.disks.bytes_written >> 20), s->last.disks.n,
			(double)s->last.pause_us / 1000);
	requests_answer(&s->call, rc ? &err : NULL);
	requests_answer(&a->cancel_call, NULL);
}

/* A guest whose RAM cannot be brought has no future. */
static void end_reading(struct agent *a)
{
	struct lazy *ended = a->snapshot.reading;
	struct ft_err err = {0};
	struct lazy_stats stats;

	lazy_stats(ended, &stats);
	a->snapshot.reading = NULL;
	if (!lazy_end(ended, &err)) {
		ft_info("%s: all memory is there: %llu MiB, %llu times the guest waited for it "
			"(%llu KiB were read ahead)",
			a->config.name, (unsigned long long)(stats.pages * VMM_PAGE_BYTES >> 20),
			(unsigned long long)stats.faults,
			(unsigned long long)stats.ahead * WORKING_SET_PAGES * VMM_PAGE_BYTES >> 10);
		keeper_set_protected(a->keeper, false);
		return;
	}
	ft_error("%s: %s", a->config.name, err.text);
	vmm_quit(a->vmm, false, 0);
	ft_engine_vm_lost(a->engine, false, err.text);
}

static void on_ended(evutil_socket_t fd, short what, void *ctx)
{
	struct agent *a = ctx;
	eventfd_t n;

	(void)what;
	if (eventfd_read(fd, &n))
		return; /* it was dropped meanwhile */
	if (a->snapshot.writing)
		end_writing(a);
	else if (a->snapshot.updating)
		increment_news(a);
	else if (a->snapshot.reading)
		end_reading(a);
}

int snapshot_listen(struct agent *a, struct ft_err *err)
{
	struct agent_snapshot *s = &a->snapshot;

	s->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->ended_fd < 0)
		return ft_err_set(err, errno, "eventfd: %s", strerror(errno));
	s->ended = event_new(a->base, s->ended_fd, EV_READ | EV_PERSIST, on_ended, a);
	if (!s->ended || event_add(s->ended, NULL))
		return ft_err_set(err, ENOMEM, "event loop: out of memory");
	return 0;
}

const char *snapshot_busy(const struct agent *a)
{
	if (a->pages.client && page_client_here(a->pages.client))
		return "bitmaps of the guest's disks are on their way here";
	if (a->pages.client || a->pages.server)
		return "the guest's memory is on its way from one host to another";
	if (a->snapshot.writing || a->snapshot.updating)
		return "a snapshot is being written";
	if (a->snapshot.taps_ours)
		return "the guest's disks are still on the taps of its last snapshot";
	return a->snapshot.reading ? "the guest's memory is still being restored" : NULL;
}

bool snapshot_give_up(struct agent *a, const char *why)
{
	if (a->snapshot.writing)
		snapshot_cancel(a->snapshot.writing, why);
	if (a->snapshot.updating)
		increment_cancel(a->snapshot.updating, why);
	return a->snapshot.writing || a->snapshot.updating;
}

void snapshot_stop_writing(struct agent *a, const char *why)
{
	(void)snapshot_give_up(a, why);
	if (a->snapshot.writing)
		end_writing(a);
	if (a->snapshot.updating)
		increment_finish(a);
}

void snapshot_drop(struct agent *a, const char *why)
{
	eventfd_t n;

	history_give_up(a, why);
	snapshot_stop_writing(a, why);
	increment_forget(a);
	disks_since_free(a->snapshot.disks_since);
	a->snapshot.disks_since = NULL;
	a->snapshot.disks_noted = false;
	if (a->snapshot.reading) {
		/* The guest must not go on with holes in its memory. */
		if (a->vmm)
			vmm_quit(a->vmm, false, 0);
		lazy_cancel(a->snapshot.reading);
		(void)lazy_end(a->snapshot.reading, NULL);
		a->snapshot.reading = NULL;
	}
	if (a->snapshot.ended_fd >= 0)
		(void)eventfd_read(a->snapshot.ended_fd, &n);
}

void snapshot_fill_status(const struct agent *a, Ctl__Snapshot *out)
{
	const struct agent_snapshot *s = &a->snapshot;
	struct snapshot_progress p = s->last;
	struct lazy_stats lazy;

	out->path = (char *)(uintptr_t)s->path;
	if (s->reading) {
		lazy_stats(s->reading, &lazy);
		p = (struct snapshot_progress){.pages = lazy.pages,
					       .pages_done = lazy.pages_done,
					       .faults = lazy.faults,
					       .fault_us_max = lazy.fault_us_max};
		out->restoring = true;
	} else if (s->writing) {
		snapshot_progress(s->writing, &p);
	} else if (s->updating) {
		increment_progress(s->updating, &p);
	}
	out->incremental = s->updating || s->was_update;
	out->bytes_total = p.pages * VMM_PAGE_BYTES;
	out->bytes_done = p.pages_done * VMM_PAGE_BYTES;
	out->bytes_written = p.pages_written * VMM_PAGE_BYTES;
	out->pause_us = p.pause_us;
	out->faults = p.faults;
	out->fault_us_max = p.fault_us_max;
	out->disks = p.disks.n;
	out->disk_bytes_total = p.disks.bytes;
	out->disk_bytes_done = p.disks.bytes_done;
	out->disk_bytes_written = p.disks.bytes_written;
	out->disk_faults = p.disks.copied;
	out->disks_compared = p.disks.unknown;
}

/* ---- into a file ---- */

static int parse(struct agent *a, const Ctl__Request *request, struct ft_err *err)
{
	struct uri uri;
	int rc = uri_parse(request->uri, &uri, err);

	if (!rc && (uri.scheme != URI_FILE || uri.path[0] != '/'))
		rc = ft_err_set(err, EINVAL, "snapshot %.64s: not file:PATH, absolute",
				request->uri);
	if (!rc && request->jobs > SNAPSHOT_JOBS_MAX)
		rc = ft_err_set(err, EINVAL, "snapshot: jobs: 1 to %d", SNAPSHOT_JOBS_MAX);
	if (!rc)
		memcpy(a->snapshot.path, uri.path, sizeof a->snapshot.path);
	return rc;
}

static int begin_here(struct agent *a, const Ctl__Request *request, struct snapshot_config *config,
		      struct ft_err *err)
{
	struct disks_config disks;
	int rc = vmm_check(a->vmm, err);

	if (!rc)
		rc = snapshot_disks_begin(a, false, request, &disks, err);
	if (!rc && disks.n)
		rc = disks_open(&disks, &config->disks, err);
	if (!rc)
		rc = snapshot_begin(config, a->vmm, &a->snapshot.writing, err);
	if (rc)
		snapshot_disks_refused(a);
	return rc;
}

static int begin_at_standby(struct agent *a, const Ctl__Request *request,
			    struct snapshot_config *config, struct ft_err *err)
{
	struct disks_config disks;
	const uint8_t *state;
	size_t len;
	int rc = ft_engine_committed_state(a->engine, &state, &len, err);

	if (rc)
		return ft_err_context(err, "snapshot");
	config->stall_max_ms = SNAPSHOT_STANDBY_STALL_MS;
	rc = snapshot_disks_begin(a, true, request, &disks, err);
	if (!rc && disks.n)
		rc = disks_open(&disks, &config->disks, err);
	return rc ? rc
		  : snapshot_begin_image(config, a->vmm, state, len, &a->snapshot.writing, err);
}

static int begin(struct agent *a, bool standby, const Ctl__Request *request,
		 struct snapshot_config *config, struct ft_err *err)
{
	int rc = request->incremental ? increment_check(a, standby, request, err) : 0;

	a->snapshot.disks_noted_before = a->snapshot.disks_noted;
	if (rc)
		return rc;
	if (request->incremental && !access(a->snapshot.path, F_OK))
		return increment_start(a, standby, request, config, err);
	/* One userfaultfd an area. */
	increment_forget(a);
	return standby ? begin_at_standby(a, request, config, err)
		       : begin_here(a, request, config, err);
}

void snapshot_request(struct agent *a, struct ctl_call *call, const Ctl__Request *request)
{
	struct snapshot_config config = {.path = a->snapshot.path,
					 .direct = request->direct,
					 .jobs = request->jobs ? request->jobs
							       : snapshot_jobs(a->config.cpus),
					 .bytes_per_s = request->bytes_per_s,
					 .verify = request->verify,
					 .keeper = a->keeper,
					 .done = on_done,
					 .ctx = a};
	enum ft_state state = ft_engine_state(a->engine);
	struct ft_err err = {0};

	if (state != FT_STANDBY && (state != FT_SOLO || !a->vmm)) {
		ctl_reply_error(call, CTL_ERR_STATE, "snapshot: the guest is %s%s",
				ft_state_name(state),
				state == FT_PROTECTED ? ": its standby can take one" : "");
		return;
	}
	if (snapshot_busy(a)) {
		ctl_reply_error(call, CTL_ERR_BUSY, "snapshot: %s", snapshot_busy(a));
		return;
	}
	if (parse(a, request, &err)) {
		ctl_reply_error(call, CTL_ERR_USAGE, "%s", err.text);
		return;
	}
	a->snapshot.call = requests_later(a, call, CALL_SNAPSHOT);
	if (!a->snapshot.call)
		return;
	/* One at a time: they share what they know, or would have the same memory frozen. */
	history_give_up(a, "a snapshot is asked for");
	if (begin(a, state == FT_STANDBY, request, &config, &err)) {
		a->snapshot.writing = NULL;
		requests_answer(&a->snapshot.call, &err);
	}
}

/* ---- out of a file ---- */

static int check_fits(struct agent *a, const struct source *s, struct ft_err *err)
{
	bool pocket = a->config.vmm == CONFIG_VMM_POCKET;

	if (a->config.source != CONFIG_LAUNCH)
		return ft_err_set(err, EINVAL,
				  "restore: the guest file describes no machine to restore into");
	if (pocket != !strcmp(s->layout.machine, "pocket"))
		return ft_err_set(err, EINVAL,
				  "restore: the snapshot is of a machine %s, this is %s",
				  s->layout.machine, pocket ? "pocket" : "a QEMU");
	if (s->ram->bytes != a->config.memory_bytes)
		return ft_err_set(err, EINVAL,
				  "restore: memory: %llu bytes here, %llu in the snapshot",
				  (unsigned long long)a->config.memory_bytes,
				  (unsigned long long)s->ram->bytes);
	return 0;
}

static int fill(struct agent *a, struct vmm *vmm, struct source *s, struct ft_err *err)
{
	struct vmm_ram ram;
	int rc;

	vmm_ram(vmm, &ram);
	if (strcmp(ram.machine, s->layout.machine) != 0)
		return ft_err_set(
			err, EINVAL,
			"restore: machine: '%s' here, '%s' in the snapshot: name one that "
			"this QEMU has (machine = \"...\")",
			ram.machine, s->layout.machine);
	rc = source_empty(&ram, err);
	if (!rc && a->restore.lazy)
		return lazy_begin(s, &ram, on_done, a, &a->snapshot.reading, err);
	return rc ? rc
		  : source_restore(s, vmm_image(vmm),
				   a->restore.jobs ? a->restore.jobs : RESTORE_JOBS, err);
}

static int run_from(struct agent *a, struct source *s, struct ft_err *err)
{
	uint8_t *state = malloc(VMM_STATE_BYTES_MAX);
	struct vmm *vmm = NULL;
	size_t len = 0;
	int rc = state ? source_state(s, a->config.vmm == CONFIG_VMM_POCKET ? "pocket" : "qemu",
				      state, &len, err)
		       : ft_err_set(err, ENOMEM, "restore: out of memory");

	if (!rc)
		rc = guest_make_waiting(a, &vmm, err);
	if (!rc)
		rc = fill(a, vmm, s, err);
	if (!rc)
		rc = snapshot_disks_overwrite(a, err);
	if (!rc)
		rc = vmm_resume(vmm, state, len, err);
	free(state);
	if (rc) {
		a->vmm = vmm;
		snapshot_drop(a, "");
		a->vmm = NULL;
		if (vmm)
			vmm_quit(vmm, false, 0);
		vmm_free(vmm);
		keeper_set_protected(a->keeper, false);
		return rc;
	}
	if (!a->snapshot.reading)
		keeper_set_protected(a->keeper, false);
	return guest_adopt_running(a, vmm, err);
}

static int open_source(struct agent *a, struct source *source, struct ft_err *err)
{
	struct uri uri;
	int rc;

	snprintf(a->snapshot.path, sizeof a->snapshot.path, "%s", a->restore.uri);
	if (history_is_uri(a->restore.uri))
		return history_restore_from(a, source, err);
	rc = uri_parse(a->restore.uri, &uri, err);
	if (!rc)
		rc = source_open(uri.path, source, err);
	memcpy(a->snapshot.path, uri.path, sizeof a->snapshot.path);
	return rc;
}

int snapshot_restore(struct agent *a, struct ft_err *err)
{
	struct source source;
	int rc = open_source(a, &source, err);

	if (rc)
		return rc;
	rc = check_fits(a, &source, err);
	if (!rc)
		rc = snapshot_disks_restore(a, &source, err);
	if (!rc)
		rc = run_from(a, &source, err);
	companions_close(&a->restore.disks);
	source_close(&source);
	if (!rc)
		ft_info("%s: goes on from snapshot %s", a->config.name, a->snapshot.path);
	return rc;
}

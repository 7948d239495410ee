// SPDX-License-Identifier: Apache-2.0
/* A snapshot into a file that is there (ftctl snapshot --incremental): what the operator and the
 * agent's loop have to do with vmm-glue/snapshot/increment.h. The file's memory, and the disks
 * beside it, become those of a later moment. */
#include <errno.h>
#include <sys/eventfd.h>

#include "ft/log.h"
#include "tools/agent/agent.h"

/* On the worker's thread. */
static void on_news(void *ctx)
{
	struct agent *a = ctx;

	eventfd_write(a->snapshot.ended_fd, 1);
}

void increment_forget(struct agent *a)
{
	since_free(a->snapshot.since);
	a->snapshot.since = NULL;
}

void increment_finish(struct agent *a)
{
	struct agent_snapshot *s = &a->snapshot;
	struct ft_err err = {0};
	int rc = increment_end(s->updating, &s->last, &err);

	s->updating = NULL;
	s->was_update = true;
	snapshot_disks_end(a);
	/* After a scan that failed pages may have been missed. */
	if (rc)
		increment_forget(a);
	if (rc)
		ft_warn("%s: %s", a->config.name, err.text);
	else
		ft_info("%s: snapshot %s: updated, %llu MiB of %llu MiB of memory, %llu MiB of %u "
			"disks%s, pause %.1f ms",
			a->config.name, s->path,
			(unsigned long long)(s->last.pages_written * VMM_PAGE_BYTES >> 20),
			(unsigned long long)(s->last.pages * VMM_PAGE_BYTES >> 20),
			(unsigned long long)(s->last.disks.bytes_written >> 20), s->last.disks.n,
			s->last.disks.unknown ? " (compared whole: nobody knew what was written)"
					      : "",
			(double)s->last.pause_us / 1000);
	requests_answer(&s->call, rc ? &err : NULL);
	requests_answer(&a->cancel_call, NULL);
}

/* The image and its state belong together whenever the loop turns. */
static void take_moment(struct agent *a)
{
	const uint8_t *state = NULL;
	struct ft_err err = {0};
	size_t len = 0;

	if (ft_engine_state(a->engine) == FT_STANDBY &&
	    ft_engine_committed_state(a->engine, &state, &len, &err))
		increment_cancel(a->snapshot.updating, err.text);
	else
		increment_moment(a->snapshot.updating, a->vmm, state, len);
}

void increment_news(struct agent *a)
{
	switch (increment_wants(a->snapshot.updating)) {
	case INCREMENT_MOMENT:
		take_moment(a);
		break;
	case INCREMENT_END:
		increment_finish(a);
		break;
	case INCREMENT_NOTHING:
		break;
	}
}

/* What reads past the page cache into pages of the guest's is not seen by a tracker. */
int increment_check(struct agent *a, bool standby, const Ctl__Request *request, struct ft_err *err)
{
	vmm_info(a->vmm, &a->vm_info);
	for (unsigned i = 0; i < a->vm_info.disks_n && !standby && request->no_disks; i++)
		if (a->vm_info.disks[i].direct)
			return ft_err_set(err, ENOTSUP,
					  "snapshot: disk %s goes past the page cache "
					  "(cache.direct), and what it reads into the guest's "
					  "memory is not seen: take a whole snapshot, or one with "
					  "disks, which have taps then",
					  a->vm_info.disks[i].id);
	if (request->direct)
		return ft_err_set(err, EINVAL,
				  "snapshot: a file is updated through the page cache: without "
				  "--direct");
	return 0;
}

int increment_start(struct agent *a, bool standby, const Ctl__Request *request,
		    const struct snapshot_config *config, struct ft_err *err)
{
	struct disks_config disks = {0};
	struct increment_config increment = {.path = config->path,
					     .bytes_per_s = config->bytes_per_s,
					     .verify = config->verify,
					     .is_image = standby,
					     .news = on_news,
					     .ctx = a};
	const uint8_t *state;
	size_t len;
	int rc = standby ? ft_engine_committed_state(a->engine, &state, &len, err)
			 : vmm_check(a->vmm, err);

	if (!rc)
		rc = snapshot_disks_begin(a, standby, request, &disks, err);
	if (disks.n)
		increment.disks = &disks;
	if (!rc)
		rc = increment_begin(&increment, a->vmm, &a->snapshot.since, &a->snapshot.updating,
				     err);
	if (rc)
		a->snapshot.updating = NULL;
	if (rc && !standby)
		snapshot_disks_refused(a);
	return rc;
}

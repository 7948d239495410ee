// SPDX-License-Identifier: Apache-2.0
/* Async rounds: the guest runs and puts out freely while its RAM and disks go to the standby, round
 * by round, each round what was written during the one before. When what is left fits one pause,
 * the first checkpoint makes the standby whole. */
#include "ft/engine_internal.h"

#include <errno.h>
#include <string.h>

#include "ft/log.h"

/* Whole batches only, so that no page that was taken off the bitmap is left out of a frame. */
_Static_assert(FT_ROUND_BATCH *FT_PAGE_RECORD_MAX <= FT_PAYLOAD_MAX, "a batch must fit one frame");

/* Takes the next pages of the round off the bitmap. They are read after they were re-armed, so a
 * later write makes them dirty again. */
static size_t take_batch(struct ft_primary *p)
{
	size_t n = 0;

	while (n < FT_ROUND_BATCH) {
		uint64_t pfn = ft_bitmap_next(&p->pending, p->round_at);

		if (pfn >= p->pending.bits)
			break;
		p->batch_pfns[n++] = pfn;
		p->round_at = pfn + 1;
		ft_bitmap_clear(&p->pending, pfn);
	}
	return n;
}

/* A guest that moves is sent (nearly) once, and as it is: from where its pages lie, if they can be
 * had there, for whatever changes meanwhile is dirty again. */
static size_t put_plain(const struct ft_primary *p, const uint8_t *pages, size_t n, uint8_t *out)
{
	size_t used = 0;

	for (size_t i = 0; i < n; i++)
		used += ft_page_record_plain(p->batch_pfns[i], pages + i * VMM_PAGE_BYTES,
					     out + used);
	return used;
}

static size_t put_encoded(const struct ft_primary *p, size_t n, uint8_t *out)
{
	size_t used = 0;

	for (size_t i = 0; i < n; i++)
		used += ft_codec_encode(p->codec, 0, p->batch_pfns[i],
					p->batch + i * VMM_PAGE_BYTES, out + used);
	return used;
}

/* The batch's records. Returns their bytes, or -errno. */
static long put_batch(struct ft_engine *e, size_t n, uint8_t *out, struct ft_err *err)
{
	const struct ft_primary *p = &e->primary;
	bool whole = p->batch_pfns[n - 1] - p->batch_pfns[0] == n - 1;
	const uint8_t *pages = p->move.on && whole ? vmm_view(e->vmm, p->batch_pfns[0], n) : NULL;
	int rc = pages ? 0 : vmm_read_pages(e->vmm, p->batch_pfns, n, p->batch, err);

	if (rc)
		return rc;
	return (long)(p->move.on ? put_plain(p, pages ? pages : p->batch, n, out)
				 : put_encoded(p, n, out));
}

/* One frame of pages. 1 = sent, 0 = the round has no more, -errno. */
static int send_pages(struct ft_engine *e, struct ft_err *err)
{
	struct ft_primary *p = &e->primary;
	struct ft_link *link = engine_data(e);
	uint32_t used = 0;
	uint8_t *out;
	int rc;

	if (migrate_pages_stay(e) || ft_bitmap_next(&p->pending, p->round_at) >= p->pending.bits)
		return 0;
	out = link->ops->reserve(link, FT_PAYLOAD_MAX);
	if (!out)
		return -EAGAIN;
	while (used + FT_ROUND_BATCH * FT_PAGE_RECORD_MAX <= FT_PAYLOAD_MAX) {
		size_t n = take_batch(p);
		long put = n ? put_batch(e, n, out + used, err) : 0;

		if (put < 0)
			return (int)put;
		if (!n)
			break;
		used += (uint32_t)put;
		p->round_pages += n;
	}
	if (!used)
		return 1;
	rc = engine_send(e, FT_MSG_PAGES, 0, NULL, out, used);
	return rc ? ft_err_set(err, -rc, "cannot send pages") : 1;
}

static int send_disk(struct ft_engine *e, struct ft_err *err)
{
	struct ft_link *link = engine_data(e);
	Ft__DiskChunk body = FT__DISK_CHUNK__INIT;
	struct ft_disk_chunk chunk;
	uint8_t *out = link->ops->reserve(link, FT_PAYLOAD_MAX);
	int rc;

	if (!out)
		return -EAGAIN;
	rc = e->env->disk_next(e->env_ctx, out, FT_PAYLOAD_MAX, &chunk, err);
	if (rc <= 0)
		return rc;
	body.disk = chunk.disk;
	body.offset = chunk.offset;
	body.bytes = chunk.bytes;
	body.zero = chunk.zero;
	e->primary.disk_bytes_copied += chunk.bytes;
	rc = engine_send(e, FT_MSG_DISK, 0, &body.base, chunk.zero ? NULL : out,
			 chunk.zero ? 0 : chunk.bytes);
	return rc ? ft_err_set(err, -rc, "cannot send disk") : 1;
}

static void finish_rounds(struct ft_engine *e)
{
	struct ft_primary *p = &e->primary;

	if (p->round.disk_bytes_behind > FT_HOLD_DISK_MAX) {
		struct ft_err err = {0};

		ft_err_set(&err, ETIMEDOUT,
			   "the guest writes its disks faster than they can be copied: %llu MiB "
			   "behind after %u rounds",
			   (unsigned long long)(p->round.disk_bytes_behind >> 20), p->round.rounds);
		primary_setup_failed(e, &err);
		return;
	}

	ft_info("%s: %u rounds, %llu pages and %llu disk bytes left: %s checkpoint", e->config.name,
		p->round.rounds, (unsigned long long)p->round.dirty_pages,
		(unsigned long long)p->round.disk_bytes_behind, p->move.on ? "last" : "first");
	/* Async pages count as committed: the standby applied them in order. */
	ft_codec_commit(p->codec, 0);
	p->phase = PRIMARY_RUNNING;
	p->deadline_ns = 0;
	(void)tap_chain_set_mode(&e->chain, TAP_HOLD);
	migrate_unthrottle(e);
	p->move.stopped_ns = engine_now(e);
	primary_checkpoint(e, p->move.on);
}

/* The end of one round: what did the guest write meanwhile, and is it little enough? */
static int next_round(struct ft_engine *e, struct ft_err *err)
{
	struct ft_primary *p = &e->primary;
	uint64_t now = engine_now(e), took = now - p->round_started_ns;
	struct ft_link *link = engine_data(e);
	uint64_t bytes = link->ops->bytes_sent(link) - p->round_bytes_start;
	int rc = vmm_harvest(e->vmm, &p->pending, err);

	if (rc)
		return rc;
	p->round.rounds++;
	p->round.dirty_pages = p->pending.count;
	p->round.disk_bytes_behind = e->env->disks_behind(e->env_ctx);
	p->round.bytes_per_page = p->round_pages ? bytes / p->round_pages : 0;
	p->round.bytes = bytes;
	p->round.bytes_per_s = took ? bytes * 1000 / (took / 1000000 + 1) : 0;
	ft_debug("%s: round %u: %llu pages, %llu KiB in %llu ms, %llu dirty", e->config.name,
		 p->round.rounds, (unsigned long long)p->round_pages,
		 (unsigned long long)(bytes >> 10), (unsigned long long)(took / NS_PER_MS),
		 (unsigned long long)p->round.dirty_pages);
	p->round_at = 0;
	p->round_pages = 0;
	p->round_started_ns = now;
	p->round_bytes_start = link->ops->bytes_sent(link);
	e->env->changed(e->env_ctx);
	if (p->move.on ? migrate_round(e) : ft_policy_switch_to_sync(&e->config.policy, &p->round))
		finish_rounds(e);
	return 0;
}

static void continue_rounds(struct ft_engine *e)
{
	struct ft_err err = {0};
	int rc = 1;

	/* The peer's suspicion needs heartbeats later; without that connection there is no going
	 * on. */
	if (!e->conns[CONN_BEAT].greeted)
		return;
	for (unsigned turn = 0;
	     rc > 0 && turn < FT_FRAMES_PER_TURN && e->primary.phase == PRIMARY_ROUNDS; turn++) {
		rc = send_pages(e, &err);
		/* A block that was sent before its sum came would be taken for the one that the
		 * standby had before. */
		if (rc == 0 && e->primary.comparing)
			break;
		if (rc == 0)
			rc = send_disk(e, &err);
		if (rc == 0 && (!migrate_round_over(e) || migrate_waits(e)))
			break;
		if (rc == 0) {
			rc = next_round(e, &err);
			if (!rc)
				rc = 1;
		}
		if (rc > 0)
			e->primary.deadline_ns = engine_now(e) + FT_PROGRESS_MAX_MS * NS_PER_MS;
		engine_beat(e);
	}
	/* A link that broke says so when the peer's last words have been read: why it closed,
	 * perhaps. */
	if (rc < 0 && rc != -EAGAIN && rc != -EPIPE)
		primary_peer_lost(e, err.text[0] ? err.text : "cannot send");
	e->primary.round_more = rc > 0 && e->primary.phase == PRIMARY_ROUNDS;
	if (e->primary.round_more)
		e->env->wake_at(e->env_ctx, 0); /* others have their turn, then on */
}

void primary_writable(struct ft_engine *e)
{
	if (!engine_data(e))
		return;
	if (e->primary.phase == PRIMARY_ROUNDS)
		continue_rounds(e);
	else if (e->primary.phase == PRIMARY_LEAVING)
		primary_leave_continue(e);
	else if (e->primary.phase == PRIMARY_RUNNING)
		ship_continue(e);
}

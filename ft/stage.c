// SPDX-License-Identifier: Apache-2.0
/* One checkpoint at the standby: received beside the image, verified, made durable if the operator
 * wants that, acknowledged, applied.
 *
 *      BEGIN  PAGES STATE EVENTS  END -> whole? -> (first: try it) -> (durable) -> commit: ACK,
 * apply
 *
 * Async pages and disk chunks (epoch 0) go straight into the image, for nothing is committed yet. A
 * checkpoint is applied whole or not at all: a broken connection leaves the last committed one.
 *
 * The first checkpoint of a session is applied and tried in a throw-away VM before it is
 * acknowledged: a standby that cannot resume says so while the guest is still unprotected. */
#include "ft/engine_internal.h"

#include "ft/postcopy/missing.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define APPLY_BEAT_RECORDS 256

/* ---- pages ---- */

/* Hands every record of buf to the image. */
static int apply_pages(struct ft_engine *e, const uint8_t *buf, size_t len, size_t *used,
		       struct ft_err *err)
{
	struct vmm_info info;
	uint8_t *image = vmm_image(e->vmm);
	size_t at = 0, records = 0;

	vmm_info(e->vmm, &info);
	while (at < len) {
		struct ft_page_record rec;
		int n = ft_page_record_parse(buf + at, len - at, info.ram_bytes / VMM_PAGE_BYTES,
					     &rec, err);
		int rc;

		/* One frame may have tens of thousands of empty pages, each of them a page to fault
		 * in. */
		if (++records % APPLY_BEAT_RECORDS == 0)
			engine_beat(e);
		if (n < 0)
			return n;
		if (n == 0)
			break;
		rc = ft_page_record_apply(&rec, image + rec.pfn * VMM_PAGE_BYTES, err);
		if (rc)
			return rc;
		at += (size_t)n;
	}
	*used = at;
	return 0;
}

/* ---- async pages: many, and most of them to where nothing is yet ---- */

struct run {
	uint64_t pfn, n;
	bool zero;
	struct iovec iov[VMM_IMAGE_RUN];
};

static int run_end(struct ft_engine *e, struct run *run, struct ft_err *err)
{
	uint64_t n = run->n;

	run->n = 0;
	if (!n)
		return 0;
	return run->zero ? vmm_image_empty(e->vmm, run->pfn, n, err)
			 : vmm_image_write(e->vmm, run->pfn, run->iov, (unsigned)n, err);
}

static int run_add(struct ft_engine *e, struct run *run, uint64_t pfn, const uint8_t *page,
		   struct ft_err *err)
{
	bool zero = !page, joins = run->n && pfn == run->pfn + run->n && zero == run->zero;
	int rc = 0;

	if (!joins || (!zero && run->n == VMM_IMAGE_RUN))
		rc = run_end(e, run, err);
	if (rc)
		return rc;
	if (!run->n)
		run->pfn = pfn;
	run->zero = zero;
	if (!zero)
		run->iov[run->n] = (struct iovec){(void *)(uintptr_t)page, VMM_PAGE_BYTES};
	run->n++;
	return 0;
}

static int apply_record(struct ft_engine *e, struct run *run, const struct ft_page_record *rec,
			struct ft_err *err)
{
	const uint8_t *raw = ft_page_record_raw(rec, err);
	int rc;

	if (rec->kind == FT_PAGE_RAW && !raw)
		return -EPROTO;
	if (raw || rec->kind == FT_PAGE_ZERO)
		return run_add(e, run, rec->pfn, raw, err);
	rc = run_end(e, run, err);
	return rc ? rc
		  : ft_page_record_apply(rec, vmm_image(e->vmm) + rec->pfn * VMM_PAGE_BYTES, err);
}

static int apply_async(struct ft_engine *e, const uint8_t *buf, size_t len, struct ft_err *err)
{
	struct run run = {0};
	struct vmm_info info;
	size_t at = 0, records = 0;
	int rc = 0;

	vmm_info(e->vmm, &info);
	while (at < len && !rc) {
		struct ft_page_record rec;
		int n = ft_page_record_parse(buf + at, len - at, info.ram_bytes / VMM_PAGE_BYTES,
					     &rec, err);

		if (n <= 0)
			return n < 0 ? n
				     : ft_err_set(err, EPROTO,
						  "PAGES: a record is cut by the end of its frame");
		if (++records % APPLY_BEAT_RECORDS == 0)
			engine_beat(e);
		rc = apply_record(e, &run, &rec, err);
		at += (size_t)n;
	}
	return rc ? rc : run_end(e, &run, err);
}

/* Of a checkpoint: applied later, from where no frame's hash covers them any more. */
static int check_pages(struct ft_engine *e, const uint8_t *buf, size_t len, struct ft_err *err)
{
	struct vmm_info info;
	size_t at = 0;

	vmm_info(e->vmm, &info);
	while (at < len) {
		struct ft_page_record rec;
		int n = ft_page_record_parse(buf + at, len - at, info.ram_bytes / VMM_PAGE_BYTES,
					     &rec, err);

		if (n <= 0)
			return n < 0 ? n
				     : ft_err_set(err, EPROTO,
						  "PAGES: a record is cut by the end of its frame");
		if (rec.kind == FT_PAGE_PLAIN)
			return ft_err_set(err, EPROTO, "PAGES: a plain record in a checkpoint");
		at += (size_t)n;
	}
	return 0;
}

int stage_pages(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	int rc;

	if (msg->epoch == 0) {
		if (s->committed)
			return ft_err_set(err, EPROTO, "PAGES: async pages onto a committed image");
		return apply_async(e, msg->payload, msg->payload_len, err);
	}
	if (msg->epoch != s->stage.epoch)
		return ft_err_set(err, EPROTO, "PAGES: epoch %llu while %llu is staged",
				  (unsigned long long)msg->epoch,
				  (unsigned long long)s->stage.epoch);
	rc = check_pages(e, msg->payload, msg->payload_len, err);
	if (!rc && ft_spool_append(&s->stage.pages, msg->payload, msg->payload_len))
		rc = ft_err_set(err, ENOSPC, "staging: no room for pages");
	return rc;
}

int stage_disk(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	Ft__DiskChunk *body = ft__disk_chunk__unpack(NULL, msg->body_len, msg->body);
	struct ft_disk_chunk chunk;
	int rc;

	if (!body)
		return ft_err_set(err, EPROTO, "DISK: body does not parse");
	chunk = (struct ft_disk_chunk){.disk = body->disk,
				       .offset = body->offset,
				       .bytes = body->bytes,
				       .zero = body->zero};
	ft__disk_chunk__free_unpacked(body, NULL);
	if (e->standby.committed)
		return ft_err_set(err, EPROTO, "DISK: initial copy onto a committed disk");
	if (e->standby.comparing)
		return ft_err_set(err, EPROTO, "DISK: before the last SUMS");
	if (!chunk.zero && chunk.bytes != msg->payload_len)
		return ft_err_set(err, EPROTO, "DISK: %u bytes announced, %u sent", chunk.bytes,
				  msg->payload_len);
	rc = e->env->store_sync(e->env_ctx, &chunk, msg->payload, err);
	return rc;
}

/* ---- a checkpoint ---- */

int stage_begin(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	struct ft_stage *g = &s->stage;

	if (msg->epoch > FT_COUNTER_MAX)
		return ft_err_set(err, EPROTO, "BEGIN: epoch %llu: there is no such one",
				  (unsigned long long)msg->epoch);
	if (!msg->epoch || msg->epoch <= s->committed)
		return ft_err_set(err, EPROTO, "BEGIN: epoch %llu after %llu was committed",
				  (unsigned long long)msg->epoch, (unsigned long long)s->committed);
	/* The primary starts an epoch only after it released the one before. */
	e->env->store_released(e->env_ctx, s->committed);
	g->epoch = msg->epoch;
	s->comparing = false;
	ft_spool_reset(&g->pages);
	ft_spool_reset(&g->events[g->staging]);
	g->state_len[g->staging] = 0;
	if (s->postcopy)
		ft_bitmap_clear_all(&s->missing);
	return 0;
}

int stage_missing(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	bool last;

	if (!s->postcopy || !s->stage.epoch || msg->epoch != s->stage.epoch)
		return ft_err_set(err, EPROTO, "MISSING: epoch %llu: not of a postcopy migration",
				  (unsigned long long)msg->epoch);
	return ft_missing_take(&s->missing, msg, &last, err);
}

int stage_state(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_stage *g = &e->standby.stage;
	size_t *len = &g->state_len[g->staging];

	if (msg->epoch != g->epoch || !g->epoch)
		return ft_err_set(err, EPROTO, "STATE: epoch %llu is not being staged",
				  (unsigned long long)msg->epoch);
	if (msg->payload_len > VMM_STATE_BYTES_MAX - *len)
		return ft_err_set(err, EPROTO, "STATE: more than %u bytes", VMM_STATE_BYTES_MAX);
	if (msg->payload_len)
		memcpy(g->state[g->staging] + *len, msg->payload, msg->payload_len);
	*len += msg->payload_len;
	return 0;
}

int stage_events(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_stage *g = &e->standby.stage;

	if (msg->epoch != g->epoch || !g->epoch)
		return ft_err_set(err, EPROTO, "EVENTS: epoch %llu is not being staged",
				  (unsigned long long)msg->epoch);
	if (ft_spool_append(&g->events[g->staging], msg->payload, msg->payload_len))
		return ft_err_set(err, ENOSPC, "staging: no room for outputs");
	return 0;
}

int standby_each_event(struct ft_engine *e, struct ft_spool *spool,
		       int (*fn)(struct ft_engine *, const struct tap_record *, struct ft_err *),
		       struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	uint64_t at = 0;

	while (at < spool->len) {
		const uint8_t *window;
		struct tap_record rec;
		size_t need = 0;
		long have = ft_spool_window(spool, at, TAP_RECORD_HEADER, s->scratch,
					    s->scratch_max, &window),
		     n;
		int rc;

		if (have < 0)
			return ft_err_set(err, (int)-have, "staging: cannot read back outputs");
		n = tap_record_parse(window, (size_t)have, &rec, &need);
		if (n == 0 && need && need <= spool->len - at && (size_t)have < need) {
			/* Larger than the scratch only for giant disk writes that lie across the
			 * seam. */
			if (need > s->scratch_max) {
				uint8_t *larger =
					mremap(s->scratch, s->scratch_max, need, MREMAP_MAYMOVE);

				if (larger == MAP_FAILED)
					return ft_err_set(err, ENOMEM, "staging: out of memory");
				s->scratch = larger;
				s->scratch_max = need;
			}
			have = ft_spool_window(spool, at, need, s->scratch, s->scratch_max,
					       &window);
			if (have < 0)
				return ft_err_set(err, (int)-have,
						  "staging: cannot read back outputs");
			n = tap_record_parse(window, (size_t)have, &rec, NULL);
		}
		if (n <= 0)
			return ft_err_set(err, EPROTO, "EVENTS: malformed record");
		rc = fn(e, &rec, err);
		if (rc)
			return rc;
		at += (uint64_t)n;
		engine_beat(e);
	}
	return 0;
}

static int check_event(struct ft_engine *e, const struct tap_record *rec, struct ft_err *err)
{
	(void)e;
	(void)rec;
	(void)err;
	return 0; /* the walk itself checks the form */
}

static bool is_disk(const struct tap_record *rec)
{
	return (rec->kind >= TAP_DISK_WRITE && rec->kind <= TAP_DISK_FLUSH) ||
	       rec->kind == TAP_DISK_BITMAP;
}

/* What is no disk's is kept for the replay at takeover. */
static int apply_event(struct ft_engine *e, const struct tap_record *rec, struct ft_err *err)
{
	return is_disk(rec) ? e->env->store_apply(e->env_ctx, rec, err) : 0;
}

static int apply_staged_pages(struct ft_engine *e, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	uint64_t at = 0;

	while (at < s->stage.pages.len) {
		const uint8_t *window;
		size_t used = 0;
		long have = ft_spool_window(&s->stage.pages, at, FT_PAGE_RECORD_MAX, s->scratch,
					    s->scratch_max, &window);
		int rc;

		if (have < 0)
			return ft_err_set(err, (int)-have, "staging: cannot read back pages");
		/* A slice at a time: heartbeats go on while a large checkpoint is applied. */
		rc = apply_pages(e, window,
				 (size_t)have < FT_APPLY_WINDOW ? (size_t)have : FT_APPLY_WINDOW,
				 &used, err);
		if (rc)
			return rc;
		if (!used)
			return ft_err_set(err, EPROTO, "staging: cut page record");
		at += used;
		engine_beat(e);
	}
	return 0;
}

static int apply_disks(struct ft_engine *e, unsigned which, struct ft_err *err)
{
	int rc = standby_each_event(e, &e->standby.stage.events[which], apply_event, err);

	return rc ? rc : e->env->store_commit(e->env_ctx, e->generation, e->standby.committed, err);
}

/* From here on a takeover resumes this epoch. */
static void commit(struct ft_engine *e)
{
	struct ft_standby *s = &e->standby;

	s->committed = s->stage.epoch;
	s->stage.staging ^= 1;
	s->stage.epoch = 0;
	e->committed = s->committed;
	e->generation = s->primary_generation;
	e->checkpoints++;
}

/* Proves that the first checkpoint of a session loads, before it counts. */
static int try_first(struct ft_engine *e, struct ft_err *err)
{
	struct ft_stage *g = &e->standby.stage;
	int rc = apply_staged_pages(e, err);

	if (rc)
		return rc;
	/* A guest that moves stands still meanwhile; if it does not load here, it goes on there. */
	if (e->standby.moving)
		return 0;
	engine_ask_patience(e, FT_TRIAL_ACK_MAX_MS / 2);
	rc = vmm_trial(e->vmm, g->state[g->staging], g->state_len[g->staging], err);
	return rc ? ft_err_context(err, "trial load") : 0;
}

static int first_commit(struct ft_engine *e, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	unsigned staged = s->stage.staging;
	int rc;

	commit(e);
	rc = apply_disks(e, staged, err);
	if (rc)
		return rc;
	/* A guest that moves is about to get another one. */
	if (!s->moving)
		e->env->generation(e->env_ctx, e->generation);
	if (engine_send(e, FT_MSG_ACK, s->committed, NULL, NULL, 0))
		return ft_err_set(err, EPIPE, "cannot acknowledge");
	engine_watch(e, true);
	engine_set_state(e, FT_STANDBY, "in sync with %s", s->primary_host);
	return 0;
}

static int later_commit(struct ft_engine *e, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	unsigned staged = s->stage.staging;
	int rc;

	commit(e);
	/* A lost acknowledgement is the primary's problem: the takeover resumes this epoch either
	 * way. */
	(void)engine_send(e, FT_MSG_ACK, s->committed, NULL, NULL, 0);
	rc = apply_staged_pages(e, err);
	return rc ? rc : apply_disks(e, staged, err);
}

static int send_digest(struct ft_engine *e, struct ft_err *err)
{
	Ft__Digest answer = FT__DIGEST__INIT;
	int rc;

	engine_ask_patience(e, FT_ACK_MAX_MS);
	rc = vmm_ram_digest(e->vmm, &answer.value, err);
	if (rc)
		return rc;
	engine_ask_patience(e, 0);
	(void)engine_send(e, FT_MSG_DIGEST, e->standby.committed, &answer.base, NULL, 0);
	return 0;
}

int stage_commit(struct ft_engine *e, struct ft_err *err)
{
	int rc = e->standby.committed ? later_commit(e, err) : first_commit(e, err);

	return !rc && e->standby.digest ? send_digest(e, err) : rc;
}

static int stage_event(struct ft_engine *e, const struct tap_record *rec, struct ft_err *err)
{
	return is_disk(rec) ? e->env->store_stage(e->env_ctx, rec, err) : 0;
}

/* Durable before it counts: goes on in ft_engine_stored(). */
static int store_staged(struct ft_engine *e, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	int rc;

	e->env->store_unstage(e->env_ctx); /* a checkpoint that was given up */
	rc = standby_each_event(e, &s->stage.events[s->stage.staging], stage_event, err);
	if (!rc)
		rc = e->env->store_staged(e->env_ctx, s->primary_generation, s->stage.epoch, err);
	if (!rc)
		s->storing = s->stage.epoch;
	return rc;
}

int stage_end(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	struct ft_stage *g = &s->stage;
	Ft__End *end = ft__end__unpack(NULL, msg->body_len, msg->body);
	bool whole;
	int rc;

	if (!end)
		return ft_err_set(err, EPROTO, "END: body does not parse");
	whole = g->epoch && msg->epoch == g->epoch && end->pages_bytes == g->pages.len &&
		end->state_bytes == g->state_len[g->staging] &&
		end->events_bytes == g->events[g->staging].len && end->state_bytes > 0;
	if (s->postcopy && end->missing_pages != s->missing.count)
		whole = false;
	s->digest = end->digest;
	if (end->trial != !s->committed)
		whole = false;
	ft__end__free_unpacked(end, NULL);
	if (!whole)
		return ft_err_set(err, EPROTO,
				  "END: epoch %llu: totals do not match what was staged",
				  (unsigned long long)msg->epoch);
	rc = standby_each_event(e, &g->events[g->staging], check_event, err);
	if (!rc && !s->committed)
		rc = try_first(e, err);
	if (rc)
		return rc;
	return e->config.durable ? store_staged(e, err) : stage_commit(e, err);
}

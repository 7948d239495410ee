// SPDX-License-Identifier: Apache-2.0
/* One captured checkpoint onto the wire:   BEGIN  PAGES* (MISSING*)  STATE*  EVENTS*  END
 *
 * Runs off the guest's path, in pieces as the link takes them. Pages are encoded straight into the
 * link's buffer, records of outputs likewise, device state goes from the capture. Nothing here
 * allocates. */
#include "ft/engine_internal.h"

#include <errno.h>
#include <string.h>

#include "ft/log.h"
#include "ft/postcopy/missing.h"

_Static_assert(FT_HOLD_DRAIN_MAX_MS <= VMM_HOLD_MAX_MS / 2,
	       "a slow standby must not cost the guest its agent");

static int send_begin(struct ft_engine *e)
{
	struct ft_ship *s = &e->primary.ship;
	int rc = engine_send(e, FT_MSG_BEGIN, s->epoch, NULL, NULL, 0);

	if (!rc)
		s->begun = true;
	return rc;
}

/* One frame of whole page records. 1 = more to do, 0 = pages are done, -errno. */
static int send_pages(struct ft_engine *e)
{
	struct ft_ship *s = &e->primary.ship;
	struct vmm_capture *c = &e->primary.capture;
	struct ft_link *link = engine_data(e);
	uint32_t used = 0;
	uint8_t *out;
	int rc;

	if (s->page_at == c->pages_n)
		return 0;
	out = link->ops->reserve(link, FT_PAYLOAD_MAX);
	if (!out)
		return -EAGAIN;
	while (s->page_at < c->pages_n && used + FT_PAGE_RECORD_MAX <= FT_PAYLOAD_MAX) {
		used += (uint32_t)ft_codec_encode(e->primary.codec, s->epoch, c->pfns[s->page_at],
						  c->pages + s->page_at * VMM_PAGE_BYTES,
						  out + used);
		s->page_at++;
	}
	if (!used)
		return 1;
	rc = engine_send(e, FT_MSG_PAGES, s->epoch, NULL, out, used);
	if (rc)
		return rc; /* room was reserved: anything but 0 is a dead link */
	s->pages_bytes += used;
	return 1;
}

/* Postcopy: what the target has to fetch. */
static int send_missing(struct ft_engine *e)
{
	struct ft_ship *s = &e->primary.ship;
	struct ft_link *link = engine_data(e);
	uint8_t body[FT_MSG_BODY_SMALL], *words;
	uint64_t at = s->missing_at;
	struct ft_msg msg;
	int rc;

	if (!e->primary.capture.no_pages || at == e->primary.pending.bits)
		return 0;
	words = link->ops->reserve(link, FT_PAYLOAD_MAX);
	if (!words)
		return -EAGAIN;
	(void)ft_missing_next(&e->primary.pending, &at, body, words, &msg);
	msg.generation = e->generation;
	msg.epoch = s->epoch;
	rc = link->ops->send(link, &msg);
	if (rc)
		return rc;
	s->missing_at = at;
	return 1;
}

static int send_state(struct ft_engine *e)
{
	struct ft_ship *s = &e->primary.ship;
	struct vmm_capture *c = &e->primary.capture;
	size_t left = c->state_len - s->state_at, n = left < FT_PAYLOAD_MAX ? left : FT_PAYLOAD_MAX;
	int rc;

	if (!left)
		return 0;
	rc = engine_send(e, FT_MSG_STATE, s->epoch, NULL, c->state + s->state_at, (uint32_t)n);
	if (rc)
		return rc;
	s->state_at += n;
	return 1;
}

/* Records of every epoch that the standby does not have: of this one, and of earlier ones whose
 * checkpoint failed. */
static int send_events(struct ft_engine *e)
{
	struct ft_ship *s = &e->primary.ship;
	struct ft_link *link = engine_data(e);
	size_t used = 0;
	uint8_t *out;
	int rc;

	if (s->event_epoch > s->epoch)
		return 0;
	out = link->ops->reserve(link, FT_PAYLOAD_MAX);
	if (!out)
		return -EAGAIN;
	while (used < FT_PAYLOAD_MAX && s->event_epoch <= s->epoch) {
		size_t n = tap_chain_export(&e->chain, s->event_epoch, &s->event_cursor, out + used,
					    FT_PAYLOAD_MAX - used);

		used += n;
		if (!n) {
			s->event_epoch++;
			memset(&s->event_cursor, 0, sizeof s->event_cursor);
		}
	}
	if (!used)
		return 1;
	rc = engine_send(e, FT_MSG_EVENTS, s->epoch, NULL, out, (uint32_t)used);
	if (rc)
		return rc;
	s->events_bytes += used;
	return 1;
}

static int send_end(struct ft_engine *e)
{
	struct ft_ship *s = &e->primary.ship;
	Ft__End end = FT__END__INIT;

	end.pages_bytes = s->pages_bytes;
	end.state_bytes = e->primary.capture.state_len;
	end.events_bytes = s->events_bytes;
	end.trial = s->trial;
	end.digest = s->digest;
	end.missing_pages = e->primary.capture.no_pages ? e->primary.pending.count : 0;
	/* Without a record to ask, a standby that has its first checkpoint takes over by itself:
	 * from now on it might. */
	if (s->trial && !e->primary.move.on && !strcmp(e->arbiter->ops->type, "none")) {
		int rc = e->env->guard(e->env_ctx, true, &s->refused);

		if (rc)
			return rc;
		e->primary.sync_claimed = true;
	}
	return engine_send(e, FT_MSG_END, s->epoch, &end.base, NULL, 0);
}

static bool advance(struct ft_engine *e, int *rc)
{
	struct ft_ship *s = &e->primary.ship;

	switch (s->phase) {
	case SHIP_PAGES:
		*rc = send_pages(e);
		if (*rc == 0)
			s->phase = SHIP_MISSING;
		break;
	case SHIP_MISSING:
		*rc = send_missing(e);
		if (*rc == 0)
			s->phase = SHIP_STATE;
		break;
	case SHIP_STATE:
		*rc = send_state(e);
		if (*rc == 0)
			s->phase = SHIP_EVENTS;
		break;
	case SHIP_EVENTS:
		*rc = send_events(e);
		if (*rc == 0)
			s->phase = SHIP_END;
		break;
	case SHIP_END:
		*rc = send_end(e);
		if (*rc == 0) {
			s->phase = SHIP_WAIT_ACK;
			if (e->primary.move.on)
				migrate_sent(e);
			s->deadline_ns =
				engine_now(e) +
				(s->trial ? FT_TRIAL_ACK_MAX_MS : FT_ACK_MAX_MS) * NS_PER_MS;
		}
		break;
	case SHIP_IDLE:
	case SHIP_WAIT_ACK:
		return false;
	}
	return *rc >= 0;
}

/* The link has no room, or is broken: then it says so itself, when the peer's last words have been
 * read. */
static bool is_wait(int rc)
{
	return rc == -EAGAIN || rc == -EPIPE;
}

static void ship_broke(struct ft_engine *e)
{
	struct ft_err refused = e->primary.ship.refused;

	if (refused.code)
		primary_setup_failed(e, &refused);
	else
		primary_peer_lost(e, "cannot send");
}

void ship_continue(struct ft_engine *e)
{
	struct ft_ship *s = &e->primary.ship;
	int rc = 0;

	if (s->phase == SHIP_IDLE || s->phase == SHIP_WAIT_ACK || !engine_data(e))
		return;
	/* A small checkpoint is one wake-up for the standby. */
	ft_link_cork(engine_data(e), true);
	if (!s->begun)
		rc = send_begin(e);
	while (s->begun && advance(e, &rc)) {
		/* A peer that lives but takes nothing is no standby: each frame that goes out has
		 * its time. */
		if (s->phase != SHIP_WAIT_ACK)
			s->deadline_ns = engine_now(e) + FT_PROGRESS_MAX_MS * NS_PER_MS;
		engine_beat(e);
	}
	ft_link_cork(engine_data(e), false);
	if (rc < 0 && !is_wait(rc))
		ship_broke(e);
}

void ship_start(struct ft_engine *e, uint64_t epoch)
{
	struct ft_ship *s = &e->primary.ship;

	/* After ship_full() pages of this epoch are on the wire already. */
	s->epoch = epoch;
	s->phase = SHIP_PAGES;
	s->deadline_ns = engine_now(e) + FT_ACK_MAX_MS * NS_PER_MS;
	s->page_at = 0;
	s->missing_at = 0;
	s->state_at = 0;
	s->pages += e->primary.capture.pages_n;
	s->deadline_ns = engine_now(e) + FT_PROGRESS_MAX_MS * NS_PER_MS;
	s->event_epoch = e->committed + 1;
	memset(&s->event_cursor, 0, sizeof s->event_cursor);
	s->events_bytes = 0;
	s->raw_bytes = s->pages * VMM_PAGE_BYTES + e->primary.capture.state_len;
}

static int drain(struct ft_engine *e, struct ft_link *link)
{
	uint64_t now = engine_now(e), until = e->primary.ship.hold_until_ns;

	return now < until ? link->ops->drain(link, (unsigned)((until - now) / NS_PER_MS) + 1)
			   : -ETIMEDOUT;
}

int ship_full(void *ctx, struct vmm_capture *capture)
{
	struct ft_engine *e = ctx;
	struct ft_ship *s = &e->primary.ship;
	struct ft_link *link = engine_data(e);
	int rc = 0;

	/* One bound for the whole hold, however often staging fills. */
	if (!s->hold_until_ns)
		s->hold_until_ns = engine_now(e) + FT_HOLD_DRAIN_MAX_MS * NS_PER_MS;
	s->epoch = e->epoch;
	s->page_at = 0;
	while (!rc && link && (!s->begun || s->page_at < capture->pages_n)) {
		rc = s->begun ? send_pages(e) : send_begin(e);
		if (rc > 0)
			rc = 0;
		if (rc == -EAGAIN)
			rc = drain(e, link);
		engine_beat(e);
	}
	if (!link)
		rc = -EPIPE;
	for (size_t i = 0; !rc && i < capture->pages_n; i++)
		ft_bitmap_set(&e->primary.overflow, capture->pfns[i]);
	s->pages += capture->pages_n;
	capture->pages_n = 0;
	return rc;
}

// SPDX-License-Identifier: Apache-2.0
/* Connections between the two hosts. As TCP: ordered, nothing lost within one connection, latency,
 * a bounded window, perhaps a slow wire, and all the ways to end: refused, closed, reset, silent. A
 * cut direction delays what was sent until it heals, as retransmission does; a host without power
 * answers nothing; one whose process died sends a reset. */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FRAME_BYTES 88 /* header of a real frame, about */

struct parcel {
	struct parcel *next;
	uint64_t at;
	uint32_t bytes; /* of the sender's window, 0 once it is the kernel's */
	bool fin;
	struct ft_msg msg;
	uint8_t data[];
};

struct sim_link {
	struct ft_link link;
	struct node *owner;
	uint64_t incarnation; /* of the owner */
	struct sim_link *peer;
	bool closed, told, fin_sent;
	/* on the way to the owner */
	struct parcel *first, **last;
	bool pumping;
	/* on the way from the owner */
	uint64_t last_arrival, sent, backlog;
	uint64_t stalled_until; /* this connection alone: its path, not the host */
	bool wants_room;
	struct sim_link *next; /* all links of the world, freed at its end */
};

static bool usable(const struct sim_link *l)
{
	return !l->closed && !l->told && !l->owner->crashed &&
	       l->incarnation == l->owner->incarnation;
}

static bool blocked(const struct sim_link *from)
{
	return from->owner->world->cut[from->owner->id] ||
	       from->stalled_until > from->owner->world->now;
}

static void tell_closed(struct sim_link *l, int code, const char *text)
{
	struct ft_err why = {.code = code};

	if (!usable(l))
		return;
	l->told = true;
	snprintf(why.text, sizeof why.text, "%s", text);
	if (l->link.events.closed)
		l->link.events.closed(l->link.events.ctx, &why);
}

static void on_reset(void *ctx, uint64_t arg)
{
	(void)arg;
	tell_closed(ctx, ECONNRESET, "connection reset");
}

static void on_room(void *ctx, uint64_t arg)
{
	struct sim_link *l = ctx;

	(void)arg;
	if (usable(l) && l->link.events.writable)
		l->link.events.writable(l->link.events.ctx);
}

static void taken(struct sim_link *from, uint32_t bytes)
{
	struct world *w = from->owner->world;

	from->backlog -= bytes;
	if (!from->wants_room || from->backlog > w->options.window / 2)
		return;
	from->wants_room = false;
	world_after(w, 0, from->owner, on_room, from, 0);
}

static void pump_at(struct sim_link *to);
static int sim_send(struct ft_link *link, const struct ft_msg *msg);

static void deliver(struct sim_link *to, struct parcel *p)
{
	struct world *w = to->owner->world;

	if (p->fin) {
		tell_closed(to, ECONNRESET, "closed by the peer");
	} else if (w->corrupt_next && p->msg.type != FT_MSG_HELLO && usable(to)) {
		w->corrupt_next = false;
		world_log(w, "%s: a corrupted frame", to->owner->name);
		tell_closed(to, EBADMSG, "frame: checksum");
	} else if (usable(to)) {
		struct ft_msg answer = {0};

		if (mutate_message(w, to->owner, &p->msg, &answer))
			to->link.events.message(to->link.events.ctx, &p->msg);
		if (answer.type && usable(to))
			(void)sim_send(&to->link, &answer);
	}
}

static void pump(void *ctx, uint64_t arg)
{
	struct sim_link *to = ctx, *from = to->peer;
	struct world *w = to->owner->world;
	struct parcel *p = to->first;
	bool gone = to->owner->crashed || to->incarnation != to->owner->incarnation;

	(void)arg;
	to->pumping = false;
	if (!p || blocked(from))
		return; /* net_healed() goes on */
	if (p->at > w->now) {
		pump_at(to);
		return;
	}
	/* A machine that is up but knows no such connection sends a reset; one without power
	 * nothing. */
	if (gone && (w->cut[to->owner->id] || (to->owner->crashed && to->owner->powerless)))
		return;
	to->first = p->next;
	if (!to->first)
		to->last = &to->first;
	if (gone) {
		world_after(w, 100 * US, from->owner, on_reset, from, 0);
	} else {
		if (p->bytes)
			taken(from, p->bytes);
		deliver(to, p);
	}
	free(p);
	pump_at(to);
}

static void pump_at(struct sim_link *to)
{
	struct world *w = to->owner->world;

	if (!to->first || to->pumping || blocked(to->peer))
		return;
	to->pumping = true;
	world_wait(w, to->first->at > w->now ? to->first->at - w->now : 0, to->owner, pump, to);
}

static void post(struct sim_link *from, struct parcel *p, uint32_t bytes)
{
	struct world *w = from->owner->world;
	const struct options *o = &w->options;
	uint64_t at = w->now + world_range(w, o->latency_us_min, o->latency_us_max) * US;

	if (at < from->last_arrival)
		at = from->last_arrival;
	if (o->bytes_per_ms)
		at += bytes * MS / o->bytes_per_ms;
	from->last_arrival = p->at = at;
	*from->peer->last = p;
	from->peer->last = &p->next;
	pump_at(from->peer);
}

static bool room(struct sim_link *l)
{
	if (l->backlog < l->owner->world->options.window)
		return true;
	l->wants_room = true;
	return false;
}

static int sim_send(struct ft_link *link, const struct ft_msg *msg)
{
	struct sim_link *l = (struct sim_link *)link;
	uint32_t bytes = FRAME_BYTES + msg->body_len + msg->payload_len;
	struct parcel *p;

	if (!node_step(l->owner))
		return 0;
	if (!usable(l))
		return -EPIPE;
	if (!room(l))
		return -EAGAIN;
	p = malloc(sizeof *p + msg->body_len + msg->payload_len);
	if (!p)
		abort();
	*p = (struct parcel){.bytes = bytes, .msg = *msg};
	if (msg->body_len)
		memcpy(p->data, msg->body, msg->body_len);
	if (msg->payload_len)
		memcpy(p->data + msg->body_len, msg->payload, msg->payload_len);
	p->msg.body = p->data;
	p->msg.payload = p->data + msg->body_len;
	l->sent += bytes;
	l->backlog += bytes;
	post(l, p, bytes);
	if (msg->type == FT_MSG_ACK)
		faults_on_ack(l->peer->owner);
	return 0;
}

/* One frame is written at a time, so one buffer serves all links. */
static uint8_t reserved[FT_PAYLOAD_MAX];

static uint8_t *sim_reserve(struct ft_link *link, uint32_t payload_max)
{
	struct sim_link *l = (struct sim_link *)link;

	if (payload_max > sizeof reserved)
		world_violation(l->owner->world, "reserve of %u bytes", payload_max);
	return room(l) ? reserved : NULL;
}

/* Blocking, so the caller's world goes on without it: time passes in one step. */
static int sim_drain(struct ft_link *link, unsigned deadline_ms)
{
	struct sim_link *l = (struct sim_link *)link;
	struct world *w = l->owner->world;

	/* The dead wait for nothing: time stands still for them, and no room would ever come. */
	if (!node_step(l->owner))
		return -EPIPE;
	if (!l->backlog)
		return 0;
	if (blocked(l) || l->peer->owner->frozen || l->peer->owner->crashed ||
	    l->last_arrival > w->now + deadline_ms * MS) {
		if (room(l))
			return 0; /* it fits into the kernel's buffer */
		w->now += deadline_ms * MS;
		return -ETIMEDOUT;
	}
	if (l->last_arrival > w->now)
		w->now = l->last_arrival;
	for (struct parcel *p = l->peer->first; p; p = p->next) {
		l->backlog -= p->bytes;
		p->bytes = 0;
	}
	if (room(l))
		return 0;
	w->now += deadline_ms * MS; /* what is lost on its way frees nothing */
	return -ETIMEDOUT;
}

static uint64_t sim_bytes_sent(struct ft_link *link)
{
	return ((struct sim_link *)link)->sent;
}

static void send_fin(struct sim_link *l)
{
	struct parcel *p = calloc(1, sizeof *p);

	if (!p)
		abort();
	l->fin_sent = true;
	p->fin = true;
	post(l, p, 0);
}

static void sim_close(struct ft_link *link)
{
	struct sim_link *l = (struct sim_link *)link;

	/* Of one that dies in the middle of it, node_crash() closes. */
	if (l->closed || !node_step(l->owner))
		return;
	l->closed = true;
	if (!l->fin_sent)
		send_fin(l);
}

static const struct ft_link_ops sim_link_ops = {.send = sim_send,
						.reserve = sim_reserve,
						.drain = sim_drain,
						.bytes_sent = sim_bytes_sent,
						.close = sim_close};

static struct sim_link *link_new(struct node *owner, struct node *to)
{
	struct sim_link *l = calloc(1, sizeof *l);

	if (!l)
		abort();
	l->link.ops = &sim_link_ops;
	l->owner = owner;
	l->incarnation = owner->incarnation;
	l->last = &l->first;
	snprintf(l->link.peer, sizeof l->link.peer, "sim:%s", to->name);
	l->next = owner->world->links;
	owner->world->links = l;
	return l;
}

bool net_silent(struct node *from, struct node *to)
{
	return from->world->cut[0] || from->world->cut[1] || to->frozen ||
	       (to->crashed && to->powerless);
}

struct ft_link *net_connect(struct node *from, struct node *to)
{
	struct sim_link *a, *b;

	if (to->crashed || net_silent(from, to))
		return NULL;
	a = link_new(from, to);
	b = link_new(to, from);
	a->peer = b;
	b->peer = a;
	ft_engine_accepted(to->engine, &b->link);
	return &a->link;
}

void net_node_gone(struct node *n, bool powerless)
{
	for (struct sim_link *l = n->world->links; l; l = l->next) {
		if (l->owner != n || l->closed || l->incarnation != n->incarnation)
			continue;
		l->closed = true;
		if (!powerless && !l->fin_sent)
			send_fin(l);
	}
}

void net_reset_data(struct node *n)
{
	for (struct sim_link *l = n->world->links; l; l = l->next) {
		if (l->owner != n || !usable(l) || !usable(l->peer))
			continue;
		/* Both ends see a reset: a middlebox lost its state. */
		world_after(n->world, 0, l->owner, on_reset, l, 0);
		world_after(n->world, 0, l->peer->owner, on_reset, l->peer, 0);
	}
}

#define STALL_MAX (4 * S)

static void on_unstalled(void *ctx, uint64_t arg)
{
	struct sim_link *l = ctx;

	(void)arg;
	pump_at(l->peer);
}

void net_stall_one(struct world *w, uint64_t for_ns)
{
	/* It heals early enough for the engine's longest wait, the first ACK's, to end within the
	 * run. */
	if (for_ns > STALL_MAX)
		for_ns = STALL_MAX;
	for (struct sim_link *l = w->links; l; l = l->next) {
		if (!usable(l) || !usable(l->peer) || !world_chance(w, 30))
			continue;
		world_log(w, "STALL of one connection from %s for %llu ms", l->owner->name,
			  (unsigned long long)(for_ns / MS));
		l->stalled_until = w->now + for_ns;
		world_after(w, for_ns, NULL, on_unstalled, l, 0);
		return;
	}
}

void net_healed(struct world *w)
{
	for (struct sim_link *l = w->links; l; l = l->next)
		pump_at(l);
}

void net_free(struct world *w)
{
	while (w->links) {
		struct sim_link *l = w->links;

		w->links = l->next;
		while (l->first) {
			struct parcel *p = l->first;

			l->first = p->next;
			free(p);
		}
		free(l);
	}
}

// SPDX-License-Identifier: Apache-2.0
/* Connections between the two hosts: ordered, with latency, and with all the ways to fail that TCP has: refused, reset, silent. */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sim_link {
	struct ft_link link;
	struct node *owner;
	uint64_t incarnation; /* of the owner */
	struct sim_link *peer;
	bool closed, told;
	uint64_t last_arrival, sent;
	uint8_t buffer[FT_PAYLOAD_MAX];
	struct sim_link *next; /* all links of the world, freed at its end */
};

struct parcel {
	struct sim_link *to;
	struct ft_msg msg;
	uint8_t bytes[];
};

static uint64_t arrival(struct sim_link *l)
{
	struct world *w = l->owner->world;
	uint64_t at = w->now + world_range(w, w->options.latency_us_min, w->options.latency_us_max) * US;

	if (at < l->last_arrival)
		at = l->last_arrival;
	l->last_arrival = at;
	return at - w->now;
}

static bool usable(const struct sim_link *l)
{
	return !l->closed && !l->owner->crashed && l->incarnation == l->owner->incarnation;
}

static void deliver(void *ctx, uint64_t arg)
{
	struct parcel *p = ctx;
	struct sim_link *to = p->to;

	(void)arg;
	if (usable(to) && to->link.events.message)
		to->link.events.message(to->link.events.ctx, &p->msg);
	free(p);
}

static int sim_send(struct ft_link *link, const struct ft_msg *msg)
{
	struct sim_link *l = (struct sim_link *)link;
	struct world *w = l->owner->world;
	struct parcel *p;

	if (l->closed)
		return -EPIPE;
	l->sent += msg->body_len + msg->payload_len + 88;
	if (w->link_cut)
		return 0; /* lost; nobody tells */
	p = malloc(sizeof *p + msg->body_len + msg->payload_len);
	if (!p)
		abort();
	p->to = l->peer;
	p->msg = *msg;
	if (msg->body_len)
		memcpy(p->bytes, msg->body, msg->body_len);
	if (msg->payload_len)
		memcpy(p->bytes + msg->body_len, msg->payload, msg->payload_len);
	p->msg.body = p->bytes;
	p->msg.payload = p->bytes + msg->body_len;
	/* Nobody's event, and the receiver is asked at delivery, so that parcels to the dead are freed; a sleeper's mail waits. */
	world_after(w, arrival(l), l->peer->owner, deliver, p, 0);
	return 0;
}

static uint8_t *sim_reserve(struct ft_link *link, uint32_t payload_max)
{
	(void)payload_max;
	return ((struct sim_link *)link)->buffer;
}

static int sim_drain(struct ft_link *link, unsigned deadline_ms)
{
	(void)link;
	(void)deadline_ms;
	return 0;
}

static uint64_t sim_bytes_sent(struct ft_link *link)
{
	return ((struct sim_link *)link)->sent;
}

static void tell_closed(void *ctx, uint64_t arg)
{
	struct sim_link *l = ctx;
	struct ft_err why = {.code = ECONNRESET, .text = "connection reset"};

	(void)arg;
	if (!usable(l) || l->told)
		return;
	l->told = true;
	if (l->link.events.closed)
		l->link.events.closed(l->link.events.ctx, &why);
}

static void sim_close(struct ft_link *link)
{
	struct sim_link *l = (struct sim_link *)link;
	struct world *w = l->owner->world;

	if (l->closed)
		return;
	l->closed = true;
	if (!w->link_cut)
		world_after(w, arrival(l), l->peer->owner, tell_closed, l->peer, 0);
}

static const struct ft_link_ops sim_link_ops = {
	.send = sim_send, .reserve = sim_reserve, .drain = sim_drain, .bytes_sent = sim_bytes_sent, .close = sim_close};

static struct sim_link *link_new(struct node *owner, struct node *to)
{
	struct sim_link *l = calloc(1, sizeof *l);

	if (!l)
		abort();
	l->link.ops = &sim_link_ops;
	l->owner = owner;
	l->incarnation = owner->incarnation;
	snprintf(l->link.peer, sizeof l->link.peer, "sim:%s", to->name);
	l->next = owner->world->links;
	owner->world->links = l;
	return l;
}

struct ft_link *net_connect(struct node *from, struct node *to)
{
	struct sim_link *a, *b;

	if (to->crashed || from->world->link_cut || to->frozen)
		return NULL;
	a = link_new(from, to);
	b = link_new(to, from);
	a->peer = b;
	b->peer = a;
	ft_engine_accepted(to->engine, &b->link);
	return &a->link;
}

void net_node_gone(struct node *n, bool silent)
{
	struct world *w = n->world;

	for (struct sim_link *l = w->links; l; l = l->next) {
		if (l->owner != n || l->closed)
			continue;
		l->closed = true;
		if (!silent && !w->link_cut)
			world_after(w, arrival(l), l->peer->owner, tell_closed, l->peer, 0);
	}
}

void net_reset_data(struct node *n)
{
	for (struct sim_link *l = n->world->links; l; l = l->next) {
		if (l->owner != n || l->closed || !usable(l) || !usable(l->peer))
			continue;
		/* Both ends see a reset: a middlebox lost its state. */
		world_after(n->world, 0, l->owner, tell_closed, l, 0);
		world_after(n->world, 0, l->peer->owner, tell_closed, l->peer, 0);
	}
}

void net_free(struct world *w)
{
	while (w->links) {
		struct sim_link *next = w->links->next;

		free(w->links);
		w->links = next;
	}
}

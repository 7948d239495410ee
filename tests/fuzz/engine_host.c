// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/engine_host.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct engine_host host;

struct ft_engine_config host_begin(const char *id, size_t staging_bytes)
{
	struct ft_engine_config config = {
		.name = "guest",
		.policy = {.trigger = FT_TRIGGER_OUTPUT,
			   .interval_ns = 50 * MS,
			   .max_downtime_ns = 30 * MS,
			   .max_overhead = 0.25},
		.heartbeat_ms = 50,
		.takeover_ms = 300,
		.staging_bytes = staging_bytes,
	};

	snprintf(config.host_id, sizeof config.host_id, "%s", id);
	memset(&host, 0, sizeof host);
	host.now = 1000 * MS;
	return config;
}

void host_end(void)
{
	ft_engine_free(host.engine);
	assert(links_n() == 0);
	if (host.none)
		host.none->ops->free(host.none);
}

/* ---- links ---- */

uint64_t host_link_bytes_sent(struct ft_link *link)
{
	(void)link;
	return 0;
}

void host_link_close(struct ft_link *link)
{
	struct fake_link *l = (struct fake_link *)link;

	assert(host.links[l->slot] == l);
	host.links[l->slot] = NULL;
	free(l);
}

struct ft_link *link_make(void)
{
	for (unsigned i = 0; i < LINKS; i++) {
		struct fake_link *l;

		if (host.links[i])
			continue;
		l = host.links[i] = calloc(1, sizeof *l);
		l->slot = i;
		l->base.ops = host.link_ops;
		snprintf(l->base.peer, sizeof l->base.peer, "fuzz");
		return &l->base;
	}
	return NULL;
}

unsigned links_n(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < LINKS; i++)
		n += host.links[i] != NULL;
	return n;
}

/* ---- environment ---- */

uint64_t host_now(void *ctx)
{
	(void)ctx;
	return host.now;
}

void host_wake_at(void *ctx, uint64_t when_ns)
{
	(void)ctx;
	(void)when_ns;
}

void host_dial(void *ctx, bool heartbeat)
{
	(void)ctx;
	host.dialing = true;
	host.dialing_beat = heartbeat;
}

void host_hang_up(void *ctx)
{
	(void)ctx;
	host.dialing = false;
}

void host_changed(void *ctx)
{
	(void)ctx;
}

void host_generation(void *ctx, uint64_t generation)
{
	(void)ctx;
	assert(generation > 0);
}

void host_ask(ft_arbiter_fn *fn, void *ctx)
{
	assert(!host.asked);
	host.asked = fn;
	host.asked_ctx = ctx;
}

void host_arbiter_free(struct ft_arbiter *a)
{
	(void)a;
}

/* ---- input ---- */

unsigned take(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->at++;
}

size_t take_some(struct input *in, uint8_t *out, size_t n)
{
	n = n < in->left ? n : in->left;
	memcpy(out, in->at, n);
	in->at += n;
	in->left -= n;
	return n;
}

/* ---- actions ---- */

void do_accepted(void)
{
	struct ft_link *link = link_make();

	if (link)
		ft_engine_accepted(host.engine, link);
}

void do_dialed(struct input *in)
{
	unsigned how = take(in);
	struct ft_err err = {.code = how & 2 ? EDESTADDRREQ : ECONNREFUSED, .text = "refused"};
	struct ft_link *link = how & 1 ? link_make() : NULL;

	if (!host.dialing) {
		if (link)
			link->ops->close(link);
		return;
	}
	host.dialing = false;
	ft_engine_dialed(host.engine, host.dialing_beat, link, link ? NULL : &err);
}

void do_link(struct input *in)
{
	unsigned how = take(in);
	struct fake_link *l = host.links[how % LINKS];
	struct ft_err why = {.code = EPIPE, .text = "closed"};

	if (!l)
		return;
	if (how & 64)
		l->base.events.writable(l->base.events.ctx);
	else
		l->base.events.closed(l->base.events.ctx, &why);
}

void do_time(struct input *in)
{
	host.now += (1 + take(in)) * 3 * MS;
	ft_engine_tick(host.engine);
}

void on_done(void *ctx, const struct ft_err *err, uint64_t value)
{
	(void)ctx;
	(void)err;
	(void)value;
}

// SPDX-License-Identifier: Apache-2.0
/* The memory of a postcopy migration, between the engine (ft/pages.c) and the threads that move it
 * (vmm-glue/postcopy): its two connections, made by the source, and news from the threads. */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ft/log.h"
#include "tools/agent/agent.h"
#include "transport/wire.h"

#define DIAL_MAX_MS 3000

/* Any thread. */
static void on_tell(void *ctx)
{
	struct agent *a = ctx;

	eventfd_write(a->pages.news_fd, 1);
}

static void drop_lines(struct agent *a)
{
	for (unsigned i = 0; i < 2; i++) {
		struct page_line *l = &a->pages.lines[i];

		connector_cancel(l->connector);
		if (l->link)
			l->link->ops->close(l->link);
		if (l->wire)
			l->wire->ops->close(l->wire);
		l->connector = NULL;
		l->link = NULL;
		l->wire = NULL;
	}
}

/* ---- source: the connections ---- */

static void line_failed(struct agent *a, const struct ft_err *why)
{
	struct ft_err err = *why;

	drop_lines(a);
	ft_err_context(&err, "connection for pages");
	ft_engine_pages(a->engine, FT_PAGES_CUT, &err);
}

static void both_made(struct agent *a)
{
	struct agent_pages *p = &a->pages;
	struct ft_err err = {0};
	int rc;

	if (!p->lines[0].wire || !p->lines[1].wire || !p->server)
		return;
	rc = page_server_connect(p->server, p->lines[1].wire, p->lines[0].wire, &err);
	p->lines[0].wire = p->lines[1].wire = NULL;
	p->told = PAGES_SERVING;
	ft_engine_pages(a->engine, rc ? FT_PAGES_CUT : FT_PAGES_READY, &err);
}

static void on_refused(struct agent *a, const struct ft_msg *msg)
{
	Ft__Refuse *refuse = ft__refuse__unpack(NULL, msg->body_len, msg->body);
	struct ft_err err = {0};

	if (!refuse) {
		ft_err_set(&err, EPROTO, "a REFUSE that does not parse");
	} else if (refuse->code == EALREADY) {
		/* Its last word was lost with the link. */
		ft__refuse__free_unpacked(refuse, NULL);
		drop_lines(a);
		ft_engine_pages(a->engine, FT_PAGES_ALL, NULL);
		return;
	} else {
		ft_err_set(&err, EACCES, "%.200s", refuse->what);
		ft__refuse__free_unpacked(refuse, NULL);
	}
	line_failed(a, &err);
}

static void on_message(void *ctx, const struct ft_msg *msg)
{
	struct page_line *l = ctx;
	struct agent *a = l->agent;
	struct ft_link *link = l->link;
	struct ft_err err = {0};

	if (msg->type == FT_MSG_REFUSE) {
		on_refused(a, msg);
		return;
	}
	l->link = NULL;
	if (msg->type != FT_MSG_HELLO) {
		ft_err_set(&err, EPROTO, "%s in place of HELLO", ft_msg_name(msg->type));
		link->ops->close(link);
	} else if (!wire_of_link(link, &l->wire, &err)) {
		both_made(a);
		return;
	}
	line_failed(a, &err);
}

static void on_writable(void *ctx)
{
	(void)ctx;
}

static void on_closed(void *ctx, const struct ft_err *why)
{
	struct page_line *l = ctx;

	line_failed(l->agent, why);
}

static void on_connected(void *ctx, struct ft_link *link, const struct ft_err *why)
{
	struct page_line *l = ctx;
	struct agent *a = l->agent;

	l->connector = NULL;
	if (!link) {
		line_failed(a, why);
		return;
	}
	peer_link(a, link);
	l->link = link;
	link->events = (struct ft_link_events){
		.message = on_message, .writable = on_writable, .closed = on_closed, .ctx = l};
	ft_engine_pages_hello(a->engine, link, l == &a->pages.lines[1]);
}

int follow_open(struct agent *a, struct ft_err *err)
{
	struct agent_pages *p = &a->pages;
	struct ft_engine_status s;
	struct vmm_ram ram;
	int rc = 0;

	if (!p->server) {
		vmm_ram(a->vmm, &ram);
		ft_engine_status(a->engine, &s);
		rc = page_server_new(&ram, s.generation, on_tell, a, &p->server, err);
		if (!rc)
			page_server_cargo(p->server, &p->giver.cargo);
	}
	drop_lines(a);
	for (unsigned i = 0; i < 2 && !rc; i++) {
		struct page_line *l = &p->lines[i];

		l->agent = a;
		rc = connector_start(a->base, &a->peer, a->peer.scheme == URI_TLS ? a->tls : NULL,
				     DIAL_MAX_MS, on_connected, l, &l->connector, err);
	}
	if (rc)
		drop_lines(a);
	return rc;
}

void follow_give(struct agent *a, const struct ft_bitmap *missing)
{
	page_server_give(a->pages.server, missing, false);
}

/* ---- target ---- */

int follow_prepare(struct agent *a, uint64_t generation, struct ft_err *err)
{
	struct vmm_ram ram;
	int rc;

	vmm_ram(a->vmm, &ram);
	rc = page_client_new(&ram, generation, on_tell, a, &a->pages.client, err);
	if (!rc)
		page_client_cargo(a->pages.client, &a->pages.taker.cargo);
	return rc;
}

static void try_connect(struct agent *a)
{
	struct agent_pages *p = &a->pages;
	struct ft_err err = {0};
	enum page_state state;

	if (!p->client || !p->lines[0].wire || !p->lines[1].wire)
		return;
	state = page_client_state(p->client, &err);
	if (state == PAGES_SERVING) {
		/* It has not noticed yet that the old ones are dead: when it has, it says so. */
		page_client_cut(p->client);
		return;
	}
	p->told = state == PAGES_CUT ? PAGES_SERVING : state;
	if (page_client_connect(p->client, p->lines[1].wire, p->lines[0].wire, &err))
		ft_warn("%s: %s", a->config.name, err.text);
	p->lines[0].wire = p->lines[1].wire = NULL;
	if (state == PAGES_CUT)
		ft_engine_pages(a->engine, FT_PAGES_READY, NULL);
}

void follow_link(struct agent *a, struct ft_link *link, bool urgent)
{
	struct page_line *l = &a->pages.lines[urgent];
	struct ft_err err = {0};

	if (l->wire)
		l->wire->ops->close(l->wire);
	l->wire = NULL;
	if (wire_of_link(link, &l->wire, &err))
		ft_warn("%s: connection for pages: %s", a->config.name, err.text);
	else
		try_connect(a);
}

int follow_begin(struct agent *a, const struct ft_bitmap *missing, struct ft_err *err)
{
	a->pages.told = PAGES_SERVING;
	a->pages.here_told = false;
	follow_bitmaps_begin(a);
	return page_client_begin(a->pages.client, missing, err);
}

/* ---- both ---- */

static void tell_engine(struct agent *a, enum page_state state, const struct ft_err *why)
{
	switch (state) {
	case PAGES_IDLE:
	case PAGES_SERVING:
		break;
	case PAGES_CUT:
		ft_engine_pages(a->engine, FT_PAGES_CUT, why);
		break;
	case PAGES_DONE:
		ft_engine_pages(a->engine, FT_PAGES_ALL, NULL);
		break;
	case PAGES_FAILED:
		ft_engine_pages(a->engine, FT_PAGES_FAILED, why);
		break;
	}
}

static void on_news(evutil_socket_t fd, short what, void *ctx)
{
	struct agent *a = ctx;
	struct agent_pages *p = &a->pages;
	struct ft_err why = {0};
	enum page_state state;
	eventfd_t n;

	(void)what;
	(void)eventfd_read(fd, &n);
	if (!p->client && !p->server)
		return;
	state = p->client ? page_client_state(p->client, &why) : page_server_state(p->server, &why);
	if (p->client && !p->here_told && page_client_here(p->client)) {
		p->here_told = true;
		if (state != PAGES_DONE)
			ft_engine_pages(a->engine, FT_PAGES_HERE, NULL);
	}
	if (state == p->told)
		return;
	p->told = state;
	tell_engine(a, state, &why);
	if (state == PAGES_CUT)
		try_connect(a);
}

int follow_listen(struct agent *a, struct ft_err *err)
{
	struct agent_pages *p = &a->pages;

	p->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->news_fd < 0)
		return ft_err_set(err, errno, "eventfd: %s", strerror(errno));
	p->news = event_new(a->base, p->news_fd, EV_READ | EV_PERSIST, on_news, a);
	if (!p->news || event_add(p->news, NULL))
		return ft_err_set(err, ENOMEM, "event loop: out of memory");
	return 0;
}

void follow_close(struct agent *a)
{
	struct agent_pages *p = &a->pages;
	struct page_client *client = p->client;
	struct page_server *server = p->server;

	drop_lines(a);
	if (client)
		page_client_stats(client, &p->last);
	p->client = NULL;
	p->server = NULL;
	p->told = PAGES_IDLE;
	page_client_free(client);
	page_server_free(server);
}

void follow_end(struct agent *a)
{
	follow_close(a);
	if (a->pages.news)
		event_free(a->pages.news);
	if (a->pages.news_fd >= 0)
		close(a->pages.news_fd);
	a->pages.news = NULL;
	a->pages.news_fd = -1;
}

void follow_background(struct agent *a, bool on)
{
	follow_handed(a);
	if (a->pages.server)
		page_server_background(a->pages.server, on);
}

void follow_stats(struct agent *a, struct page_client_stats *out)
{
	*out = a->pages.last;
	if (a->pages.client)
		page_client_stats(a->pages.client, out);
	else if (a->pages.server)
		page_server_stats(a->pages.server, &out->pages);
}

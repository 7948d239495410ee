// SPDX-License-Identifier: Apache-2.0
/* Postcopy: the guest runs at the target, its memory follows. The engine has to do with when, and
 * with whose the guest is meanwhile; the pages themselves have connections and threads of their own
 * (env->pages_*, vmm-glue/postcopy).
 *
 *   SETUP          source: says which bitmaps of its disks will follow the guest
 *   READY          source: the connections for pages are made, while the guest runs
 *   rounds         as many as were asked for; replicated disks are copied, for disks are not
 * fetched later the switch     the last checkpoint has MISSING in place of PAGES: what the target
 * must not believe to have HANDOVER       source: from here on it gives pages; target: from here on
 * who touches a missing one waits HANDED         source: fenced. Its guest stands still for good,
 * but is kept: it is the memory. Bitmaps follow from here on
 *   all pages      target: its memory is ordinary again
 *   ALL            source: ends
 *
 * A lost connection ends nothing: the guest at the target goes on until it needs a page, and waits.
 * There is no way back from fenced to solo, so the source cannot run the guest, whoever asks. */
#include "ft/engine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

int pages_check(const struct ft_engine *e, const char *what, struct ft_err *err)
{
	return e->pages.taking ? ft_err_set(err, EBUSY, "%s: the guest's %s not all here yet", what,
					    e->pages.here ? "bitmaps are" : "memory is")
			       : 0;
}

/* ---- source ---- */

void pages_announce(struct ft_engine *e)
{
	e->pages = (struct ft_pages){.open = true, .session = e->primary.session};
}

void pages_open(struct ft_engine *e)
{
	struct ft_err err = {0};

	if (e->env->pages_open(e->env_ctx, e->pages.session, &err))
		migrate_failed(e, &err);
}

void pages_close(struct ft_engine *e)
{
	if (!e->pages.open)
		return;
	e->pages = (struct ft_pages){0};
	e->env->pages_close(e->env_ctx);
}

void pages_forget(struct ft_engine *e)
{
	e->pages = (struct ft_pages){0};
	e->env->pages_close(e->env_ctx);
}

static void given(struct ft_engine *e)
{
	pages_close(e);
	e->moved = true;
	engine_set_state(e, FT_STOPPED,
			 "moved to %s: downtime %llu.%llu ms, and its memory has followed",
			 e->peer_host, (unsigned long long)e->downtime_us / 1000,
			 (unsigned long long)e->downtime_us % 1000 / 100);
	done_call(&e->primary.protect_done, NULL, e->downtime_us);
}

static void link_lost(struct ft_engine *e, const struct ft_err *why)
{
	struct ft_err err = *why;

	e->pages.cut = true;
	engine_note_error(e, &err);
	engine_set_state(
		e, FT_FENCED,
		"runs on %s, but its link is lost (%.120s): its memory is kept until ftctl migrate "
		"--recover",
		e->peer_host, err.text);
	done_call(&e->primary.protect_done, &err, 0);
}

void pages_handed(struct ft_engine *e)
{
	struct ft_err lost = {.code = ENOTCONN, .text = "the connections for pages are gone"};

	e->pages.giving = true;
	/* Not before: the target has had enough to do with the guest itself. */
	e->env->pages_push(e->env_ctx, !e->primary.move.how.demand_only);
	engine_set_state(e, FT_FENCED, "runs on %s: downtime %llu.%llu ms; its memory follows",
			 e->peer_host, (unsigned long long)e->downtime_us / 1000,
			 (unsigned long long)e->downtime_us % 1000 / 100);
	if (e->pages.all)
		given(e);
	else if (e->pages.cut)
		link_lost(e, &lost);
	else if (e->primary.move.how.demand_only)
		done_call(&e->primary.protect_done, NULL, e->downtime_us);
}

static void source_news(struct ft_engine *e, enum ft_pages_news news, const struct ft_err *why)
{
	bool here = !e->pages.giving && !e->primary.gave_away; /* the guest is ours alone */

	/* The arbiter is asked whose the guest is; whatever becomes of its pages, that decides. */
	if (here && e->primary.phase == PRIMARY_LOST)
		return;
	switch (news) {
	case FT_PAGES_READY:
		e->pages.ready = true;
		if (e->pages.giving)
			engine_set_state(e, FT_FENCED, "runs on %s: its memory follows again",
					 e->peer_host);
		e->pages.cut = false;
		if (e->pages.giving)
			e->env->pages_push(e->env_ctx, !e->primary.move.how.demand_only);
		if (e->pages.giving && e->primary.move.how.demand_only)
			done_call(&e->primary.protect_done, NULL, e->downtime_us);
		primary_writable(e);
		break;
	case FT_PAGES_HERE:
		break; /* the target's */
	case FT_PAGES_ALL:
		e->pages.all = true;
		if (e->pages.giving)
			given(e);
		break;
	case FT_PAGES_CUT:
		if (e->pages.giving)
			link_lost(e, why);
		else if (here)
			migrate_failed(e, why);
		else
			e->pages.cut = true;
		break;
	case FT_PAGES_FAILED:
		if (here) {
			migrate_failed(e, why);
			break;
		}
		engine_note_error(e, why);
		done_call(&e->primary.protect_done, why, 0);
		engine_set_state(e, FT_FAILED, "the guest's memory is lost: %s", why->text);
		break;
	}
}

int ft_engine_recover(struct ft_engine *e, bool demand_only, ft_done_fn *done, void *ctx,
		      struct ft_err *err)
{
	/* Over a good link there is one thing to go on with: the pages that nobody asks for. */
	bool push = e->primary.move.how.demand_only && !demand_only;
	int rc = 0;

	if (!e->pages.giving || (!e->pages.cut && !push))
		return ft_err_set(err, EINVAL, "recover: %s",
				  e->pages.giving
					  ? "the link is good"
					  : "no guest of this host runs without its memory");
	if (!done_set(&e->primary.protect_done, done, ctx))
		return ft_err_set(err, EBUSY, "recover: one is under way");
	e->primary.move.how.demand_only = demand_only;
	if (e->pages.cut)
		rc = e->env->pages_open(e->env_ctx, e->pages.session, err);
	else
		e->env->pages_push(e->env_ctx, true);
	if (rc)
		memset(&e->primary.protect_done, 0, sizeof e->primary.protect_done);
	return rc;
}

/* ---- target ---- */

int pages_begin(struct ft_engine *e, struct ft_err *err)
{
	int rc = e->env->pages_begin(e->env_ctx, &e->standby.missing, err);

	if (rc)
		return rc;
	e->pages = (struct ft_pages){.taking = true, .session = e->standby.session};
	memcpy(e->pages.host, e->standby.primary_host, sizeof e->pages.host);
	return 0;
}

static void target_news(struct ft_engine *e, enum ft_pages_news news, const struct ft_err *why)
{
	uint64_t session = e->pages.session;

	switch (news) {
	case FT_PAGES_READY:
		e->pages.cut = false;
		engine_set_state(e, e->state.now, "memory comes from %s again", e->pages.host);
		break;
	case FT_PAGES_HERE:
		e->pages.here = true;
		(void)e->env->guard(e->env_ctx, false, NULL);
		engine_set_state(e, e->state.now,
				 "all of the guest's memory is here, its disks' bitmaps follow");
		break;
	case FT_PAGES_ALL:
		e->pages = (struct ft_pages){.done_session = session};
		e->env->pages_close(e->env_ctx);
		(void)e->env->guard(e->env_ctx, false, NULL);
		engine_set_state(e, e->state.now, "all of the guest's memory is here");
		break;
	case FT_PAGES_CUT:
		e->pages.cut = true;
		engine_note_error(e, why);
		engine_set_state(e, e->state.now, "the link to %s is lost: %s (%.120s)",
				 e->pages.host,
				 e->pages.here ? "bitmaps of the guest's disks are there"
					       : "the guest waits where it needs a page that is "
						 "there",
				 why->text);
		break;
	case FT_PAGES_FAILED:
		ft_engine_vm_lost(e, false, why->text);
		break;
	}
}

void ft_engine_pages(struct ft_engine *e, enum ft_pages_news news, const struct ft_err *why)
{
	if (e->pages.taking)
		target_news(e, news, why);
	else if (e->pages.open)
		source_news(e, news, why);
	ft_engine_tick(e);
}

/* ---- connections ---- */

void ft_engine_pages_hello(struct ft_engine *e, struct ft_link *link, bool urgent)
{
	Ft__Hello hello = FT__HELLO__INIT;

	hello.name = e->config.name;
	hello.host_id = e->config.host_id;
	hello.role = FT__ROLE__ROLE_PRIMARY;
	hello.session = e->pages.session;
	hello.version = (char *)(uintptr_t)FT_VERSION;
	hello.generation = e->generation;
	hello.pages = urgent ? 1 : 2;
	(void)ft_msg_send(link, FT_MSG_HELLO, e->generation, 0, &hello.base, NULL, 0);
}

static int check(const struct ft_engine *e, const Ft__Hello *hello, struct ft_err *err)
{
	bool before = e->state.now == FT_STANDBY && e->standby.postcopy &&
		      hello->session == e->standby.session &&
		      !strcmp(hello->host_id, e->standby.primary_host);
	bool after = e->pages.taking && hello->session == e->pages.session &&
		     !strcmp(hello->host_id, e->pages.host);

	if (strcmp(hello->name, e->config.name))
		return ft_err_set(err, EINVAL, "hello: guest '%.64s': this agent is for '%s'",
				  hello->name, e->config.name);
	if (hello->session && hello->session == e->pages.done_session)
		return ft_err_set(err, EALREADY, "hello: all of the guest's memory is here");
	return before || after
		       ? 0
		       : ft_err_set(err, ESTALE, "hello: pages of a session that is not here");
}

bool pages_hello(struct engine_conn *conn, const Ft__Hello *hello)
{
	struct ft_engine *e = conn->e;
	struct ft_link *link = conn->link;
	struct ft_err err = {0};

	if (conn->dialed || hello->pages > 2)
		return false;
	if (check(e, hello, &err)) {
		ft_log(err.code == EALREADY ? FT_LOG_INFO : FT_LOG_WARN, "%s: refused %s: %s",
		       e->config.name, link->peer, err.text);
		engine_refuse(e, link, &err);
		engine_drop(e, conn);
		return true;
	}
	engine_hello(e, link, false);
	conn->link = NULL;
	e->env->pages_link(e->env_ctx, link, hello->pages == 1);
	return true;
}

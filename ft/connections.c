// SPDX-License-Identifier: Apache-2.0
/* Connections of the engine: who is at the other end (HELLO), which connection carries what, and
 * where each message goes. */
#include "ft/engine_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

struct ft_link *engine_data(struct ft_engine *e)
{
	return e->conns[CONN_DATA].link;
}

struct ft_link *engine_beat_link(struct ft_engine *e)
{
	return e->conns[CONN_BEAT].link;
}

void engine_drop(struct ft_engine *e, struct engine_conn *conn)
{
	struct ft_link *link = conn->link;

	if (!link)
		return;
	if (conn == &e->conns[CONN_DATA])
		e->bytes_sent += link->ops->bytes_sent(link);
	conn->link = NULL;
	conn->greeted = false;
	link->ops->close(link);
}

void engine_hang_up(struct ft_engine *e)
{
	e->env->hang_up(e->env_ctx);
	engine_drop(e, &e->conns[CONN_DATA]);
	engine_drop(e, &e->conns[CONN_BEAT]);
	engine_watch(e, false);
}

int engine_send(struct ft_engine *e, unsigned type, uint64_t epoch, const ProtobufCMessage *body,
		const uint8_t *payload, uint32_t len)
{
	return ft_msg_send(engine_data(e), type, e->generation, epoch, body, payload, len);
}

static bool runs_guest(const struct ft_engine *e)
{
	return e->state.now == FT_SOLO || e->state.now == FT_SYNCING ||
	       e->state.now == FT_PROTECTED;
}

void engine_refuse(struct ft_engine *e, struct ft_link *link, const struct ft_err *err)
{
	Ft__Refuse refuse = FT__REFUSE__INIT;

	refuse.what = (char *)(uintptr_t)err->text;
	refuse.code = (uint32_t)err->code;
	refuse.runs = runs_guest(e) || e->state.now == FT_TAKEOVER;
	refuse.generation = e->generation;
	refuse.waits = e->state.now == FT_STANDBY;
	refuse.committed = refuse.waits ? e->standby.committed : 0;
	refuse.failed = e->state.now == FT_FAILED && e->standby.gave_up;
	/* Best effort: the close that follows says no as well. */
	if (ft_msg_send(link, FT_MSG_REFUSE, e->generation, 0, &refuse.base, NULL, 0) == 0)
		link->ops->drain(link, 200);
}

void engine_hello(struct ft_engine *e, struct ft_link *link, bool heartbeat)
{
	Ft__Hello hello = FT__HELLO__INIT;
	bool standby = e->state.now == FT_STANDBY;

	hello.name = e->config.name;
	hello.host_id = e->config.host_id;
	hello.role = standby ? FT__ROLE__ROLE_STANDBY : FT__ROLE__ROLE_PRIMARY;
	hello.heartbeat = heartbeat;
	hello.session = standby ? e->standby.session : e->primary.session;
	hello.committed = standby ? e->standby.committed : e->committed;
	hello.version = (char *)(uintptr_t)FT_VERSION;
	hello.runs = runs_guest(e);
	hello.generation = e->generation;
	(void)ft_msg_send(link, FT_MSG_HELLO, e->generation, 0, &hello.base, NULL, 0);
}

/* A connection that said who it is takes its place; what was there before is a dead one of the same
 * peer. */
static void promote(struct ft_engine *e, struct engine_conn *from, unsigned to)
{
	struct engine_conn *conn = &e->conns[to];

	if (conn == from)
		return;
	engine_drop(e, conn);
	conn->link = from->link;
	conn->since_ns = from->since_ns;
	conn->dialed = from->dialed;
	from->link = NULL;
	conn->link->events.ctx = conn;
}

/* Somebody has the other end already: a stranger who knows the guest's name must neither push it
 * out nor be taken for it. */
static int hello_check_taken(struct ft_engine *e, const Ft__Hello *hello, bool dialed,
			     struct ft_err *err)
{
	const struct ft_primary *p = &e->primary;
	const struct ft_standby *s = &e->standby;

	if (dialed || hello->heartbeat)
		return 0;
	if (engine_is_standby(e) && e->conns[CONN_DATA].greeted &&
	    strcmp(hello->host_id, s->primary_host))
		return ft_err_set(err, EBUSY, "hello: this side is the standby of '%s'",
				  s->primary_host);
	if (!engine_is_standby(e) && e->pages.taking)
		return ft_err_set(err, EBUSY, "hello: the guest's memory is not all here yet");
	if (!engine_is_standby(e) && p->phase != PRIMARY_IDLE && p->phase != PRIMARY_RETRY &&
	    p->phase != PRIMARY_LOST)
		return ft_err_set(err, EBUSY, "hello: the guest has a standby already");
	return 0;
}

static int hello_check(struct ft_engine *e, const Ft__Hello *hello, bool dialed, struct ft_err *err)
{
	bool to_standby = engine_is_standby(e);

	if (strcmp(hello->name, e->config.name))
		return ft_err_set(err, EINVAL, "hello: guest '%.64s': this agent is for '%s'",
				  hello->name, e->config.name);
	if (strlen(hello->host_id) >= FT_HOST_ID_MAX || !hello->host_id[0])
		return ft_err_set(err, EINVAL, "hello: host id: empty or too long");
	if (!strcmp(hello->host_id, e->config.host_id))
		return ft_err_set(err, EINVAL,
				  "hello: host id '%s': the peer is this host's own agent",
				  e->config.host_id);
	if (hello->role == FT__ROLE__ROLE_UNKNOWN)
		return ft_err_set(err, EAGAIN, "hello: '%s' asked who runs the guest",
				  hello->host_id);
	if (!to_standby && !runs_guest(e))
		return ft_err_set(err, ESHUTDOWN, "hello: this side is %s",
				  ft_state_name(e->state.now));
	if (to_standby && hello->role != FT__ROLE__ROLE_PRIMARY)
		return ft_err_set(err, EBUSY,
				  "hello: both sides are standby: nobody runs the guest");
	if (!to_standby && hello->role == FT__ROLE__ROLE_PRIMARY)
		return ft_err_set(err, EBUSY, "hello: host %s runs the guest under generation %llu",
				  e->config.host_id, (unsigned long long)e->generation);
	if (to_standby && hello->generation < e->generation)
		return ft_err_set(
			err, ESTALE, "hello: generation %llu: this side knows %llu already",
			(unsigned long long)hello->generation, (unsigned long long)e->generation);
	if (to_standby && e->standby.committed && strcmp(hello->host_id, e->standby.primary_host) &&
	    hello->generation <= e->standby.primary_generation)
		return ft_err_set(err, EBUSY, "hello: this side is the standby of '%s'",
				  e->standby.primary_host);
	if (!to_standby && e->primary.phase == PRIMARY_LOST &&
	    strcmp(hello->host_id, e->primary.partner))
		return ft_err_set(err, EBUSY, "hello: this side waits for '%s'",
				  e->primary.partner);
	if (hello->heartbeat && strcmp(hello->host_id, e->peer_host))
		return ft_err_set(err, EBUSY,
				  "hello: a heartbeat of '%.64s' without its data connection",
				  hello->host_id);
	if (to_standby && e->asking)
		return ft_err_set(err, EBUSY,
				  "hello: this side is asking the arbiter for the guest");
	if (to_standby && e->state.now == FT_TAKEOVER)
		return ft_err_set(err, EBUSY, "hello: this side is taking over");
	return hello_check_taken(e, hello, dialed, err);
}

/* Our partner, who may have been granted the guest while this host was away, says that it was. */
static void hello_heed(struct ft_engine *e, const Ft__Hello *hello, struct ft_err *err)
{
	if (!runs_guest(e) || !e->primary.sync_claimed || hello->role != FT__ROLE__ROLE_PRIMARY ||
	    hello->generation <= e->generation || hello->generation > FT_COUNTER_MAX ||
	    strcmp(hello->name, e->config.name) || strcmp(hello->host_id, e->primary.partner))
		return;
	ft_err_set(err, ESHUTDOWN, "host %s has the guest: it was granted generation %llu",
		   hello->host_id, (unsigned long long)hello->generation);
	engine_fence(e, err->text);
}

static void on_hello(struct engine_conn *conn, const struct ft_msg *msg)
{
	struct ft_engine *e = conn->e;
	Ft__Hello *hello = ft__hello__unpack(NULL, msg->body_len, msg->body);
	struct ft_err err = {0};
	bool beat;

	if (!hello) {
		ft_err_set(&err, EPROTO, "hello: body does not parse");
		ft_warn("%s: refused %s: %s", e->config.name, conn->link->peer, err.text);
		engine_refuse(e, conn->link, &err);
		engine_drop(e, conn);
		return;
	}
	if (hello->pages && pages_hello(conn, hello)) {
		ft__hello__free_unpacked(hello, NULL);
		return;
	}
	beat = hello->heartbeat;
	if (conn->dialed && beat != (conn == &e->conns[CONN_BEAT]))
		ft_err_set(&err, EPROTO, "hello: answers another connection than ours");
	else if (msg->other_guest && !strcmp(hello->name, e->config.name))
		ft_err_set(&err, EINVAL, "hello: uuid: the guest files of '%s' give different ones",
			   e->config.name);
	else
		hello_heed(e, hello, &err);
	if (!conn->link) {
		/* fencing hung up on who told us */
	} else if (err.code || hello_check(e, hello, conn->dialed, &err)) {
		ft_log(err.code == EAGAIN ? FT_LOG_INFO : FT_LOG_WARN, "%s: refused %s: %s",
		       e->config.name, conn->link->peer, err.text);
		engine_refuse(e, conn->link, &err);
		engine_drop(e, conn);
	} else if (beat) {
		if (!conn->dialed) {
			engine_hello(e, conn->link, true);
			promote(e, conn, CONN_BEAT);
		}
		e->conns[CONN_BEAT].greeted = true;
		e->standby.beats = true;
		e->detector.heard_ns = engine_now(e); /* the grace is over */
		if (!engine_is_standby(e))
			primary_writable(e);
	} else {
		bool dialed = conn->dialed;

		if (!dialed) {
			promote(e, conn, CONN_DATA);
			/* Whatever comes of our own attempt is not about this connection. */
			e->env->hang_up(e->env_ctx);
		}
		snprintf(e->peer_host, sizeof e->peer_host, "%s", hello->host_id);
		e->conns[CONN_DATA].greeted = true;
		if (engine_is_standby(e)) {
			/* A new data connection starts a conversation; heartbeats follow on one of
			 * their own. */
			engine_drop(e, &e->conns[CONN_BEAT]);
			e->standby.dials = dialed;
			standby_peer_hello(e, hello);
			if (!dialed)
				engine_hello(e, engine_data(e), false);
		} else {
			if (!dialed) {
				engine_hello(e, engine_data(e), false);
				primary_offered(e);
			}
			primary_peer_hello(e, hello);
		}
		if (dialed && engine_data(e))
			e->env->dial(e->env_ctx, true);
	}
	ft__hello__free_unpacked(hello, NULL);
}

/* Only what was asked in this session can have been answered in it. */
static void renew_lease(struct ft_engine *e, const Ft__Beat *beat)
{
	struct ft_primary *p = &e->primary;
	bool lapsed = !ft_lease_left(&p->lease, engine_now(e));

	if (beat->echo_ns < p->lease_from_ns || beat->echo_ns > e->beat_ns || !p->lease_from_ns)
		return;
	ft_lease_renew(&p->lease, beat->echo_ns,
		       beat->lease_ms < e->config.lease_ms ? beat->lease_ms : e->config.lease_ms);
	p->lease_due_ns = engine_now(e) + FT_ACK_MAX_MS * NS_PER_MS;
	if (lapsed && p->release_ns) {
		p->release_ns = engine_now(e); /* what waited for it */
		ft_engine_tick(e);
	}
}

static void on_beat(struct ft_engine *e, const struct ft_msg *msg)
{
	Ft__Beat *beat = ft__beat__unpack(NULL, msg->body_len, msg->body);

	if (!beat)
		return;
	if (!engine_is_standby(e))
		renew_lease(e, beat);
	else if (e->state.now == FT_STANDBY && e->standby.armed && !e->standby.suspicious)
		ft_grant_beat(&e->standby.grant, engine_now(e), beat->sent_ns, e->config.lease_ms);
	/* Bounded, for the peer may be wrong about itself. */
	ft_detector_beat(
		&e->detector, engine_now(e),
		(beat->patience_ms > FT_SETUP_MAX_MS ? FT_SETUP_MAX_MS : beat->patience_ms) *
			NS_PER_MS);
	ft__beat__free_unpacked(beat, NULL);
}

/* A heartbeat connection that is refused in the middle of a hand-over: the peer may take the guest
 * all the same, for its answer comes on the data connection. */
static bool is_no_answer(const struct ft_engine *e, const Ft__Refuse *refuse)
{
	return e->primary.phase == PRIMARY_HANDING &&
	       !(refuse->runs && refuse->generation > e->generation);
}

static void on_message(void *ctx, const struct ft_msg *msg)
{
	struct engine_conn *conn = ctx;
	struct ft_engine *e = conn->e;
	struct ft_err err = {0};

	if (msg->type == FT_MSG_HELLO && !conn->greeted) {
		on_hello(conn, msg);
		return;
	}
	if (msg->type == FT_MSG_REFUSE && (conn->dialed || conn->greeted)) {
		Ft__Refuse *refuse = ft__refuse__unpack(NULL, msg->body_len, msg->body);

		if (refuse) {
			if (engine_is_standby(e))
				standby_link_closed(e, conn == &e->conns[CONN_DATA], refuse->what);
			else if (conn == &e->conns[CONN_BEAT] && is_no_answer(e, refuse))
				primary_peer_lost(e, refuse->what);
			else
				primary_refused(e, refuse);
			ft__refuse__free_unpacked(refuse, NULL);
		}
		return;
	}
	if (!conn->greeted) {
		ft_err_set(&err, EPROTO, "%s before HELLO", ft_msg_name(msg->type));
		ft_warn("%s: refused %s: %s", e->config.name, conn->link->peer, err.text);
		engine_refuse(e, conn->link, &err);
		engine_drop(e, conn);
		return;
	}
	/* A sign of life is one wherever it arrives. */
	ft_detector_heard(&e->detector, engine_now(e));
	if (msg->type == FT_MSG_BEAT)
		on_beat(e, msg);
	else if (conn != &e->conns[CONN_DATA])
		ft_debug("%s: %s on the heartbeat connection: ignored", e->config.name,
			 ft_msg_name(msg->type));
	else if (engine_is_standby(e))
		standby_message(e, msg);
	else
		primary_message(e, msg);
}

static void on_writable(void *ctx)
{
	struct engine_conn *conn = ctx;

	if (conn != &conn->e->conns[CONN_DATA])
		return;
	if (engine_is_standby(conn->e))
		ft_engine_tick(conn->e);
	else
		primary_writable(conn->e);
}

static void on_closed(void *ctx, const struct ft_err *why)
{
	struct engine_conn *conn = ctx;
	struct ft_engine *e = conn->e;
	bool data = conn == &e->conns[CONN_DATA], beat = conn == &e->conns[CONN_BEAT];

	/* Of the peer's own connections its side of the engine speaks; of a stranger's nobody else
	 * would. */
	ft_log(data || beat ? FT_LOG_DEBUG : FT_LOG_WARN, "%s: refused: %s", e->config.name,
	       why->text);
	engine_drop(e, conn);
	if (!data && !beat)
		return;
	if (engine_is_standby(e))
		standby_link_closed(e, data, why->text);
	else if (data)
		primary_peer_lost(e, why->text);
	if (beat && conn->dialed && e->conns[CONN_DATA].greeted)
		e->env->dial(
			e->env_ctx,
			true); /* a new heartbeat connection; silence tells if that fails too */
	ft_engine_tick(e);
}

static void adopt(struct ft_engine *e, unsigned slot, struct ft_link *link, bool dialed)
{
	struct engine_conn *conn = &e->conns[slot];

	assert(!conn->link);
	conn->link = link;
	conn->dialed = dialed;
	conn->greeted = false;
	conn->since_ns = engine_now(e);
	link->events = (struct ft_link_events){
		.message = on_message, .writable = on_writable, .closed = on_closed, .ctx = conn};
}

void ft_engine_accepted(struct ft_engine *e, struct ft_link *link)
{
	for (unsigned i = CONN_STRANGER; !e->stopped && i < ENGINE_CONNS; i++) {
		if (e->conns[i].link)
			continue;
		adopt(e, i, link, false);
		ft_engine_tick(e);
		return;
	}
	ft_warn("%s: refused %s: stopped, or %d connections have not said who they are yet",
		e->config.name, link->peer, ENGINE_STRANGERS);
	link->ops->close(link);
}

void ft_engine_dialed(struct ft_engine *e, bool heartbeat, struct ft_link *link,
		      const struct ft_err *err)
{
	unsigned slot = heartbeat ? CONN_BEAT : CONN_DATA;

	if (!link) {
		if (heartbeat) {
			ft_warn("%s: heartbeat connection: %s", e->config.name, err->text);
			if (engine_data(e) && !engine_is_standby(e))
				primary_peer_lost(e, err->text);
		} else if (e->state.now == FT_STANDBY) {
			e->standby.retry_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
		} else if (e->state.now == FT_TAKEOVER) {
			/* told again in time */
		} else if (err->code == EDESTADDRREQ && e->state.now == FT_SOLO) {
			e->primary.phase = PRIMARY_IDLE; /* nobody to look for: whoever offers
							    itself is welcome */
		} else {
			struct ft_err copy = *err;

			primary_refused(
				e, &(Ft__Refuse){.what = copy.text, .code = (uint32_t)copy.code});
		}
		ft_engine_tick(e);
		return;
	}
	engine_drop(e, &e->conns[slot]);
	adopt(e, slot, link, true);
	engine_hello(e, link, heartbeat);
	if (!heartbeat && !engine_is_standby(e))
		primary_dialed(e);
	ft_engine_tick(e);
}

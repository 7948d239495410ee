// SPDX-License-Identifier: Apache-2.0
/* An agent's life: everything is made in one order, undone in the reverse, and the loop runs in
 * between. */
#include "tools/agent/agent.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ft/log.h"
#include "tools/agent/privileges.h"
#include "transport/arbiter_etcd.h"
#include "vmm-glue/helper.h"

static void on_tick(evutil_socket_t fd, short what, void *ctx)
{
	struct agent *a = ctx;

	(void)fd;
	(void)what;
	ft_engine_tick(a->engine);
}

static void on_signal(evutil_socket_t number, short what, void *ctx)
{
	(void)what;
	agent_stop(ctx, number == SIGTERM ? "SIGTERM" : "SIGINT");
}

static void on_leaving(evutil_socket_t fd, short what, void *ctx);
static void on_look(evutil_socket_t fd, short what, void *ctx);

static int make_loop(struct agent *a, struct ft_err *err)
{
	struct event_config *config = event_config_new();
	static const int numbers[2] = {SIGTERM, SIGINT};

	if (!config)
		return ft_err_set(err, ENOMEM, "event loop: out of memory");
	/* Checkpoint intervals are milliseconds; epoll's own timeout would round them up to the
	 * next one. */
	event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
	a->base = event_base_new_with_config(config);
	event_config_free(config);
	a->tick = a->base ? evtimer_new(a->base, on_tick, a) : NULL;
	a->leaving = a->base ? evtimer_new(a->base, on_leaving, a) : NULL;
	a->look = a->base ? event_new(a->base, -1, EV_PERSIST, on_look, a) : NULL;
	if (!a->look || event_add(a->look, &(struct timeval){.tv_sec = AGENT_LOOK_S}))
		return ft_err_set(err, ENOMEM, "event loop: out of memory");
	for (unsigned i = 0; i < 2 && a->tick && a->leaving; i++) {
		a->signals[i] = evsignal_new(a->base, numbers[i], on_signal, a);
		if (!a->signals[i] || event_add(a->signals[i], NULL))
			return ft_err_set(err, ENOMEM, "event loop: out of memory");
	}
	signal(SIGPIPE, SIG_IGN);
	return a->tick && a->leaving ? 0 : ft_err_set(err, ENOMEM, "event loop: out of memory");
}

static int make_arbiter_etcd(struct agent *a, struct ft_err *err)
{
	const struct ft_config *c = &a->config;
	struct arbiter_etcd_config etcd = {.servers = {.n = c->arbiter.endpoints.n,
						       .ca = c->arbiter.ca,
						       .cert = c->arbiter.cert,
						       .key = c->arbiter.key},
					   .prefix = c->arbiter.prefix,
					   .user = c->arbiter.user,
					   .password_file = c->arbiter.password_file};

	for (unsigned i = 0; i < etcd.servers.n; i++)
		etcd.servers.endpoints[i] = c->arbiter.endpoints.item[i];
	a->arbiter = arbiter_etcd_new(a->base, &etcd, c->name, err);
	return a->arbiter ? 0 : -err->code;
}

static int make_arbiter(struct agent *a, struct ft_err *err)
{
	switch (a->config.arbiter.type) {
	case CONFIG_ARBITER_NONE:
		a->arbiter = ft_arbiter_none_new(a->config.arbiter.survivor,
						 a->incoming ? FT_SIDE_STANDBY : FT_SIDE_PRIMARY);
		return a->arbiter ? 0 : ft_err_set(err, ENOMEM, "arbiter: out of memory");
	case CONFIG_ARBITER_FILE:
		a->arbiter = ft_arbiter_file_new(a->config.arbiter.dir, a->config.name, err);
		return a->arbiter ? 0 : -err->code;
	case CONFIG_ARBITER_ETCD:
		return make_arbiter_etcd(a, err);
	}
	abort();
}

static int make_tls(struct agent *a, struct ft_err *err)
{
	const char *peers[CONFIG_LIST_MAX + 1] = {NULL};
	struct tls_files files = {.ca = a->config.tls.ca,
				  .cert = a->config.tls.cert,
				  .key = a->config.tls.key,
				  .peers = peers};

	for (unsigned i = 0; i < a->config.tls.peer.n; i++)
		peers[i] = a->config.tls.peer.item[i];
	return files.ca[0] ? tls_config_load(&files, &a->tls, err) : 0;
}

/* What this host has heard of, or its disks, which remember after a reboot. A standby that is told
 * to give up what it has must not refuse an older primary. */
static uint64_t known_generation(const struct agent *a)
{
	const struct ft_config *c = &a->config;
	struct memory m;

	if (a->incoming && a->force)
		return 0;
	memory_load(a->run_dir, c->name, &m);
	for (unsigned i = 0; i < c->disks_n; i++) {
		uint64_t on_disk = c->disks[i].image[0] ? store_generation(c->disks[i].image) : 0;

		m.generation = on_disk > m.generation ? on_disk : m.generation;
	}
	return m.generation;
}

static int make_engine(struct agent *a, struct ft_err *err)
{
	const struct ft_config *c = &a->config;
	struct ft_engine_config e = {
		.policy = {.trigger = c->ft.trigger,
			   .interval_ns = c->ft.interval_ms * 1000000ull,
			   .max_downtime_ns = c->ft.max_downtime_ms * 1000000ull,
			   .max_overhead = c->ft.max_overhead},
		.heartbeat_ms = c->ft.heartbeat_ms,
		.takeover_ms = c->ft.takeover_ms,
		.lease_ms = c->ft.lease_ms,
		.takeover_manual = c->ft.takeover_manual,
		.fence = c->arbiter.fence[0],
		.durable = c->ft.durable,
		.staging_bytes = c->ft.staging_bytes,
		.delta_base_bytes = c->ft.delta_base_bytes,
		.overflow = &spill_ops,
	};
	struct memory m;

	memory_load(a->run_dir, c->name, &m);
	e.generation = known_generation(a);
	snprintf(e.home, sizeof e.home, "%s", c->home[0] ? c->home : m.home);
	e.home_is_fixed = c->home[0] != 0;
	snprintf(e.name, sizeof e.name, "%s", c->name);
	snprintf(e.host_id, sizeof e.host_id, "%s", a->host_id);
	for (unsigned i = 0; i < AGENT_SPILLS; i++) {
		a->spills[i] = (struct spill){.dir = a->run_dir, .fd = -1};
		e.overflow_ctx[i] = &a->spills[i];
	}
	return ft_engine_new(&e, &agent_env, a, a->arbiter, &a->engine, err);
}

void agent_path(const struct agent *a, char out[VMM_PATH_MAX], const char *suffix)
{
	size_t dir = strnlen(a->run_dir, VMM_PATH_MAX), name = strlen(a->config.name),
	       tail = strlen(suffix);

	assert(dir + 1 + name + tail < VMM_PATH_MAX);
	memcpy(out, a->run_dir, dir);
	out[dir] = '/';
	memcpy(out + dir + 1, a->config.name, name);
	memcpy(out + dir + 1 + name, suffix, tail + 1);
}

/* A guest that runs here already decides, whatever the command line says: a service manager
 * restarts an agent with the words that it was started with, and a standby may have taken over
 * since. */
static int start_role(struct agent *a, struct ft_err *err)
{
	struct memory m;
	int rc = -ENOENT;

	memory_load(a->run_dir, a->config.name, &m);
	if (!m.elsewhere)
		rc = guest_find_again(a, err);
	if (rc == -ENOENT && durable_recover(a, err))
		return -err->code;
	/* A journal knows a newer one than the disks that it brought up to date. */
	ft_engine_remember(a->engine, known_generation(a));
	if (rc == -ENOENT && a->incoming) {
		if (a->target)
			arm_ahead(a);
		ft_engine_start_standby(a->engine);
		return 0;
	}
	if (rc == -ENOENT)
		rc = may_start(a, err);
	if (!rc && !a->vmm)
		rc = a->restore.uri ? snapshot_restore(a, err) : guest_start(a, err);
	if (!rc)
		ft_engine_start_solo(a->engine, a->vmm);
	return rc;
}

int agent_start(struct agent *a, const char *incoming, struct ft_err *err)
{
	struct ctl_server_ops ctl = agent_ctl_ops;
	int rc;

	a->incoming = incoming != NULL;
	a->wait_fd = a->snapshot.ended_fd = a->history.news_fd = a->pages.news_fd = -1;
	follow_bitmaps_init(a);
	a->state_told = FT_STARTING;
	ctl.ctx = a;
	rc = keeper_start(VMM_HOLD_MAX_MS, &a->keeper, err);
	if (!rc)
		rc = privileges_drop(&a->config, err);
	if (!rc)
		rc = afterlife_start(&a->afterlife, err);
	if (!rc)
		rc = make_loop(a, err);
	if (!rc)
		rc = ctl_server_new(a->base, a->run_dir, a->config.name, &ctl, &a->ctl, err);
	if (!rc)
		rc = taps_listen(a, err);
	if (!rc)
		rc = snapshot_listen(a, err);
	if (!rc)
		rc = history_start(a, err);
	if (!rc)
		rc = follow_listen(a, err);
	if (!rc)
		rc = make_tls(a, err);
	if (!rc)
		rc = make_arbiter(a, err);
	if (!rc)
		rc = fence_open(a, err);
	if (!rc)
		rc = make_engine(a, err);
	if (!rc && incoming)
		rc = peer_listen(a, incoming, err);
	if (!rc)
		rc = start_role(a, err);
	if (!rc)
		rc = seccomp_install(a->config.security.seccomp, err);
	return rc;
}

void agent_run(struct agent *a)
{
	if (!event_base_got_break(a->base))
		event_base_dispatch(a->base);
}

void agent_end(struct agent *a, enum agent_exit code)
{
	if (a->exit_code == AGENT_OK)
		a->exit_code = code;
	event_base_loopexit(a->base, &(struct timeval){0});
}

static void stop_now(struct agent *a)
{
	snapshot_stop_writing(a, "the agent was stopped");
	snapshot_disks_look(a);
	ft_engine_stop(a->engine, a->stop_why);
	if (a->vmm && a->vm_ours)
		vmm_quit(a->vmm, ft_engine_state(a->engine) == FT_STOPPED, AGENT_POWERDOWN_MS);
	requests_answer(&a->stop_call, NULL);
	agent_end(a, AGENT_OK);
}

static void on_leaving(evutil_socket_t fd, short what, void *ctx)
{
	(void)fd;
	(void)what;
	stop_now(ctx);
}

/* A peer is there that has, or will have, the guest too. */
static bool has_standby(struct agent *a)
{
	struct ft_engine_status s;

	ft_engine_status(a->engine, &s);
	return (s.state == FT_SYNCING || s.state == FT_PROTECTED) && !s.waiting_for_decision;
}

/* Nobody but the keeper ends a guest whose agent died or froze, and it can be started before an
 * agent has threads only. So a protected guest leaves protection; to leave a lost standby is a
 * decision, which waits for who may take it. */
static void on_look(evutil_socket_t fd, short what, void *ctx)
{
	struct agent *a = ctx;

	(void)fd;
	(void)what;
	snapshot_disks_look(a);
	if (keeper_alive(a->keeper))
		return;
	if (!a->keeper_lost)
		ft_error("%s: %s", a->config.name, AGENT_KEEPER_LOST);
	a->keeper_lost = true;
	if (has_standby(a))
		(void)ft_engine_cancel(a->engine, NULL);
}

void agent_stop(struct agent *a, const char *why)
{
	struct timeval limit = {.tv_sec = AGENT_LEAVE_MS / 1000};
	bool again = a->stop_why[0];
	struct ft_engine_status s;
	struct ft_err err = {0};

	ft_engine_status(a->engine, &s);
	if (s.pages_given && !again && !a->pages_warned) {
		/* Another host's guest would stand still for ever. */
		ft_error("%s: not stopped (%s): the guest runs on another host, and part of its "
			 "memory is "
			 "here only; asked again, it is stopped",
			 a->config.name, why);
		a->pages_warned = true;
		ft_err_set(&err, EBUSY,
			   "stop: the guest runs on another host, and part of its memory is "
			   "here only; asked again, this agent stops");
		requests_answer(&a->stop_call, &err);
		return;
	}
	snprintf(a->stop_why, sizeof a->stop_why, "%s", why);
	/* To leave a lost standby is a decision, and a stop is none. */
	if (again || !has_standby(a) || ft_engine_cancel(a->engine, NULL) || !has_standby(a))
		stop_now(a);
	else
		evtimer_add(a->leaving, &limit);
}

/* From inside the engine, so what follows comes one turn of the loop later. */
void agent_left(struct agent *a)
{
	struct ft_engine_status s;
	struct ft_err err = {0};

	if ((!a->cancel_call && !a->stop_why[0]) || has_standby(a))
		return;
	ft_engine_status(a->engine, &s);
	if (a->stop_why[0] && s.state != FT_STOPPED)
		evtimer_add(a->leaving, &(struct timeval){0});
	if (s.state != FT_SOLO)
		ft_err_set(&err, EAGAIN, "cancel: %s", s.reason);
	requests_answer(&a->cancel_call, s.state != FT_SOLO ? &err : NULL);
}

/* The guest runs elsewhere; who asked for that need not wait until its VM here has gone. */
static void end_moved(struct agent *a)
{
	struct ft_engine_status s;

	if (!a->engine || !a->vmm)
		return;
	ft_engine_status(a->engine, &s);
	if (!s.moved)
		return;
	ctl_server_flush(a->ctl);
	guest_end(a);
}

void agent_free(struct agent *a)
{
	history_stop(a);
	end_moved(a);
	arm_drop_spare(a);
	peer_hang_up(a);
	fence_close(a);
	listener_close(a->listener);
	if (a->engine && a->vmm && a->exit_code != AGENT_OK && a->vm_ours &&
	    !(a->vm_found && a->exit_code == AGENT_NO_START))
		vmm_quit(a->vmm, false, 0);
	if (a->engine && a->vmm && !a->vm_ours)
		taps_leave(a);
	if (a->engine)
		taps_free(a);
	if (a->engine && a->vmm)
		guest_release(a);
	follow_end(a);
	follow_bitmaps_free(a);
	stores_free(a);
	if (a->pio_tap)
		a->pio_tap->ops->free(a->pio_tap);
	ctl_server_free(a->ctl);
	ft_engine_free(a->engine);
	if (a->arbiter)
		a->arbiter->ops->free(a->arbiter);
	tls_config_free(a->tls);
	for (unsigned i = 0; i < AGENT_SPILLS; i++)
		if (a->spills[i].fd > 0)
			close(a->spills[i].fd);
	for (unsigned i = 0; i < 2; i++) {
		if (a->signals[i])
			event_free(a->signals[i]);
		if (a->dials[i].soon)
			event_free(a->dials[i].soon);
	}
	if (a->waiting)
		event_free(a->waiting);
	if (a->snapshot.ended)
		event_free(a->snapshot.ended);
	if (a->tick)
		event_free(a->tick);
	if (a->look)
		event_free(a->look);
	if (a->leaving)
		event_free(a->leaving);
	if (a->base)
		event_base_free(a->base);
	if (a->wait_fd >= 0)
		close(a->wait_fd);
	afterlife_stop(a->afterlife);
	if (a->snapshot.ended_fd >= 0)
		close(a->snapshot.ended_fd);
	keeper_stop(a->keeper);
	helper_stop();
	bridge_taps_remove(a);
}

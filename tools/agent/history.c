// SPDX-License-Identifier: Apache-2.0
/* ft { history = N }: the standby keeps checkpoints of the last hours in a folder
 * (vmm-glue/snapshot/history.h), one every history_seconds, and a guest can be started from any of
 * them (ft-agent --restore history:...). The work is an increment's (increment.h): pages are
 * compared and written by its thread while checkpoints go on, and the loop copies the last few. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "eventtap/block/image.h"
#include "ft/log.h"
#include "tools/agent/agent.h"

#define SHORTEST_MS 20 /* between two looks, where every checkpoint is wanted */

/* On the worker's thread. */
static void on_work(void *ctx)
{
	struct agent *a = ctx;

	eventfd_write(a->history.news_fd, 1);
}

static int on_added(void *ctx, struct ft_err *err)
{
	struct agent *a = ctx;

	return history_added(a->history.folder, a->config.ft.history, a->config.ft.history_bytes,
			     err);
}

static void forget(struct agent *a)
{
	history_close(a->history.folder);
	a->history.folder = NULL;
	a->history.points_n = 0;
}

/* Once for each reason, for it comes back with every checkpoint. */
static void complain(struct agent *a, const struct ft_err *err)
{
	struct agent_history *h = &a->history;

	if (strcmp(h->complaint, err->text) != 0)
		ft_warn("%s: %s", a->config.name, err->text);
	memcpy(h->complaint, err->text, sizeof h->complaint);
	/* It is read anew: what is on the disk counts. */
	forget(a);
}

static int describe_disks(struct agent *a, struct companions *out, struct ft_err *err)
{
	for (unsigned i = 0; i < a->stores_n; i++) {
		const struct image *image = store_image(a->stores[i]);
		struct companion *d = &out->disks[out->n++];

		if (!image)
			return ft_err_set(err, ENOTSUP,
					  "history: disk %s is shared, and the other host writes "
					  "it: no checkpoint is kept",
					  store_id(a->stores[i]));
		snprintf(d->id, sizeof d->id, "%s", store_id(a->stores[i]));
		d->bytes = image->bytes;
		d->fd = -1;
	}
	return 0;
}

static int open_folder(struct agent *a, struct ft_err *err)
{
	struct companions disks = {0};
	struct vmm_ram ram;
	int rc;

	if (a->history.folder)
		return 0;
	rc = describe_disks(a, &disks, err);
	if (!rc)
		rc = history_open(a->config.ft.history_dir, true, &a->history.folder, err);
	if (rc)
		return rc;
	vmm_ram(a->vmm, &ram);
	vmm_info(a->vmm, &a->vm_info);
	rc = history_prepare(a->history.folder, &ram, &disks, a->vm_info.kind, err);
	a->history.points_n = history_points(a->history.folder, a->history.points);
	return rc;
}

static int begin(struct agent *a, struct ft_err *err)
{
	struct increment_config config = {.is_image = true, .news = on_work, .ctx = a};
	char path[CHANGES_PATH_MAX], last[CHANGES_PATH_MAX];
	struct disks_config disks;
	struct disks_old old;
	struct source from;
	struct increment_link link = {
		.from = &from, .old = &old, .path = path, .last = last, .added = on_added};
	int rc = open_folder(a, err);

	if (!rc)
		rc = snapshot_disks_of_standby(a, &disks, err);
	if (!rc)
		rc = history_next(a->history.folder, &from, &old, &link.head, path, last, err);
	if (rc)
		return rc;
	config.link = &link;
	config.disks = &disks;
	rc = increment_begin(&config, a->vmm, &a->snapshot.since, &a->history.link, err);
	disks_old_close(&old);
	source_close(&from);
	return rc;
}

static void on_time(evutil_socket_t fd, short what, void *ctx)
{
	struct agent *a = ctx;
	struct ft_err err = {0};
	struct ft_engine_status s;
	const uint8_t *state;
	size_t len;

	(void)fd;
	(void)what;
	if (a->history.link || snapshot_busy(a) ||
	    ft_engine_committed_state(a->engine, &state, &len, &err))
		return;
	ft_engine_status(a->engine, &s);
	if (s.epoch_committed == a->history.epoch && s.generation == a->history.generation)
		return;
	if (begin(a, &err))
		complain(a, &err);
}

static void finish(struct agent *a)
{
	struct agent_history *h = &a->history;
	struct snapshot_progress p;
	struct ft_err err = {0};
	int rc = increment_end(h->link, &p, &err);

	h->link = NULL;
	if (rc) {
		increment_forget(a);
		if (err.code != ECANCELED)
			complain(a, &err);
		else
			forget(a);
		return;
	}
	h->complaint[0] = '\0';
	h->points_n = history_points(h->folder, h->points);
	ft_debug("%s: history: epoch %" PRIu64 ": %" PRIu64 " pages", a->config.name, h->epoch,
		 p.pages_written);
}

/* The image and its state belong together whenever the loop turns. */
static void take_moment(struct agent *a)
{
	struct agent_history *h = &a->history;
	struct ft_err err = {0};
	struct ft_engine_status s;
	const uint8_t *state;
	struct timespec ts;
	size_t len;

	if (ft_engine_committed_state(a->engine, &state, &len, &err)) {
		increment_cancel(h->link, err.text);
		return;
	}
	ft_engine_status(a->engine, &s);
	clock_gettime(CLOCK_REALTIME, &ts);
	h->epoch = s.epoch_committed;
	h->generation = s.generation;
	increment_stamp(h->link, h->generation, h->epoch,
			(uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000);
	increment_moment(h->link, a->vmm, state, len);
}

static void on_news(evutil_socket_t fd, short what, void *ctx)
{
	struct agent *a = ctx;
	eventfd_t n;

	(void)what;
	if (eventfd_read(fd, &n) || !a->history.link)
		return;
	switch (increment_wants(a->history.link)) {
	case INCREMENT_MOMENT:
		take_moment(a);
		break;
	case INCREMENT_END:
		finish(a);
		break;
	case INCREMENT_NOTHING:
		break;
	}
}

void history_give_up(struct agent *a, const char *why)
{
	if (!a->history.link)
		return;
	increment_cancel(a->history.link, why);
	finish(a);
}

int history_start(struct agent *a, struct ft_err *err)
{
	struct agent_history *h = &a->history;
	unsigned ms = a->config.ft.history_seconds * 1000;
	struct timeval tv;

	if (!a->config.ft.history)
		return 0;
	ms = ms < SHORTEST_MS ? SHORTEST_MS : ms;
	tv = (struct timeval){.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
	h->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (h->news_fd < 0)
		return ft_err_set(err, errno, "eventfd: %s", strerror(errno));
	h->news = event_new(a->base, h->news_fd, EV_READ | EV_PERSIST, on_news, a);
	h->timer = event_new(a->base, -1, EV_PERSIST, on_time, a);
	if (!h->news || !h->timer || event_add(h->news, NULL) || event_add(h->timer, &tv))
		return ft_err_set(err, ENOMEM, "event loop: out of memory");
	return 0;
}

void history_stop(struct agent *a)
{
	struct agent_history *h = &a->history;

	history_give_up(a, "the agent ends");
	forget(a);
	if (h->timer)
		event_free(h->timer);
	if (h->news)
		event_free(h->news);
	if (h->news_fd >= 0)
		close(h->news_fd);
}

/* ---- operators ---- */

void history_request(struct agent *a, struct ctl_call *call)
{
	struct agent_history *h = &a->history;
	Ctl__Reply reply = CTL__REPLY__INIT;
	Ctl__Point points[HISTORY_MAX], *list[HISTORY_MAX];
	struct history *folder;
	struct ft_err err = {0};

	if (!a->config.ft.history) {
		ctl_reply_error(call, CTL_ERR_STATE,
				"history: none is kept: ft { history = ... } in the guest file");
		return;
	}
	/* What an earlier standby here has left. */
	if (!h->folder && !h->link &&
	    !history_open(a->config.ft.history_dir, false, &folder, &err)) {
		h->points_n = history_points(folder, h->points);
		history_close(folder);
	}
	if (err.code && err.code != ENOENT) {
		requests_fail(call, &err);
		return;
	}
	for (unsigned i = 0; i < h->points_n; i++) {
		points[i] = (Ctl__Point)CTL__POINT__INIT;
		points[i].generation = h->points[i].generation;
		points[i].epoch = h->points[i].epoch;
		points[i].time_ms = h->points[i].time_ms;
		points[i].bytes = h->points[i].bytes;
		list[i] = &points[i];
	}
	reply.n_points = h->points_n;
	reply.points = list;
	ctl_reply(call, &reply);
}

static bool parse_time(const char *text, uint64_t *ms)
{
	struct tm tm = {.tm_isdst = -1};
	const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
	time_t t;

	if (!end || (*end && strcmp(end, "Z") != 0))
		return false;
	t = *end ? timegm(&tm) : mktime(&tm);
	*ms = (uint64_t)t * 1000 + 999;
	return t >= 0;
}

/* The newest of an epoch's, or the newest that is not after a time. */
static int find(const struct history_point *points, unsigned n, const char *which)
{
	char *end;
	uint64_t epoch = strtoull(which, &end, 10), ms = 0;
	bool is_epoch = *which >= '0' && *which <= '9' && !*end;

	if (!is_epoch && !parse_time(which, &ms))
		return -EINVAL;
	while (n-- > 0)
		if (is_epoch ? points[n].epoch == epoch : points[n].time_ms <= ms)
			return (int)n;
	return -ENOENT;
}

bool history_is_uri(const char *uri)
{
	return !strncmp(uri, "history:", 8);
}

int history_restore_from(struct agent *a, struct source *out, struct ft_err *err)
{
	const char *which = a->restore.uri + strlen("history:");
	struct history_point points[HISTORY_MAX];
	struct history *h;
	unsigned n;
	int i, rc;

	if (!a->config.ft.history_dir[0])
		return ft_err_set(err, EINVAL, "restore: ft { history_dir = ... } says where");
	rc = history_open(a->config.ft.history_dir, false, &h, err);
	if (rc)
		return rc;
	n = history_points(h, points);
	i = find(points, n, which);
	if (i == -EINVAL)
		rc = ft_err_set(err, EINVAL,
				"restore: history:%.64s: neither an epoch nor a time as "
				"2026-01-31T12:00:00 (with Z at its end: UTC)",
				which);
	else if (i < 0 && n)
		rc = ft_err_set(err, ENOENT,
				"restore: history:%.64s: is not kept: %u checkpoints are, from "
				"epoch %" PRIu64 " to %" PRIu64,
				which, n, points[0].epoch, points[n - 1].epoch);
	else if (i < 0)
		rc = ft_err_set(err, ENOENT, "restore: %s: no checkpoint is kept there",
				a->config.ft.history_dir);
	else
		rc = history_source(h, (unsigned)i, out, err);
	history_close(h);
	return rc;
}

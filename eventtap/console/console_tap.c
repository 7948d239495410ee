// SPDX-License-Identifier: Apache-2.0
// The engine shares with the thread only what close_epoch() needs: the VMM's socket and the queue.
// Log, operators and what they have typed belong to the thread alone, which copies released records
// out of the queue before it writes them, without the lock.
#include "eventtap/console/console_tap.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "eventtap/pump.h"
#include "eventtap/queue.h"
#include "ft/log.h"

// Of one record: a serial line is slow.
#define READ_BYTES 4096
// Typed and not taken by the guest; beyond it operators are not read.
#define INPUT_BYTES 4096
// Written in one go.
#define WRITE_BYTES (64u << 10)
// Room over held_bytes_max for what the VMM's socket can hold when an epoch is closed: its buffer
// is 208 KiB unless somebody made it larger. Memory that nobody has written to costs nothing.
#define DRAIN_BYTES (4u << 20)
// Until the next attempt to connect.
#define RETRY_MS 100
_Static_assert(WRITE_BYTES >= READ_BYTES, "a record fits one write");
_Static_assert(CONSOLE_TAP_HELD_BYTES_MIN >= 2 * (TAP_RECORD_HEADER + READ_BYTES),
	       "records fit the bound");

struct console_tap {
	struct tap tap;
	struct pump pump;
	char vmm_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	size_t held_bytes_max;

	// the thread's own
	int log_fd;
	bool log_failed;
	struct pump_source listener, operators[CONSOLE_TAP_OPERATORS_MAX];
	size_t input_len;
	uint8_t input[INPUT_BYTES], written[WRITE_BYTES];

	pthread_mutex_t lock; // guards what follows
	struct pump_source vmm, retry;
	bool typed;	    // input waits for the VMM's socket
	enum tap_mode mode; // PASS or HOLD
	bool hold_next;	    // HOLD from the next close_epoch() on
	struct queue *queue;
	bool pressed;
	uint64_t outputs, bytes;
};

static struct console_tap *console_tap(struct tap *tap)
{
	return (struct console_tap *)tap;
}

static size_t held_bytes_locked(const struct console_tap *t)
{
	struct tap_stats stats;

	queue_stats(t->queue, &stats);
	return stats.held_bytes;
}

// ---- the VMM's socket ----

// Reads it while there is room below the bound, writes it while something was typed.
static void watch_vmm_locked(struct console_tap *t)
{
	bool room = held_bytes_locked(t) + TAP_RECORD_HEADER + READ_BYTES <= t->held_bytes_max;

	if (t->vmm.fd >= 0)
		pump_watch(&t->pump, &t->vmm, (room ? EPOLLIN : 0) | (t->typed ? EPOLLOUT : 0));
}

static void vmm_closed_locked(struct console_tap *t)
{
	pump_close(&t->pump, &t->vmm);
	pump_watch(&t->pump, &t->retry, EPOLLIN);
	ft_debug("%s: the VMM's side is closed", t->tap.id);
}

static int connect_locked(struct console_tap *t, struct ft_err *err)
{
	int rc;

	if (t->vmm.fd >= 0)
		return 0;
	rc = pump_connect(t->vmm_path, err);
	if (rc < 0)
		return rc;
	t->vmm.fd = rc;
	rc = pump_watch(&t->pump, &t->vmm, EPOLLIN);
	if (rc) {
		pump_close(&t->pump, &t->vmm);
		return ft_err_set(err, -rc, "%s: epoll: %s", t->vmm_path, strerror(-rc));
	}
	pump_watch(&t->pump, &t->retry, 0);
	watch_vmm_locked(t);
	return 0;
}

static int put_locked(struct console_tap *t, const uint8_t *data, size_t len)
{
	struct tap_record rec = {
		.kind = TAP_CONSOLE, .device = t->tap.device, .len = (uint32_t)len, .data = data};
	int rc = queue_append(t->queue, &rec, NULL);

	if (rc)
		return rc;
	t->outputs++;
	t->bytes += len;
	return 0;
}

// Reads once. True: something was there, there may be more. The caller has made sure of room.
static bool read_locked(struct console_tap *t)
{
	uint8_t buf[READ_BYTES];
	ssize_t n;

	if (t->vmm.fd < 0)
		return false;
	n = recv(t->vmm.fd, buf, sizeof buf, MSG_DONTWAIT);
	if (n > 0) {
		int rc = put_locked(t, buf, (size_t)n);

		assert(!rc);
		return true;
	}
	if (n < 0 && errno == EINTR)
		return true;
	if (n == 0 || errno != EAGAIN)
		vmm_closed_locked(t);
	return false;
}

// What came in goes on by the mode.
static void pass_on_locked(struct console_tap *t)
{
	if (t->mode == TAP_PASS) {
		queue_release_all(t->queue);
	} else {
		if (queue_open(t->queue) && t->tap.notify.output)
			t->tap.notify.output(t->tap.notify.ctx);
		if (held_bytes_locked(t) <= t->held_bytes_max / 2) {
			t->pressed = false;
		} else if (!t->pressed) {
			t->pressed = true;
			if (t->tap.notify.pressure)
				t->tap.notify.pressure(t->tap.notify.ctx);
		}
	}
	watch_vmm_locked(t);
}

// ---- the thread: out to the world ----

static void log_out(struct console_tap *t, const uint8_t *data, size_t len)
{
	while (t->log_fd >= 0 && len) {
		ssize_t n = write(t->log_fd, data, len);

		if (n > 0) {
			data += n;
			len -= (size_t)n;
			t->log_failed = false;
		} else if (n == 0 || errno != EINTR) {
			if (!t->log_failed)
				ft_error("%s: log: write: %s", t->tap.id, strerror(errno));
			t->log_failed = true; // said once; the next output tries again
			return;
		}
	}
}

static bool has_unread(int fd)
{
	char c;

	return recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

static bool has_hung_up(int fd)
{
	struct pollfd p = {.fd = fd};

	return poll(&p, 1, 0) == 1 && (p.revents & POLLHUP);
}

static void world_out(struct console_tap *t, const uint8_t *data, size_t len)
{
	log_out(t, data, len);
	for (int i = 0; i < CONSOLE_TAP_OPERATORS_MAX; i++) {
		struct pump_source *op = &t->operators[i];
		ssize_t n;
		bool gone;

		if (op->fd < 0)
			continue;
		n = send(op->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n == (ssize_t)len)
			continue;
		gone = n < 0 && errno != EAGAIN;
		if (!gone)
			ft_warn("%s: an operator does not keep up and is dropped", t->tap.id);
		// He may have typed what is not read yet; behind it comes his end.
		if (!gone || !has_unread(op->fd))
			pump_close(&t->pump, op);
	}
}

// Takes released records, as many as fit one write. False: there are none.
static bool take_released(struct console_tap *t, size_t *len)
{
	struct tap_record rec;

	*len = 0;
	pthread_mutex_lock(&t->lock);
	for (size_t at = 0; queue_peek(t->queue, &at, &rec) && *len + rec.len <= WRITE_BYTES;
	     at = 0) {
		memcpy(t->written + *len, rec.data, rec.len);
		*len += rec.len;
		queue_pop(t->queue);
	}
	watch_vmm_locked(t);
	pthread_mutex_unlock(&t->lock);
	return *len > 0;
}

static void write_released(void *ctx)
{
	struct console_tap *t = ctx;
	size_t len;

	while (take_released(t, &len))
		world_out(t, t->written, len);
}

// ---- the thread: in from the operators ----

// Gives the VMM what was typed. Operators are read while there is room for more.
static void write_input(struct console_tap *t)
{
	size_t done = 0;

	pthread_mutex_lock(&t->lock);
	while (done < t->input_len && t->vmm.fd >= 0) {
		ssize_t n = send(t->vmm.fd, t->input + done, t->input_len - done,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0)
			done += (size_t)n;
		else if (errno == EAGAIN)
			break;
		else if (errno != EINTR)
			done = t->input_len; // what is left to read there is read first; its end
					     // comes then
	}
	if (t->vmm.fd < 0)
		done = t->input_len;
	t->input_len -= done;
	t->typed = t->input_len > 0;
	watch_vmm_locked(t);
	pthread_mutex_unlock(&t->lock);
	memmove(t->input, t->input + done, t->input_len);
	for (int i = 0; i < CONSOLE_TAP_OPERATORS_MAX; i++)
		if (t->operators[i].fd >= 0 && pump_watch(&t->pump, &t->operators[i],
							  t->input_len < INPUT_BYTES ? EPOLLIN : 0))
			pump_close(&t->pump, &t->operators[i]);
}

static void operator_ready(void *ctx, struct pump_source *source, uint32_t events)
{
	struct console_tap *t = ctx;
	ssize_t n;

	(void)events;
	assert(t->input_len < INPUT_BYTES);
	n = recv(source->fd, t->input + t->input_len, INPUT_BYTES - t->input_len, MSG_DONTWAIT);
	if (n > 0) {
		t->input_len += (size_t)n;
		write_input(t);
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		pump_close(&t->pump, source);
	}
}

// A guest that reads nothing must not keep places for those who have hung up.
static struct pump_source *free_place(struct console_tap *t)
{
	for (int i = 0; i < CONSOLE_TAP_OPERATORS_MAX; i++)
		if (t->operators[i].fd < 0)
			return &t->operators[i];
	for (int i = 0; i < CONSOLE_TAP_OPERATORS_MAX; i++)
		if (has_hung_up(t->operators[i].fd)) {
			pump_close(&t->pump, &t->operators[i]);
			return &t->operators[i];
		}
	return NULL;
}

static void listener_ready(void *ctx, struct pump_source *source, uint32_t events)
{
	struct console_tap *t = ctx;
	struct pump_source *place;
	struct ft_err err;
	int fd = pump_accept(source->fd, &err);

	(void)events;
	if (fd < 0) {
		if (fd != -EAGAIN) {
			ft_error("%s: %s", t->tap.id, err.text);
			pump_watch(&t->pump, source, 0);
		}
		return;
	}
	place = free_place(t);
	if (place) {
		place->fd = fd;
		write_input(t); // watches it
		return;
	}
	ft_warn("%s: %d operators are here already", t->tap.id, CONSOLE_TAP_OPERATORS_MAX);
	close(fd);
}

static void vmm_ready(void *ctx, struct pump_source *source, uint32_t events)
{
	struct console_tap *t = ctx;

	pthread_mutex_lock(&t->lock);
	if (source->fd >= 0 && (source->watched & EPOLLIN) && (events & ~(uint32_t)EPOLLOUT)) {
		read_locked(t);
		pass_on_locked(t);
	}
	pthread_mutex_unlock(&t->lock);
	if (events & ~(uint32_t)EPOLLIN)
		write_input(t);
	write_released(t);
}

static void retry_ready(void *ctx, struct pump_source *source, uint32_t events)
{
	struct console_tap *t = ctx;
	uint64_t times;

	(void)events;
	(void)!read(source->fd, &times, sizeof times);
	pthread_mutex_lock(&t->lock);
	connect_locked(t, NULL);
	pthread_mutex_unlock(&t->lock);
}

// ---- the engine's calls ----

int console_tap_connect(struct tap *tap, struct ft_err *err)
{
	struct console_tap *t = console_tap(tap);
	int rc;

	pthread_mutex_lock(&t->lock);
	rc = connect_locked(t, err);
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static int console_tap_set_mode(struct tap *tap, enum tap_mode mode)
{
	struct console_tap *t = console_tap(tap);

	pthread_mutex_lock(&t->lock);
	t->hold_next = mode == TAP_HOLD;
	if (mode != TAP_HOLD && t->mode == TAP_HOLD) {
		t->mode = TAP_PASS;
		t->pressed = false;
		pass_on_locked(t);
	}
	pthread_mutex_unlock(&t->lock);
	pump_wake(&t->pump);
	return 0;
}

static int console_tap_close_epoch(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct console_tap *t = console_tap(tap);
	size_t room_end = queue_bytes_max(t->queue) - TAP_RECORD_HEADER - READ_BYTES;
	bool more = true;
	int rc = 0;

	pthread_mutex_lock(&t->lock);
	while (more && held_bytes_locked(t) <= room_end)
		more = read_locked(t);
	if (more)
		rc = ft_err_set(err, EBUSY, "drain: it does not run dry: the guest is not paused");
	else if (t->mode == TAP_HOLD)
		rc = queue_close(t->queue, epoch, err);
	if (t->mode == TAP_PASS) {
		pass_on_locked(t);
		if (!rc && t->hold_next)
			t->mode = TAP_HOLD;
	}
	pthread_mutex_unlock(&t->lock);
	pump_wake(&t->pump);
	return rc;
}

static size_t console_tap_export(struct tap *tap, uint64_t epoch, struct tap_cursor *cursor,
				 uint8_t *out, size_t room)
{
	struct console_tap *t = console_tap(tap);
	size_t n;

	pthread_mutex_lock(&t->lock);
	n = queue_export(t->queue, epoch, cursor, out, room);
	pthread_mutex_unlock(&t->lock);
	return n;
}

static int console_tap_release(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct console_tap *t = console_tap(tap);

	(void)err;
	pthread_mutex_lock(&t->lock);
	queue_release(t->queue, epoch);
	pthread_mutex_unlock(&t->lock);
	pump_wake(&t->pump);
	return 0;
}

static void console_tap_discard(struct tap *tap)
{
	struct console_tap *t = console_tap(tap);
	struct tap_record rec;

	pthread_mutex_lock(&t->lock);
	queue_discard(t->queue);
	for (size_t at = 0; queue_peek(t->queue, &at, &rec); at = 0)
		queue_pop(t->queue);
	watch_vmm_locked(t);
	pthread_mutex_unlock(&t->lock);
}

static int console_tap_replay(struct tap *tap, const struct tap_record *rec, struct ft_err *err)
{
	struct console_tap *t = console_tap(tap);
	int rc = 0;

	assert(rec->kind == TAP_CONSOLE);
	if (rec->len > READ_BYTES)
		return ft_err_set(err, EPROTO, "replay: %u bytes: no tap makes such a record",
				  rec->len);
	pthread_mutex_lock(&t->lock);
	if (queue_holds(t->queue))
		rc = ft_err_set(err, EBUSY, "replay: outputs are held");
	else if (put_locked(t, rec->data, rec->len))
		rc = ft_err_set(err, ENOBUFS, "replay: more than %zu bytes wait",
				queue_bytes_max(t->queue));
	else
		queue_release_all(t->queue);
	pthread_mutex_unlock(&t->lock);
	pump_wake(&t->pump);
	return rc;
}

static void console_tap_stats(struct tap *tap, struct tap_stats *stats)
{
	struct console_tap *t = console_tap(tap);

	*stats = (struct tap_stats){0};
	pthread_mutex_lock(&t->lock);
	queue_stats(t->queue, stats);
	stats->outputs = t->outputs;
	stats->bytes = t->bytes;
	pthread_mutex_unlock(&t->lock);
}

static void console_tap_free(struct tap *tap)
{
	struct console_tap *t = console_tap(tap);

	pump_stop(&t->pump);
	for (int i = 0; i < CONSOLE_TAP_OPERATORS_MAX; i++)
		pump_close(&t->pump, &t->operators[i]);
	pump_close(&t->pump, &t->vmm);
	pump_close(&t->pump, &t->retry);
	if (t->listener.fd >= 0)
		unlink(t->socket_path);
	pump_close(&t->pump, &t->listener);
	if (t->log_fd >= 0)
		close(t->log_fd);
	queue_free(t->queue);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static const struct tap_ops console_tap_ops = {
	.kind = "console",
	.set_mode = console_tap_set_mode,
	.close_epoch = console_tap_close_epoch,
	.export = console_tap_export,
	.release = console_tap_release,
	.discard = console_tap_discard,
	.replay = console_tap_replay,
	.stats = console_tap_stats,
	.free = console_tap_free,
};

// ---- opening ----

static int open_log(struct console_tap *t, const char *path, struct ft_err *err)
{
	t->log_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	return t->log_fd < 0 ? ft_err_set(err, errno, "%s: %s", path, strerror(errno)) : 0;
}

static int open_retry(struct console_tap *t, struct ft_err *err)
{
	const struct itimerspec every = {.it_value.tv_nsec = 1,
					 .it_interval.tv_nsec = RETRY_MS * 1000000};
	int rc = 0;

	t->retry.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (t->retry.fd < 0 || timerfd_settime(t->retry.fd, 0, &every, NULL))
		rc = -errno;
	if (!rc)
		rc = pump_watch(&t->pump, &t->retry, EPOLLIN);
	return rc ? ft_err_set(err, -rc, "timer: %s", strerror(-rc)) : 0;
}

static int open_listener(struct console_tap *t, const char *path, struct ft_err *err)
{
	int rc = pump_listen(path, err);

	if (rc < 0)
		return rc;
	snprintf(t->socket_path, sizeof t->socket_path, "%s", path);
	t->listener.fd = rc;
	rc = pump_watch(&t->pump, &t->listener, EPOLLIN);
	return rc ? ft_err_set(err, -rc, "%s: epoll: %s", path, strerror(-rc)) : 0;
}

static void init_sources(struct console_tap *t)
{
	t->vmm = (struct pump_source){.fd = -1, .ready = vmm_ready, .ctx = t};
	t->retry = (struct pump_source){.fd = -1, .ready = retry_ready, .ctx = t};
	t->listener = (struct pump_source){.fd = -1, .ready = listener_ready, .ctx = t};
	for (int i = 0; i < CONSOLE_TAP_OPERATORS_MAX; i++)
		t->operators[i] = (struct pump_source){.fd = -1, .ready = operator_ready, .ctx = t};
}

static int check(const struct console_tap_config *config, struct ft_err *err)
{
	if (config->held_bytes_max < CONSOLE_TAP_HELD_BYTES_MIN)
		return ft_err_set(err, EINVAL, "queue: %zu bytes: at least %u",
				  config->held_bytes_max, CONSOLE_TAP_HELD_BYTES_MIN);
	if (strlen(config->vmm_path) >= sizeof((struct console_tap *)0)->vmm_path)
		return ft_err_set(err, ENAMETOOLONG, "%s: too long for a socket's path",
				  config->vmm_path);
	return 0;
}

int console_tap_open(const struct console_tap_config *config, struct tap **out, struct ft_err *err)
{
	struct console_tap *t;
	int rc = check(config, err);

	if (rc)
		goto refused;
	t = calloc(1, sizeof *t);
	if (!t)
		return ft_err_set(err, ENOMEM, "%s: out of memory", config->id);
	t->tap.ops = &console_tap_ops;
	t->tap.device = config->device;
	snprintf(t->tap.id, sizeof t->tap.id, "%s", config->id);
	snprintf(t->vmm_path, sizeof t->vmm_path, "%s", config->vmm_path);
	t->held_bytes_max = config->held_bytes_max;
	t->log_fd = -1;
	init_sources(t);
	pthread_mutex_init(&t->lock, NULL);
	rc = queue_new(config->held_bytes_max + DRAIN_BYTES, &t->queue, err);
	if (!rc)
		rc = pump_start(&t->pump, write_released, t, err);
	if (rc)
		goto not_started;
	pthread_mutex_lock(&t->lock);
	if (config->log_path)
		rc = open_log(t, config->log_path, err);
	if (!rc && config->socket_path)
		rc = open_listener(t, config->socket_path, err);
	if (!rc)
		rc = open_retry(t, err);
	pthread_mutex_unlock(&t->lock);
	if (rc) {
		console_tap_free(&t->tap);
		goto refused;
	}
	*out = &t->tap;
	return 0;

not_started:
	queue_free(t->queue);
	pthread_mutex_destroy(&t->lock);
	free(t);
refused:
	ft_err_context(err, "%s", config->id);
	return rc;
}

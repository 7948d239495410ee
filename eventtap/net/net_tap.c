// SPDX-License-Identifier: Apache-2.0
// Frames go through the queue: PASS releases them in the same step, HOLD leaves that to release().
// So the order is the queue's. A slow way on needs no buffer of its own either: what it does not
// take is what is released and not popped yet. Only what may go at once, with nothing before it,
// and the host's interface takes, does not see the queue.
#include "eventtap/net/net_tap.h"

#include <assert.h>
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "eventtap/net/frame_stream.h"
#include "eventtap/net/host_tap.h"
#include "eventtap/pump.h"
#include "eventtap/queue.h"
#include "ft/log.h"

// What a paused guest can have left in a socket, many times over.
#define DRAIN_BYTES_MAX (16u << 20)
// Given to the interface in one go, one write(2) each.
#define HOST_FRAMES_MAX 128
// Written in one go; beyond it the others have their turn at the lock.
#define FLUSH_BYTES_MAX (1u << 20)
// Asked for, so that most releases fit the socket.
#define IN_SOCKET_BYTES (256 << 10)
_Static_assert(NET_TAP_HELD_BYTES_MIN >= TAP_RECORD_HEADER + TAP_NET_FRAME_MAX,
	       "a frame fits the queue");

struct net_tap {
	struct tap tap;
	struct pump pump;
	char out_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char in_path[sizeof(((struct sockaddr_un *)0)->sun_path)];

	pthread_mutex_t lock; // guards what follows
	struct pump_source out_listener, in_listener, out, in;
	bool direct;	      // `in` is the host's tap interface
	struct host_tap host; // then
	enum tap_mode mode;   // PASS or HOLD
	bool hold_next;	      // HOLD from the next close_epoch() on
	struct queue *queue;
	struct frame_writer writer; // to IN
	bool pressed;
	uint64_t outputs, bytes, dropped;
	bool giant_told;	    // once
	struct frame_reader reader; // of OUT
};

static struct net_tap *net_tap(struct tap *tap)
{
	return (struct net_tap *)tap;
}

// ---- IN ----

static void drop_released_locked(struct net_tap *t)
{
	struct tap_record rec;

	for (size_t at = 0; queue_peek(t->queue, &at, &rec); at = 0) {
		queue_pop(t->queue);
		t->dropped++;
	}
	t->writer.sent = 0;
}

static void in_closed_locked(struct net_tap *t)
{
	pump_close(&t->pump, &t->in);
	drop_released_locked(t);
	ft_debug("%s: IN is closed", t->tap.id);
}

// As many released frames as the interface takes, one a write. 0 = all, -EAGAIN = there are more.
static int write_host_locked(struct net_tap *t)
{
	struct tap_record rec;
	size_t at = 0;

	for (int i = 0; queue_peek(t->queue, &at, &rec); i++, at = 0) {
		int rc =
			i < HOST_FRAMES_MAX ? host_tap_write(&t->host, rec.data, rec.len) : -EAGAIN;

		if (rc == -EAGAIN)
			return rc;
		t->dropped += rc < 0;
		queue_pop(t->queue);
	}
	return 0;
}

// Writes released frames until there are no more, IN is full, or others should have the lock; the
// thread goes on when IN is writable.
static void flush_locked(struct net_tap *t)
{
	size_t written = 0;

	if (t->direct) {
		pump_watch(&t->pump, &t->in, write_host_locked(t) ? EPOLLOUT : 0);
		return;
	}
	while (t->in.fd >= 0) {
		ssize_t n = written < FLUSH_BYTES_MAX
				    ? frame_stream_write(&t->writer, t->in.fd, t->queue)
				    : -EAGAIN;

		if (n == 0 || n == -EAGAIN) {
			pump_watch(&t->pump, &t->in, n ? EPOLLIN | EPOLLOUT : EPOLLIN);
			return;
		}
		if (n > 0)
			written += (size_t)n;
		else if (n != -EINTR)
			in_closed_locked(t);
	}
}

// The same, unless IN is known to be full: the thread goes on by itself then.
static void push_locked(struct net_tap *t)
{
	if (!(t->in.watched & EPOLLOUT))
		flush_locked(t);
}

// ---- OUT ----

static void out_closed_locked(struct net_tap *t)
{
	pump_close(&t->pump, &t->out);
	frame_reader_reset(&t->reader);
	ft_debug("%s: OUT is closed", t->tap.id);
}

static bool may_go_at_once(const struct net_tap *t)
{
	return t->direct && t->mode == TAP_PASS && !(t->in.watched & EPOLLOUT) &&
	       !queue_open(t->queue);
}

static void captured_locked(struct net_tap *t, const uint8_t *frame, uint32_t len)
{
	struct tap_record rec = {
		.kind = TAP_NET, .device = t->tap.device, .len = len, .data = frame};

	if (may_go_at_once(t) && host_tap_write(&t->host, frame, len) == 0) {
		t->outputs++;
		t->bytes += len;
		return;
	}
	if (queue_append(t->queue, &rec, NULL)) {
		t->dropped++;
		return;
	}
	t->outputs++;
	t->bytes += len;
}

static void on_frame_locked(void *ctx, const uint8_t *frame, uint32_t len)
{
	captured_locked(ctx, frame, len);
}

// A guest may hand its NIC as much as it likes in one piece. No network takes it, so it is lost,
// and nothing else is: to hang up would end the guest's protection at the guest's wish.
static void on_giant_locked(void *ctx, uint32_t len)
{
	struct net_tap *t = ctx;

	if (!t->giant_told)
		ft_warn("%s: a frame of %u bytes: dropped, and others like it", t->tap.id, len);
	t->giant_told = true;
	t->dropped++;
}

// Reads OUT once. True: something was there, there may be more.
static bool read_locked(struct net_tap *t)
{
	int rc = t->out.fd < 0 ? 0 : frame_stream_read(&t->reader, t->out.fd);

	if (rc == -EPROTO)
		ft_warn("%s: a frame of no bytes: OUT is closed", t->tap.id);
	if (rc < 0)
		out_closed_locked(t);
	return rc > 0;
}

// Reads what can be left in a connection that ended.
static void read_on_locked(struct net_tap *t)
{
	for (size_t bytes = 0; bytes < DRAIN_BYTES_MAX && read_locked(t); bytes += FRAME_READ_BYTES)
		;
}

// What came in goes on by the mode. Under the lock, so that nobody is told of an output after its
// epoch was closed.
static void pass_on_locked(struct net_tap *t)
{
	struct tap_stats stats;

	if (t->mode == TAP_PASS) {
		queue_release_all(t->queue);
		push_locked(t);
		return;
	}
	if (queue_open(t->queue) && t->tap.notify.output)
		t->tap.notify.output(t->tap.notify.ctx);
	queue_stats(t->queue, &stats);
	if (stats.held_bytes <= queue_bytes_max(t->queue) / 2) {
		t->pressed = false;
	} else if (!t->pressed) {
		t->pressed = true;
		if (t->tap.notify.pressure)
			t->tap.notify.pressure(t->tap.notify.ctx);
	}
}

// ---- the thread ----

static void accept_out_locked(struct net_tap *t)
{
	struct ft_err err;
	int fd = pump_accept(t->out_listener.fd, &err);

	if (fd < 0) {
		if (fd != -EAGAIN) {
			ft_error("%s: OUT: %s", t->tap.id, err.text);
			pump_watch(&t->pump, &t->out_listener, 0);
		}
		return;
	}
	// The old connection was closed by QEMU before it made this one; its last frames come
	// first.
	read_on_locked(t);
	pass_on_locked(t);
	out_closed_locked(t);
	t->out.fd = fd;
	if (pump_watch(&t->pump, &t->out, EPOLLIN))
		out_closed_locked(t);
}

static void accept_in_locked(struct net_tap *t)
{
	struct ft_err err;
	int fd = pump_accept(t->in_listener.fd, &err);

	if (fd < 0) {
		if (fd != -EAGAIN) {
			ft_error("%s: IN: %s", t->tap.id, err.text);
			pump_watch(&t->pump, &t->in_listener, 0);
		}
		return;
	}
	if (t->in.fd >= 0)
		in_closed_locked(t);
	// A smaller socket only costs turns of the thread.
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){IN_SOCKET_BYTES}, sizeof(int));
	t->in.fd = fd;
	if (pump_watch(&t->pump, &t->in, EPOLLIN))
		in_closed_locked(t);
	flush_locked(t);
}

// QEMU never writes to IN: what is readable there is its end.
static void check_in_locked(struct net_tap *t)
{
	uint8_t rubbish[256];
	ssize_t n = recv(t->in.fd, rubbish, sizeof rubbish, MSG_DONTWAIT);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		in_closed_locked(t);
}

static void ready(void *ctx, struct pump_source *source, uint32_t events)
{
	struct net_tap *t = ctx;

	pthread_mutex_lock(&t->lock);
	if (source->fd < 0) {
		// closed by the engine's thread in between
	} else if (source == &t->out_listener) {
		accept_out_locked(t);
	} else if (source == &t->in_listener) {
		accept_in_locked(t);
	} else if (source == &t->out) {
		read_locked(t);
		pass_on_locked(t);
	} else {
		if (!t->direct && events & ~(uint32_t)EPOLLOUT)
			check_in_locked(t);
		flush_locked(t);
	}
	pthread_mutex_unlock(&t->lock);
}

// ---- the engine's calls ----

static int net_tap_set_mode(struct tap *tap, enum tap_mode mode)
{
	struct net_tap *t = net_tap(tap);

	pthread_mutex_lock(&t->lock);
	t->hold_next = mode == TAP_HOLD;
	if (mode != TAP_HOLD && t->mode == TAP_HOLD) {
		t->mode = TAP_PASS;
		t->pressed = false;
		// Nobody knows when QEMU will be back; what was said before it went is stale then.
		if (t->in.fd < 0)
			t->dropped += queue_discard(t->queue);
		pass_on_locked(t);
	}
	pthread_mutex_unlock(&t->lock);
	return 0;
}

// Takes in all that the paused guest has put out.
static int drain_locked(struct net_tap *t, struct ft_err *err)
{
	size_t bytes = 0;

	// A connection that QEMU has made may still wait to be accepted, behind one that is dead
	// already.
	for (int i = 0; i <= PUMP_BACKLOG; i++) {
		accept_out_locked(t);
		if (!t->direct)
			accept_in_locked(t);
	}
	while (read_locked(t)) {
		bytes += FRAME_READ_BYTES;
		if (bytes > DRAIN_BYTES_MAX)
			return ft_err_set(
				err, EBUSY,
				"drain OUT: it does not run dry: the guest is not paused");
	}
	if (t->out.fd < 0 || t->in.fd < 0)
		return ft_err_set(err, ENOTCONN, "drain OUT: QEMU is not connected");
	if (frame_reader_is_within(&t->reader))
		return ft_err_set(err, EBUSY, "drain OUT: half a frame: the guest is not paused");
	return 0;
}

static int net_tap_close_epoch(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct net_tap *t = net_tap(tap);
	int rc = 0;

	pthread_mutex_lock(&t->lock);
	if (t->mode == TAP_HOLD || t->hold_next)
		rc = drain_locked(t, err);
	if (t->mode == TAP_HOLD) {
		if (!rc)
			rc = queue_close(t->queue, epoch, err);
	} else {
		pass_on_locked(t);
		if (!rc && t->hold_next)
			t->mode = TAP_HOLD;
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static size_t net_tap_export(struct tap *tap, uint64_t epoch, struct tap_cursor *cursor,
			     uint8_t *out, size_t room)
{
	struct net_tap *t = net_tap(tap);
	size_t n;

	pthread_mutex_lock(&t->lock);
	n = queue_export(t->queue, epoch, cursor, out, room);
	pthread_mutex_unlock(&t->lock);
	return n;
}

static int net_tap_release(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct net_tap *t = net_tap(tap);

	(void)err;
	pthread_mutex_lock(&t->lock);
	queue_release(t->queue, epoch);
	push_locked(t);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static void net_tap_discard(struct tap *tap)
{
	struct net_tap *t = net_tap(tap);

	pthread_mutex_lock(&t->lock);
	t->dropped += queue_discard(t->queue);
	if (t->writer.sent)
		in_closed_locked(t);
	drop_released_locked(t);
	pthread_mutex_unlock(&t->lock);
}

static int net_tap_replay(struct tap *tap, const struct tap_record *rec, struct ft_err *err)
{
	struct net_tap *t = net_tap(tap);
	int rc = 0;

	assert(rec->kind == TAP_NET);
	pthread_mutex_lock(&t->lock);
	if (queue_holds(t->queue)) {
		rc = ft_err_set(err, EBUSY, "replay: outputs are held");
	} else {
		captured_locked(t, rec->data, rec->len);
		queue_release_all(t->queue);
		push_locked(t);
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static void net_tap_stats(struct tap *tap, struct tap_stats *stats)
{
	struct net_tap *t = net_tap(tap);

	*stats = (struct tap_stats){0};
	pthread_mutex_lock(&t->lock);
	queue_stats(t->queue, stats);
	stats->outputs = t->outputs;
	stats->bytes = t->bytes;
	stats->dropped = t->dropped;
	pthread_mutex_unlock(&t->lock);
}

static void close_listener(struct net_tap *t, struct pump_source *listener, const char *path)
{
	if (listener->fd < 0)
		return;
	pump_close(&t->pump, listener);
	unlink(path);
}

static void net_tap_free(struct tap *tap)
{
	struct net_tap *t = net_tap(tap);

	// The filter is gone, and what it has said last needs nobody else.
	pthread_mutex_lock(&t->lock);
	if (t->direct && t->in.fd >= 0 && t->mode == TAP_PASS) {
		accept_out_locked(t);
		read_on_locked(t);
		pass_on_locked(t);
	}
	pthread_mutex_unlock(&t->lock);
	pump_stop(&t->pump);
	pump_close(&t->pump, &t->out);
	pump_close(&t->pump, &t->in);
	close_listener(t, &t->out_listener, t->out_path);
	close_listener(t, &t->in_listener, t->in_path);
	queue_free(t->queue);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static const struct tap_ops net_tap_ops = {
	.kind = "net",
	.set_mode = net_tap_set_mode,
	.close_epoch = net_tap_close_epoch,
	.export = net_tap_export,
	.release = net_tap_release,
	.discard = net_tap_discard,
	.replay = net_tap_replay,
	.stats = net_tap_stats,
	.free = net_tap_free,
};

bool net_tap_settle(struct tap *tap, unsigned within_ms)
{
	struct net_tap *t = net_tap(tap);
	struct tap_stats q = {0};
	bool settled = false;

	/* The socket's reader is another process, and the kernel does not tell when it has read: so
	 * this looks, each millisecond. */
	for (unsigned ms = 0; !settled && ms <= within_ms; ms++) {
		int unread = 0;

		if (ms)
			poll(NULL, 0, 1);
		pthread_mutex_lock(&t->lock);
		queue_stats(t->queue, &q);
		if (t->in.fd >= 0 && ioctl(t->in.fd, SIOCOUTQ, &unread) < 0)
			unread = 0;
		settled = t->in.fd < 0 || (!q.held_outputs && !unread);
		pthread_mutex_unlock(&t->lock);
	}
	return settled;
}

static int listen_on(struct net_tap *t, struct pump_source *listener, char *kept, const char *path,
		     struct ft_err *err)
{
	int rc = pump_listen(path, err);

	if (rc < 0)
		return rc;
	memcpy(kept, path, strlen(path) + 1); // fits: it was bound
	listener->fd = rc;
	rc = pump_watch(&t->pump, listener, EPOLLIN);
	return rc ? ft_err_set(err, -rc, "%s: epoll: %s", path, strerror(-rc)) : 0;
}

int net_tap_open(const struct net_tap_config *config, struct tap **out, struct ft_err *err)
{
	struct net_tap *t = calloc(1, sizeof *t);
	const struct pump_source none = {.fd = -1, .ready = ready, .ctx = t};
	const bool direct = !config->in_path || !*config->in_path;
	int rc;

	if (!t)
		return ft_err_set(err, ENOMEM, "%s: out of memory", config->id);
	t->tap.ops = &net_tap_ops;
	t->tap.device = config->device;
	snprintf(t->tap.id, sizeof t->tap.id, "%s", config->id);
	t->reader.frame = on_frame_locked;
	t->reader.giant = on_giant_locked;
	t->reader.ctx = t;
	t->out = t->in = t->out_listener = t->in_listener = none;
	t->direct = direct;
	pthread_mutex_init(&t->lock, NULL);
	rc = config->held_bytes_max < NET_TAP_HELD_BYTES_MIN
		     ? ft_err_set(err, EINVAL, "queue: %zu bytes: at least %u",
				  config->held_bytes_max, NET_TAP_HELD_BYTES_MIN)
		     : queue_new(config->held_bytes_max, &t->queue, err);
	if (rc)
		goto no_queue;
	rc = pump_start(&t->pump, NULL, NULL, err);
	if (rc)
		goto no_pump;
	// The thread runs already, so that a client finds the tap complete.
	pthread_mutex_lock(&t->lock);
	rc = listen_on(t, &t->out_listener, t->out_path, config->out_path, err);
	if (!rc && direct)
		rc = host_tap_init(&t->host, config->host_fd, err);
	else if (!rc)
		rc = listen_on(t, &t->in_listener, t->in_path, config->in_path, err);
	if (!rc && direct)
		t->in.fd = config->host_fd;
	pthread_mutex_unlock(&t->lock);
	if (rc) {
		net_tap_free(&t->tap);
		goto refused;
	}
	*out = &t->tap;
	return 0;

no_pump:
	queue_free(t->queue);
no_queue:
	pthread_mutex_destroy(&t->lock);
	free(t);
refused:
	ft_err_context(err, "%s", config->id);
	return rc;
}

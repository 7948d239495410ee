// SPDX-License-Identifier: Apache-2.0
/* The client's thread. A request waits for its answer far longer than any takeover takes: giving up
 * is a failure of the drill, not a reason to connect again. */
#include "tools/drill/client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define CONNECT_MS  90000 /* the guest boots meanwhile, perhaps without KVM */
#define ATTEMPT_MS  1000
#define RETRY_MS    20
#define ANSWER_MS   60000
#define FINISH_MS   10000
#define THINK_MS    2
#define TIMES_FIRST 4096

struct client {
	const struct talk_ops *ops;
	void *talk;
	const struct host *from;
	struct sockaddr_in to;
	int fd, stop_fd, event_fd;
	pthread_t thread;
	bool running;

	pthread_mutex_t lock;
	/* under the lock */
	struct client_counts counts;
	uint64_t *times;
	size_t times_n, times_max;
};

uint64_t drill_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* ---- what others see ---- */

static void tell(struct client *c)
{
	uint64_t one = 1;

	(void)!write(c->event_fd, &one, sizeof one);
}

static void note_answer(struct client *c, enum talk_verdict verdict, const struct ft_err *why)
{
	pthread_mutex_lock(&c->lock);
	if (c->times_n == c->times_max) {
		size_t max = c->times_max ? c->times_max * 2 : TIMES_FIRST;
		uint64_t *times = realloc(c->times, max * sizeof *times);

		if (times) {
			c->times = times;
			c->times_max = max;
		}
	}
	c->counts.answers++;
	c->counts.last_ns = drill_now_ns();
	if (c->times_n < c->times_max)
		c->times[c->times_n++] = c->counts.last_ns;
	if (verdict == TALK_WRONG && !c->counts.wrong++)
		snprintf(c->counts.why, sizeof c->counts.why, "%s", why->text);
	pthread_mutex_unlock(&c->lock);
	tell(c);
}

static void note_sent(struct client *c)
{
	pthread_mutex_lock(&c->lock);
	c->counts.sent++;
	pthread_mutex_unlock(&c->lock);
}

static void note_lost(struct client *c, const char *why)
{
	pthread_mutex_lock(&c->lock);
	c->counts.lost = true;
	if (!c->counts.wrong)
		snprintf(c->counts.why, sizeof c->counts.why, "%s", why);
	pthread_mutex_unlock(&c->lock);
	tell(c);
}

void client_counts(struct client *c, struct client_counts *counts)
{
	pthread_mutex_lock(&c->lock);
	*counts = c->counts;
	pthread_mutex_unlock(&c->lock);
}

int client_event(const struct client *c)
{
	return c->event_fd;
}

size_t client_times(struct client *c, uint64_t since, uint64_t *out, size_t max)
{
	size_t first, n;

	pthread_mutex_lock(&c->lock);
	for (first = c->times_n; first && c->times[first - 1] > since; first--)
		;
	n = c->times_n - first < max ? c->times_n - first : max;
	for (size_t i = 0; i < n; i++)
		out[i] = c->times[first + i];
	pthread_mutex_unlock(&c->lock);
	return n;
}

/* ---- asking ---- */

/* How long the stop has been asked for decides how long an answer is waited for. */
static bool stopping(const struct client *c, int timeout_ms)
{
	struct pollfd p = {.fd = c->stop_fd, .events = POLLIN};

	return poll(&p, 1, timeout_ms) == 1;
}

/* 1: something to read, 0: not within timeout_ms. */
static int readable(const struct client *c, int timeout_ms)
{
	struct pollfd p = {.fd = c->fd, .events = POLLIN};

	return poll(&p, 1, timeout_ms) > 0;
}

/* Bytes of the whole answer; 0: nothing yet; -errno: the connection is lost. */
static ssize_t receive(struct client *c, uint8_t answer[TALK_BYTES_MAX], size_t *have)
{
	size_t room = c->ops->answer_bytes ? c->ops->answer_bytes - *have : TALK_BYTES_MAX;
	ssize_t n = recv(c->fd, answer + *have, room, MSG_DONTWAIT);

	if (n == 0 && c->ops->type == SOCK_STREAM)
		return -ECONNRESET;
	/* A datagram may come back as refused while nobody has the address. */
	if (n < 0)
		return c->ops->type == SOCK_DGRAM || errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (!c->ops->answer_bytes)
		return n;
	*have += (size_t)n;
	return *have == c->ops->answer_bytes ? (ssize_t)*have : 0;
}

static int send_request(struct client *c, const uint8_t *request, size_t len)
{
	ssize_t n = send(c->fd, request, len, MSG_NOSIGNAL);

	if (c->ops->type == SOCK_DGRAM)
		return 0;
	return n == (ssize_t)len ? 0 : n < 0 ? -errno : -EIO;
}

/* One request until its answer. False: the client has given up, or was told to stop. */
static bool converse(struct client *c)
{
	uint8_t request[TALK_BYTES_MAX], answer[TALK_BYTES_MAX];
	size_t len = c->ops->next(c->talk, request), have = 0;
	uint64_t start = drill_now_ns(), stop_at = 0;
	int rc = send_request(c, request, len);
	struct ft_err why = {0};
	char text[160];

	note_sent(c);
	while (!rc) {
		int wait = c->ops->repeat_ms ? (int)c->ops->repeat_ms : ANSWER_MS / 100;
		uint64_t now;
		ssize_t n;

		if (!readable(c, wait) && c->ops->repeat_ms)
			rc = send_request(c, request, len);
		n = receive(c, answer, &have);
		if (n > 0) {
			enum talk_verdict verdict = c->ops->check(c->talk, answer, (size_t)n, &why);

			have = 0;
			if (verdict != TALK_OLD) {
				note_answer(c, verdict, &why);
				return true;
			}
		}
		now = drill_now_ns();
		if (!stop_at && stopping(c, 0))
			stop_at = now;
		if (n < 0)
			rc = (int)n;
		else if (now - start > ANSWER_MS * 1000000ull ||
			 (stop_at && now - stop_at > FINISH_MS * 1000000ull))
			rc = -ETIMEDOUT;
	}
	snprintf(text, sizeof text, "%s: %s",
		 rc == -ETIMEDOUT ? "no answer" : "the connection broke", strerror(-rc));
	note_lost(c, text);
	return false;
}

static void *client_run(void *ctx)
{
	struct client *c = ctx;

	while (converse(c) && !stopping(c, THINK_MS))
		;
	return NULL;
}

/* ---- beginning and end ---- */

/* 0: connected; -EAGAIN: not yet. */
static int attempt(struct client *c)
{
	int on = 1, rc = 0, fd = host_socket(c->from, AF_INET, c->ops->type | SOCK_NONBLOCK);
	socklen_t len = sizeof rc;
	struct pollfd p = {.fd = fd, .events = POLLOUT};

	if (fd < 0)
		return fd;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (connect(fd, (struct sockaddr *)&c->to, sizeof c->to))
		rc = errno;
	if (rc == EINPROGRESS) {
		rc = ETIMEDOUT;
		if (poll(&p, 1, ATTEMPT_MS) == 1)
			getsockopt(fd, SOL_SOCKET, SO_ERROR, &rc, &len);
	}
	if (!rc) {
		c->fd = fd;
		return 0;
	}
	close(fd);
	return rc == ECONNREFUSED || rc == ETIMEDOUT || rc == EHOSTUNREACH || rc == EINTR ? -EAGAIN
											  : -rc;
}

static void *client_connect(void *ctx)
{
	struct client *c = ctx;
	uint64_t deadline = drill_now_ns() + CONNECT_MS * 1000000ull;
	char text[160];
	int rc = attempt(c);

	while (rc == -EAGAIN && drill_now_ns() < deadline && !stopping(c, RETRY_MS))
		rc = attempt(c);
	if (!rc)
		return client_run(c);
	snprintf(text, sizeof text, "cannot connect to the guest: %s",
		 rc == -EAGAIN ? "nobody answers" : strerror(-rc));
	note_lost(c, text);
	return NULL;
}

int client_start(const struct talk_ops *ops, void *talk, const struct host *from,
		 const struct sockaddr_in *to, struct client **out, struct ft_err *err)
{
	struct client *c = calloc(1, sizeof *c);
	sigset_t all, before;

	if (!c)
		return ft_err_set(err, ENOMEM, "client: out of memory");
	*c = (struct client){.ops = ops, .talk = talk, .from = from, .to = *to, .fd = -1};
	pthread_mutex_init(&c->lock, NULL);
	c->stop_fd = eventfd(0, EFD_CLOEXEC);
	c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	/* Signals are for the drill's thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	c->running = c->stop_fd >= 0 && c->event_fd >= 0 &&
		     !pthread_create(&c->thread, NULL, client_connect, c);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!c->running) {
		client_free(c);
		return ft_err_set(err, ENOMEM, "client: cannot start a thread");
	}
	*out = c;
	return 0;
}

void client_finish(struct client *c)
{
	uint64_t one = 1;

	if (!c->running)
		return;
	(void)!write(c->stop_fd, &one, sizeof one);
	pthread_join(c->thread, NULL);
	c->running = false;
}

void client_free(struct client *c)
{
	if (!c)
		return;
	client_finish(c);
	if (c->fd >= 0)
		close(c->fd);
	if (c->stop_fd >= 0)
		close(c->stop_fd);
	if (c->event_fd >= 0)
		close(c->event_fd);
	pthread_mutex_destroy(&c->lock);
	free(c->times);
	free(c);
}

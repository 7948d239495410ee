// SPDX-License-Identifier: Apache-2.0
/* One thread, one poll. Pieces are what one read gives; a fault waits for one of a data
 * connection. */
#include "tests/agent/proxy.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tests/agent/harness.h"
#include "transport/frame.h"

#define PAIRS_MAX   8
#define PIECE_BYTES 65536
#define PIECE_LARGE 300 /* more than a heartbeat */
#define NO_FAULT    (-1)

struct proxy {
	pthread_t thread;
	int listener, stop, released;
	char to[108];
	int pairs[PAIRS_MAX][2]; /* by proxy_side; -1 */
	bool data[PAIRS_MAX];
	atomic_int fault;
	enum proxy_side from;
	bool large;
	unsigned times;	  /* left */
	atomic_uint hold; /* type of the frame, 0: none is held */
	atomic_int held;  /* pair whose client waits, -1 */
	size_t held_len;
	uint8_t held_bytes[PIECE_BYTES];
};

static int unix_socket(const char *path, struct sockaddr_un *addr)
{
	*addr = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(addr->sun_path, sizeof addr->sun_path, "%s", path);
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static void drop(struct proxy *p, unsigned i)
{
	for (unsigned end = 0; end < 2; end++) {
		if (p->pairs[i][end] >= 0)
			close(p->pairs[i][end]);
		p->pairs[i][end] = -1;
	}
}

static void take(struct proxy *p)
{
	struct sockaddr_un to;
	int client = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC),
	    server = unix_socket(p->to, &to);

	for (unsigned i = 0; i < PAIRS_MAX; i++) {
		if (p->pairs[i][0] >= 0)
			continue;
		p->pairs[i][0] = client;
		p->pairs[i][1] = server;
		p->data[i] = false;
		if (connect(server, (struct sockaddr *)&to, sizeof to) < 0)
			drop(p, i);
		return;
	}
	close(client);
	close(server);
}

static bool put(int fd, const uint8_t *data, size_t len)
{
	while (len) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		data += n;
		len -= (size_t)n;
	}
	return true;
}

/* Where a frame of this type begins; n: nowhere. */
static size_t find_frame(const uint8_t *piece, size_t n, unsigned type)
{
	for (size_t at = 0; at + FRAME_HEADER <= n; at++)
		if (!memcmp(piece + at, "KEMARIFT", 8) && piece[at + 12] == type)
			return at;
	return n;
}

/* What may pass of a piece. */
static size_t hold(struct proxy *p, unsigned i, unsigned from, const uint8_t *piece, size_t n)
{
	unsigned type = atomic_load(&p->hold);
	size_t at = from == PROXY_CLIENT && type ? find_frame(piece, n, type) : n;

	if (at == n)
		return n;
	p->held_len = n - at;
	memcpy(p->held_bytes, piece + at, p->held_len);
	atomic_store(&p->hold, 0);
	atomic_store(&p->held, (int)i);
	return at;
}

static void let_go(struct proxy *p)
{
	int i = atomic_exchange(&p->held, -1);

	if (i >= 0 && p->pairs[i][1] >= 0 && !put(p->pairs[i][1], p->held_bytes, p->held_len))
		drop(p, (unsigned)i);
}

static void pass(struct proxy *p, unsigned i, unsigned from)
{
	static uint8_t piece[PIECE_BYTES];
	ssize_t n = recv(p->pairs[i][from], piece, sizeof piece, MSG_DONTWAIT);
	int fault = NO_FAULT, to = p->pairs[i][!from];
	bool good = n > 0;

	if (n < 0 && errno == EAGAIN)
		return;
	p->data[i] |= n >= PIECE_LARGE;
	if (good && p->data[i] && atomic_load(&p->fault) != NO_FAULT && from == p->from &&
	    (n >= PIECE_LARGE || !p->large))
		fault = --p->times ? atomic_load(&p->fault) : atomic_exchange(&p->fault, NO_FAULT);
	if (fault == PROXY_FLIP)
		piece[n / 2] ^= 4;
	if (fault == PROXY_CUT)
		n = n / 2;
	if (good)
		n = (ssize_t)hold(p, i, from, piece, (size_t)n);
	if (good && fault != PROXY_LOSE)
		good = put(to, piece, (size_t)n);
	if (good && fault == PROXY_REPEAT)
		good = put(to, piece, (size_t)n);
	if (!good || fault == PROXY_CUT)
		drop(p, i);
}

static void *proxy_main(void *arg)
{
	struct proxy *p = arg;

	for (;;) {
		struct pollfd fds[3 + 2 * PAIRS_MAX] = {{.fd = p->stop, .events = POLLIN},
							{.fd = p->listener, .events = POLLIN},
							{.fd = p->released, .events = POLLIN}};

		for (unsigned i = 0; i < 2 * PAIRS_MAX; i++)
			fds[3 + i] = (struct pollfd){
				.fd = i == 2 * (unsigned)atomic_load(&p->held) + PROXY_CLIENT
					      ? -1
					      : p->pairs[i / 2][i % 2],
				.events = POLLIN};
		if (poll(fds, 3 + 2 * PAIRS_MAX, -1) < 0)
			continue;
		if (fds[0].revents)
			return NULL;
		if (fds[2].revents) {
			eventfd_t times;

			(void)eventfd_read(p->released, &times);
			let_go(p);
		}
		for (unsigned i = 0; i < 2 * PAIRS_MAX; i++)
			if (fds[3 + i].revents && p->pairs[i / 2][i % 2] == fds[3 + i].fd &&
			    fds[3 + i].fd >= 0)
				pass(p, i / 2, i % 2);
		if (fds[1].revents)
			take(p);
	}
}

struct proxy *proxy_start(const char *listen_path, const char *to_path)
{
	struct proxy *p = calloc(1, sizeof *p);
	struct sockaddr_un addr;

	assert_non_null(p);
	atomic_init(&p->fault, NO_FAULT);
	atomic_init(&p->held, -1);
	memset(p->pairs, 0xff, sizeof p->pairs);
	snprintf(p->to, sizeof p->to, "%s", to_path);
	p->listener = unix_socket(listen_path, &addr);
	p->stop = eventfd(0, EFD_CLOEXEC);
	p->released = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_int_equal(bind(p->listener, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(p->listener, 8), 0);
	assert_int_equal(pthread_create(&p->thread, NULL, proxy_main, p), 0);
	return p;
}

void proxy_fault(struct proxy *p, enum proxy_fault fault, enum proxy_side from, bool large,
		 unsigned times)
{
	assert_int_equal(atomic_load(&p->fault), NO_FAULT);
	p->from = from;
	p->large = large;
	p->times = times;
	atomic_store(&p->fault, (int)fault);
}

void proxy_wait(struct proxy *p, unsigned within_ms)
{
	uint64_t until = now_ms() + within_ms;

	while (atomic_load(&p->fault) != NO_FAULT)
		breathe(until, "the fault has its chance");
}

void proxy_hold(struct proxy *p, unsigned type)
{
	atomic_store(&p->hold, type);
}

void proxy_wait_held(struct proxy *p, unsigned within_ms)
{
	uint64_t until = now_ms() + within_ms;

	while (atomic_load(&p->held) < 0)
		breathe(until, "the frame that is to be held");
}

void proxy_release(struct proxy *p)
{
	atomic_store(&p->hold, 0);
	eventfd_write(p->released, 1);
}

void proxy_stop(struct proxy *p)
{
	eventfd_write(p->stop, 1);
	pthread_join(p->thread, NULL);
	for (unsigned i = 0; i < PAIRS_MAX; i++)
		drop(p, i);
	close(p->listener);
	close(p->stop);
	close(p->released);
	free(p);
}

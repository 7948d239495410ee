// SPDX-License-Identifier: Apache-2.0
#include "tests/agent/asker.h"

#include <sys/socket.h>
#include <time.h>

#include "tests/agent/harness.h"

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void *ask_on(void *ctx)
{
	struct asker *a = ctx;

	/* Assertions are for the test's own thread. */
	for (uint64_t number = 0, got = 0; !a->stop && !a->failed; number++) {
		uint64_t start = now_us(), took;

		a->failed = send(a->fd, &number, sizeof number, MSG_NOSIGNAL) != sizeof number ||
			    recv(a->fd, &got, sizeof got, MSG_WAITALL) != sizeof got ||
			    got != number;
		took = now_us() - start;
		if (took > a->longest_us)
			a->longest_us = took;
	}
	return NULL;
}

void asker_start(struct asker *a)
{
	*a = (struct asker){.fd = guest_connect(), .began_us = now_us()};
	/* Who resolves an address and makes a connection waits for something else. */
	guest_echo(a->fd, 1);
	assert_int_equal(pthread_create(&a->thread, NULL, ask_on, a), 0);
}

void asker_wait(const struct asker *a, uint64_t us)
{
	uint64_t until = now_ms() + START_MS;

	while (now_us() - a->began_us < us)
		breathe(until, "a client asks for long enough");
}

uint64_t asker_end(struct asker *a)
{
	a->took_us = now_us() - a->began_us;
	a->stop = true;
	pthread_join(a->thread, NULL);
	close(a->fd);
	assert_false(a->failed);
	return a->longest_us;
}

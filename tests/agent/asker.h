/* SPDX-License-Identifier: Apache-2.0 */
/* A client that asks a guest without a pause, on a thread and a connection of its own, and what it
 * waited at most. */
#ifndef TESTS_AGENT_ASKER_H
#define TESTS_AGENT_ASKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

struct asker {
	int fd;
	atomic_bool stop, failed;
	pthread_t thread;
	uint64_t longest_us, began_us, took_us;
};

void asker_start(struct asker *a);
/* Until it has asked for so long. */
void asker_wait(const struct asker *a, uint64_t us);
/* Returns what it waited at most. */
uint64_t asker_end(struct asker *a);

#endif

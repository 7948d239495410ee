// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/postcopy/thread.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BACKGROUND_NICE 10

int thread_start(pthread_t *thread, void *(*main)(void *), void *ctx)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(thread, NULL, main, ctx);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -rc;
}

void thread_in_background(void)
{
	/* On Linux that is one thread's. Refused: only slower for those who wait. */
	(void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), BACKGROUND_NICE);
}

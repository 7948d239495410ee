// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/pocket/runner.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm-glue/pocket/sock.h"

#define NS_PER_S 1000000000ull

int runner_init(struct runner *r, struct ft_err *err)
{
	pthread_condattr_t attr;

	r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->wake_fd < 0)
		return ft_err_set(err, errno, "pocket: eventfd: %s", strerror(errno));
	pthread_mutex_init(&r->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&r->change, &attr);
	pthread_condattr_destroy(&attr);
	r->clock_stale = true;
	return 0;
}

void runner_free(struct runner *r)
{
	runner_end(r);
	pthread_cond_destroy(&r->change);
	pthread_mutex_destroy(&r->lock);
	close(r->wake_fd);
}

static void wake(struct runner *r)
{
	uint64_t one = 1;

	(void)!write(r->wake_fd, &one, sizeof one);
}

// ---- the clock

static void clock_run(struct runner *r, uint64_t now_ns)
{
	if (!r->clock_stale && now_ns > r->clock_ns)
		r->machine->s.cpu.time_ns += now_ns - r->clock_ns;
	r->clock_ns = now_ns;
	r->clock_stale = false;
}

// Host time at which the machine wants to run again.
static uint64_t wake_at(const struct runner *r)
{
	uint64_t at = machine_wake(r->machine), now = r->machine->s.cpu.time_ns;

	if (at == MACHINE_NEVER)
		return MACHINE_NEVER;
	return at > now ? r->clock_ns + (at - now) : r->clock_ns;
}

// ---- the thread

// False: it is time to end.
static bool enter(struct runner *r)
{
	bool go;

	pthread_mutex_lock(&r->lock);
	r->parked = true;
	pthread_cond_broadcast(&r->change);
	while (r->paused && !r->ended)
		pthread_cond_wait(&r->change, &r->lock);
	r->parked = false;
	go = !r->ended;
	r->busy = go;
	pthread_mutex_unlock(&r->lock);
	return go;
}

static void leave(struct runner *r)
{
	pthread_mutex_lock(&r->lock);
	r->busy = false;
	if (r->paused)
		pthread_cond_broadcast(&r->change);
	pthread_mutex_unlock(&r->lock);
}

// One step and what came in before it. Returns how long the thread may sleep.
static uint64_t work(struct runner *r, struct pollfd set[POLL_MAX])
{
	uint64_t at, sleep_ns = 0;

	clock_run(r, psock_now());
	pocket_io_service(r->io, r->machine, set);
	if (!machine_step(r->machine)) {
		at = wake_at(r);
		sleep_ns = at == MACHINE_NEVER ? MACHINE_NEVER : at - r->clock_ns;
	}
	if (machine_halted(r->machine) && !r->told) {
		r->told = true;
		r->halted(r->ctx);
	}
	pocket_io_poll_set(r->io, r->machine, set);
	return sleep_ns;
}

static void nap(struct runner *r, struct pollfd set[POLL_MAX], uint64_t sleep_ns)
{
	struct timespec ts = {.tv_sec = (time_t)(sleep_ns / NS_PER_S),
			      .tv_nsec = (long)(sleep_ns % NS_PER_S)};
	uint64_t count;

	set[POLL_WAKE] = (struct pollfd){.fd = r->wake_fd, .events = POLLIN};
	if (ppoll(set, POLL_MAX, sleep_ns == MACHINE_NEVER ? NULL : &ts, NULL) < 0)
		for (unsigned i = 0; i < POLL_MAX; i++)
			set[i].revents = 0;
	if (set[POLL_WAKE].revents)
		(void)!read(r->wake_fd, &count, sizeof count);
}

static void *run(void *arg)
{
	struct runner *r = arg;
	struct pollfd set[POLL_MAX] = {0};

	while (enter(r)) {
		uint64_t sleep_ns = work(r, set);

		leave(r);
		nap(r, set, sleep_ns);
	}
	return NULL;
}

int runner_start(struct runner *r, struct ft_err *err)
{
	int rc;

	assert(!r->has_thread);
	if (r->manual)
		return 0;
	rc = pthread_create(&r->thread, NULL, run, r);
	if (rc)
		return ft_err_set(err, rc, "pocket: thread: %s", strerror(rc));
	r->has_thread = true;
	return 0;
}

// ---- the owner

static bool at_rest(const struct runner *r, bool park)
{
	return !r->has_thread || (park ? r->parked : !r->busy);
}

static int pause_until(struct runner *r, bool park, unsigned within_ms)
{
	uint64_t deadline = psock_deadline(within_ms);
	struct timespec ts = {.tv_sec = (time_t)(deadline / NS_PER_S),
			      .tv_nsec = (long)(deadline % NS_PER_S)};
	bool was;
	int rc = 0;

	pthread_mutex_lock(&r->lock);
	was = r->paused;
	r->paused = true;
	if (park)
		wake(r);
	while (!at_rest(r, park) && !rc)
		rc = pthread_cond_timedwait(&r->change, &r->lock, &ts);
	if (at_rest(r, park))
		rc = 0;
	if (rc) {
		r->paused = was;
		pthread_cond_broadcast(&r->change);
	}
	pthread_mutex_unlock(&r->lock);
	if (!rc && !was) {
		if (!r->manual && !r->clock_stale)
			clock_run(r, psock_now());
		r->clock_stale = true;
	}
	return -rc;
}

int runner_pause(struct runner *r, unsigned within_ms)
{
	return pause_until(r, false, within_ms);
}

int runner_park(struct runner *r, unsigned within_ms)
{
	return pause_until(r, true, within_ms);
}

void runner_go(struct runner *r)
{
	pthread_mutex_lock(&r->lock);
	if (r->paused && r->has_thread) {
		r->clock_ns = psock_now();
		r->clock_stale = false;
	}
	r->paused = false;
	pthread_cond_broadcast(&r->change);
	pthread_mutex_unlock(&r->lock);
	if (r->has_thread)
		wake(r);
}

void runner_end(struct runner *r)
{
	pthread_mutex_lock(&r->lock);
	r->ended = true;
	pthread_cond_broadcast(&r->change);
	pthread_mutex_unlock(&r->lock);
	wake(r);
	if (r->has_thread)
		pthread_join(r->thread, NULL);
	r->has_thread = false;
}

bool runner_step(struct runner *r, uint64_t now_ns, uint64_t *wake_ns)
{
	struct pollfd set[POLL_MAX] = {0};
	bool worked = false;

	assert(r->manual);
	if (wake_ns)
		*wake_ns = UINT64_MAX;
	if (r->paused || r->ended)
		return false;
	clock_run(r, now_ns);
	set[POLL_WAKE].fd = -1;
	pocket_io_poll_set(r->io, r->machine, set);
	if (poll(set, POLL_MAX, 0) > 0)
		pocket_io_service(r->io, r->machine, set);
	worked = machine_step(r->machine);
	if (machine_halted(r->machine) && !r->told) {
		r->told = true;
		r->halted(r->ctx);
	}
	if (wake_ns && !worked)
		*wake_ns = wake_at(r);
	else if (wake_ns)
		*wake_ns = now_ns;
	return worked;
}

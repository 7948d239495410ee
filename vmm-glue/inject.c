// SPDX-License-Identifier: Apache-2.0
// Which thread to borrow, and a bound for the time.
//
// ptrace has no deadlines: a thread that sleeps uninterruptibly, or is frozen, stops when it wakes,
// maybe never, and one that was changed must not be left before it was put back. So each attempt is
// a job on a thread of its own that waits without bound, and the caller waits for the job with one.
// A job that was given up injects nothing any more; it only lets go, when it can. If we exit
// before, the kernel lets go.
#include "vmm-glue/inject.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "vmm-glue/helper.h"
#include "vmm-glue/inject_thread.h"

#define CANDIDATES_MAX 4
#define RETRIES_MAX                                                                                \
	16 // of a thread that was inside a restartable sequence, which is over in nanoseconds
#define THREADS_SEEN_MAX 256 // of a process with more, the first ones will do

struct job {
	pthread_mutex_t lock; // guards done and abandoned
	pthread_cond_t cond;
	bool done, abandoned;

	// Set before the start
	pid_t pid, tid;
	uint64_t insn;
	int pidfd; // its own
	int flags;
	bool leave_open;

	// The job's until done
	int ret;
	int uffd;
	struct inject_report report;
	struct ft_err err;
};

// How well a thread serves, best first.
enum fitness {
	FIT_WAITS, // in a call that the kernel restarts well, with its time-out
	FIT_RUNS,
	FIT_BLOCKED, // in some other call
	FIT_AWKWARD, // in a call that is restarted by hand, with its whole time-out again
	FIT_SLEEPS,  // uninterruptibly: stops when it wakes
	FIT_NOT,
};

struct candidate {
	pid_t tid;
	enum fitness fitness;
};

static enum fitness fitness_of_call(long nr)
{
	switch (nr) {
	case SYS_poll:
	case SYS_ppoll:
	case SYS_select:
	case SYS_pselect6:
	case SYS_futex:
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
	case SYS_restart_syscall:
	case SYS_pause:
		return FIT_WAITS;
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_rt_sigtimedwait:
	case SYS_semop:
	case SYS_semtimedop:
	case SYS_io_getevents:
	case SYS_io_pgetevents:
	case SYS_io_uring_enter:
		return FIT_AWKWARD;
	default:
		return FIT_BLOCKED;
	}
}

// First line of /proc/PID/task/TID/NAME.
static bool read_line(pid_t pid, pid_t tid, const char *name, char *line, int bytes)
{
	char path[64];
	bool ok;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/%s", pid, tid, name);
	f = fopen(path, "re");
	if (!f)
		return false;
	ok = fgets(line, bytes, f);
	fclose(f);
	return ok;
}

static enum fitness fitness_of(pid_t pid, pid_t tid)
{
	char line[512], *state;
	long nr;

	if (!read_line(pid, tid, "stat", line, sizeof line))
		return FIT_NOT;
	state = strrchr(line, ')'); // the name before it may contain anything
	if (!state || strlen(state) < 3 || strchr("ZXt", state[2]))
		return FIT_NOT;
	if (state[2] == 'D')
		return FIT_SLEEPS;
	if (!read_line(pid, tid, "syscall", line, sizeof line) || sscanf(line, "%ld", &nr) != 1)
		return FIT_RUNS; // says "running"
	return fitness_of_call(nr);
}

// The best threads of the process, best first. Returns how many.
static unsigned choose(pid_t pid, struct candidate best[CANDIDATES_MAX])
{
	unsigned n = 0, seen = 0;
	struct dirent *entry;
	char path[64];
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && seen < THREADS_SEEN_MAX && (entry = readdir(dir))) {
		struct candidate c = {.tid = atoi(entry->d_name)};
		unsigned at;

		if (c.tid <= 0)
			continue;
		seen++;
		c.fitness = fitness_of(pid, c.tid);
		if (c.fitness == FIT_NOT)
			continue;
		for (at = n; at > 0 && best[at - 1].fitness > c.fitness; at--)
			if (at < CANDIDATES_MAX)
				best[at] = best[at - 1];
		if (at < CANDIDATES_MAX)
			best[at] = c;
		n += n < CANDIDATES_MAX;
	}
	if (dir)
		closedir(dir);
	return n;
}

int inject_verify(pid_t pid, int pidfd, struct ft_err *err)
{
	char path[64], line[128];
	int owner = -1;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
	f = fopen(path, "re");
	while (f && owner < 0 && fgets(line, sizeof line, f))
		(void)sscanf(line, "Pid: %d", &owner); // -1 when it is dead
	if (f)
		fclose(f);
	if (owner != pid)
		return ft_err_set(err, ESRCH, "process %d: is gone", pid);
	return 0;
}

static bool is_dead(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, 0) != 0;
}

static bool is_abandoned(struct job *job)
{
	bool abandoned;

	pthread_mutex_lock(&job->lock);
	abandoned = job->abandoned;
	pthread_mutex_unlock(&job->lock);
	return abandoned;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

// The thread is stopped: have it make a userfaultfd, and take that.
static int take_uffd(struct job *job, struct inject_thread *thread)
{
	long remote, closed;
	int ret;

	ret = inject_thread_syscall(thread, SYS_userfaultfd, job->flags | O_CLOEXEC | O_NONBLOCK,
				    &remote, &job->err);
	if (ret)
		return ret;
	if (remote < 0)
		return ft_err_set(&job->err, (int)-remote, "process %d: userfaultfd: %s", job->pid,
				  remote == -EPERM
					  ? "not allowed to it (vm.unprivileged_userfaultfd, or a "
					    "security module)"
					  : strerror((int)-remote));
	job->report.remote_fd = (int)remote;
	job->uffd = pidfd_getfd(job->pidfd, (int)remote, 0);
	if (job->uffd < 0)
		ret = ft_err_set(&job->err, errno, "process %d: fetch descriptor: %s", job->pid,
				 strerror(errno));
	if (!job->leave_open || ret) {
		struct ft_err err;
		int close_ret = inject_thread_syscall(thread, SYS_close, remote, &closed, &err);

		job->report.remote_fd = -1;
		if (close_ret && !ret) {
			job->err = err;
			ret = close_ret;
		}
	}
	return ret;
}

static int gone(struct job *job)
{
	return ft_err_set(&job->err, ESRCH, "process %d: is gone", job->pid);
}

static int job_do(struct job *job)
{
	struct inject_thread thread;
	struct ft_err err;
	int ret, go_ret;

	ret = inject_thread_stop(&thread, job->pid, job->tid, job->insn, &job->err);
	if (ret)
		return is_dead(job->pidfd) ? gone(job) : ret;
	// Traced now, its number cannot pass to another: if the process lives, it is ours that we
	// hold.
	if (is_abandoned(job) || is_dead(job->pidfd))
		ret = gone(job);
	else
		ret = take_uffd(job, &thread);
	go_ret = inject_thread_go(&thread, &err);
	job->report.stopped_ns = now_ns() - thread.since_ns;
	if (go_ret && !ret) {
		job->err = err;
		ret = go_ret;
	}
	return ret;
}

static void job_free(struct job *job)
{
	if (job->uffd >= 0)
		close(job->uffd);
	close(job->pidfd);
	pthread_cond_destroy(&job->cond);
	pthread_mutex_destroy(&job->lock);
	free(job);
}

static void *job_main(void *arg)
{
	struct job *job = arg;
	bool abandoned;

	job->ret = job_do(job);
	pthread_mutex_lock(&job->lock);
	job->done = true;
	abandoned = job->abandoned;
	pthread_cond_signal(&job->cond);
	pthread_mutex_unlock(&job->lock);
	if (abandoned)
		job_free(job);
	return NULL;
}

static struct job *job_new(pid_t pid, int pidfd, pid_t tid, uint64_t insn, int flags,
			   bool leave_open)
{
	struct job *job = calloc(1, sizeof *job);
	pthread_condattr_t attr;

	if (!job)
		return NULL;
	job->pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
	if (job->pidfd < 0) {
		free(job);
		return NULL;
	}
	pthread_mutex_init(&job->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&job->cond, &attr);
	pthread_condattr_destroy(&attr);
	job->pid = pid;
	job->tid = tid;
	job->insn = insn;
	job->flags = flags;
	job->leave_open = leave_open;
	job->uffd = -1;
	job->report = (struct inject_report){.tid = tid, .remote_fd = -1};
	return job;
}

// Signals are for the other threads of the agent.
static int start_thread(pthread_t *thread, struct job *job)
{
	sigset_t all, before;
	int ret;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	ret = pthread_create(thread, NULL, job_main, job);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return ret;
}

// Returns true when the job is done and the caller's again; false: it was given up and frees
// itself.
static bool job_wait(struct job *job, pthread_t thread, unsigned within_ms)
{
	uint64_t until = now_ns() + within_ms * 1000000ull;
	struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
			      .tv_nsec = (long)(until % 1000000000u)};
	bool done;

	pthread_mutex_lock(&job->lock);
	while (!job->done && pthread_cond_timedwait(&job->cond, &job->lock, &ts) != ETIMEDOUT)
		;
	done = job->done;
	job->abandoned = !done;
	pthread_mutex_unlock(&job->lock);
	if (done)
		pthread_join(thread, NULL);
	else
		pthread_detach(thread);
	return done;
}

// One attempt at one thread. *uffd and *report are set on success.
static int attempt(struct job *job, unsigned within_ms, int *uffd, struct inject_report *report,
		   struct ft_err *err)
{
	pid_t pid = job->pid, tid = job->tid;
	pthread_t thread;
	int ret = start_thread(&thread, job);

	if (ret) {
		job_free(job);
		return ft_err_set(err, ret, "process %d: borrow a thread: %s", pid, strerror(ret));
	}
	if (!job_wait(job, thread, within_ms))
		return ft_err_set(err, ETIMEDOUT, "thread %d of process %d: does not stop", tid,
				  pid);
	ret = job->ret;
	if (ret) {
		if (err)
			*err = job->err;
	} else {
		*uffd = job->uffd;
		job->uffd = -1;
		if (report)
			*report = job->report;
	}
	job_free(job);
	return ret;
}

int inject_uffd(pid_t pid, int pidfd, int flags, bool leave_open, int *uffd,
		struct inject_report *report, struct ft_err *err)
{
	struct candidate best[CANDIDATES_MAX];
	unsigned n, retries = 0;
	uint64_t insn;
	int ret;

	if (helper_here()) {
		assert(!leave_open && !report);
		return helper_uffd(pid, pidfd, flags, uffd, err);
	}
	ret = inject_verify(pid, pidfd, err);
	if (!ret)
		ret = inject_thread_find_syscall(pid, &insn, err);
	if (ret)
		return ret;
	n = choose(pid, best);
	if (!n)
		return ft_err_set(err, ESRCH, "process %d: has no thread that can be stopped", pid);
	for (unsigned i = 0; i < n;) {
		struct job *job = job_new(pid, pidfd, best[i].tid, insn, flags, leave_open);

		if (!job)
			return ft_err_set(err, ENOMEM, "process %d: borrow a thread: %s", pid,
					  strerror(ENOMEM));
		ret = attempt(job, INJECT_MS_MAX / n, uffd, report, err);
		if (ret == -EAGAIN && retries++ < RETRIES_MAX)
			continue;
		// The next thread is no better off unless the matter is this thread alone.
		if (ret != -ETIMEDOUT && ret != -ESRCH)
			break;
		i++;
	}
	return ret;
}

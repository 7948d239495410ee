// SPDX-License-Identifier: Apache-2.0
// xen-save-devices-state into a pipe of ours. QEMU stops the vCPUs, drains the disks, serialises,
// and lets the guest run when the last byte is in the pipe; a full pipe blocks it in write(2) with
// its big lock held. So the guest is held exactly as long as the pipe has no room for
// the rest.
//
// QEMU writes in pieces of 32 KiB and serialises a piece only when the one before has gone. The
// last piece is shorter. QEMU must be held in the write of the last piece: only then is everything
// serialised, and nothing can touch RAM any more. So until then there is room for just the pieces
// before the last, as the state before this one had them (they hardly ever differ in length), and
// QEMU runs through to the last piece without waiting for us:
//
//	one piece    pipe of 4 KiB: blocked at once
//	more         pipe of 32, 64, ... KiB, and what does not fit is read early
//
// Where the last piece is long enough, all pieces before it are read as they come, while the pipe
// is made narrower: it is empty and has one page when the last piece comes, and that its first
// bytes are there wakes us up. Otherwise we have to look again and again, for nothing tells when a
// process blocks.
//
// That it is the last piece is not guessed: we ask the kernel which system call QEMU's main thread
// is blocked in (/proc/PID/syscall, then its iovec). A full piece means that there are more, which
// are let on one by one. A state of one piece needs no asking; its length proves it in the end.
//
// Nowhere do we wait by looking over and over: where CPUs are busy, the one that we would keep is
// the one that QEMU needs.
//
// The command is primed: QMP reads one byte per turn of the main loop, so that a whole command
// costs QEMU a millisecond before anything happens. All of it but the last `}` is sent
// ahead.
#include "vmm-glue/qemu/save.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmm-glue/qemu/clock.h"

#define PIECE	     32768u /* QEMUFile's buffer (IO_BUF_SIZE), and at once a pipe of 8 whole pages */
#define HOLD_PIPE    4096u
#define RELEASE_PIPE 65536u	/* every process may have that much */
#define PIPE_MAX     (1u << 20) /* pipe-max-size: what an unprivileged process may have */
#define IOVECS_MAX   64
#define DISCARD_MS   1000
#define NAP_NS	     20000 /* QEMU serialises 32 KiB in about 0.4 ms */

void save_init(struct save *s)
{
	*s = (struct save){.pipe = -1, .fdset = -1, .syscall_fd = -1};
}

static void drop_pipe(struct save *s)
{
	if (s->pipe >= 0)
		close(s->pipe);
	s->pipe = -1;
}

static int pipe_resize(struct save *s, size_t bytes)
{
	int r = fcntl(s->pipe, F_SETPIPE_SZ, (int)bytes);

	if (r < 0)
		return -errno;
	s->capacity = (size_t)r;
	return 0;
}

static int hand_over(struct save *s, struct qmp *q, pid_t pid, int end, struct ft_err *err)
{
	char proc[32];
	struct stat st;
	json_t *ret;
	int r, fd;

	/* QEMU opens the pipe again by name, which the pipe's owner may do. */
	snprintf(proc, sizeof proc, "/proc/%d", pid);
	if (stat(proc, &st) < 0 || fchown(end, st.st_uid, st.st_gid) < 0 || fstat(end, &st) < 0)
		return ft_err_set(err, errno, "qemu: save: giving the pipe to QEMU's user: %s",
				  strerror(errno));
	s->inode = st.st_ino;
	qmp_pass_fd(q, end);
	r = qmp_call(q, &ret, err, "add-fd", "{s:s}", "opaque", "kemari-save");
	if (r < 0)
		return r;
	r = json_unpack(ret, "{s:i, s:i}", "fdset-id", &s->fdset, "fd", &fd);
	json_decref(ret);
	if (r < 0)
		return ft_err_set(err, EPROTO,
				  "qemu: save: add-fd did not say where the descriptor is");
	s->id = q->next_id++;
	r = snprintf(s->command, sizeof s->command,
		     "{\"execute\":\"xen-save-devices-state\",\"id\":%llu,\"arguments\":{\"live\":"
		     "false,\"filename\":\"/proc/self/fd/%d\"}}",
		     (unsigned long long)s->id, fd);
	assert(r > 0 && (size_t)r < sizeof s->command);
	s->command_len = (size_t)r;
	return 0;
}

int save_setup(struct save *s, struct qmp *q, pid_t pid, struct ft_err *err)
{
	char path[40];
	int ends[2], r;

	if (s->pipe >= 0)
		return 0;
	snprintf(path, sizeof path, "/proc/%d/syscall", pid);
	if (s->syscall_fd < 0)
		s->syscall_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (s->syscall_fd < 0)
		return ft_err_set(err, errno, "qemu: save: %s: %s", path, strerror(errno));
	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return ft_err_set(err, errno, "qemu: save: pipe: %s", strerror(errno));
	s->pipe = ends[0];
	s->writer_fd = ULONG_MAX;
	r = pipe_resize(s, HOLD_PIPE);
	if (r < 0)
		ft_err_set(err, -r, "qemu: save: F_SETPIPE_SZ: %s", strerror(-r));
	else
		r = hand_over(s, q, pid, ends[1], err);
	close(ends[1]);
	if (r < 0)
		drop_pipe(s);
	return r;
}

/* Bytes of the pieces before the last. */
static size_t pieces_before(size_t expected)
{
	return expected ? (expected - 1) / PIECE * PIECE : 0;
}

/* Room for the pieces before the last, as far as a pipe has it; *early: those that have to be read
 * while QEMU serialises. */
static size_t plan_capacity(size_t expected, size_t *early)
{
	size_t before = pieces_before(expected) / PIECE, fit = 1;

	*early = 0;
	if (before == 0)
		return HOLD_PIPE;
	while (fit * 2 <= before && fit * 2 * PIECE <= PIPE_MAX)
		fit *= 2;
	*early = before - fit;
	return fit * PIECE;
}

int save_prime(struct save *s, struct qmp *q, struct ft_err *err)
{
	int r;

	assert(s->pipe >= 0 && !s->primed);
	r = pipe_resize(s, plan_capacity(s->expected, &s->early));
	if (r < 0)
		return ft_err_set(err, -r, "qemu: save: F_SETPIPE_SZ: %s", strerror(-r));
	r = qmp_send(q, s->command, s->command_len - 1, err);
	s->primed = r == 0;
	return r;
}

/* Is the last piece longer than half of one? Then a pipe that a piece just fills leaves room for
 * reading half of that piece, and never for all of the last. */
static bool can_narrow(size_t expected)
{
	return expected > PIECE && expected - pieces_before(expected) > PIECE / 2;
}

static int fire(struct save *s, struct qmp *q, struct ft_err *err)
{
	assert(s->primed);
	s->primed = false;
	s->fired = true;
	return qmp_send(q, "}", 1, err);
}

int save_fire(struct save *s, struct qmp *q, uint8_t *state, size_t room, struct ft_err *err)
{
	s->state = state;
	s->room = room;
	s->len = s->write_start = s->write_len = 0;
	s->begun = false;
	s->last = s->expected > 0 && s->expected < PIECE;
	s->narrows = can_narrow(s->expected);
	return fire(s, q, err);
}

static int wait_for(struct save *s, struct qmp *q, bool or_stop, unsigned within_ms,
		    struct ft_err *err)
{
	uint64_t deadline_ns = qemu_deadline_ns(within_ms);

	while (!s->begun) {
		struct pollfd p[2] = {{.fd = s->pipe, .events = POLLIN},
				      {.fd = q->fd, .events = POLLIN}};
		int r;

		if (poll(p, 2, VMM_WAITING_MS) == 0) {
			if (s->hooks && s->hooks->waiting)
				s->hooks->waiting(s->hooks->ctx);
			if (qemu_ms_left(deadline_ns) == 0)
				return ft_err_set(err, ETIMEDOUT,
						  "qemu: save: no state within %u ms", within_ms);
			continue;
		}
		if (p[0].revents & POLLIN) {
			s->begin_ns = qemu_now_ns();
			s->begun = true;
		} else if (p[1].revents && qmp_peek_reply(q)) {
			r = qmp_reply(q, s->id, "save", NULL, DISCARD_MS, err);
			s->fired = r == -ETIMEDOUT;
			return r < 0 ? r : ft_err_set(err, EIO, "qemu: save: no state");
		} else if (or_stop && qmp_peek_event(q, "STOP")) {
			return 0;
		}
	}
	return 0;
}

int save_wait_stopped(struct save *s, struct qmp *q, unsigned within_ms, struct ft_err *err)
{
	return wait_for(s, q, true, within_ms, err);
}

int save_wait_begun(struct save *s, struct qmp *q, unsigned within_ms, struct ft_err *err)
{
	return wait_for(s, q, false, within_ms, err);
}

/* Looked at once: QEMU opens it anew for each save and gets the same number, and a wrong guess
 * shows in the length at the end. */
static bool is_our_pipe(struct save *s, pid_t pid, unsigned long fd)
{
	char path[48];
	struct stat st;

	if (fd == s->writer_fd)
		return true;
	snprintf(path, sizeof path, "/proc/%d/fd/%lu", pid, fd);
	if (stat(path, &st) < 0 || !S_ISFIFO(st.st_mode) || st.st_ino != s->inode)
		return false;
	s->writer_fd = fd;
	return true;
}

/* Length of the write on our pipe that QEMU's main thread is blocked in; 0: it is in none. */
static size_t blocked_in(struct save *s, pid_t pid)
{
	unsigned long number, fd, address, n;
	struct iovec iov[IOVECS_MAX];
	size_t sum = 0;
	char text[192];
	ssize_t got = pread(s->syscall_fd, text, sizeof text - 1, 0);

	text[got > 0 ? got : 0] = '\0';
	if (sscanf(text, "%lu %lx %lx %lx", &number, &fd, &address, &n) != 4)
		return 0; /* "running" */
	if ((number != SYS_writev && number != SYS_write) || !is_our_pipe(s, pid, fd))
		return 0;
	if (number == SYS_write)
		return n;
	if (n == 0 || n > IOVECS_MAX)
		return 0;
	if (process_vm_readv(pid, &(struct iovec){iov, n * sizeof *iov}, 1,
			     &(struct iovec){(void *)(uintptr_t)address, n * sizeof *iov}, 1,
			     0) != (ssize_t)(n * sizeof *iov))
		return 0;
	for (unsigned long i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

static int take(struct save *s, size_t most, struct ft_err *err)
{
	size_t room = s->room - s->len;
	ssize_t n;

	if (room == 0)
		return ft_err_set(err, E2BIG, "qemu: save: the state has more than %zu bytes",
				  s->room);
	n = read(s->pipe, s->state + s->len, most < room ? most : room);
	if (n > 0) {
		s->len += (size_t)n;
		s->end_ns = qemu_now_ns();
	} else if (n < 0 && errno != EAGAIN && errno != EINTR) {
		return ft_err_set(err, errno, "qemu: save: pipe: %s", strerror(errno));
	}
	return 0;
}

/* Takes what there is of the pieces before the last. Whatever QEMU does meanwhile, its last write
 * does not fit: what was taken and the pipe together stay below what is expected. */
static int narrow(struct save *s, size_t *unread, struct ft_err *err)
{
	size_t left = pieces_before(s->expected) - s->len;
	int r = 0, n;

	while (r == 0 && left && *unread) {
		size_t want = left < *unread ? left : *unread, most, before = s->len;

		for (size_t c = s->capacity / 2;
		     s->len + want + s->capacity >= s->expected && c >= HOLD_PIPE && c >= *unread;
		     c /= 2)
			if (pipe_resize(s, c) < 0)
				break;
		most = (s->expected - 1 - s->len - s->capacity) / HOLD_PIPE * HOLD_PIPE;
		r = take(s, want < most ? want : most, err);
		left -= s->len - before;
		if (s->len == before || ioctl(s->pipe, FIONREAD, &n) < 0)
			break;
		*unread = (size_t)n;
	}
	if (left == 0 && *unread == 0 && s->capacity > HOLD_PIPE)
		pipe_resize(s, HOLD_PIPE);
	return r;
}

int save_step(struct save *s, pid_t pid, struct ft_err *err)
{
	size_t n, unread;
	int r = 0, k;

	if (s->last || ioctl(s->pipe, FIONREAD, &k) < 0)
		return 0;
	unread = (size_t)k;
	if (s->narrows)
		r = narrow(s, &unread, err);
	else if (s->early && unread >= PIECE) {
		s->early--;
		return take(s, PIECE, err);
	}
	if (r < 0 || unread < s->capacity)
		return r;
	n = blocked_in(s, pid);
	if (n == 0)
		return 0;
	if (n > PIECE)
		return ft_err_set(err, ENOTSUP,
				  "qemu: save: this QEMU writes its state in pieces of %zu bytes",
				  n);
	/* A full pipe holds whole pieces and QEMU is in the next one, but for the small pipe, which
	 * holds the start of the first; and pieces that are read as they come end anywhere in it.
	 */
	s->write_start = s->narrows	       ? pieces_before(s->expected)
			 : s->capacity < PIECE ? 0
					       : s->len + s->capacity;
	s->write_len = n;
	s->last = n < PIECE || s->write_start + n == s->expected;
	if (s->last)
		return 0;
	s->narrows = false;
	if (s->capacity >= PIECE)
		return take(s, PIECE, err);
	r = pipe_resize(s, PIECE);
	return r < 0 ? ft_err_set(err, -r, "qemu: save: F_SETPIPE_SZ: %s", strerror(-r)) : 0;
}

/* Until there may be something to do. */
static void wait_more(const struct save *s, const struct qmp *q)
{
	struct pollfd p[2] = {{.fd = s->pipe, .events = POLLIN}, {.fd = q->fd, .events = POLLIN}};
	int unread = 0;

	if (s->narrows && ioctl(s->pipe, FIONREAD, &unread) == 0 && unread == 0)
		poll(p, 2, VMM_WAITING_MS);
	else
		ppoll(NULL, 0, &(struct timespec){.tv_nsec = NAP_NS}, NULL);
}

int save_to_last(struct save *s, struct qmp *q, pid_t pid, unsigned within_ms, struct ft_err *err)
{
	uint64_t deadline_ns = qemu_deadline_ns(within_ms);

	for (;;) {
		int r = save_step(s, pid, err);

		if (r < 0 || s->last)
			return r;
		if (qmp_peek_reply(q))
			return ft_err_set(err, EAGAIN,
					  "qemu: save: the state was shorter than the one before, "
					  "and QEMU not held");
		if (qemu_now_ns() > deadline_ns)
			return ft_err_set(err, EAGAIN,
					  "qemu: save: QEMU did not come to the end of its state");
		wait_more(s, q);
	}
}

/* Reads until QEMU has answered: then all of the state is in the pipe. */
static int take_rest(struct save *s, struct qmp *q, uint64_t deadline_ns, struct ft_err *err)
{
	size_t before;
	int r = 0;

	for (bool answered = false; !answered && r == 0;) {
		struct pollfd p[2] = {{.fd = s->pipe, .events = POLLIN},
				      {.fd = q->fd, .events = POLLIN}};

		if (poll(p, 2, qemu_ms_left(deadline_ns)) == 0)
			r = ft_err_set(err, ETIMEDOUT, "qemu: save: the state stopped coming");
		else if (p[0].revents & POLLIN)
			r = take(s, SIZE_MAX, err);
		else if (p[1].revents)
			answered = qmp_peek_reply(q);
	}
	do {
		before = s->len;
		r = r < 0 ? r : take(s, SIZE_MAX, err);
	} while (r == 0 && s->len > before);
	return r;
}

int save_end(struct save *s, struct qmp *q, unsigned within_ms, struct ft_err *err)
{
	int r;

	assert(s->last);
	/* One wake-up for all the rest is cheaper than one for each page. */
	if (s->capacity < PIECE)
		pipe_resize(s, RELEASE_PIPE);
	r = take_rest(s, q, qemu_deadline_ns(within_ms), err);
	if (r < 0)
		return r;
	r = qmp_reply(q, s->id, "save", NULL, within_ms, err);
	s->fired = r == -ETIMEDOUT;
	if (r < 0)
		return r;
	/* Was it the last write that QEMU was held in, and did it block? */
	if (s->write_len ? s->len != s->write_start + s->write_len
			 : s->len >= PIECE || s->len <= HOLD_PIPE)
		return ft_err_set(
			err, EAGAIN,
			"qemu: save: %zu bytes of state, which is not what it looked like", s->len);
	s->expected = s->len;
	return 0;
}

void save_abandon(struct save *s, struct qmp *q, unsigned within_ms)
{
	drop_pipe(s);
	s->primed = false;
	s->expected = 0;
	if (s->fired)
		qmp_reply(q, s->id, "save", NULL, within_ms, NULL);
	s->fired = false;
	if (s->fdset >= 0)
		qmp_call_args(q, NULL, NULL, within_ms, "remove-fd",
			      json_pack("{s:i}", "fdset-id", s->fdset));
	s->fdset = -1;
}

int save_discard(struct save *s, struct qmp *q, struct ft_err *err)
{
	uint8_t scratch[4096];
	ssize_t n;
	int r;

	if (!s->primed)
		return 0;
	pipe_resize(s, PIPE_MAX);
	r = fire(s, q, err);
	if (r == 0) {
		r = qmp_reply(q, s->id, "save", NULL, DISCARD_MS, err);
		s->fired = r == -ETIMEDOUT;
	}
	if (r < 0) {
		save_abandon(s, q, DISCARD_MS);
		return r;
	}
	for (s->expected = 0; (n = read(s->pipe, scratch, sizeof scratch)) > 0;)
		s->expected += (size_t)n;
	return 0;
}

void save_free(struct save *s)
{
	drop_pipe(s);
	if (s->syscall_fd >= 0)
		close(s->syscall_fd);
	save_init(s);
}

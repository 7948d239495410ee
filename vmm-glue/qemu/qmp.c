// SPDX-License-Identifier: Apache-2.0
// A synchronous client: whoever waits for a reply delivers the events that come before it. Commands
// carry an id, so that the reply to one that ran out of time is not taken for the reply to the
// next.
#include "vmm-glue/qemu/qmp.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm-glue/qemu/clock.h"

static int closed(struct qmp *q, struct ft_err *err)
{
	q->closed = true;
	return ft_err_set(err, EPIPE, "qmp: connection closed");
}

/* Takes bytes that are there. 0, -EAGAIN none, -EPIPE. */
static int take(struct qmp *q, struct ft_err *err)
{
	ssize_t n;

	if (q->closed)
		return closed(q, err);
	if (q->in_len == QMP_LINE_MAX) {
		q->closed = true;
		return ft_err_set(err, EPIPE, "qmp: a line of more than %u bytes", QMP_LINE_MAX);
	}
	n = recv(q->fd, q->in + q->in_len, QMP_LINE_MAX - q->in_len, MSG_DONTWAIT);
	if (n > 0) {
		q->in_len += (size_t)n;
		return 0;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	return closed(q, err);
}

/* The next whole line as an object, NULL when there is none. Lines that are no object are dropped.
 */
static json_t *next_object(struct qmp *q)
{
	char *end;

	while ((end = memchr(q->in + q->in_seen, '\n', q->in_len - q->in_seen))) {
		size_t len = (size_t)(end - q->in) + 1;
		json_t *object = json_loadb(q->in, len, 0, NULL);

		q->in_len -= len;
		q->in_seen = 0;
		memmove(q->in, q->in + len, q->in_len);
		if (json_is_object(object))
			return object;
		json_decref(object);
	}
	q->in_seen = q->in_len;
	return NULL;
}

static bool deliver_event(struct qmp *q, const json_t *object)
{
	const char *name = json_string_value(json_object_get(object, "event"));

	if (!name)
		return false;
	if (q->event)
		q->event(q->ctx, name, object);
	return true;
}

/* Nothing stays in the buffer that poll(2) on the socket would not tell of. Only late replies can
 * be among it: dropped. */
static void deliver_rest(struct qmp *q)
{
	json_t *object;

	while ((object = next_object(q))) {
		deliver_event(q, object);
		json_decref(object);
	}
}

/* The next object that is not an event. */
static int next_reply(struct qmp *q, int watch_fd, uint64_t deadline_ns, json_t **object,
		      struct ft_err *err)
{
	for (;;) {
		struct pollfd p[2] = {{.fd = q->fd, .events = POLLIN},
				      {.fd = watch_fd, .events = POLLIN}};
		int r;

		while ((*object = next_object(q))) {
			if (!deliver_event(q, *object))
				return 0;
			json_decref(*object);
		}
		r = poll(p, 2, qemu_ms_left(deadline_ns));
		if (r < 0 && errno != EINTR)
			return ft_err_set(err, errno, "qmp: poll: %s", strerror(errno));
		if (r == 0)
			return ft_err_set(err, ETIMEDOUT, "qmp: no reply in time");
		if (p[0].revents) {
			r = take(q, err);
			if (r < 0 && r != -EAGAIN)
				return r;
		} else if (p[1].revents) {
			return ft_err_set(err, ESRCH, "qmp: the process ended");
		}
	}
}

static int greet(struct qmp *q, int watch_fd, uint64_t deadline_ns, struct ft_err *err)
{
	json_t *greeting;
	int r, major, minor;

	r = next_reply(q, watch_fd, deadline_ns, &greeting, err);
	if (r == -ETIMEDOUT)
		return ft_err_set(
			err, ETIMEDOUT,
			"qmp: no greeting: the monitor serves another client, or QEMU hangs");
	if (r < 0)
		return r;
	r = json_unpack(greeting, "{s:{s:{s:{s:i, s:i}}}}", "QMP", "version", "qemu", "major",
			&major, "minor", &minor);
	json_decref(greeting);
	if (r < 0 || major < 0 || minor < 0)
		return ft_err_set(err, EPROTO, "qmp: the greeting is not QEMU's");
	q->major = (unsigned)major;
	q->minor = (unsigned)minor;
	return qmp_call(q, NULL, err, "qmp_capabilities", NULL);
}

int qmp_connect(struct qmp *q, const char *path, int watch_fd, unsigned within_ms,
		struct ft_err *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int r;

	if (strlen(path) >= sizeof addr.sun_path)
		return ft_err_set(err, ENAMETOOLONG, "qmp: %s: path too long for a socket", path);
	strcpy(addr.sun_path, path);
	*q = (struct qmp){.fd = -1, .pass_fd = -1, .next_id = 1};
	q->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	q->in = malloc(QMP_LINE_MAX);
	if (q->fd < 0 || !q->in)
		r = ft_err_set(err, ENOMEM, "qmp: no memory or descriptor");
	else if (connect(q->fd, (struct sockaddr *)&addr, sizeof addr) < 0)
		r = ft_err_set(err, errno, "qmp: %s: %s", path, strerror(errno));
	else
		r = greet(q, watch_fd, qemu_deadline_ns(within_ms), err);
	if (r < 0)
		qmp_close(q);
	return r;
}

void qmp_close(struct qmp *q)
{
	if (q->fd >= 0)
		close(q->fd);
	free(q->in);
	q->in = NULL;
	q->fd = -1;
	q->closed = true;
}

void qmp_pass_fd(struct qmp *q, int fd)
{
	q->pass_fd = fd;
}

int qmp_send(struct qmp *q, const char *bytes, size_t len, struct ft_err *err)
{
	uint64_t deadline_ns = qemu_deadline_ns(QMP_CALL_MS);

	while (len) {
		char control[CMSG_SPACE(sizeof(int))] = {0};
		struct iovec iov = {(void *)bytes, len};
		struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
		struct pollfd p = {.fd = q->fd, .events = POLLOUT};
		ssize_t n;

		if (q->closed)
			return closed(q, err);
		if (q->pass_fd >= 0) {
			struct cmsghdr *c = (struct cmsghdr *)control;

			msg.msg_control = control;
			msg.msg_controllen = sizeof control;
			*c = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
			memcpy(CMSG_DATA(c), &q->pass_fd, sizeof(int));
		}
		n = sendmsg(q->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			q->pass_fd = -1;
			bytes += n;
			len -= (size_t)n;
		} else if (errno != EAGAIN && errno != EINTR) {
			return closed(q, err);
		} else if (poll(&p, 1, qemu_ms_left(deadline_ns)) == 0) {
			return ft_err_set(err, ETIMEDOUT, "qmp: QEMU takes no commands");
		}
	}
	return 0;
}

bool qmp_peek_event(struct qmp *q, const char *name)
{
	char text[64];
	int n = snprintf(text, sizeof text, "\"event\": \"%s\"", name);

	while (take(q, NULL) == 0)
		;
	return memmem(q->in, q->in_len, text, (size_t)n) != NULL;
}

bool qmp_peek_reply(struct qmp *q)
{
	char *at = q->in, *end;

	while (take(q, NULL) == 0)
		;
	while ((end = memchr(at, '\n', q->in_len - (size_t)(at - q->in)))) {
		if (!memmem(at, (size_t)(end - at), "\"event\": ", 9))
			return true;
		at = end + 1;
	}
	return q->closed;
}

int qmp_reply(struct qmp *q, uint64_t id, const char *command, json_t **ret, unsigned within_ms,
	      struct ft_err *err)
{
	uint64_t deadline_ns = qemu_deadline_ns(within_ms);
	const char *why;
	json_t *reply;
	int r;

	for (;;) {
		r = next_reply(q, -1, deadline_ns, &reply, err);
		if (r < 0)
			return ft_err_context(err, "%s", command);
		if ((uint64_t)json_integer_value(json_object_get(reply, "id")) == id)
			break;
		json_decref(reply);
	}
	deliver_rest(q);
	why = json_string_value(json_object_get(json_object_get(reply, "error"), "desc"));
	if (why)
		r = ft_err_set(err, EIO, "qmp: %s: %s", command, why);
	else if (!json_object_get(reply, "return"))
		r = ft_err_set(err, EPROTO, "qmp: %s: neither result nor error", command);
	else if (ret)
		*ret = json_incref(json_object_get(reply, "return"));
	json_decref(reply);
	return r;
}

int qmp_call_args(struct qmp *q, json_t **ret, struct ft_err *err, unsigned within_ms,
		  const char *command, json_t *args)
{
	uint64_t id = q->next_id++;
	json_t *object = json_pack("{s:s, s:o*, s:I}", "execute", command, "arguments", args, "id",
				   (json_int_t)id);
	char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
	int r;

	json_decref(object);
	if (!text)
		return ft_err_set(err, ENOMEM, "qmp: %s: no memory", command);
	r = qmp_send(q, text, strlen(text), err);
	free(text);
	q->pass_fd = -1;
	if (r < 0)
		return ft_err_context(err, "%s", command);
	return qmp_reply(q, id, command, ret, within_ms, err);
}

int qmp_call(struct qmp *q, json_t **ret, struct ft_err *err, const char *command, const char *fmt,
	     ...)
{
	json_t *args = NULL;
	va_list ap;

	if (fmt) {
		json_error_t why;

		va_start(ap, fmt);
		args = json_vpack_ex(&why, 0, fmt, ap);
		va_end(ap);
		if (!args) {
			q->pass_fd = -1;
			/* A name that is not UTF-8, or no memory. */
			return ft_err_set(err, EINVAL, "qmp: %s: %s", command, why.text);
		}
	}
	return qmp_call_args(q, ret, err, QMP_CALL_MS, command, args);
}

int qmp_human(struct qmp *q, char **text, struct ft_err *err, const char *line)
{
	json_t *ret;
	int r = qmp_call(q, &ret, err, "human-monitor-command", "{s:s}", "command-line", line);

	if (r < 0)
		return r;
	*text = json_is_string(ret) ? strdup(json_string_value(ret)) : NULL;
	json_decref(ret);
	return *text ? 0 : ft_err_set(err, EPROTO, "qmp: %s: no text", line);
}

int qmp_poll(struct qmp *q)
{
	int r;

	do {
		r = take(q, NULL);
		deliver_rest(q);
	} while (r == 0);
	return r == -EAGAIN ? 0 : r;
}

void qmp_last_words(struct qmp *q)
{
	bool was_closed = q->closed;

	if (q->fd < 0)
		return;
	deliver_rest(q);
	q->closed = false;
	qmp_poll(q);
	q->closed = q->closed || was_closed;
}

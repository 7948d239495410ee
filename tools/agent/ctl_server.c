// SPDX-License-Identifier: Apache-2.0
/* One struct ctl_call is one client, for a client has at most one request under way:
 *
 *   idle --request--> pending --reply--> idle ...        idle for too long, or gone: freed
 *                        |                               pending and gone: cancelled() and freed
 *   anything else than one request at a time --> closing (told why; freed once that is sent)
 *
 * The name is held by a lock on RUN_DIR/NAME.lock, so that a socket left by a dead agent can be
 * told from one in use without asking. */
#include "tools/agent/ctl_server.h"

#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/listener.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ft/log.h"

#define BACKLOG 16

enum call_state { CALL_IDLE, CALL_PENDING, CALL_WAITING, CALL_CLOSING };

struct ctl_call {
	struct ctl_server *server; /* NULL: this slot is free */
	struct bufferevent *bev;
	enum call_state state;
	enum ft_state wanted;	/* CALL_WAITING */
	struct event *deadline; /* CALL_WAITING; NULL = none */
};

struct ctl_server {
	struct event_base *base;
	struct ctl_server_ops ops;
	char name[CTL_NAME_MAX];
	struct sockaddr_un addr;
	char lock_path[sizeof(struct sockaddr_un)];
	int lock_fd;
	struct evconnlistener *listener;
	struct ctl_call calls[CTL_CLIENTS_MAX];
	enum ft_state now;
	char reason[FT_REASON_MAX];
};

/* ---- answers ---- */

static struct timeval ms(unsigned n)
{
	return (struct timeval){.tv_sec = n / 1000, .tv_usec = (n % 1000) * 1000};
}

static void call_free(struct ctl_call *call)
{
	if (call->deadline)
		event_free(call->deadline);
	bufferevent_free(call->bev);
	*call = (struct ctl_call){0};
}

static void drop(struct ctl_call *call)
{
	struct ctl_server *server = call->server;

	if (call->state == CALL_PENDING)
		server->ops.cancelled(server->ops.ctx, call);
	call_free(call);
}

/* A client in the middle of its turn is waited for as long as it takes; else it has
 * CTL_CLIENT_IDLE_MS. */
static void enter(struct ctl_call *call, enum call_state state)
{
	const struct timeval idle = ms(CTL_CLIENT_IDLE_MS);
	bool ours = state == CALL_PENDING || state == CALL_WAITING;

	call->state = state;
	bufferevent_set_timeouts(call->bev, ours ? NULL : &idle, &idle);
}

static uint8_t *pack(const Ctl__Reply *reply, size_t *len)
{
	size_t body = ctl__reply__get_packed_size(reply);
	uint8_t *buf = body <= CTL_REPLY_MAX ? malloc(CTL_HEADER_BYTES + body) : NULL;

	if (buf) {
		ctl_put_length(buf, (uint32_t)body);
		ctl__reply__pack(reply, buf + CTL_HEADER_BYTES);
		*len = CTL_HEADER_BYTES + body;
	}
	return buf;
}

static void answer(struct ctl_call *call, const Ctl__Reply *reply, enum call_state next)
{
	Ctl__Reply too_long = CTL__REPLY__INIT;
	size_t len = 0;
	uint8_t *buf = pack(reply, &len);

	if (!buf) {
		too_long.error = (char *)CTL_ERR_FAILED;
		too_long.message = (char *)"the answer is too long";
		buf = pack(&too_long, &len);
	}
	if (call->deadline) {
		event_free(call->deadline);
		call->deadline = NULL;
	}
	enter(call, next);
	if (!buf || bufferevent_write(call->bev, buf, len))
		ft_warn("control: answer to a client is lost: out of memory");
	free(buf);
}

static void answer_error(struct ctl_call *call, enum call_state next, const char *word,
			 const char *message)
{
	Ctl__Reply reply = CTL__REPLY__INIT;

	reply.error = (char *)word;
	reply.message = (char *)message;
	answer(call, &reply, next);
}

void ctl_reply(struct ctl_call *call, const Ctl__Reply *reply)
{
	assert(call->server && call->state == CALL_PENDING);
	answer(call, reply, CALL_IDLE);
}

void ctl_reply_error(struct ctl_call *call, const char *word, const char *fmt, ...)
{
	char message[2 * FT_ERR_TEXT_MAX];
	va_list ap;

	assert(call->server && call->state == CALL_PENDING);
	assert(*word);
	va_start(ap, fmt);
	vsnprintf(message, sizeof message, fmt, ap);
	va_end(ap);
	answer_error(call, CALL_IDLE, word, message);
}

static void refuse(struct ctl_call *call, const char *message)
{
	struct ctl_server *server = call->server;

	ft_warn("control: client dropped: %s", message);
	if (call->state == CALL_PENDING)
		server->ops.cancelled(server->ops.ctx, call);
	bufferevent_disable(call->bev, EV_READ);
	answer_error(call, CALL_CLOSING, CTL_ERR_PROTOCOL, message);
}

/* ---- wait ---- */

/* No way leads out of these. */
static bool is_final(enum ft_state state)
{
	for (int to = 0; to < FT_STATE_MAX; to++)
		if (to != (int)state && ft_state_valid(state, (enum ft_state)to))
			return false;
	return true;
}

/* Answers a waiting call if its time has come. */
static void settle(struct ctl_call *call)
{
	struct ctl_server *server = call->server;
	Ctl__Reply reply = CTL__REPLY__INIT;
	char message[FT_REASON_MAX + 128];

	if (server->now == call->wanted) {
		answer(call, &reply, CALL_IDLE);
	} else if (is_final(server->now)) {
		snprintf(message, sizeof message, "guest is %s and will not be %s: %s",
			 ft_state_name(server->now), ft_state_name(call->wanted), server->reason);
		answer_error(call, CALL_IDLE, CTL_ERR_STATE, message);
	}
}

static void on_deadline(evutil_socket_t fd, short what, void *ctx)
{
	struct ctl_call *call = ctx;
	char message[FT_REASON_MAX + 128];

	(void)fd, (void)what;
	snprintf(message, sizeof message, "guest is %s, not %s: %s",
		 ft_state_name(call->server->now), ft_state_name(call->wanted),
		 call->server->reason);
	answer_error(call, CALL_IDLE, CTL_ERR_TIMEOUT, message);
}

static void begin_wait(struct ctl_call *call, const Ctl__Request *request)
{
	int wanted = ft_state_parse(request->state);

	if (wanted < 0 || request->timeout_ms > CTL_WAIT_MAX_MS) {
		answer_error(call, CALL_IDLE, CTL_ERR_USAGE,
			     wanted < 0 ? "wait: no such state"
					: "wait: timeout is longer than a day");
		return;
	}
	call->wanted = (enum ft_state)wanted;
	enter(call, CALL_WAITING);
	if (request->timeout_ms) {
		const struct timeval tv = ms((unsigned)request->timeout_ms);

		call->deadline = evtimer_new(call->server->base, on_deadline, call);
		if (!call->deadline || evtimer_add(call->deadline, &tv)) {
			answer_error(call, CALL_IDLE, CTL_ERR_FAILED, "wait: out of memory");
			return;
		}
	}
	settle(call);
}

void ctl_server_state_changed(struct ctl_server *server, enum ft_state now, const char *reason)
{
	server->now = now;
	snprintf(server->reason, sizeof server->reason, "%s", reason);
	for (unsigned i = 0; i < CTL_CLIENTS_MAX; i++)
		if (server->calls[i].server && server->calls[i].state == CALL_WAITING)
			settle(&server->calls[i]);
}

/* ---- requests ---- */

/* 1: one request was taken from the buffer, 0: there is none yet, -EPROTO: never. */
static int take_request(struct ctl_call *call, Ctl__Request **request)
{
	struct evbuffer *in = bufferevent_get_input(call->bev);
	uint8_t header[CTL_HEADER_BYTES], *body;
	uint32_t len;

	if (evbuffer_copyout(in, header, sizeof header) < (ev_ssize_t)sizeof header)
		return 0;
	len = ctl_get_length(header);
	if (len > CTL_REQUEST_MAX)
		return -EPROTO;
	if (evbuffer_get_length(in) < sizeof header + len)
		return 0;
	evbuffer_drain(in, sizeof header);
	body = evbuffer_pullup(in, len);
	*request = len && !body ? NULL : ctl__request__unpack(NULL, len, body);
	evbuffer_drain(in, len);
	return *request ? 1 : -EPROTO;
}

static void on_read(struct bufferevent *bev, void *ctx)
{
	struct ctl_call *call = ctx;
	Ctl__Request *request;
	int ret;

	while (call->state == CALL_IDLE) {
		ret = take_request(call, &request);
		if (!ret)
			return;
		if (ret < 0) {
			refuse(call, "not a request, or longer than its bound");
			return;
		}
		if (!strcmp(request->command, "wait")) {
			begin_wait(call, request);
		} else {
			enter(call, CALL_PENDING);
			call->server->ops.request(call->server->ops.ctx, call, request);
		}
		ctl__request__free_unpacked(request, NULL);
	}
	if (call->state != CALL_CLOSING && evbuffer_get_length(bufferevent_get_input(bev)))
		refuse(call, "a second request before the answer to the first");
}

static void on_written(struct bufferevent *bev, void *ctx)
{
	struct ctl_call *call = ctx;

	(void)bev;
	if (call->state == CALL_CLOSING)
		call_free(call);
}

/* Gone, broken, or too slow. */
static void on_event(struct bufferevent *bev, short what, void *ctx)
{
	(void)bev;
	if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR | BEV_EVENT_TIMEOUT))
		drop(ctx);
}

/* ---- connections ---- */

static void refuse_connection(evutil_socket_t fd, const char *error, const char *message)
{
	Ctl__Reply reply = CTL__REPLY__INIT;
	size_t len = 0;
	uint8_t *buf;

	reply.error = (char *)(uintptr_t)error;
	reply.message = (char *)(uintptr_t)message;
	buf = pack(&reply, &len);
	if (buf)
		(void)!send(fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	free(buf);
	evutil_closesocket(fd);
}

/* By what the kernel says of who connected. */
static bool may_ask(evutil_socket_t fd)
{
	struct ucred peer = {.uid = (uid_t)-1};
	socklen_t len = sizeof peer;

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) &&
	       (peer.uid == 0 || peer.uid == geteuid());
}

static void on_connect(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *addr,
		       int len, void *ctx)
{
	struct ctl_server *server = ctx;
	struct ctl_call *call = NULL;
	struct bufferevent *bev;

	(void)listener, (void)addr, (void)len;
	if (!may_ask(fd)) {
		refuse_connection(fd, CTL_ERR_DENIED, "only root, or who the agent runs as");
		return;
	}
	for (unsigned i = 0; i < CTL_CLIENTS_MAX && !call; i++)
		if (!server->calls[i].server)
			call = &server->calls[i];
	bev = call ? bufferevent_socket_new(server->base, fd, BEV_OPT_CLOSE_ON_FREE) : NULL;
	if (!bev) {
		refuse_connection(fd, CTL_ERR_BUSY, "too many clients");
		return;
	}
	*call = (struct ctl_call){.server = server, .bev = bev};
	bufferevent_setcb(bev, on_read, on_written, on_event, call);
	/* One request, and the first byte of what would be one too many. */
	bufferevent_setwatermark(bev, EV_READ, 0, CTL_HEADER_BYTES + CTL_REQUEST_MAX + 1);
	enter(call, CALL_IDLE);
	bufferevent_enable(bev, EV_READ | EV_WRITE);
}

/* Takes the lock on the guest's name. The file may be removed by an agent that ends between our
 * open and our lock: look again. */
static int lock_name(struct ctl_server *server, struct ft_err *err)
{
	for (;;) {
		struct stat ours, named;
		int fd = open(server->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

		if (fd < 0)
			return ft_err_set(err, errno, "%s: %s", server->lock_path, strerror(errno));
		if (flock(fd, LOCK_EX | LOCK_NB)) {
			int code = errno == EWOULDBLOCK ? EADDRINUSE : errno;

			close(fd);
			return code == EADDRINUSE
				       ? ft_err_set(err, code,
						    "guest %s: another agent runs here (%s)",
						    server->name, server->lock_path)
				       : ft_err_set(err, code, "%s: %s", server->lock_path,
						    strerror(code));
		}
		if (!fstat(fd, &ours) && !stat(server->lock_path, &named) &&
		    ours.st_ino == named.st_ino && ours.st_dev == named.st_dev) {
			server->lock_fd = fd;
			return 0;
		}
		close(fd);
	}
}

static int listen_here(struct ctl_server *server, struct ft_err *err)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), code;

	if (fd < 0)
		return ft_err_set(err, errno, "socket: %s", strerror(errno));
	/* The mode of the inode that bind() makes comes from the socket, so there is no moment in
	 * which others may connect. */
	unlink(server->addr.sun_path);
	if (!fchmod(fd, 0600) && !bind(fd, (struct sockaddr *)&server->addr, sizeof server->addr)) {
		server->listener = evconnlistener_new(server->base, on_connect, server,
						      LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC,
						      BACKLOG, fd);
		if (server->listener)
			return 0;
	}
	code = errno ? errno : ENOMEM;
	close(fd);
	return ft_err_set(err, code, "%s: %s", server->addr.sun_path, strerror(code));
}

static int make_run_dir(const char *run_dir, struct ft_err *err)
{
	struct stat st;

	if (mkdir(run_dir, 0700) && errno != EEXIST)
		return ft_err_set(err, errno, "%s: %s", run_dir, strerror(errno));
	if (stat(run_dir, &st))
		return ft_err_set(err, errno, "%s: %s", run_dir, strerror(errno));
	if (!S_ISDIR(st.st_mode))
		return ft_err_set(err, ENOTDIR, "%s: %s", run_dir, strerror(ENOTDIR));
	if (st.st_uid != 0 && st.st_uid != geteuid())
		return ft_err_set(err, EPERM, "%s: belongs to user %u", run_dir,
				  (unsigned)st.st_uid);
	if (st.st_mode & (S_IWGRP | S_IWOTH))
		return ft_err_set(err, EPERM, "%s: others may write there (mode %03o)", run_dir,
				  (unsigned)st.st_mode & 0777);
	return 0;
}

int ctl_server_new(struct event_base *base, const char *run_dir, const char *name,
		   const struct ctl_server_ops *ops, struct ctl_server **out, struct ft_err *err)
{
	struct ctl_server *server = calloc(1, sizeof *server);
	int ret;

	assert(ops->request && ops->cancelled);
	if (!server)
		return ft_err_set(err, ENOMEM, "control: out of memory");
	server->base = base;
	server->ops = *ops;
	server->lock_fd = -1;
	server->now = FT_STARTING;
	snprintf(server->reason, sizeof server->reason, "%s", ft_state_name(FT_STARTING));
	ret = ctl_socket_path(run_dir, name, &server->addr, err);
	if (!ret) {
		snprintf(server->name, sizeof server->name, "%s", name);
		snprintf(server->lock_path, sizeof server->lock_path, "%s/%s.lock", run_dir, name);
		ret = make_run_dir(run_dir, err);
	}
	if (!ret)
		ret = lock_name(server, err);
	if (!ret)
		ret = listen_here(server, err);
	if (ret) {
		ctl_server_free(server);
		return ft_err_context(err, "control socket");
	}
	*out = server;
	return 0;
}

/* The answer to `stop` is given just before the server ends. */
static void send_rest(struct ctl_call *call)
{
	struct evbuffer *out = bufferevent_get_output(call->bev);
	size_t len = evbuffer_get_length(out);
	const uint8_t *rest = evbuffer_pullup(out, -1);
	ssize_t n = len && rest ? send(bufferevent_getfd(call->bev), rest, len,
				       MSG_DONTWAIT | MSG_NOSIGNAL)
				: 0;

	if (n <= 0)
		return;
	evbuffer_unfreeze(out, 1);
	evbuffer_drain(out, (size_t)n);
	evbuffer_freeze(out, 1);
}

void ctl_server_flush(struct ctl_server *server)
{
	for (unsigned i = 0; i < CTL_CLIENTS_MAX; i++)
		if (server->calls[i].server)
			send_rest(&server->calls[i]);
}

void ctl_server_free(struct ctl_server *server)
{
	if (!server)
		return;
	if (server->listener) {
		evconnlistener_free(server->listener);
		unlink(server->addr.sun_path);
	}
	for (unsigned i = 0; i < CTL_CLIENTS_MAX; i++) {
		struct ctl_call *call = &server->calls[i];

		if (!call->server)
			continue;
		send_rest(call);
		drop(call);
	}
	if (server->lock_fd >= 0) {
		unlink(server->lock_path);
		close(server->lock_fd);
	}
	free(server);
}

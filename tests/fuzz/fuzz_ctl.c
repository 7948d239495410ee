// SPDX-License-Identifier: Apache-2.0
// A client of the control socket that sends whatever it likes, in pieces. The first byte says how:
// bit 0 makes frames of the rest (its first byte is the length of the first, and so on); bit 1
// closes in the middle; the other bits are the size of the pieces. The server must answer every
// request at most once, and let go of every client.
#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ft/log.h"
#include "tools/agent/ctl_server.h"

#define NAME	  "fuzz"
#define INPUT_MAX (128u << 10)

static char folder[] = "/tmp/fuzz-ctl-XXXXXX";
static struct event_base *base;
static struct ctl_server *server;
static struct ctl_call *later; /* a request that has no answer yet */

static void on_request(void *ctx, struct ctl_call *call, const Ctl__Request *request)
{
	Ctl__Reply reply = CTL__REPLY__INIT;
	size_t n = strlen(request->command) + strlen(request->uri) + strlen(request->state);

	(void)ctx;
	assert(!later && strcmp(request->command, "wait"));
	switch (n % 3) {
	case 0:
		ctl_reply(call, &reply);
		break;
	case 1:
		ctl_reply_error(call, CTL_ERR_STATE, "%.2000s", request->command);
		break;
	case 2:
		later = call;
		break;
	}
}

static void on_cancelled(void *ctx, struct ctl_call *call)
{
	(void)ctx;
	assert(call == later);
	later = NULL;
}

static void clean_up(void)
{
	ctl_server_free(server);
	event_base_free(base);
	rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static const struct ctl_server_ops ops = {.request = on_request, .cancelled = on_cancelled};
	struct ft_err err = {0};

	(void)argc;
	(void)argv;
	ft_log_level_set(FT_LOG_ERROR);
	assert(mkdtemp(folder));
	base = event_base_new();
	if (ctl_server_new(base, folder, NAME, &ops, &server, &err))
		abort();
	atexit(clean_up);
	return 0;
}

/* Several short frames out of the fuzzer's bytes. */
static size_t frame(const uint8_t *data, size_t len, uint8_t *out)
{
	size_t n = 0;

	while (len > 0) {
		size_t body = data[0] < len - 1 ? data[0] : len - 1;

		ctl_put_length(out + n, (uint32_t)body);
		memcpy(out + n + CTL_HEADER_BYTES, data + 1, body);
		n += CTL_HEADER_BYTES + body;
		data += 1 + body;
		len -= 1 + body;
	}
	return n;
}

/* True: the server has closed. What it says is of no interest here. */
static bool drain(int fd)
{
	char waste[4096];
	ssize_t n;

	while ((n = recv(fd, waste, sizeof waste, MSG_DONTWAIT)) > 0)
		;
	return n == 0 || errno == ECONNRESET;
}

static void talk(const uint8_t *data, size_t len, size_t piece, bool wait)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr;
	bool closed = false;

	assert(fd >= 0 && ctl_socket_path(folder, NAME, &addr, NULL) == 0);
	if (connect(fd, (struct sockaddr *)&addr, sizeof addr))
		abort();
	while (len > 0 && !closed) {
		ssize_t n = send(fd, data, len < piece ? len : piece, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno != EAGAIN)
			break;
		data += n > 0 ? n : 0;
		len -= n > 0 ? (size_t)n : 0;
		event_base_loop(base, EVLOOP_NONBLOCK);
		closed = drain(fd);
	}
	if (later && wait)
		ctl_reply_error(later, CTL_ERR_TIMEOUT, "late");
	if (wait)
		later = NULL;
	shutdown(fd, SHUT_WR);
	while (!closed && !drain(fd))
		event_base_loop(base, EVLOOP_ONCE);
	close(fd);
	event_base_loop(base, EVLOOP_NONBLOCK);
	assert(!later);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static uint8_t framed[5 * INPUT_MAX];
	uint8_t how;

	if (len < 1 || len > INPUT_MAX)
		return 0;
	how = data[0];
	data++;
	len--;
	ctl_server_state_changed(server, (enum ft_state)(how % FT_STATE_MAX), "fuzz");
	if (how & 1) {
		len = frame(data, len, framed);
		data = framed;
	}
	talk(data, len, 1 + (how >> 2) * 97u, how & 2);
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/* Requests to an agent, by the library that ftctl uses. */
#include "tests/agent/harness.h"

#include <errno.h>
#include <sys/socket.h>

#define ASK_MS 90000

static Ctl__Reply *request(struct host *h, const Ctl__Request *r, unsigned within_ms)
{
	uint64_t until = now_ms() + START_MS;
	struct ft_err err = {0};
	Ctl__Reply *reply = NULL;

	/* It may still be starting. */
	while (ctl_ask(h->run, GUEST, r, (int)within_ms, &reply, &err)) {
		if (err.code != ECONNREFUSED || !h->agent || !process_alive(h->agent))
			fail_msg("%s: %s: %s; its agent said: %s", h->id, r->command, err.text,
				 file_text(h->log));
		breathe(until, err.text);
	}
	return reply;
}

int ask(struct host *h, const char *command, const char *argument, char message[512])
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	int ret;

	r.command = (char *)(uintptr_t)command;
	if (argument)
		r.uri = (char *)(uintptr_t)argument;
	reply = request(h, &r, ASK_MS);
	ret = reply->error[0] ? -1 : 0;
	snprintf(message, 512, "%s", reply->message);
	ctl__reply__free_unpacked(reply, NULL);
	return ret;
}

void ask_any_async(struct host *h, const Ctl__Request *r)
{
	struct ft_err err = {0};
	Ctl__Reply *reply;

	/* The client gives up; what it asked for goes on. */
	if (!ctl_ask(h->run, GUEST, r, 50, &reply, &err))
		fail_msg("%s: %s was answered at once: %s", h->id, r->command, reply->message);
	assert_int_equal(err.code, ETIMEDOUT);
}

void ask_async(struct host *h, const char *command, const char *argument)
{
	Ctl__Request r = CTL__REQUEST__INIT;

	r.command = (char *)(uintptr_t)command;
	r.uri = (char *)(uintptr_t)argument;
	ask_any_async(h, &r);
}

void ask_ok(struct host *h, const char *command, const char *argument)
{
	char message[512];

	if (ask(h, command, argument, message))
		fail_msg("%s: %s: %s; its agent said: %s", h->id, command, message,
			 file_text(h->log));
}

void ask_refused(struct host *h, const char *command, const char *argument, const char *text)
{
	char message[512];

	if (!ask(h, command, argument, message))
		fail_msg("%s: %s succeeded", h->id, command);
	if (!strstr(message, text) || strchr(message, '\n'))
		fail_msg("%s: %s: expected '%s', got: %s", h->id, command, text, message);
}

Ctl__Reply *ask_any(struct host *h, const Ctl__Request *r)
{
	return request(h, r, ASK_MS);
}

const char *file_uri(const char *name)
{
	static char uris[4][200];
	static unsigned next;

	next = (next + 1) % 4;
	snprintf(uris[next], sizeof uris[next], "file:%s", at("%s", name));
	return uris[next];
}

static Ctl__Request snapshot_request(const char *file, uint64_t bytes_per_s, bool disks)
{
	Ctl__Request r = CTL__REQUEST__INIT;

	r.command = (char *)"snapshot";
	r.uri = (char *)(uintptr_t)file_uri(file);
	r.no_disks = !disks;
	r.bytes_per_s = bytes_per_s;
	return r;
}

static uint64_t pause_us;

static uint64_t take(struct host *h, Ctl__Request *r)
{
	Ctl__Reply *reply;
	uint64_t digest;

	r->verify = true;
	reply = ask_any(h, r);
	if (reply->error[0])
		fail_msg("%s: snapshot: %s", h->id, reply->message);
	assert_int_equal(reply->snapshot->bytes_done, reply->snapshot->bytes_total);
	assert_int_equal(reply->snapshot->disk_bytes_done, reply->snapshot->disk_bytes_total);
	assert_int_equal(reply->snapshot->disks != 0, !r->no_disks);
	assert_int_equal(reply->snapshot->incremental, r->incremental);
	digest = reply->digest;
	pause_us = reply->snapshot->pause_us;
	ctl__reply__free_unpacked(reply, NULL);
	return digest;
}

uint64_t snapshot(struct host *h, const char *file, uint64_t bytes_per_s)
{
	Ctl__Request r = snapshot_request(file, bytes_per_s, false);

	return take(h, &r);
}

uint64_t snapshot_with_disks(struct host *h, const char *file, uint64_t bytes_per_s)
{
	Ctl__Request r = snapshot_request(file, bytes_per_s, true);

	return take(h, &r);
}

uint64_t snapshot_update(struct host *h, const char *file)
{
	Ctl__Request r = snapshot_request(file, 0, false);

	r.incremental = true;
	return take(h, &r);
}

Ctl__Request snapshot_update_request(const char *file)
{
	Ctl__Request r = snapshot_request(file, 0, true);

	r.incremental = true;
	return r;
}

unsigned snapshot_update_with_disks(struct host *h, const char *file)
{
	Ctl__Request r = snapshot_update_request(file);
	Ctl__Reply *reply = ask_any(h, &r);
	unsigned compared;

	if (reply->error[0])
		fail_msg("%s: snapshot: %s", h->id, reply->message);
	compared = reply->snapshot->disks_compared;
	ctl__reply__free_unpacked(reply, NULL);
	return compared;
}

uint64_t snapshot_pause_us(void)
{
	return pause_us;
}

static int begin_slow(struct host *h, const char *file, uint64_t bytes_per_s, bool disks)
{
	uint64_t until = now_ms() + START_MS, done = 0;
	Ctl__Request r = snapshot_request(file, bytes_per_s, disks);
	size_t n;
	uint8_t *message;
	struct sockaddr_un to;
	struct ft_err err;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	r.verify = disks;
	n = ctl__request__get_packed_size(&r);
	message = malloc(CTL_HEADER_BYTES + n);
	assert_int_equal(ctl_socket_path(h->run, GUEST, &to, &err), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
	ctl_put_length(message, (uint32_t)n);
	ctl__request__pack(&r, message + CTL_HEADER_BYTES);
	n += CTL_HEADER_BYTES;
	assert_int_equal(send(fd, message, n, MSG_NOSIGNAL), n);
	free(message);
	while (!done) {
		Ctl__Reply *reply = status_of(h);

		if (reply->status->snapshot)
			done = reply->status->snapshot->bytes_done;
		ctl__reply__free_unpacked(reply, NULL);
		breathe(until, "a snapshot begins");
	}
	return fd;
}

int snapshot_begin_slow(struct host *h, const char *file, uint64_t bytes_per_s)
{
	return begin_slow(h, file, bytes_per_s, false);
}

int snapshot_begin_slow_with_disks(struct host *h, const char *file, uint64_t bytes_per_s)
{
	return begin_slow(h, file, bytes_per_s, true);
}

uint64_t snapshot_wait(struct host *h, int fd)
{
	uint64_t faults;
	struct timeval limit = {ASK_MS / 1000, 0};
	uint8_t head[CTL_HEADER_BYTES], body[4096];
	Ctl__Reply *reply;
	uint32_t n;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	assert_int_equal(recv(fd, head, sizeof head, MSG_WAITALL), sizeof head);
	n = (uint32_t)head[0] | (uint32_t)head[1] << 8 | (uint32_t)head[2] << 16;
	assert_true(n <= sizeof body);
	assert_int_equal(recv(fd, body, n, MSG_WAITALL), n);
	close(fd);
	reply = ctl__reply__unpack(NULL, n, body);
	assert_non_null(reply);
	if (reply->error[0])
		fail_msg("%s: snapshot: %s", h->id, reply->message);
	faults = reply->snapshot->disk_faults;
	ctl__reply__free_unpacked(reply, NULL);
	return faults;
}

void wait_state(struct host *h, const char *state, unsigned within_ms)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;

	r.command = (char *)"wait";
	r.state = (char *)(uintptr_t)state;
	r.timeout_ms = within_ms;
	reply = request(h, &r, within_ms + 5000);
	if (reply->error[0])
		fail_msg("%s: not %s: %s; its agent said: %s", h->id, state, reply->message,
			 file_text(h->log));
	ctl__reply__free_unpacked(reply, NULL);
}

Ctl__Reply *status_of(struct host *h)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;

	r.command = (char *)"status";
	reply = request(h, &r, ASK_MS);
	assert_non_null(reply->status);
	return reply;
}

void assert_state(struct host *h, const char *state)
{
	Ctl__Reply *reply = status_of(h);

	if (strcmp(reply->status->state, state))
		fail_msg("%s is %s, not %s: %s", h->id, reply->status->state, state,
			 reply->status->reason);
	ctl__reply__free_unpacked(reply, NULL);
}

pid_t vmm_pid(struct host *h)
{
	Ctl__Reply *reply = status_of(h);
	pid_t pid = (pid_t)reply->status->vmm->pid;

	ctl__reply__free_unpacked(reply, NULL);
	return pid;
}

uint64_t committed(struct host *h)
{
	Ctl__Reply *reply = status_of(h);
	uint64_t epoch = reply->status->epoch_committed;

	ctl__reply__free_unpacked(reply, NULL);
	return epoch;
}

void wait_migration_cut(struct host *h)
{
	uint64_t until = now_ms() + GOES_ON_MS;
	bool lost = false;

	while (!lost) {
		Ctl__Reply *reply = status_of(h);

		lost = reply->status->migration && reply->status->migration->cut;
		ctl__reply__free_unpacked(reply, NULL);
		breathe(until, "the link's end is noticed");
	}
}

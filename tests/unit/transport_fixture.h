/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the transport's tests: an event loop that runs until something is true or a deadline
 * has passed, socket pairs, an end of a link that remembers what happened to it, and a throwaway
 * CA. Include after cmocka.h. */
#ifndef TRANSPORT_FIXTURE_H
#define TRANSPORT_FIXTURE_H

#include <dirent.h>
#include <event2/event.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/link.h"
#include "transport/pki.h"
#include "transport/tls_config.h"

#define WAIT_MS 10000

struct end {
	struct ft_link *link;
	unsigned messages, writables, closes;
	bool other_guest; /* the last message was marked */
	struct ft_err why;
	/* May be NULL. */
	void (*on_message)(struct end *end, const struct ft_msg *msg);
	void (*on_writable)(struct end *end);
	void *user;
};

static inline void end_message(void *ctx, const struct ft_msg *msg)
{
	struct end *end = ctx;

	end->messages++;
	end->other_guest = msg->other_guest;
	if (end->on_message)
		end->on_message(end, msg);
}

static inline void end_writable(void *ctx)
{
	struct end *end = ctx;

	end->writables++;
	if (end->on_writable)
		end->on_writable(end);
}

static inline void end_closed(void *ctx, const struct ft_err *why)
{
	struct end *end = ctx;

	end->closes++;
	end->why = *why;
}

static inline void end_take(struct end *end, struct ft_link *link)
{
	assert_non_null(link);
	end->link = link;
	link->events = (struct ft_link_events){end_message, end_writable, end_closed, end};
}

static inline void end_close(struct end *end)
{
	if (end->link)
		end->link->ops->close(end->link);
	end->link = NULL;
}

static inline int end_send(struct end *end, uint16_t type, const void *payload, uint32_t len)
{
	struct ft_msg msg = {.type = type, .payload = payload, .payload_len = len};

	return end->link->ops->send(end->link, &msg);
}

static inline void on_late(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	*(bool *)arg = true;
}

/* Runs the loop until `cond` holds; fails the test after WAIT_MS. */
#define run_until(base, cond)                                                                      \
	do {                                                                                       \
		bool late_ = false;                                                                \
		struct timeval tv_ = {WAIT_MS / 1000, 0};                                          \
		struct event *timer_ = evtimer_new(base, on_late, &late_);                         \
		event_add(timer_, &tv_);                                                           \
		while (!(cond) && !late_)                                                          \
			event_base_loop(base, EVLOOP_ONCE);                                        \
		event_free(timer_);                                                                \
		if (!(cond))                                                                       \
			fail_msg("%s: not within %d ms", #cond, WAIT_MS);                          \
	} while (0)

/* Lets the loop do all that is due by now. */
static inline void run_idle(struct event_base *base)
{
	for (int i = 0; i < 8; i++)
		event_base_loop(base, EVLOOP_NONBLOCK);
}

/* A connected TCP pair over loopback, both blocking. */
static inline void tcp_pair(int fd[2])
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof in;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(listener >= 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&in, sizeof in), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&in, &len), 0);
	fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd[0], (struct sockaddr *)&in, sizeof in), 0);
	fd[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd[1] >= 0);
	close(listener);
}

static inline void end_over(struct end *end, struct event_base *base, int fd)
{
	struct channel *channel = channel_socket_new(fd, NULL);

	assert_non_null(channel);
	end_take(end, link_new(base, channel, "test", NULL));
}

/* ---- a directory with a CA ---- */

static inline void remove_dir(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char path[512];

	while (d && (e = readdir(d))) {
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (e->d_name[0] != '.')
			unlink(path);
	}
	if (d)
		closedir(d);
	rmdir(dir);
}

/* Certificate `name` of the CA in `dir`, but checked against the CA in ca_dir. */
static inline struct tls_config *load_config(const char *ca_dir, const char *dir, const char *name,
					     const char *peer)
{
	char ca[300], cert[300], key[300];
	char names[300] = "", *save = NULL;
	const char *peers[TLS_PEERS_MAX + 1] = {NULL};
	struct tls_files files = {ca, cert, key, peer ? peers : NULL};
	struct tls_config *config = NULL;
	struct ft_err err = {0};

	snprintf(names, sizeof names, "%s", peer ? peer : "");
	for (unsigned i = 0; i < TLS_PEERS_MAX; i++)
		peers[i] = strtok_r(i ? NULL : names, " ", &save);
	snprintf(ca, sizeof ca, "%s/ca.pem", ca_dir);
	snprintf(cert, sizeof cert, "%s/%s.pem", dir, name);
	snprintf(key, sizeof key, "%s/%s.key", dir, name);
	if (tls_config_load(&files, &config, &err))
		fail_msg("%s", err.text);
	return config;
}

#endif

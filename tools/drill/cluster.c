// SPDX-License-Identifier: Apache-2.0
/* The drill's arbiter: an etcd cluster of three members on a host of its own, each at an address of
 * its own. The members run on when the cables to it are pulled. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "tools/drill/scene.h"

#define MEMBERS	    3
#define CLIENT_PORT 2379
#define PEER_PORT   2380
#define SERVES_MS   30000
#define LOOK_MS	    200 /* for one answer */
#define WORD_MAX    256

int cluster_find(char path[HOST_PATH_MAX], struct ft_err *err)
{
	return drill_in_path("etcd", path)
		       ? 0
		       : ft_err_set(err, ENOTSUP, "etcd is not installed (package etcd-server)");
}

static int run_member(struct drill *d, const char *program, unsigned i, struct ft_err *err)
{
	const char *address = field_arbiter_address(i);
	char words[7][WORD_MAX];
	size_t len;
	const char *argv[] = {program,	      words[0],		  words[1], words[2],
			      words[3],	      words[4],		  words[5], words[6],
			      "--logger=zap", "--log-level=warn", NULL};

	snprintf(words[0], WORD_MAX, "--name=m%u", i);
	snprintf(words[1], WORD_MAX, "--data-dir=%s/arbiter/m%u", d->dir, i);
	snprintf(words[2], WORD_MAX, "--listen-client-urls=http://%s:%d", address, CLIENT_PORT);
	snprintf(words[3], WORD_MAX, "--advertise-client-urls=http://%s:%d", address, CLIENT_PORT);
	snprintf(words[4], WORD_MAX, "--listen-peer-urls=http://%s:%d", address, PEER_PORT);
	snprintf(words[5], WORD_MAX, "--initial-advertise-peer-urls=http://%s:%d", address,
		 PEER_PORT);
	len = (size_t)snprintf(words[6], WORD_MAX, "--initial-cluster=");
	for (unsigned k = 0; k < MEMBERS; k++)
		len += (size_t)snprintf(words[6] + len, WORD_MAX - len, "%sm%u=http://%s:%d",
					k ? "," : "", k, field_arbiter_address(k), PEER_PORT);
	return host_run(&d->field.arbiter, argv, err);
}

/* GET /health, as etcd answers it when its cluster has a leader. */
static bool member_serves(struct drill *d, unsigned i)
{
	static const char request[] = "GET /health HTTP/1.0\r\n\r\n";
	const struct timeval limit = {.tv_usec = LOOK_MS * 1000};
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(CLIENT_PORT)};
	char answer[512] = "";
	size_t len = 0;
	ssize_t n = 0;
	int fd = host_socket(&d->field.arbiter, AF_INET, SOCK_STREAM);

	if (fd < 0)
		return false;
	inet_pton(AF_INET, field_arbiter_address(i), &to.sin_addr);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (!connect(fd, (struct sockaddr *)&to, sizeof to) &&
	    send(fd, request, sizeof request - 1, MSG_NOSIGNAL) > 0)
		while (len < sizeof answer - 1 &&
		       (n = recv(fd, answer + len, sizeof answer - 1 - len, 0)) > 0)
			len += (size_t)n;
	close(fd);
	return strstr(answer, "\"health\":\"true\"") != NULL;
}

static bool all_serve(struct drill *d, void *ctx)
{
	(void)ctx;
	for (unsigned i = 0; i < MEMBERS; i++)
		if (!member_serves(d, i))
			return false;
	return true;
}

int cluster_up(struct drill *d, struct ft_err *err)
{
	char program[HOST_PATH_MAX], path[HOST_PATH_MAX];
	int rc = cluster_find(program, err);

	if (!rc)
		rc = field_arbiter_up(&d->field, err);
	snprintf(path, sizeof path, "%s/arbiter.log", d->dir);
	memcpy(d->field.arbiter.log, path, sizeof path);
	for (unsigned i = 0; i < MEMBERS && !rc; i++)
		rc = run_member(d, program, i, err);
	return rc ? rc : drill_wait(d, all_serve, NULL, SERVES_MS, "etcd serves", err);
}

void cluster_write(FILE *f)
{
	fprintf(f, "arbiter { type = \"etcd\" endpoints = {");
	for (unsigned i = 0; i < MEMBERS; i++)
		fprintf(f, "%s\"http://%s:%d\"", i ? ", " : "", field_arbiter_address(i),
			CLIENT_PORT);
	fprintf(f, "} }\n");
}

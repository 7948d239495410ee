// SPDX-License-Identifier: Apache-2.0
/* What runs in the test guest, one static program. Servers listen before they go to the background,
 * so that whoever started them may go on at once.
 *
 *   payload echo TCP_PORT UDP_PORT           echoes both
 *   payload serve PORT DISK                  the drill's server: tools/drill/ledger.h
 *   payload spin PORT                        counts as fast as it can; answers each byte on a
 * connection with the count, u64 payload dirty PAGES_PER_S MIB            writes memory: one word
 * in each page of MIB, at this rate payload write MIB_PER_S DISK OFFSET_MIB  writes and syncs 64
 * MiB of the disk, over and over, at this rate payload disk DISK COUNT [v]              COUNT
 * synchronous writes of 4 KiB; with v a line for each */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tools/drill/ledger.h"

#define CONNECTIONS_MAX 64
#define WRITE_SPAN	(64u << 20)
#define WRITE_BYTES	(256u << 10)

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "payload: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void until_ns(uint64_t at)
{
	struct timespec t = {.tv_sec = (time_t)(at / 1000000000),
			     .tv_nsec = (long)(at % 1000000000)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static int bound(int type, const char *port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(fd, (struct sockaddr *)&at, sizeof at) || (type == SOCK_STREAM && listen(fd, 16)))
		die(port);
	return fd;
}

static int accepted(int server)
{
	int fd = accept4(server, NULL, NULL, SOCK_CLOEXEC), on = 1;

	if (fd >= 0)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	return fd;
}

static void to_background(void)
{
	if (fork())
		_exit(0);
	setsid();
}

static int disk_open(const char *path)
{
	int fd = open(path, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);

	if (fd < 0)
		die(path);
	return fd;
}

static void *pages(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (at == MAP_FAILED)
		die("memory");
	return at;
}

/* ---- echo ---- */

static void send_all(int fd, const void *data, size_t len)
{
	for (const char *at = data; len;) {
		ssize_t n = send(fd, at, len, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			return;
		at += n > 0 ? n : 0;
		len -= n > 0 ? (size_t)n : 0;
	}
}

static _Noreturn void echo_tcp(int fd)
{
	static char buf[64 << 10];
	ssize_t n;

	while ((n = recv(fd, buf, sizeof buf, 0)) > 0)
		send_all(fd, buf, (size_t)n);
	_exit(0);
}

static void echo_udp(int fd)
{
	struct sockaddr_in from;
	socklen_t from_len = sizeof from;
	char buf[2048];
	ssize_t n = recvfrom(fd, buf, sizeof buf, 0, (struct sockaddr *)&from, &from_len);

	if (n >= 0)
		sendto(fd, buf, (size_t)n, 0, (struct sockaddr *)&from, from_len);
}

static _Noreturn void run_echo(char **argv)
{
	struct pollfd p[2] = {{.fd = bound(SOCK_STREAM, argv[0]), .events = POLLIN},
			      {.fd = bound(SOCK_DGRAM, argv[1]), .events = POLLIN}};

	to_background();
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		poll(p, 2, -1);
		if (p[1].revents)
			echo_udp(p[1].fd);
		if (p[0].revents) {
			int fd = accepted(p[0].fd);

			if (fork() == 0)
				echo_tcp(fd);
			close(fd);
		}
	}
}

/* ---- serve ---- */

struct lane {
	uint64_t number, chain;
	uint64_t *ram; /* LEDGER_PAGES pages */
};

struct connection {
	int fd;
	size_t have;
	struct ledger_request request;
};

static struct lane lanes[LEDGER_LANES];

static off_t block_at(uint64_t lane, unsigned slot)
{
	return (off_t)((lane * LEDGER_SLOTS + slot) * LEDGER_BLOCK_BYTES);
}

/* -1: the disk failed. The connection ends then, so that the client hears of it. */
static int execute(int disk, uint64_t *block, const struct ledger_request *request,
		   struct ledger_answer *answer)
{
	struct lane *lane = &lanes[request->lane];
	uint64_t *page;
	int slot;

	lane->number++;
	lane->chain = ledger_chain(lane->chain, request);
	page = lane->ram + (size_t)ledger_page(lane->chain) * LEDGER_BLOCK_WORDS;
	*answer = (struct ledger_answer){.magic = LEDGER_MAGIC,
					 .lane = request->lane,
					 .number = lane->number,
					 .chain = lane->chain,
					 .page = ledger_digest(page)};
	slot = ledger_read_slot(lane->number);
	if (slot >= 0) {
		if (pread(disk, block, LEDGER_BLOCK_BYTES,
			  block_at(request->lane, (unsigned)slot)) != LEDGER_BLOCK_BYTES)
			return -1;
		answer->block = ledger_digest(block);
	}
	ledger_fill(page, request->lane, lane->number, lane->chain);
	memcpy(block, page, LEDGER_BLOCK_BYTES);
	return pwrite(disk, block, LEDGER_BLOCK_BYTES,
		      block_at(request->lane, ledger_slot(lane->number))) == LEDGER_BLOCK_BYTES
		       ? 0
		       : -1;
}

/* False: the connection has ended. */
static int converse(struct connection *c, int disk, uint64_t *block)
{
	struct ledger_answer answer;
	ssize_t n = recv(c->fd, (char *)&c->request + c->have, sizeof c->request - c->have, 0);

	if (n <= 0)
		return n < 0 && errno == EINTR;
	c->have += (size_t)n;
	if (c->have < sizeof c->request)
		return 1;
	c->have = 0;
	if (c->request.magic != LEDGER_MAGIC || c->request.lane >= LEDGER_LANES)
		return 0;
	if (execute(disk, block, &c->request, &answer)) {
		perror("payload: disk");
		return 0;
	}
	send_all(c->fd, &answer, sizeof answer);
	return 1;
}

static _Noreturn void run_serve(char **argv)
{
	static struct connection connections[CONNECTIONS_MAX];
	static struct pollfd p[CONNECTIONS_MAX + 1];
	int server = bound(SOCK_STREAM, argv[0]), disk = disk_open(argv[1]);
	uint64_t *block = pages(LEDGER_BLOCK_BYTES);
	unsigned n = 0;

	for (unsigned i = 0; i < LEDGER_LANES; i++)
		lanes[i].ram = pages((size_t)LEDGER_PAGES * LEDGER_BLOCK_BYTES);
	to_background();
	for (;;) {
		unsigned kept = 0;

		p[n] = (struct pollfd){.fd = n < CONNECTIONS_MAX ? server : -1, .events = POLLIN};
		for (unsigned i = 0; i < n; i++)
			p[i] = (struct pollfd){.fd = connections[i].fd, .events = POLLIN};
		poll(p, n + 1, -1);
		for (unsigned i = 0; i < n; i++) {
			if (p[i].revents && !converse(&connections[i], disk, block))
				close(connections[i].fd);
			else
				connections[kept++] = connections[i];
		}
		if (p[n].revents & POLLIN)
			connections[kept++] = (struct connection){.fd = accepted(server)};
		n = kept;
	}
}

/* ---- loads ---- */

static _Noreturn void run_spin(char **argv)
{
	volatile uint64_t *count =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int server = bound(SOCK_STREAM, argv[0]);

	to_background();
	if (fork() == 0)
		for (;;)
			++*count;
	for (;;) {
		int fd = accepted(server);
		char byte;

		while (fd >= 0 && recv(fd, &byte, 1, 0) == 1) {
			uint64_t n = *count;

			send_all(fd, &n, sizeof n);
		}
		close(fd);
	}
}

/* In slices of 10 ms. */
static _Noreturn void run_dirty(char **argv)
{
	uint64_t rate = strtoull(argv[0], NULL, 10), bytes = strtoull(argv[1], NULL, 10) << 20,
		 start, done = 0;
	volatile uint64_t *ram = pages(bytes);

	to_background();
	start = now_ns();
	for (uint64_t slice = 1;; slice++) {
		for (; done < rate * slice / 100; done++)
			ram[done * LEDGER_BLOCK_WORDS % (bytes / 8)] = done;
		until_ns(start + slice * 10000000);
	}
}

static _Noreturn void run_write(char **argv)
{
	uint64_t rate = strtoull(argv[0], NULL, 10) << 20, base = strtoull(argv[2], NULL, 10) << 20,
		 start;
	int disk = disk_open(argv[1]);
	uint64_t *data = pages(WRITE_BYTES);

	to_background();
	start = now_ns();
	for (uint64_t i = 0;; i++) {
		for (unsigned w = 0; w < WRITE_BYTES / 8; w += LEDGER_BLOCK_WORDS)
			data[w] = i;
		if (pwrite(disk, data, WRITE_BYTES, (off_t)(base + i * WRITE_BYTES % WRITE_SPAN)) !=
		    WRITE_BYTES)
			die(argv[1]);
		until_ns(start + (i + 1) * WRITE_BYTES * 1000 / rate * 1000000);
	}
}

static int run_disk(char **argv, int verbose)
{
	int disk = disk_open(argv[0]), count = atoi(argv[1]);
	uint64_t *block = pages(LEDGER_BLOCK_BYTES), start = now_ns(), longest = 0;

	for (int i = 0; i < count; i++) {
		uint64_t at = now_ns();

		block[0] = (uint64_t)i;
		block[1] = ~(uint64_t)i;
		if (pwrite(disk, block, LEDGER_BLOCK_BYTES,
			   (off_t)(i % 2048) * LEDGER_BLOCK_BYTES) != LEDGER_BLOCK_BYTES)
			die(argv[0]);
		at = now_ns() - at;
		longest = at > longest ? at : longest;
		if (verbose) {
			printf("w %d\n", i);
			fflush(stdout);
		}
	}
	printf("disk %d writes mean %.3f ms max %.3f ms\n", count,
	       (double)(now_ns() - start) / 1e6 / count, (double)longest / 1e6);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(what, "echo") && argc == 4)
		run_echo(argv + 2);
	if (!strcmp(what, "serve") && argc == 4)
		run_serve(argv + 2);
	if (!strcmp(what, "spin") && argc == 3)
		run_spin(argv + 2);
	if (!strcmp(what, "dirty") && argc == 4)
		run_dirty(argv + 2);
	if (!strcmp(what, "write") && argc == 5)
		run_write(argv + 2);
	if (!strcmp(what, "disk") && argc >= 4)
		return run_disk(argv + 2, argc > 4);
	fputs("payload: echo TCP_PORT UDP_PORT | serve PORT DISK | spin PORT | dirty PAGES_PER_S "
	      "MIB | write MIB_PER_S DISK OFFSET_MIB | "
	      "disk DISK COUNT [v]\n",
	      stderr);
	return 1;
}

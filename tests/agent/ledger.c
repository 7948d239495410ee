// SPDX-License-Identifier: Apache-2.0
#include "tests/agent/ledger.h"

#include <errno.h>
#include <sys/socket.h>
#include <netinet/in.h>

#include "tests/agent/harness.h"

int ledger_connect(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET,
				 .sin_port = htons(LEDGER_PORT),
				 .sin_addr.s_addr = htonl(0x0a090002)};
	struct timeval limit = {GOES_ON_MS / 1000, 0};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
		fail_msg("connecting to the guest: %s", strerror(errno));
	return fd;
}

static uint64_t digest_of(const struct ledger *l, const struct ledger_writer *w)
{
	uint64_t words[LEDGER_BLOCK_WORDS];

	ledger_fill(words, l->lane, w->number, w->chain);
	return ledger_digest(words);
}

/* The only right answer; the model moves on. */
static struct ledger_answer expect(struct ledger *l, const struct ledger_request *request)
{
	struct ledger_answer a = {.magic = LEDGER_MAGIC, .lane = l->lane};
	struct ledger_writer *page;
	int slot;

	a.number = ++l->number;
	a.chain = l->chain = ledger_chain(l->chain, request);
	page = &l->pages[ledger_page(l->chain)];
	a.page = digest_of(l, page);
	slot = ledger_read_slot(l->number);
	a.block = slot >= 0 ? digest_of(l, &l->slots[slot]) : 0;
	*page = (struct ledger_writer){l->number, l->chain};
	l->slots[ledger_slot(l->number)] = *page;
	return a;
}

void ledger_work(struct ledger *l, int fd, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct ledger_request request = {.magic = LEDGER_MAGIC, .lane = l->lane};
		struct ledger_answer got, right;
		uint64_t began = now_ms();

		for (unsigned w = 0; w < sizeof request.words / sizeof *request.words; w++)
			request.words[w] = ledger_mix(began, l->number + w);
		right = expect(l, &request);
		if (send(fd, &request, sizeof request, MSG_NOSIGNAL) != sizeof request ||
		    recv(fd, &got, sizeof got, MSG_WAITALL) != sizeof got)
			fail_msg("request %lu: no answer: %s", l->number, strerror(errno));
		if (memcmp(&got, &right, sizeof got) != 0)
			fail_msg("answer %lu (the guest counts %lu): %s is not what it was",
				 right.number, got.number,
				 got.chain != right.chain ? "the history"
				 : got.page != right.page ? "a page of RAM"
							  : "a block of the disk");
		if (now_ms() - began > l->longest_ms)
			l->longest_ms = now_ms() - began;
	}
}

// SPDX-License-Identifier: Apache-2.0
/* The client's side of tools/drill/ledger.h: what the guest must answer, and what its disk must
 * hold. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/drill/client.h"
#include "tools/drill/ledger.h"

/* Who wrote a page or a block last; number 0: nobody. */
struct writer {
	uint64_t number, chain;
};

struct ledger {
	uint64_t lane, number, chain;
	struct ledger_request request; /* on its way */
	bool waiting;
	struct writer pages[LEDGER_PAGES], slots[LEDGER_SLOTS];
	uint64_t seed;
};

void *talk_ledger_new(void)
{
	struct ledger *l = calloc(1, sizeof *l);

	if (l)
		l->seed = (uint64_t)getpid() ^ drill_now_ns();
	return l;
}

static size_t ledger_next(void *talk, uint8_t out[TALK_BYTES_MAX])
{
	struct ledger *l = talk;

	l->request = (struct ledger_request){.magic = LEDGER_MAGIC, .lane = l->lane};
	for (unsigned i = 0; i < sizeof l->request.words / sizeof *l->request.words; i++)
		l->request.words[i] = l->seed = ledger_mix(l->seed, l->number + i);
	memcpy(out, &l->request, sizeof l->request);
	l->waiting = true;
	return sizeof l->request;
}

static uint64_t digest_of(uint64_t lane, const struct writer *w)
{
	uint64_t words[LEDGER_BLOCK_WORDS];

	ledger_fill(words, lane, w->number, w->chain);
	return ledger_digest(words);
}

/* The only right answer to the request that is on its way; the model moves on with it. */
static struct ledger_answer ledger_expect(struct ledger *l)
{
	struct ledger_answer a = {.magic = LEDGER_MAGIC, .lane = l->lane};
	struct writer *page;
	int slot;

	a.number = ++l->number;
	a.chain = l->chain = ledger_chain(l->chain, &l->request);
	page = &l->pages[ledger_page(l->chain)];
	a.page = digest_of(l->lane, page);
	slot = ledger_read_slot(l->number);
	a.block = slot >= 0 ? digest_of(l->lane, &l->slots[slot]) : 0;
	*page = (struct writer){l->number, l->chain};
	l->slots[ledger_slot(l->number)] = *page;
	l->waiting = false;
	return a;
}

static enum talk_verdict ledger_check(void *talk, const uint8_t *data, size_t len,
				      struct ft_err *why)
{
	struct ledger *l = talk;
	struct ledger_answer got, right = ledger_expect(l);

	memcpy(&got, data, len);
	if (!memcmp(&got, &right, sizeof got))
		return TALK_RIGHT;
	if (got.number != right.number)
		ft_err_set(why, EILSEQ, "answer %" PRIu64 ": the guest counts %" PRIu64 " requests",
			   right.number, got.number);
	else
		ft_err_set(why, EILSEQ, "answer %" PRIu64 ": %s is not what it was", right.number,
			   got.chain != right.chain ? "the history"
			   : got.page != right.page ? "a page of RAM"
						    : "a block of the disk");
	return TALK_WRONG;
}

static bool block_right(const struct ledger *l, uint64_t index, const uint64_t *block)
{
	uint64_t right[LEDGER_BLOCK_WORDS], first = l->lane * LEDGER_SLOTS;
	struct writer w = {0};

	if (index >= first && index < first + LEDGER_SLOTS)
		w = l->slots[index - first];
	ledger_fill(right, l->lane, w.number, w.chain);
	if (!memcmp(block, right, sizeof right))
		return true;
	if (!l->waiting || index != first + ledger_slot(l->number + 1))
		return false;
	ledger_fill(right, l->lane, l->number + 1, ledger_chain(l->chain, &l->request));
	return !memcmp(block, right, sizeof right);
}

static int ledger_compare(void *talk, const char *image, uint64_t *bytes, uint64_t *blocks,
			  struct ft_err *why)
{
	static uint64_t block[LEDGER_BLOCK_WORDS];
	const struct ledger *l = talk;
	int fd = open(image, O_RDONLY | O_CLOEXEC), rc = 0;
	ssize_t n = 0;

	if (fd < 0)
		return ft_err_set(why, errno, "%s: %s", image, strerror(errno));
	*bytes = 0;
	*blocks = l->number < LEDGER_SLOTS ? l->number : LEDGER_SLOTS;
	for (uint64_t i = 0; !rc && (n = read(fd, block, sizeof block)) == sizeof block; i++) {
		*bytes += sizeof block;
		if (!block_right(l, i, block))
			rc = ft_err_set(why, EILSEQ,
					"%s: block %" PRIu64 " is not what was acknowledged", image,
					i);
	}
	if (!rc && n)
		rc = ft_err_set(why, EIO, "%s: cannot read it whole", image);
	if (!rc && *bytes < LEDGER_DISK_BYTES)
		rc = ft_err_set(why, EIO, "%s: is only %" PRIu64 " bytes long", image, *bytes);
	close(fd);
	return rc;
}

const struct talk_ops talk_ledger = {
	.type = SOCK_STREAM,
	.answer_bytes = sizeof(struct ledger_answer),
	.connection = "TCP connection",
	.next = ledger_next,
	.check = ledger_check,
	.compare = ledger_compare,
	.free = free,
};

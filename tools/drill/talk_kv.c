// SPDX-License-Identifier: Apache-2.0
/* The client of pocket's key-value server (vmm-glue/pocket/kv.h): PUTs and GETs in turn, by
 * datagrams, repeated until answered. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "tools/drill/client.h"
#include "vmm-glue/pocket/kv.h"

#define CLIENT_ID 1
#define KEYS	  64u
#define REPEAT_MS 20

struct kv_talk {
	uint64_t seq, number, chain, puts;
	char request[KV_REQUEST_MAX + 2];
	size_t request_len; /* without its newline */
	bool waiting;
	char values[KEYS][KV_VALUE_MAX + 1]; /* "": none yet */
	struct kv_record *records;	     /* of all PUTs, the one on its way too */
	size_t records_max;
};

void *talk_kv_new(void)
{
	struct kv_talk *t = calloc(1, sizeof *t);

	if (t)
		t->chain = KV_CHAIN_START;
	return t;
}

static unsigned key_of(const struct kv_talk *t)
{
	return (unsigned)(t->seq / 2 % KEYS);
}

static uint64_t value_of(const struct kv_talk *t)
{
	return t->seq * UINT64_C(0x9e3779b97f4a7c15);
}

/* What the server journals for the PUT on its way. */
static void note_record(struct kv_talk *t)
{
	struct kv_request q;
	struct kv_record *r;

	if (!kv_request_parse(t->request, t->request_len, &q) || !q.put)
		return;
	if (t->puts == t->records_max) {
		size_t max = t->records_max ? t->records_max * 2 : 4096;

		r = realloc(t->records, max * sizeof *r);
		if (!r)
			abort(); /* the drill cannot judge without its books */
		t->records = r;
		t->records_max = max;
	}
	r = &t->records[t->puts];
	*r = (struct kv_record){.magic = KV_RECORD_MAGIC,
				.number = t->number + 1,
				.chain = kv_chain(t->chain, t->request, t->request_len),
				.client = CLIENT_ID,
				.seq = t->seq,
				.key_len = (uint16_t)q.key_len,
				.value_len = (uint16_t)q.value_len};
	memcpy(r->key, q.key, q.key_len);
	memcpy(r->value, q.value, q.value_len);
	r->sum = XXH3_64bits(r, offsetof(struct kv_record, sum));
}

static size_t kv_next(void *talk, uint8_t out[TALK_BYTES_MAX])
{
	struct kv_talk *t = talk;
	int n;

	t->seq++;
	if (t->seq % 8)
		n = snprintf(t->request, sizeof t->request,
			     "PUT %d %" PRIu64 " key%u value%" PRIx64, CLIENT_ID, t->seq, key_of(t),
			     value_of(t));
	else
		n = snprintf(t->request, sizeof t->request, "GET %d %" PRIu64 " key%u", CLIENT_ID,
			     t->seq, key_of(t));
	t->request_len = (size_t)n;
	t->waiting = true;
	note_record(t);
	memcpy(out, t->request, t->request_len);
	out[n] = '\n';
	return t->request_len + 1;
}

static bool answer_right(const struct kv_talk *t, const struct kv_answer *a)
{
	const char *value = t->values[key_of(t)];
	enum kv_status status = t->seq % 8 ? KV_OK : *value ? KV_VALUE : KV_NONE;

	return a->status == status && a->client == CLIENT_ID && a->seq == t->seq &&
	       a->number == t->number + 1 &&
	       a->chain == kv_chain(t->chain, t->request, t->request_len) &&
	       (status != KV_VALUE || !strcmp(a->text, value));
}

static enum talk_verdict kv_check(void *talk, const uint8_t *data, size_t len, struct ft_err *why)
{
	struct kv_talk *t = talk;
	struct kv_answer a;
	bool parsed = kv_answer_parse((const char *)data, len, &a), right;

	if (parsed && a.status != KV_ERR && a.seq < t->seq)
		return TALK_OLD;
	right = parsed && answer_right(t, &a);
	if (!right)
		ft_err_set(why, EILSEQ, "answer %" PRIu64 ": %.*s", t->number + 1,
			   (int)strcspn((const char *)data, "\n") < (int)len
				   ? (int)strcspn((const char *)data, "\n")
				   : (int)len,
			   (const char *)data);
	t->number++;
	t->chain = kv_chain(t->chain, t->request, t->request_len);
	t->waiting = false;
	if (t->seq % 8) {
		snprintf(t->values[key_of(t)], sizeof t->values[0], "value%" PRIx64, value_of(t));
		t->puts++;
	}
	return right ? TALK_RIGHT : TALK_WRONG;
}

/* The last of the first n records that belongs to this sector; NULL: none. */
static const struct kv_record *last_record(const struct kv_talk *t, uint64_t n, uint64_t sector,
					   uint64_t sectors)
{
	if (n <= sector)
		return NULL;
	return &t->records[(n - 1 - sector) / sectors * sectors + sector];
}

static bool sector_right(const struct kv_talk *t, uint64_t sector, uint64_t sectors,
			 const uint8_t *data)
{
	static const struct kv_record none;
	uint64_t most = t->puts + (t->waiting && t->seq % 8 ? 1 : 0);

	for (uint64_t n = t->puts; n <= most; n++) {
		const struct kv_record *r = last_record(t, n, sector, sectors);

		if (!memcmp(data, r ? r : &none, sizeof *r))
			return true;
	}
	return false;
}

static int kv_compare(void *talk, const char *image, uint64_t *bytes, uint64_t *blocks,
		      struct ft_err *why)
{
	const struct kv_talk *t = talk;
	int fd = open(image, O_RDONLY | O_CLOEXEC), rc = 0;
	uint8_t data[KV_RECORD_BYTES];
	struct stat st;
	ssize_t n = 0;

	if (fd < 0 || fstat(fd, &st)) {
		rc = ft_err_set(why, errno, "%s: %s", image, strerror(errno));
		if (fd >= 0)
			close(fd);
		return rc;
	}
	*bytes = 0;
	*blocks = t->puts;
	for (uint64_t i = 0; !rc && (n = read(fd, data, sizeof data)) == sizeof data; i++) {
		*bytes += sizeof data;
		if (!sector_right(t, i, (uint64_t)st.st_size / KV_RECORD_BYTES, data))
			rc = ft_err_set(why, EILSEQ,
					"%s: sector %" PRIu64 " is not what was acknowledged",
					image, i);
	}
	if (!rc && (n || *bytes != (uint64_t)st.st_size))
		rc = ft_err_set(why, EIO, "%s: cannot read it whole", image);
	close(fd);
	return rc;
}

static void kv_free(void *talk)
{
	struct kv_talk *t = talk;

	if (t)
		free(t->records);
	free(t);
}

const struct talk_ops talk_kv = {
	.type = SOCK_DGRAM,
	.repeat_ms = REPEAT_MS,
	.connection = "UDP socket",
	.next = kv_next,
	.check = kv_check,
	.compare = kv_compare,
	.free = kv_free,
};

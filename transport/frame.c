// SPDX-License-Identifier: Apache-2.0
// The layout is told once, by the table of offsets in frame.h and the constants here; the static
// asserts keep them from drifting apart.
#include "transport/frame.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <xxhash.h>

static const uint8_t magic[8] = {'K', 'E', 'M', 'A', 'R', 'I', 'F', 'T'};

enum {
	AT_MAGIC = 0,
	AT_VERSION = AT_MAGIC + sizeof magic,
	AT_HEADER_LEN = AT_VERSION + 2,
	AT_TYPE = AT_HEADER_LEN + 2,
	AT_FLAGS = AT_TYPE + 2,
	AT_UUID = AT_FLAGS + 2,
	AT_GENERATION = AT_UUID + FRAME_UUID,
	AT_EPOCH = AT_GENERATION + 8,
	AT_SEQ = AT_EPOCH + 8,
	AT_BODY_LEN = AT_SEQ + 8,
	AT_PAYLOAD_LEN = AT_BODY_LEN + 4,
	AT_BODY_HASH = AT_PAYLOAD_LEN + 4,
	AT_PAYLOAD_HASH = AT_BODY_HASH + 8,
	AT_HEADER_HASH = AT_PAYLOAD_HASH + 8,
	AT_END = AT_HEADER_HASH + 8,
};
static_assert(AT_UUID == 16 && AT_SEQ == 48 && AT_BODY_HASH == 64, "as documented");
static_assert(AT_END == FRAME_HEADER, "as documented");
static_assert(FRAME_HEADER % 8 == 0, "what follows a header stays aligned");
static_assert((uint64_t)FRAME_HEADER + FT_BODY_MAX + FT_PAYLOAD_MAX < UINT32_MAX,
	      "a length fits u32");

static void put16(uint8_t *p, uint16_t v)
{
	v = htole16(v);
	memcpy(p, &v, sizeof v);
}

static void put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof v);
}

static void put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof v);
}

static uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof v);
	return le16toh(v);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof v);
	return le32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof v);
	return le64toh(v);
}

/* The library's build for any x86 hashes with SSE2; where it also has the one that picks the widest
 * vectors (the same result, at a third of the time), that is in the shared library under this name.
 */
extern XXH64_hash_t XXH3_64bits_dispatch(const void *data, size_t len) __attribute__((weak));

uint64_t frame_hash(const void *data, size_t len)
{
	return XXH3_64bits_dispatch ? XXH3_64bits_dispatch(data, len) : XXH3_64bits(data, len);
}

void frame_encode(const struct frame_header *h, uint8_t out[FRAME_HEADER])
{
	assert(h->body_len <= FT_BODY_MAX);
	assert(h->payload_len <= FT_PAYLOAD_MAX);
	memcpy(out + AT_MAGIC, magic, sizeof magic);
	put16(out + AT_VERSION, FRAME_VERSION);
	put16(out + AT_HEADER_LEN, FRAME_HEADER);
	put16(out + AT_TYPE, h->type);
	put16(out + AT_FLAGS, 0);
	memcpy(out + AT_UUID, h->uuid, FRAME_UUID);
	put64(out + AT_GENERATION, h->generation);
	put64(out + AT_EPOCH, h->epoch);
	put64(out + AT_SEQ, h->seq);
	put32(out + AT_BODY_LEN, h->body_len);
	put32(out + AT_PAYLOAD_LEN, h->payload_len);
	put64(out + AT_BODY_HASH, h->body_hash);
	put64(out + AT_PAYLOAD_HASH, h->payload_hash);
	put64(out + AT_HEADER_HASH, frame_hash(out, AT_HEADER_HASH));
}

static int bad_magic(const uint8_t *in, struct ft_err *err)
{
	/* A TLS handshake record: the commonest mistake deserves its name. */
	if (in[0] == 0x16 && in[1] == 0x03)
		return ft_err_set(err, EPROTO,
				  "frame: magic: peer speaks TLS, this end is plaintext");
	return ft_err_set(err, EPROTO, "frame: magic: peer does not speak this protocol");
}

/* The version comes before the hash: a later one may have a longer header, which we could not
 * verify. */
int frame_decode(const uint8_t in[FRAME_HEADER], struct frame_header *h, struct ft_err *err)
{
	if (memcmp(in, magic, sizeof magic))
		return bad_magic(in, err);
	if (get16(in + AT_VERSION) != FRAME_VERSION)
		return ft_err_set(err, EPROTONOSUPPORT,
				  "frame: protocol version: peer speaks %u, this end %u",
				  get16(in + AT_VERSION), FRAME_VERSION);
	if (get16(in + AT_HEADER_LEN) != FRAME_HEADER)
		return ft_err_set(err, EPROTO, "frame: header length: %u, not %u",
				  get16(in + AT_HEADER_LEN), FRAME_HEADER);
	if (get64(in + AT_HEADER_HASH) != frame_hash(in, AT_HEADER_HASH))
		return ft_err_set(err, EPROTO, "frame: header hash: header is corrupted");
	if (get16(in + AT_FLAGS))
		return ft_err_set(err, EPROTO, "frame: flags: unknown 0x%x", get16(in + AT_FLAGS));
	h->type = get16(in + AT_TYPE);
	memcpy(h->uuid, in + AT_UUID, FRAME_UUID);
	h->generation = get64(in + AT_GENERATION);
	h->epoch = get64(in + AT_EPOCH);
	h->seq = get64(in + AT_SEQ);
	h->body_len = get32(in + AT_BODY_LEN);
	h->payload_len = get32(in + AT_PAYLOAD_LEN);
	h->body_hash = get64(in + AT_BODY_HASH);
	h->payload_hash = get64(in + AT_PAYLOAD_HASH);
	if (h->body_len > FT_BODY_MAX)
		return ft_err_set(err, EPROTO, "frame: body length: %u, at most %u", h->body_len,
				  FT_BODY_MAX);
	if (h->payload_len > FT_PAYLOAD_MAX)
		return ft_err_set(err, EPROTO, "frame: payload length: %u, at most %u",
				  h->payload_len, FT_PAYLOAD_MAX);
	return 0;
}

int frame_check_place(const struct frame_header *h, const uint8_t *uuid, uint64_t seq,
		      struct ft_err *err)
{
	if (h->seq != seq)
		return ft_err_set(err, EPROTO, "frame: sequence: %llu, not %llu: %s",
				  (unsigned long long)h->seq, (unsigned long long)seq,
				  h->seq < seq ? "replayed or reordered" : "frames are missing");
	if (uuid && memcmp(h->uuid, uuid, FRAME_UUID))
		return ft_err_set(err, EPROTO, "frame: uuid: belongs to another guest");
	return 0;
}

int frame_check_content(const struct frame_header *h, const uint8_t *body, const uint8_t *payload,
			struct ft_err *err)
{
	if (frame_hash(body, h->body_len) != h->body_hash)
		return ft_err_set(err, EBADMSG, "frame: body hash: body is corrupted");
	if (frame_hash(payload, h->payload_len) != h->payload_hash)
		return ft_err_set(err, EBADMSG, "frame: payload hash: payload is corrupted");
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* kv: the key-value server that a pocket machine runs. One request and one answer a datagram, text:
 *
 *   PUT CLIENT SEQ KEY VALUE        OK CLIENT SEQ NUMBER CHAIN
 *   GET CLIENT SEQ KEY              VALUE CLIENT SEQ NUMBER CHAIN VALUE   |   NONE CLIENT SEQ
 * NUMBER CHAIN ERR CLIENT SEQ WHY                    (0 0 when they could not be read)
 *
 * One space between words; a newline at the end is allowed in requests and always there in answers.
 * CLIENT and SEQ are decimal u64 (CLIENT not 0), KEY up to 31 and VALUE up to 255 printable ASCII
 * characters without spaces.
 *
 * Each operation is executed once: a client has one request at a time on the way and counts SEQ up
 * by one from wherever it likes. It repeats a request that is not answered; a repeated one gets the
 * same answer byte for byte. NUMBER counts the operations executed, CHAIN is a hash over all of
 * them, so a client (alone, or several who pool their answers in the order of NUMBER) can tell
 * every answer beforehand, and an operation that was lost or executed twice shows in each one after
 * it. WHY: syntax, order (SEQ is neither the last nor the next), full (no room for another key), io
 * (the disk failed; not executed, may be repeated). Errors are not operations. A client that stayed
 * away while many others came is forgotten.
 *
 * A PUT is answered when its record is on the disk and flushed. Record R of the PUTs goes to disk R
 * % disks, at (R / disks % (disk bytes / 512)) * 512: 512 bytes, little endian, struct kv_record's
 * fields in order. */
#ifndef VMM_GLUE_POCKET_KV_H
#define VMM_GLUE_POCKET_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KV_KEY_MAX	31
#define KV_VALUE_MAX	255
#define KV_REQUEST_MAX	350 /* "PUT", two u64, key, value, spaces, newline */
#define KV_ANSWER_MAX	360
#define KV_RECORD_BYTES 512
#define KV_CHAIN_START	0xcbf29ce484222325ull

/* The chain after one more operation: FNV-1a 64 of the request's text and a newline, going on from
 * `chain`. */
uint64_t kv_chain(uint64_t chain, const char *request, size_t len);

struct kv_request {
	bool put;
	uint64_t client, seq;
	const char *key, *value; /* into the text, not terminated; value NULL for GET */
	size_t key_len, value_len;
	size_t len; /* of the text without the newline */
};
/* False: not a request. Any bytes will do. */
bool kv_request_parse(const char *text, size_t len, struct kv_request *req);

enum kv_status { KV_OK = 1, KV_VALUE, KV_NONE, KV_ERR };
struct kv_answer {
	enum kv_status status;
	uint64_t client, seq, number, chain;
	char text[KV_VALUE_MAX + 1]; /* the value, or why */
};
/* For clients. False: not an answer. */
bool kv_answer_parse(const char *text, size_t len, struct kv_answer *answer);

struct kv_record {
	uint64_t magic;	 /* KV_RECORD_MAGIC */
	uint64_t number; /* of this operation */
	uint64_t chain;	 /* after it */
	uint64_t client, seq;
	uint16_t key_len, value_len;
	char key[KV_KEY_MAX + 1], value[KV_VALUE_MAX + 1]; /* zero behind their end */
	uint8_t zero[172];
	uint64_t sum; /* XXH3-64 of all that is in front */
} __attribute__((packed));
#define KV_RECORD_MAGIC 0x314c4e524a564bull /* "KVJRNL1" */
/* Does the disk hold a whole record here? */
bool kv_record_valid(const struct kv_record *rec);

#endif

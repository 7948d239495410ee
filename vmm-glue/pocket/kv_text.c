// SPDX-License-Identifier: Apache-2.0
// kv's texts and records: what both the server in the machine and a client outside need. Requests
// come from anyone: the parser takes any bytes and accepts exactly the grammar of kv.h.
#include <string.h>
#include <xxhash.h>

#include "vmm-glue/pocket/kv.h"

_Static_assert(sizeof(struct kv_record) == KV_RECORD_BYTES, "one sector");

uint64_t kv_chain(uint64_t chain, const char *request, size_t len)
{
	const uint64_t prime = 0x100000001b3ull;

	for (size_t i = 0; i < len; i++)
		chain = (chain ^ (uint8_t)request[i]) * prime;
	return (chain ^ '\n') * prime;
}

// The next word of at most max printable characters. Words end at one space or at the end.
static bool word(const char **at, const char *end, size_t max, const char **out, size_t *len)
{
	const char *start = *at, *p = start;

	while (p<end && * p> ' ' && *p <= '~')
		p++;
	if (p == start || (size_t)(p - start) > max || (p < end && *p != ' ') || p + 1 == end)
		return false;
	*out = start;
	*len = (size_t)(p - start);
	*at = p < end ? p + 1 : end;
	return true;
}

static bool digits(const char **at, const char *end, unsigned base, uint64_t *out)
{
	const char *text;
	uint64_t value = 0;
	size_t len;

	if (!word(at, end, 20, &text, &len) || (len > 1 && base == 10 && text[0] == '0'))
		return false;
	for (size_t i = 0; i < len; i++) {
		unsigned digit = (unsigned)text[i] - '0';

		if (base == 16 && text[i] >= 'a' && text[i] <= 'f')
			digit = (unsigned)text[i] - 'a' + 10;
		if (digit >= base || __builtin_mul_overflow(value, base, &value) ||
		    __builtin_add_overflow(value, digit, &value))
			return false;
	}
	*out = value;
	return true;
}

static const char *without_newline(const char *text, size_t len)
{
	return len && text[len - 1] == '\n' ? text + len - 1 : text + len;
}

bool kv_request_parse(const char *text, size_t len, struct kv_request *req)
{
	const char *at = text, *end = without_newline(text, len), *verb;
	size_t verb_len;

	*req = (struct kv_request){.len = (size_t)(end - text)};
	if (len > KV_REQUEST_MAX || !word(&at, end, 3, &verb, &verb_len) || verb_len != 3)
		return false;
	req->put = !memcmp(verb, "PUT", 3);
	if (!req->put && memcmp(verb, "GET", 3) != 0)
		return false;
	if (!digits(&at, end, 10, &req->client) || !req->client ||
	    !digits(&at, end, 10, &req->seq) ||
	    !word(&at, end, KV_KEY_MAX, &req->key, &req->key_len))
		return false;
	if (req->put && !word(&at, end, KV_VALUE_MAX, &req->value, &req->value_len))
		return false;
	return at == end;
}

static bool status_of(const char *verb, size_t len, enum kv_status *status)
{
	static const char *const names[] = {
		[KV_OK] = "OK", [KV_VALUE] = "VALUE", [KV_NONE] = "NONE", [KV_ERR] = "ERR"};

	for (int i = KV_OK; i <= KV_ERR; i++)
		if (strlen(names[i]) == len && !memcmp(names[i], verb, len)) {
			*status = (enum kv_status)i;
			return true;
		}
	return false;
}

bool kv_answer_parse(const char *text, size_t len, struct kv_answer *answer)
{
	const char *at = text, *end = without_newline(text, len), *verb, *rest;
	size_t verb_len, rest_len;

	*answer = (struct kv_answer){0};
	if (!word(&at, end, 5, &verb, &verb_len) || !status_of(verb, verb_len, &answer->status) ||
	    !digits(&at, end, 10, &answer->client) || !digits(&at, end, 10, &answer->seq))
		return false;
	if (answer->status != KV_ERR &&
	    (!digits(&at, end, 10, &answer->number) || !digits(&at, end, 16, &answer->chain)))
		return false;
	if (answer->status == KV_VALUE || answer->status == KV_ERR) {
		if (!word(&at, end, KV_VALUE_MAX, &rest, &rest_len))
			return false;
		memcpy(answer->text, rest, rest_len);
	}
	return at == end;
}

bool kv_record_valid(const struct kv_record *rec)
{
	return rec->magic == KV_RECORD_MAGIC && rec->key_len && rec->key_len <= KV_KEY_MAX &&
	       rec->value_len && rec->value_len <= KV_VALUE_MAX &&
	       rec->sum == XXH3_64bits(rec, offsetof(struct kv_record, sum));
}

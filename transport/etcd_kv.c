// SPDX-License-Identifier: Apache-2.0
/* jansson bounds the depth of what it parses, and the caller the length. Unknown fields are passed
 * over, for later versions of etcd may add some. */
#include "transport/etcd_kv.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/etcd_record.h"

#define RAW_MAX	   (ETCD_RECORD_MAX > ETCD_KEY_MAX ? ETCD_RECORD_MAX : ETCD_KEY_MAX)
#define BASE64_MAX ((RAW_MAX + 2) / 3 * 4 + 1)

/* ---- base64 ---- */

static void encode(const char *raw, char text[BASE64_MAX])
{
	size_t len = strlen(raw);

	assert(len <= RAW_MAX);
	EVP_EncodeBlock((unsigned char *)text, (const unsigned char *)raw, (int)len);
}

/* -1: not base64 as we would write it, or too long. */
static int decode(const char *text, char raw[RAW_MAX + 1])
{
	unsigned char buf[BASE64_MAX];
	char again[BASE64_MAX];
	size_t len = strlen(text);
	int n;

	if (len % 4 || len >= BASE64_MAX)
		return -1;
	n = EVP_DecodeBlock(buf, (const unsigned char *)text, (int)len);
	if (n < 0)
		return -1;
	for (size_t i = len; i > 0 && text[i - 1] == '=' && n > 0; i--)
		n--;
	EVP_EncodeBlock((unsigned char *)again, buf, n);
	if (n > RAW_MAX || strcmp(again, text) != 0)
		return -1;
	memcpy(raw, buf, (size_t)n);
	raw[n] = '\0';
	return n;
}

/* ---- requests ---- */

static char *dump(json_t *json)
{
	char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;

	json_decref(json);
	return text;
}

char *etcd_range_body(const char *key)
{
	char key64[BASE64_MAX];

	encode(key, key64);
	return dump(json_pack("{s:s}", "key", key64));
}

char *etcd_txn_body(const char *key, uint64_t revision, const char *value)
{
	char key64[BASE64_MAX], value64[BASE64_MAX], number[24];

	encode(key, key64);
	encode(value, value64);
	snprintf(number, sizeof number, "%" PRIu64, revision);
	return dump(json_pack("{s:[{s:s, s:s, s:s, s:s}], s:[{s:{s:s, s:s}}], s:[{s:{s:s}}]}",
			      "compare", "target", "MOD", "result", "EQUAL", "key", key64,
			      "mod_revision", number, "success", "request_put", "key", key64,
			      "value", value64, "failure", "request_range", "key", key64));
}

char *etcd_authenticate_body(const char *user, const char *password)
{
	return dump(json_pack("{s:s, s:s}", "name", user, "password", password));
}

/* ---- answers ---- */

static int bad(struct ft_err *err, const char *what)
{
	return ft_err_set(err, EBADMSG, "the answer makes no sense: %s", what);
}

/* A number as protobuf's JSON has it. False: absent, or none that is positive. */
static bool number(json_t *object, const char *key, uint64_t *value)
{
	const char *text = json_string_value(json_object_get(object, key));
	char again[24];

	if (!text)
		return false;
	*value = strtoull(text, NULL, 10);
	snprintf(again, sizeof again, "%" PRIu64, *value);
	return *value && !strcmp(text, again);
}

/* answer: an object with kvs, which has our key or is empty. */
static int take_kvs(json_t *answer, const char *key, struct etcd_seen *seen, struct ft_err *err)
{
	json_t *kvs = json_object_get(answer, "kvs"), *kv = json_array_get(kvs, 0);
	const char *key64 = json_string_value(json_object_get(kv, "key"));
	const char *value64 = json_string_value(json_object_get(kv, "value"));
	char raw[RAW_MAX + 1];
	int len;

	if (!kvs || (json_is_array(kvs) && !kv))
		return json_object_get(answer, "count") ? bad(err, "it counts keys and shows none")
							: 0;
	if (json_array_size(kvs) != 1)
		return bad(err, "not one key");
	if (!key64 || decode(key64, raw) < 0 || strcmp(raw, key) != 0)
		return bad(err, "not the key that was asked for");
	if (!number(kv, "mod_revision", &seen->revision))
		return bad(err, "no revision");
	len = value64 ? decode(value64, raw) : 0;
	return len < 0 ? ft_err_set(err, EBADMSG, "its value is no base64, or too long")
		       : etcd_record_parse(raw, (size_t)len, &seen->record, err);
}

/* Takes the header too. NULL: *err says why. */
static json_t *load(const char *body, size_t len, struct etcd_seen *seen, struct ft_err *err)
{
	json_t *answer = json_loadb(body, len, JSON_REJECT_DUPLICATES, NULL);

	memset(seen, 0, sizeof *seen);
	if (!json_is_object(answer))
		bad(err, "no JSON object");
	else if (!number(json_object_get(answer, "header"), "cluster_id", &seen->cluster))
		bad(err, "no cluster id");
	else
		return answer;
	json_decref(answer);
	return NULL;
}

int etcd_range_answer(const char *body, size_t len, const char *key, struct etcd_seen *seen,
		      struct ft_err *err)
{
	json_t *answer = load(body, len, seen, err);
	int rc = answer ? take_kvs(answer, key, seen, err) : -EBADMSG;

	json_decref(answer);
	return rc;
}

int etcd_txn_answer(const char *body, size_t len, const char *key, bool *done,
		    struct etcd_seen *seen, struct ft_err *err)
{
	json_t *answer = load(body, len, seen, err), *responses, *response;
	int rc = -EBADMSG;

	*done = false;
	responses = json_object_get(answer, "responses");
	response = json_array_get(responses, 0);
	if (!answer)
		;
	else if (json_array_size(responses) != 1)
		bad(err, "not one response");
	else if (json_is_true(json_object_get(answer, "succeeded")))
		rc = json_is_object(json_object_get(response, "response_put"))
			     ? 0
			     : bad(err, "it succeeded and wrote nothing");
	else if (!json_is_object(json_object_get(response, "response_range")))
		bad(err, "it failed and read nothing");
	else
		rc = take_kvs(json_object_get(response, "response_range"), key, seen, err);
	*done = rc == 0 && json_is_true(json_object_get(answer, "succeeded"));
	json_decref(answer);
	return rc;
}

static bool is_printable(const char *text)
{
	for (; *text; text++)
		if (*text <= ' ' || *text > '~')
			return false;
	return true;
}

int etcd_authenticate_answer(const char *body, size_t len, char token[ETCD_TOKEN_MAX],
			     struct ft_err *err)
{
	json_t *answer = json_loadb(body, len, JSON_REJECT_DUPLICATES, NULL);
	const char *text = json_string_value(json_object_get(answer, "token"));
	int rc = 0;

	token[0] = '\0';
	if (!text || !*text || strlen(text) >= ETCD_TOKEN_MAX || !is_printable(text))
		rc = bad(err, "no token");
	else
		memcpy(token, text, strlen(text) + 1);
	json_decref(answer);
	return rc;
}

static size_t first_line(const char *text, size_t len)
{
	size_t n = 0;

	while (n < len && n < ETCD_ERROR_MAX && text[n] != '\n' && text[n] != '\r' && text[n])
		n++;
	return n;
}

void etcd_error_answer(const char *body, size_t len, char text[ETCD_ERROR_MAX])
{
	json_t *answer = json_loadb(body, len, 0, NULL);
	const char *message = json_string_value(json_object_get(answer, "error"));

	/* What etcd refuses before its gateway sees it is plain text. */
	if (message)
		snprintf(text, ETCD_ERROR_MAX, "%s", message);
	else
		snprintf(text, ETCD_ERROR_MAX, "%.*s", (int)first_line(body, len), body);
	for (char *at = text; *at; at++)
		if (*at < ' ' || *at > '~')
			*at = '?';
	json_decref(answer);
}

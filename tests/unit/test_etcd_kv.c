// SPDX-License-Identifier: Apache-2.0
/* What etcd answers, down to the record: the answers of a real etcd 3.4, and each way in which one
 * may be damaged or made up. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/fixture/arbiter_contract.h"
#include "transport/etcd_kv.h"
#include "transport/etcd_record.h"

#define KEY    "/kemari-ft/g"
#define HEADER "\"header\":{\"cluster_id\":\"12101053776118486841\",\"revision\":\"7\"}"
/* KEY and {"kemari_grant": 1, "generation": 2, "holder": "b", "in_sync": true, "partner": "a"} */
#define KEY64 "L2tlbWFyaS1mdC9n"
#define VALUE64                                                                                    \
	"eyJrZW1hcmlfZ3JhbnQiOiAxLCAiZ2VuZXJhdGlvbiI6IDIsICJob2xkZXIiOiAiYiIsICJpbl9zeW5jIjogdH"   \
	"J1ZSwgInBhcnRuZXIiOiAiYSJ9"
#define KVS                                                                                        \
	"\"kvs\":[{\"key\":\"" KEY64 "\",\"create_revision\":\"2\",\"mod_revision\":\"7\","        \
	"\"version\":\"3\",\"value\":\"" VALUE64 "\"}],\"count\":\"1\""

static void test_record(void **state)
{
	struct ft_grant_record good = record(7, "alpha", true, "beta"), out;
	char text[ETCD_RECORD_MAX], bad[ETCD_RECORD_MAX + 1];
	struct ft_err err;
	size_t len;

	(void)state;
	assert_int_equal(etcd_record_format(&good, text, &err), 0);
	assert_string_equal(text, "{\"kemari_grant\": 1, \"generation\": 7, \"holder\": \"alpha\", "
				  "\"in_sync\": true, \"partner\": \"beta\"}");
	len = strlen(text);
	assert_int_equal(etcd_record_parse(text, len, &out, &err), 0);
	assert_record(&out, good);
	/* Torn at every byte; every byte changed; something behind it. */
	for (size_t i = 0; i < 2 * len + 1; i++) {
		size_t bad_len = i < len ? i : len;

		memcpy(bad, text, len);
		if (i >= len && i < 2 * len)
			bad[i - len] = (char)(bad[i - len] ^ 0x80);
		else if (i == 2 * len)
			bad[bad_len++] = '\n';
		assert_int_equal(etcd_record_parse(bad, bad_len, &out, &err), -EBADMSG);
		assert_int_equal(out.generation, 0);
	}
	/* The same JSON, written by somebody else. */
	snprintf(bad, sizeof bad, "%s",
		 "{\"kemari_grant\":1,\"generation\":7,\"holder\":\"alpha\","
		 "\"in_sync\":true,\"partner\":\"beta\"}");
	assert_int_equal(etcd_record_parse(bad, strlen(bad), &out, &err), -EBADMSG);
	text[17] = '2'; /* another version of the format */
	assert_int_equal(etcd_record_parse(text, len, &out, &err), -EBADMSG);
	good.generation = (uint64_t)INT64_MAX + 1;
	assert_int_equal(etcd_record_format(&good, text, &err), -EINVAL);
	assert_int_equal(
		etcd_record_format(&(struct ft_grant_record){1, "\xff", 0, ""}, text, &err),
		-EINVAL);
}

static void test_bodies(void **state)
{
	char *body = etcd_range_body(KEY);

	(void)state;
	assert_string_equal(body, "{\"key\":\"" KEY64 "\"}");
	free(body);
	body = etcd_txn_body(KEY, UINT64_MAX, "v");
	assert_string_equal(
		body, "{\"compare\":[{\"target\":\"MOD\",\"result\":\"EQUAL\",\"key\":\"" KEY64
		      "\",\"mod_revision\":\"18446744073709551615\"}],\"success\":[{"
		      "\"request_put\":{\"key\":\"" KEY64 "\",\"value\":\"dg==\"}}],\"failure\":[{"
		      "\"request_range\":{\"key\":\"" KEY64 "\"}}]}");
	free(body);
	body = etcd_authenticate_body("u\"", "p\\");
	assert_string_equal(body, "{\"name\":\"u\\\"\",\"password\":\"p\\\\\"}");
	free(body);
	assert_null(etcd_authenticate_body("\xff", "p"));
}

static int range(const char *body, struct etcd_seen *seen, struct ft_err *err)
{
	*err = (struct ft_err){0};
	return etcd_range_answer(body, strlen(body), KEY, seen, err);
}

static void test_range(void **state)
{
	static const char *const bad[] = {
		"",
		"[]",
		"null",
		"{}",
		"{" HEADER,
		"{" HEADER "}{}",
		"{\"header\":{}," KVS "}",
		"{\"header\":{\"cluster_id\":\"-1\"}," KVS "}",
		"{\"header\":{\"cluster_id\":\"0\"}," KVS "}",
		"{\"header\":{\"cluster_id\":\"99999999999999999999\"}," KVS "}",
		"{" HEADER "," KVS "," KVS "}", /* twice */
		"{" HEADER ",\"count\":\"1\"}",
		"{" HEADER ",\"kvs\":{}}",
		"{" HEADER ",\"kvs\":[1]}",
		"{" HEADER ",\"kvs\":[{},{}]}",
		"{" HEADER ",\"kvs\":[{\"key\":\"" KEY64 "\",\"mod_revision\":\"7\"}]}",
		"{" HEADER ",\"kvs\":[{\"key\":\"" KEY64 "\",\"value\":\"" VALUE64 "\"}]}",
		"{" HEADER ",\"kvs\":[{\"key\":\"" KEY64 "\",\"value\":\"" VALUE64
		"\",\"mod_revision\":7}]}",
		"{" HEADER ",\"kvs\":[{\"key\":\"" KEY64 "\",\"value\":\"!" VALUE64
		"\",\"mod_revision\":\"7\"}]}",
		"{" HEADER ",\"kvs\":[{\"key\":\"" KEY64 "\",\"value\":\"aGVsbG8=\","
		"\"mod_revision\":\"7\"}]}",
		"{" HEADER ",\"kvs\":[{\"key\":\"aGVsbG8=\",\"value\":\"" VALUE64
		"\",\"mod_revision\":\"7\"}]}",
	};
	struct etcd_seen seen;
	struct ft_err err;

	(void)state;
	assert_int_equal(range("{" HEADER "," KVS ",\"more\":true}", &seen, &err), 0);
	assert_record(&seen.record, record(2, "b", true, "a"));
	assert_int_equal(seen.revision, 7);
	assert_true(seen.cluster == 12101053776118486841u);
	assert_int_equal(range("{" HEADER "}", &seen, &err), 0);
	assert_record(&seen.record, record(0, "", false, ""));
	assert_int_equal(seen.revision, 0);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		if (range(bad[i], &seen, &err) != -EBADMSG)
			fail_msg("was taken: %s", bad[i]);
		assert_true(err.text[0] != '\0' && !strchr(err.text, '\n'));
	}
}

static void test_txn(void **state)
{
	static const char put[] = "\"responses\":[{\"response_put\":{\"header\":{}}}]";
	static const char *const bad[] = {
		"{}",
		"\"succeeded\":true",
		"\"succeeded\":true,\"responses\":[]",
		"\"succeeded\":true,\"responses\":[{}]",
		"\"succeeded\":true,\"responses\":[{\"response_range\":{" KVS "}}]",
		"\"responses\":[{\"response_put\":{}}]",
		"\"succeeded\":1,\"responses\":[{\"response_put\":{}}]"};
	struct etcd_seen seen;
	struct ft_err err;
	char body[1024];
	bool done;

	(void)state;
	snprintf(body, sizeof body, "{" HEADER ",\"succeeded\":true,%s}", put);
	assert_int_equal(etcd_txn_answer(body, strlen(body), KEY, &done, &seen, &err), 0);
	assert_true(done);
	snprintf(body, sizeof body, "{" HEADER ",\"responses\":[{\"response_range\":{" KVS "}}]}");
	assert_int_equal(etcd_txn_answer(body, strlen(body), KEY, &done, &seen, &err), 0);
	assert_false(done);
	assert_int_equal(seen.revision, 7);
	assert_record(&seen.record, record(2, "b", true, "a"));
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		snprintf(body, sizeof body, "{" HEADER ",%s}", bad[i]);
		assert_int_equal(etcd_txn_answer(body, strlen(body), KEY, &done, &seen, &err),
				 -EBADMSG);
		assert_false(done);
	}
}

static void test_token(void **state)
{
	char token[ETCD_TOKEN_MAX], text[ETCD_ERROR_MAX], *body;
	struct ft_err err;

	(void)state;
	body = strdup("{\"token\":\"abc.11\"}");
	assert_int_equal(etcd_authenticate_answer(body, strlen(body), token, &err), 0);
	assert_string_equal(token, "abc.11");
	free(body);
	/* It goes into a header. */
	body = strdup("{\"token\":\"abc\\r\\nX: y\"}");
	assert_int_equal(etcd_authenticate_answer(body, strlen(body), token, &err), -EBADMSG);
	assert_string_equal(token, "");
	free(body);
	body = calloc(1, 2 * ETCD_TOKEN_MAX);
	memset(body, 'a', ETCD_TOKEN_MAX + 10);
	memcpy(body, "{\"token\":\"", 10);
	memcpy(body + ETCD_TOKEN_MAX + 10, "\"}", 2);
	assert_int_equal(etcd_authenticate_answer(body, strlen(body), token, &err), -EBADMSG);
	free(body);
	etcd_error_answer("{\"error\":\"no\\nleader\"}", 22, text);
	assert_string_equal(text, "no?leader");
	etcd_error_answer("not\there\nnor there", 18, text);
	assert_string_equal(text, "not?here");
	etcd_error_answer("", 0, text);
	assert_string_equal(text, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_record), cmocka_unit_test(test_bodies),
		cmocka_unit_test(test_range),  cmocka_unit_test(test_txn),
		cmocka_unit_test(test_token),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: Apache-2.0
// What a member of an etcd cluster answers; the first byte says to what. Whatever is taken for a
// record must be one that we would write ourselves, and what is not must be blamed in one line.
#include <assert.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "transport/etcd_kv.h"
#include "transport/etcd_record.h"

#define KEY "/kemari-ft/g"

static void check_record(const struct ft_grant_record *record)
{
	struct ft_grant_record again;
	char text[ETCD_RECORD_MAX];

	if (!record->generation)
		return;
	assert(ft_grant_record_ok(record));
	assert(etcd_record_format(record, text, NULL) == 0);
	assert(etcd_record_parse(text, strlen(text), &again, NULL) == 0);
	assert(!memcmp(record, &again, sizeof again));
}

static void check_error(const struct ft_err *err)
{
	assert(err->code && err->text[0] && !strchr(err->text, '\n'));
}

/* A good answer with this value: what a fuzzer would hardly find through base64. */
static int answer_with_value(const char *value, size_t len, struct etcd_seen *seen,
			     struct ft_err *err)
{
	static char value64[4096], answer[8192];
	int n;

	if (len > 2048)
		len = 2048;
	EVP_EncodeBlock((unsigned char *)value64, (const unsigned char *)value, (int)len);
	n = snprintf(answer, sizeof answer,
		     "{\"header\":{\"cluster_id\":\"7\"},\"kvs\":[{\"key\":\"L2tlbWFyaS1mdC9n\","
		     "\"mod_revision\":\"7\",\"value\":\"%s\"}]}",
		     value64);
	return etcd_range_answer(answer, (size_t)n, KEY, seen, err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	const char *body = (const char *)data + 1;
	struct etcd_seen seen = {0};
	struct ft_err err = {0};
	char token[ETCD_TOKEN_MAX], text[ETCD_ERROR_MAX];
	bool done;
	int rc = 0;

	if (!len--)
		return 0;
	switch (*data % 6) {
	case 0:
		rc = etcd_record_parse(body, len, &seen.record, &err);
		break;
	case 1:
		rc = etcd_range_answer(body, len, KEY, &seen, &err);
		break;
	case 2:
		rc = etcd_txn_answer(body, len, KEY, &done, &seen, &err);
		break;
	case 3:
		rc = answer_with_value(body, len, &seen, &err);
		break;
	case 4:
		rc = etcd_authenticate_answer(body, len, token, &err);
		assert(rc || (token[0] && strlen(token) < ETCD_TOKEN_MAX));
		break;
	default:
		etcd_error_answer(body, len, text);
		assert(strlen(text) < ETCD_ERROR_MAX);
	}
	if (rc)
		check_error(&err);
	else
		check_record(&seen.record);
	return 0;
}

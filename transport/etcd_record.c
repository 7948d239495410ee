// SPDX-License-Identifier: Apache-2.0
/* What was read loosely, the version too, is held against what we would have written: so a key that
 * somebody else wrote or edited is seen as such, and nothing is granted over it. */
#include "transport/etcd_record.h"

#include <assert.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define VERSION	       1
#define GENERATION_MAX INT64_MAX /* what JSON numbers hold here; far from where + 1 overflows */

_Static_assert(4 * FT_HOST_ID_MAX + 200 < ETCD_RECORD_MAX, "every record fits");

int etcd_record_format(const struct ft_grant_record *record, char text[ETCD_RECORD_MAX],
		       struct ft_err *err)
{
	json_t *json = NULL;
	size_t len;

	if (record->generation <= GENERATION_MAX && ft_grant_record_ok(record))
		json = json_pack("{s:i, s:I, s:s, s:b, s:s}", "kemari_grant", VERSION, "generation",
				 (json_int_t)record->generation, "holder", record->holder,
				 "in_sync", (int)record->in_sync, "partner", record->partner);
	if (!json)
		return ft_err_set(
			err, EINVAL,
			"a host's id is not one line of text, or generation %llu too high",
			(unsigned long long)record->generation);
	len = json_dumpb(json, text, ETCD_RECORD_MAX - 1, 0);
	json_decref(json);
	assert(len > 0 && len < ETCD_RECORD_MAX);
	text[len] = '\0';
	return 0;
}

static bool take(json_t *json, struct ft_grant_record *record)
{
	const char *holder, *partner;
	size_t holder_len, partner_len;
	json_int_t generation;
	int version, in_sync;

	if (json_unpack(json, "{s:i, s:I, s:s%, s:b, s:s%!}", "kemari_grant", &version,
			"generation", &generation, "holder", &holder, &holder_len, "in_sync",
			&in_sync, "partner", &partner, &partner_len))
		return false;
	if (generation <= 0 || holder_len >= FT_HOST_ID_MAX || partner_len >= FT_HOST_ID_MAX)
		return false;
	record->generation = (uint64_t)generation;
	record->in_sync = in_sync;
	memcpy(record->holder, holder, holder_len);
	memcpy(record->partner, partner, partner_len);
	return true;
}

int etcd_record_parse(const char *text, size_t len, struct ft_grant_record *record,
		      struct ft_err *err)
{
	char canonical[ETCD_RECORD_MAX];
	json_t *json = len < ETCD_RECORD_MAX ? json_loadb(text, len, 0, NULL) : NULL;
	bool good;

	memset(record, 0, sizeof *record);
	good = json && take(json, record) && !etcd_record_format(record, canonical, NULL) &&
	       strlen(canonical) == len && !memcmp(canonical, text, len);
	json_decref(json);
	if (good)
		return 0;
	memset(record, 0, sizeof *record);
	return ft_err_set(err, EBADMSG,
			  "not a grant record: nobody is granted until an operator has set it "
			  "right");
}

// SPDX-License-Identifier: Apache-2.0
// A stream of event records, as a standby gets it, walked as the standby walks it: with windows
// that end anywhere. What is known of a record before all of it is there must be what it is in the
// end, and a record that was accepted is what its own header says.
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "eventtap/tap.h"

static void check(const struct tap_record *rec, const uint8_t *buf, long n)
{
	uint8_t header[TAP_RECORD_HEADER];
	unsigned sum = 0;

	assert(n == TAP_RECORD_HEADER + (long)rec->len);
	assert(rec->len <= TAP_RECORD_DATA_MAX);
	assert(rec->data == buf + TAP_RECORD_HEADER);
	tap_record_put_header(header, rec);
	assert(!memcmp(header, buf, sizeof header));
	for (uint32_t i = 0; i < rec->len; i++)
		sum += rec->data[i];
	(void)sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	size_t at = 0, window = len ? data[0] : 0;
	uint8_t *buf;

	if (len < 1)
		return 0;
	data++;
	len--;
	buf = malloc(len ? len : 1);
	memcpy(buf, data, len);
	while (at < len) {
		size_t have = window < len - at ? window : len - at, need = 0, whole = 0;
		struct tap_record rec;
		long n = tap_record_parse(buf + at, have, &rec, &need);

		assert(n == -EPROTO || n >= 0);
		if (n == 0) {
			assert(need > have);
			if (need > len - at)
				break;
			/* The header was enough to know; the rest must not change it. */
			n = tap_record_parse(buf + at, need, &rec, &whole);
			if (have >= TAP_RECORD_HEADER)
				assert(n == (long)need && whole == need);
			if (n == 0)
				n = whole <= len - at
					    ? tap_record_parse(buf + at, whole, &rec, NULL)
					    : 0;
			if (n == 0)
				break;
		}
		if (n < 0)
			break;
		check(&rec, buf + at, n);
		at += (size_t)n;
	}
	free(buf);
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/* What all arbiters ask of a record. */
#include "ft/arbiter.h"

#include <ctype.h>
#include <stddef.h>

static bool is_one_line(const char id[FT_HOST_ID_MAX])
{
	for (size_t i = 0; i < FT_HOST_ID_MAX; i++) {
		if (id[i] == '\0')
			return true;
		if (iscntrl((unsigned char)id[i]))
			return false;
	}
	return false;
}

bool ft_grant_record_ok(const struct ft_grant_record *record)
{
	return is_one_line(record->holder) && is_one_line(record->partner);
}

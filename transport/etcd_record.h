/* SPDX-License-Identifier: Apache-2.0 */
/* A grant record as the value of an etcd key: one line of JSON that people can read too,
 *
 *      {"kemari_grant": 1, "generation": 7, "holder": "alpha", "in_sync": true, "partner": "beta"}
 *
 * Only the text that we would write ourselves is accepted. Any thread. */
#ifndef TRANSPORT_ETCD_RECORD_H
#define TRANSPORT_ETCD_RECORD_H

#include <stddef.h>

#include "ft/arbiter.h"
#include "ft/err.h"

#define ETCD_RECORD_MAX                                                                            \
	512 /* bytes of the text, its NUL included: two ids, escaped, and keywords */

/* -EINVAL: an id is not one line of UTF-8. */
int etcd_record_format(const struct ft_grant_record *record, char text[ETCD_RECORD_MAX],
		       struct ft_err *err);
/* -EBADMSG: not a grant record. *record is all zero then. */
int etcd_record_parse(const char *text, size_t len, struct ft_grant_record *record,
		      struct ft_err *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Arbiter over an etcd cluster (3.4 or newer): the record of guest NAME is the value of the key
 * PREFIX NAME, changed by a transaction that compares the revision at which the key changed last.
 * That makes every change exact: whatever was sent twice, or came late, finds another revision.
 *
 *  - Asks one member after the other, beginning with the one that answered last, until one gives
 *    the answer or FT_ARBITER_DEADLINE_MS is over; a member that does not answer costs a part of
 * it.
 *  - A transaction whose answer is lost may have happened: the record is read again, and if it says
 *    what we wanted it to say, it is ours.
 *  - Reads are linearizable: a member that is cut off from its cluster knows nothing.
 *  - An auth token that expired is renewed, once per request.
 *  - An answer that makes no sense, another cluster's answer, and a value that is not a grant
 * record are UNREACHABLE with the reason. */
#ifndef TRANSPORT_ARBITER_ETCD_H
#define TRANSPORT_ARBITER_ETCD_H

#include "ft/arbiter.h"
#include "transport/etcd_client.h"

#define ETCD_PREFIX	  "/kemari-ft/"
#define ETCD_PASSWORD_MAX 256

struct arbiter_etcd_config {
	struct etcd_servers servers;
	const char *prefix;	   /* NULL or "": ETCD_PREFIX */
	const char *user;	   /* NULL or "": etcd's authentication is off */
	const char *password_file; /* its first line; must be readable by its owner only */
};

/* Start-up; reads all files. Answers come from the loop of `base`, on its thread, never before read
 * or swap return; one question at a time. After free() none comes. NULL with *err: a file, or
 * memory. */
struct ft_arbiter *arbiter_etcd_new(struct event_base *base,
				    const struct arbiter_etcd_config *config, const char *guest,
				    struct ft_err *err);

#endif

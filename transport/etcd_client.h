/* SPDX-License-Identifier: Apache-2.0 */
/* POSTs to the members of an etcd cluster, over HTTP or HTTPS, one at a time: libcurl on libevent.
 * Thread of the event base. Connections stay open between requests; redirections and proxies are
 * not followed; servers' certificates are always checked, against `ca` or, without one, the
 * system's. */
#ifndef TRANSPORT_ETCD_CLIENT_H
#define TRANSPORT_ETCD_CLIENT_H

#include <stddef.h>

#include "ft/err.h"

struct event_base;
struct etcd_client;

#define ETCD_ENDPOINTS_MAX 8
#define ETCD_URL_MAX	   256
#define ETCD_ANSWER_MAX	   (64u << 10) /* bytes of a body: a record takes one */

struct etcd_servers {
	unsigned n;				   /* 1 to ETCD_ENDPOINTS_MAX */
	const char *endpoints[ETCD_ENDPOINTS_MAX]; /* http[s]://HOST:PORT, perhaps with a path */
	const char *ca, *cert, *key;		   /* files, read once; NULL or "": none */
};

struct etcd_reply {
	long status; /* HTTP's; 0: no answer, and `why` is the reason. The request may have been
			carried out all the same. */
	const char *body;
	size_t len;
	const char *why;
};
/* From the loop, once per request unless it is cancelled. May start the next request. reply is
 * valid until it does, or returns. */
typedef void etcd_reply_fn(void *ctx, const struct etcd_reply *reply);

/* Start-up. */
int etcd_client_new(struct event_base *base, const struct etcd_servers *servers,
		    struct etcd_client **out, struct ft_err *err);
unsigned etcd_client_endpoints(const struct etcd_client *c);
const char *etcd_client_url(const struct etcd_client *c, unsigned endpoint);
/* No request may be under way. token: NULL or "" for none; body is taken, and freed.
 * Without memory (body NULL) nothing is sent and nothing is answered: the owner has a deadline. */
void etcd_client_post(struct etcd_client *c, unsigned endpoint, const char *path, const char *token,
		      char *body, unsigned timeout_ms, etcd_reply_fn *fn, void *ctx);
/* No callback comes after; what was sent may be carried out. */
void etcd_client_cancel(struct etcd_client *c);
/* Cancels. Accepts NULL. */
void etcd_client_free(struct etcd_client *c);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What is said to etcd's JSON gateway and what it answers: bodies of requests and of answers, for
 * the one key that holds a guest's grant record. Pure; any thread. The format is etcd's API v3
 * (etcd.io/docs/v3.4/dev-guide/api_grpc_gateway, api/rpc.proto): bytes are in base64, 64-bit
 * numbers are strings, fields of value zero are absent. Answers are checked down to the record:
 * whatever is not what was asked for is -EBADMSG with the reason, never a record. */
#ifndef TRANSPORT_ETCD_KV_H
#define TRANSPORT_ETCD_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/arbiter.h"
#include "ft/err.h"

#define ETCD_RANGE_PATH	       "/v3/kv/range"
#define ETCD_TXN_PATH	       "/v3/kv/txn"
#define ETCD_AUTHENTICATE_PATH "/v3/auth/authenticate"

#define ETCD_KEY_MAX   256  /* bytes of a key, its NUL included */
#define ETCD_TOKEN_MAX 4096 /* of an auth token: a JWT may be long */
#define ETCD_ERROR_MAX 256

/* A look at the key. */
struct etcd_seen {
	uint64_t cluster;	       /* whose answer it is */
	uint64_t revision;	       /* at which the key changed last; 0: it does not exist */
	struct ft_grant_record record; /* all zero when the key does not exist */
};

/* Bodies to POST; the caller frees them. NULL: out of memory, or text that is no UTF-8. */
char *etcd_range_body(const char *key);
/* Writes value if the key's last change is still at this revision, else reads it. */
char *etcd_txn_body(const char *key, uint64_t revision, const char *value);
char *etcd_authenticate_body(const char *user, const char *password);

int etcd_range_answer(const char *body, size_t len, const char *key, struct etcd_seen *seen,
		      struct ft_err *err);
/* *done: the value was written; else *seen says what the key holds. seen->cluster in both cases. */
int etcd_txn_answer(const char *body, size_t len, const char *key, bool *done,
		    struct etcd_seen *seen, struct ft_err *err);
/* A token is printable text: it goes into a header. */
int etcd_authenticate_answer(const char *body, size_t len, char token[ETCD_TOKEN_MAX],
			     struct ft_err *err);
/* The message in the body of a refusal, or its first line, made printable; "" if there is none. */
void etcd_error_answer(const char *body, size_t len, char text[ETCD_ERROR_MAX]);

#endif

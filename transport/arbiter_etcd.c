// SPDX-License-Identifier: Apache-2.0
/* A question is a walk over members: each step sends what is missing next (a token, a look at the
 * record, the transaction), and its answer either ends the question or leads to the next step. What
 * a failure means does not depend on its kind: after a transaction the record is looked at again,
 * and the next member is asked. */
#include "transport/arbiter_etcd.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "transport/etcd_kv.h"
#include "transport/etcd_record.h"

#define ASK_MS	   (FT_ARBITER_DEADLINE_MS - 50) /* so that a busy loop keeps the promise too */
#define REQUEST_MS 500				 /* of one member, when there are others */
#define PAUSE_MS   100 /* after all of them failed: a leader is being elected, perhaps */
#define TRIES_MAX                                                                                  \
	8 /* transactions of one question; each needs that somebody changed the record             \
	     and left it such that we may change it */
#define UNAUTHORIZED 401

_Static_assert(4 * REQUEST_MS <= FT_ARBITER_DEADLINE_MS, "time for members after a dead one");

struct question {
	bool under_way, is_swap;
	uint64_t expected;
	struct ft_grant_record want;
	char value[ETCD_RECORD_MAX];
	ft_arbiter_fn *fn;
	void *ctx;

	uint64_t ends_ns;
	bool looked;	/* seen is good enough to begin a transaction */
	bool renewed;	/* this member was given a new token already */
	unsigned tries; /* transactions that were sent: one may have happened */
	unsigned failures;
};

struct arbiter_etcd {
	struct ft_arbiter base;
	struct etcd_client *client;
	struct event *deadline, *pause;
	char key[ETCD_KEY_MAX], user[ETCD_PASSWORD_MAX], password[ETCD_PASSWORD_MAX];
	char token[ETCD_TOKEN_MAX];
	unsigned endpoint;     /* answered last */
	struct etcd_seen seen; /* at the last look */
	uint64_t cluster;      /* 0: none has answered yet */
	struct question q;
	char why[ETCD_ENDPOINTS_MAX]
		[ETCD_ERROR_MAX]; /* this question failed there; "": it did not */
};

static void step(struct arbiter_etcd *a);

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* ---- answers ---- */

static void answer(struct arbiter_etcd *a, enum ft_arbiter_answer what,
		   const struct ft_grant_record *now, const char *why)
{
	struct ft_grant_record record = *now; /* the next question may change what it points to */
	struct question *q = &a->q;

	assert(q->under_way);
	q->under_way = false;
	event_del(a->deadline);
	event_del(a->pause);
	etcd_client_cancel(a->client);
	q->fn(q->ctx, what, &record, why);
}

/* `what` goes in front of how each member failed. */
static void unreachable(struct arbiter_etcd *a, const char *what)
{
	struct ft_grant_record nothing = {0};
	struct ft_err why = {0};
	size_t len;

	ft_err_set(&why, EHOSTUNREACH, "arbiter etcd: %s", what);
	for (unsigned i = 0; i < etcd_client_endpoints(a->client); i++) {
		len = strlen(why.text);
		if (a->why[i][0])
			snprintf(why.text + len, sizeof why.text - len, "; %.80s: %.100s",
				 etcd_client_url(a->client, i), a->why[i]);
	}
	answer(a, FT_ARBITER_UNREACHABLE, &nothing, why.text);
}

/* A host that was frozen finds answer and deadline side by side. */
static bool is_late(const struct arbiter_etcd *a)
{
	return now_ns() > a->q.ends_ns;
}

static void on_deadline(evutil_socket_t fd, short what, void *ctx)
{
	struct arbiter_etcd *a = ctx;

	(void)fd, (void)what;
	if (!a->why[a->endpoint][0])
		snprintf(a->why[a->endpoint], sizeof a->why[0], "does not answer");
	unreachable(a, "no answer within the deadline");
}

static void granted(struct arbiter_etcd *a)
{
	answer(a, FT_ARBITER_GRANTED, &a->seen.record, "");
}

static void lost(struct arbiter_etcd *a)
{
	const struct ft_grant_record *now = &a->seen.record;
	struct ft_err why;

	if (now->generation)
		ft_err_set(&why, EPERM,
			   "arbiter etcd: %s: generation %" PRIu64 " is held by \"%s\"", a->key,
			   now->generation, now->holder);
	else
		ft_err_set(&why, EPERM, "arbiter etcd: %s: there is no record", a->key);
	answer(a, FT_ARBITER_LOST, now, why.text);
}

static void failed(struct arbiter_etcd *a, const char *why)
{
	struct question *q = &a->q;
	unsigned n = etcd_client_endpoints(a->client);

	snprintf(a->why[a->endpoint], sizeof a->why[0], "%s", *why ? why : "it refuses");
	a->endpoint = (a->endpoint + 1) % n;
	q->looked = q->renewed = false;
	q->failures++;
	if (q->failures % n == 0)
		event_add(a->pause, &(struct timeval){.tv_usec = PAUSE_MS * 1000});
	else
		step(a);
}

static void on_pause(evutil_socket_t fd, short what, void *ctx)
{
	(void)fd, (void)what;
	step(ctx);
}

/* ---- what the record says ---- */

static bool is_wanted(const struct arbiter_etcd *a)
{
	const struct ft_grant_record *now = &a->seen.record, *want = &a->q.want;

	return now->generation == want->generation && now->in_sync == want->in_sync &&
	       !strcmp(now->holder, want->holder) && !strcmp(now->partner, want->partner);
}

/* The same generation is changed by its holder only. */
static bool may_be_changed(const struct arbiter_etcd *a)
{
	const struct ft_grant_record *now = &a->seen.record, *want = &a->q.want;

	return now->generation == a->q.expected &&
	       (want->generation != a->q.expected || !strcmp(now->holder, want->holder));
}

/* After a look at the record. */
static void decide(struct arbiter_etcd *a)
{
	struct question *q = &a->q;

	if (!q->is_swap || (q->tries && is_wanted(a)))
		granted(a);
	else if (!may_be_changed(a))
		lost(a);
	else if (q->tries == TRIES_MAX)
		unreachable(a, "somebody changes the record all the time");
	else {
		q->looked = true;
		step(a);
	}
}

/* ---- steps ---- */

/* True: reply is an answer to what was asked. False: it was dealt with. */
static bool is_good(struct arbiter_etcd *a, const struct etcd_reply *reply)
{
	char text[ETCD_ERROR_MAX];

	if (is_late(a)) {
		unreachable(a, "the answer came too late");
		return false;
	}
	if (reply->status == 200)
		return true;
	if (!reply->status) {
		failed(a, reply->why);
		return false;
	}
	etcd_error_answer(reply->body, reply->len, text);
	/* A token that expired, or is older than a change of users and roles. */
	if (a->token[0] && !a->q.renewed &&
	    (reply->status == UNAUTHORIZED || strstr(text, "revision of auth store is old"))) {
		a->token[0] = '\0';
		a->q.renewed = true;
		step(a);
		return false;
	}
	if (!text[0])
		snprintf(text, sizeof text, "HTTP status %ld", reply->status);
	failed(a, text);
	return false;
}

/* The endpoints are one cluster, or two hosts could be granted one generation. */
static int take(struct arbiter_etcd *a, const struct etcd_seen *seen, struct ft_err *err)
{
	if (a->cluster && seen->cluster != a->cluster)
		return ft_err_set(err, EXDEV, "belongs to another cluster");
	a->cluster = seen->cluster;
	a->seen = *seen;
	return 0;
}

static void on_token(void *ctx, const struct etcd_reply *reply)
{
	struct arbiter_etcd *a = ctx;
	struct ft_err err;

	if (!is_good(a, reply))
		return;
	if (etcd_authenticate_answer(reply->body, reply->len, a->token, &err))
		failed(a, err.text);
	else
		step(a);
}

static void on_range(void *ctx, const struct etcd_reply *reply)
{
	struct arbiter_etcd *a = ctx;
	struct etcd_seen seen;
	struct ft_err err;

	if (!is_good(a, reply))
		return;
	if (etcd_range_answer(reply->body, reply->len, a->key, &seen, &err) || take(a, &seen, &err))
		failed(a, err.text);
	else
		decide(a);
}

static void on_txn(void *ctx, const struct etcd_reply *reply)
{
	struct arbiter_etcd *a = ctx;
	struct etcd_seen seen;
	struct ft_err err;
	bool done;
	int rc;

	/* From here on seen is history; only a new look is good for another transaction. */
	a->q.looked = false;
	if (!is_good(a, reply))
		return;
	rc = etcd_txn_answer(reply->body, reply->len, a->key, &done, &seen, &err);
	if (!rc && done)
		seen.record = a->q.want;
	else if (!rc && seen.revision == a->seen.revision)
		rc = ft_err_set(&err, EBADMSG,
				"the answer makes no sense: the record has not changed");
	if (!rc)
		rc = take(a, &seen, &err);
	if (rc)
		failed(a, err.text);
	else if (done)
		granted(a);
	else
		decide(a);
}

static unsigned request_ms(const struct arbiter_etcd *a)
{
	return etcd_client_endpoints(a->client) > 1 ? REQUEST_MS : FT_ARBITER_DEADLINE_MS;
}

static void step(struct arbiter_etcd *a)
{
	struct question *q = &a->q;
	char *body;

	if (a->user[0] && !a->token[0]) {
		body = etcd_authenticate_body(a->user, a->password);
		etcd_client_post(a->client, a->endpoint, ETCD_AUTHENTICATE_PATH, NULL, body,
				 request_ms(a), on_token, a);
	} else if (!q->looked) {
		body = etcd_range_body(a->key);
		etcd_client_post(a->client, a->endpoint, ETCD_RANGE_PATH, a->token, body,
				 request_ms(a), on_range, a);
	} else {
		q->tries++;
		body = etcd_txn_body(a->key, a->seen.revision, q->value);
		etcd_client_post(a->client, a->endpoint, ETCD_TXN_PATH, a->token, body,
				 request_ms(a), on_txn, a);
	}
}

/* ---- questions ---- */

static void start(struct arbiter_etcd *a, struct question *q)
{
	assert(!a->q.under_way);
	a->q = *q;
	a->q.under_way = true;
	a->q.ends_ns = now_ns() + ASK_MS * 1000000ull;
	memset(a->why, 0, sizeof a->why);
	event_add(a->deadline, &(struct timeval){ASK_MS / 1000, ASK_MS % 1000 * 1000});
	step(a);
}

static void etcd_read(struct ft_arbiter *base, ft_arbiter_fn *fn, void *ctx)
{
	start((struct arbiter_etcd *)base, &(struct question){.fn = fn, .ctx = ctx});
}

static void etcd_swap(struct ft_arbiter *base, uint64_t expected_generation,
		      const struct ft_grant_record *want, ft_arbiter_fn *fn, void *ctx)
{
	struct arbiter_etcd *a = (struct arbiter_etcd *)base;
	struct question q = {.is_swap = true,
			     .expected = expected_generation,
			     .want = *want,
			     .fn = fn,
			     .ctx = ctx};
	struct ft_err err;

	assert(want->generation > 0);
	assert(want->generation >= expected_generation);
	assert(want->generation - expected_generation <= 1);
	if (etcd_record_format(want, q.value, &err)) {
		struct ft_grant_record nothing = {0};

		ft_err_context(&err, "arbiter etcd: %s", a->key);
		fn(ctx, FT_ARBITER_UNREACHABLE, &nothing, err.text);
		return;
	}
	start(a, &q);
}

/* ---- life ---- */

static void etcd_free(struct ft_arbiter *base)
{
	struct arbiter_etcd *a = (struct arbiter_etcd *)base;

	etcd_client_free(a->client);
	if (a->deadline)
		event_free(a->deadline);
	if (a->pause)
		event_free(a->pause);
	explicit_bzero(a->password, sizeof a->password);
	explicit_bzero(a->token, sizeof a->token);
	free(a);
}

static const struct ft_arbiter_ops etcd_ops = {
	.type = "etcd", .read = etcd_read, .swap = etcd_swap, .free = etcd_free};

static int load_password(struct arbiter_etcd *a, const char *path, struct ft_err *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc = 0;
	struct stat st;
	ssize_t len;

	if (fd < 0)
		return ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	len = read(fd, a->password, sizeof a->password - 1);
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || len < 0)
		rc = ft_err_set(err, EINVAL, "%s: cannot be read as a file", path);
	else if (st.st_mode & (S_IRWXG | S_IRWXO))
		rc = ft_err_set(err, EPERM,
				"%s: others than its owner may use it (mode %03o): chmod 600", path,
				(unsigned)st.st_mode & 0777);
	else
		a->password[strcspn(a->password, "\r\n")] = '\0';
	if (!rc && !a->password[0])
		rc = ft_err_set(err, EINVAL, "%s: its first line is empty", path);
	if (!rc && strlen(a->password) == sizeof a->password - 1)
		rc = ft_err_set(err, EINVAL, "%s: longer than %zu bytes", path,
				sizeof a->password - 2);
	close(fd);
	return rc;
}

static int set_up(struct arbiter_etcd *a, struct event_base *base,
		  const struct arbiter_etcd_config *config, const char *guest, struct ft_err *err)
{
	const char *prefix = config->prefix && *config->prefix ? config->prefix : ETCD_PREFIX;
	const char *user = config->user ? config->user : "";
	int len = snprintf(a->key, sizeof a->key, "%s%s", prefix, guest);

	if (len < 0 || (size_t)len >= sizeof a->key || strlen(user) >= sizeof a->user)
		return ft_err_set(err, ENAMETOOLONG, "prefix, guest or user: too long");
	memcpy(a->user, user, strlen(user) + 1);
	a->deadline = evtimer_new(base, on_deadline, a);
	a->pause = evtimer_new(base, on_pause, a);
	if (!a->deadline || !a->pause)
		return ft_err_set(err, ENOMEM, "out of memory");
	if (*user && load_password(a, config->password_file, err))
		return -err->code;
	return etcd_client_new(base, &config->servers, &a->client, err);
}

struct ft_arbiter *arbiter_etcd_new(struct event_base *base,
				    const struct arbiter_etcd_config *config, const char *guest,
				    struct ft_err *err)
{
	struct arbiter_etcd *a = calloc(1, sizeof *a);

	if (!a) {
		ft_err_set(err, ENOMEM, "arbiter etcd: out of memory");
		return NULL;
	}
	a->base.ops = &etcd_ops;
	if (set_up(a, base, config, guest, err)) {
		ft_err_context(err, "arbiter etcd");
		etcd_free(&a->base);
		return NULL;
	}
	return &a->base;
}

// SPDX-License-Identifier: Apache-2.0
/* libcurl says which sockets it waits for and until when; libevent waits. One easy handle serves
 * all requests, one after the other, so nothing is allocated per request but what libcurl does. */
#include "transport/etcd_client.h"

#include <assert.h>
#include <curl/curl.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX  (256u << 10) /* of a certificate or key */
#define PATH_ROOM 64

struct etcd_client {
	struct event_base *base;
	CURLM *multi;
	CURL *easy;
	struct curl_slist *headers;
	struct event *timer;
	unsigned n;
	char endpoints[ETCD_ENDPOINTS_MAX][ETCD_URL_MAX];

	/* the request under way */
	bool under_way;
	etcd_reply_fn *fn;
	void *ctx;
	char *request;
	char error[CURL_ERROR_SIZE];
	char answer[ETCD_ANSWER_MAX];
	size_t answer_len;
	bool too_long;
};

/* ---- libcurl on libevent ---- */

static void finish(struct etcd_client *c, CURLcode code)
{
	struct etcd_reply reply = {.body = c->answer, .len = c->answer_len, .why = c->error};

	if (c->too_long)
		reply.why = "the answer is too long";
	else if (code == CURLE_COULDNT_CONNECT)
		reply.why = "cannot be reached";
	else if (code == CURLE_OPERATION_TIMEDOUT)
		reply.why = "does not answer"; /* libcurl's text changes with each try */
	else if (code != CURLE_OK && !c->error[0])
		reply.why = curl_easy_strerror(code);
	else if (code == CURLE_OK)
		curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &reply.status);
	etcd_client_cancel(c);
	c->fn(c->ctx, &reply);
}

/* After each turn of libcurl's. The owner may do anything when it is told, so nothing comes after.
 */
static void look(struct etcd_client *c)
{
	CURLMsg *message;
	int left;

	while ((message = curl_multi_info_read(c->multi, &left)))
		if (message->msg == CURLMSG_DONE) {
			finish(c, message->data.result);
			return;
		}
}

static void on_socket(evutil_socket_t fd, short what, void *ctx)
{
	struct etcd_client *c = ctx;
	int flags = (what & EV_READ ? CURL_CSELECT_IN : 0) |
		    (what & EV_WRITE ? CURL_CSELECT_OUT : 0),
	    running;

	curl_multi_socket_action(c->multi, fd, flags, &running);
	look(c);
}

static void on_timer(evutil_socket_t fd, short what, void *ctx)
{
	struct etcd_client *c = ctx;
	int running;

	(void)fd, (void)what;
	curl_multi_socket_action(c->multi, CURL_SOCKET_TIMEOUT, 0, &running);
	look(c);
}

/* socket_ctx: the event of this socket, NULL at first. */
static int watch_socket(CURL *easy, curl_socket_t fd, int what, void *ctx, void *socket_ctx)
{
	struct etcd_client *c = ctx;
	struct event *event = socket_ctx;
	short flags = (short)(EV_PERSIST | (what & CURL_POLL_IN ? EV_READ : 0) |
			      (what & CURL_POLL_OUT ? EV_WRITE : 0));

	(void)easy;
	if (event)
		event_free(event);
	event = what == CURL_POLL_REMOVE ? NULL : event_new(c->base, fd, flags, on_socket, c);
	curl_multi_assign(c->multi, fd, event);
	if (what == CURL_POLL_REMOVE)
		return 0;
	return event && !event_add(event, NULL) ? 0 : -1;
}

static int watch_time(CURLM *multi, long ms, void *ctx)
{
	struct etcd_client *c = ctx;
	struct timeval in = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};

	(void)multi;
	return ms < 0 ? event_del(c->timer) : event_add(c->timer, &in);
}

static size_t take_answer(char *data, size_t one, size_t len, void *ctx)
{
	struct etcd_client *c = ctx;

	(void)one;
	if (len > sizeof c->answer - c->answer_len) {
		c->too_long = true;
		return 0;
	}
	memcpy(c->answer + c->answer_len, data, len);
	c->answer_len += len;
	return len;
}

/* ---- a request ---- */

static struct curl_slist *make_headers(const char *token)
{
	/* A member without a leader shall say so at once rather than wait for one. */
	static const char *const fixed[] = {"Content-Type: application/json",
					    "Grpc-Metadata-hasleader: true"};
	struct curl_slist *list = NULL, *longer;
	size_t room = token ? strlen(token) + 32 : 0;
	char *line = token && *token ? malloc(room) : NULL;

	if (line)
		snprintf(line, room, "Authorization: %s", token);
	for (unsigned i = 0; i < 3; i++) {
		const char *text = i < 2 ? fixed[i] : line;

		longer = text ? curl_slist_append(list, text) : list;
		if (!longer)
			curl_slist_free_all(list);
		list = longer;
		if (!list)
			break;
	}
	free(line);
	return list;
}

void etcd_client_post(struct etcd_client *c, unsigned endpoint, const char *path, const char *token,
		      char *body, unsigned timeout_ms, etcd_reply_fn *fn, void *ctx)
{
	char url[ETCD_URL_MAX + PATH_ROOM];

	assert(!c->under_way);
	assert(endpoint < c->n);
	assert(strlen(path) < PATH_ROOM);
	snprintf(url, sizeof url, "%s%s", c->endpoints[endpoint], path);
	c->under_way = true;
	c->fn = fn;
	c->ctx = ctx;
	c->request = body;
	c->error[0] = '\0';
	c->answer_len = 0;
	c->too_long = false;
	c->headers = make_headers(token);
	curl_easy_setopt(c->easy, CURLOPT_URL, url);
	curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, c->headers);
	curl_easy_setopt(c->easy, CURLOPT_POSTFIELDS, body ? body : "");
	curl_easy_setopt(c->easy, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
	if (body && c->headers)
		curl_multi_add_handle(c->multi, c->easy);
}

void etcd_client_cancel(struct etcd_client *c)
{
	if (!c->under_way)
		return;
	c->under_way = false;
	curl_multi_remove_handle(c->multi, c->easy);
	curl_slist_free_all(c->headers);
	free(c->request);
	c->headers = NULL;
	c->request = NULL;
}

/* ---- life ---- */

/* libcurl copies it. */
static int set_file(CURL *easy, CURLoption option, const char *path, struct ft_err *err)
{
	struct curl_blob blob;
	char *text;
	ssize_t len;
	int fd, rc = 0;

	if (!path || !*path)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	text = malloc(FILE_MAX);
	len = text ? read(fd, text, FILE_MAX) : -1;
	if (len <= 0 || len == FILE_MAX)
		rc = ft_err_set(err, EINVAL, "%s: cannot be read as a certificate or key", path);
	blob = (struct curl_blob){text, rc ? 0 : (size_t)len, CURL_BLOB_COPY};
	if (!rc && curl_easy_setopt(easy, option, &blob))
		rc = ft_err_set(err, ENOMEM, "%s: out of memory", path);
	free(text);
	close(fd);
	return rc;
}

static int set_up(struct etcd_client *c, const struct etcd_servers *servers, struct ft_err *err)
{
	CURL *e = c->easy;
	bool bad = curl_multi_setopt(c->multi, CURLMOPT_SOCKETFUNCTION, watch_socket) ||
		   curl_multi_setopt(c->multi, CURLMOPT_SOCKETDATA, c) ||
		   curl_multi_setopt(c->multi, CURLMOPT_TIMERFUNCTION, watch_time) ||
		   curl_multi_setopt(c->multi, CURLMOPT_TIMERDATA, c) ||
		   curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L) ||
		   curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https") ||
		   curl_easy_setopt(e, CURLOPT_NOPROXY, "*") ||
		   curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) ||
		   curl_easy_setopt(e, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) ||
		   curl_easy_setopt(e, CURLOPT_ERRORBUFFER, c->error) ||
		   curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, take_answer) ||
		   curl_easy_setopt(e, CURLOPT_WRITEDATA, c);
	int rc = bad ? ft_err_set(err, ENOTSUP, "libcurl lacks HTTPS or an option") : 0;

	if (!rc)
		rc = set_file(e, CURLOPT_CAINFO_BLOB, servers->ca, err);
	if (!rc)
		rc = set_file(e, CURLOPT_SSLCERT_BLOB, servers->cert, err);
	if (!rc)
		rc = set_file(e, CURLOPT_SSLKEY_BLOB, servers->key, err);
	return rc;
}

int etcd_client_new(struct event_base *base, const struct etcd_servers *servers,
		    struct etcd_client **out, struct ft_err *err)
{
	struct etcd_client *c;
	int rc;

	assert(servers->n > 0 && servers->n <= ETCD_ENDPOINTS_MAX);
	if (curl_global_init(CURL_GLOBAL_DEFAULT))
		return ft_err_set(err, ENOMEM, "libcurl cannot start");
	c = calloc(1, sizeof *c);
	if (!c) {
		curl_global_cleanup();
		return ft_err_set(err, ENOMEM, "out of memory");
	}
	c->base = base;
	c->n = servers->n;
	for (unsigned i = 0; i < c->n; i++) {
		size_t len = strlen(servers->endpoints[i]);

		while (len > 0 && servers->endpoints[i][len - 1] == '/')
			len--;
		assert(len < ETCD_URL_MAX);
		memcpy(c->endpoints[i], servers->endpoints[i], len);
	}
	c->timer = evtimer_new(base, on_timer, c);
	c->multi = curl_multi_init();
	c->easy = curl_easy_init();
	if (c->timer && c->multi && c->easy)
		rc = set_up(c, servers, err);
	else
		rc = ft_err_set(err, ENOMEM, "out of memory");
	if (rc) {
		etcd_client_free(c);
		return rc;
	}
	*out = c;
	return 0;
}

unsigned etcd_client_endpoints(const struct etcd_client *c)
{
	return c->n;
}

const char *etcd_client_url(const struct etcd_client *c, unsigned endpoint)
{
	return c->endpoints[endpoint];
}

void etcd_client_free(struct etcd_client *c)
{
	if (!c)
		return;
	etcd_client_cancel(c);
	curl_easy_cleanup(c->easy);
	/* Closes the connections that are kept, and their events with them. */
	if (c->multi)
		curl_multi_cleanup(c->multi);
	if (c->timer)
		event_free(c->timer);
	free(c);
	curl_global_cleanup();
}

// SPDX-License-Identifier: Apache-2.0
// One pass from left to right: prefix, scheme, then either HOST:PORT or PATH. Every error is made
// by bad(), so that all of them read URI "TEXT": PART: why.
#include "transport/uri.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LABEL_MAX 63 /* RFC 1035 */

static const char *const scheme_names[] = {
	[URI_TLS] = "tls", [URI_TCP] = "tcp", [URI_UNIX] = "unix", [URI_FILE] = "file"};

static int bad(struct ft_err *err, const char *text, const char *part, const char *why)
{
	return ft_err_set(err, EINVAL, "URI \"%.160s\": %s: %s", text, part, why);
}

bool uri_is_tcp_based(const struct uri *uri)
{
	return uri->scheme == URI_TLS || uri->scheme == URI_TCP;
}

static bool is_alnum(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/* NULL or what is wrong. Underscores are no host names, but people have them. */
static const char *check_name(const char *host)
{
	size_t label = 0;

	for (const char *p = host; *p; p++) {
		if (*p == '.') {
			if (label == 0)
				return "empty label";
			label = 0;
		} else if (is_alnum(*p) || *p == '_' || (*p == '-' && label > 0)) {
			if (++label > LABEL_MAX)
				return "a label is longer than 63 characters";
		} else {
			return "character that no host name has";
		}
	}
	return NULL;
}

static const char *check_host(const char *host, bool brackets)
{
	struct in6_addr addr;

	if (!*host)
		return "is missing";
	if (brackets) {
		char address[URI_HOST_MAX + 1];
		size_t n = strcspn(host, "%");

		memcpy(address, host, n);
		address[n] = 0;
		if (inet_pton(AF_INET6, address, &addr) != 1)
			return "not an IPv6 address";
		if (host[n] && (!host[n + 1] || strspn(host + n + 1, "%/ []")))
			return "zone after % is not an interface";
		return NULL;
	}
	/* What looks like an IPv4 address must be one: nobody means a name by 10.0.0.256. */
	if (strspn(host, "0123456789.") == strlen(host))
		return inet_pton(AF_INET, host, &addr) == 1 ? NULL : "not an IPv4 address";
	return check_name(host);
}

static const char *parse_port(const char *text, uint16_t *port)
{
	unsigned value = 0;

	if (!*text)
		return "is missing";
	for (const char *p = text; *p; p++) {
		if (*p < '0' || *p > '9')
			return "not a number";
		value = value * 10 + (unsigned)(*p - '0');
		if (value > UINT16_MAX)
			return "must be 1 to 65535";
	}
	if (value == 0)
		return "must be 1 to 65535";
	*port = (uint16_t)value;
	return NULL;
}

/* rest is HOST:PORT */
static int parse_address(const char *text, const char *rest, struct uri *uri, struct ft_err *err)
{
	bool brackets = *rest == '[';
	const char *end, *why;
	size_t n;

	if (brackets) {
		end = strchr(++rest, ']');
		if (!end)
			return bad(err, text, "host", "'[' without ']'");
		if (end[1] != ':')
			return bad(err, text, "port", "is missing");
	} else {
		end = strchr(rest, ':');
		if (!end)
			return bad(err, text, *rest ? "port" : "host", "is missing");
		if (strchr(end + 1, ':'))
			return bad(err, text, "host", "an IPv6 address goes in brackets");
	}
	n = (size_t)(end - rest);
	if (n > URI_HOST_MAX)
		return bad(err, text, "host", "longer than 253 characters");
	memcpy(uri->host, rest, n);
	why = check_host(uri->host, brackets);
	if (why)
		return bad(err, text, "host", why);
	why = parse_port(end + (brackets ? 2 : 1), &uri->port);
	return why ? bad(err, text, "port", why) : 0;
}

static int parse_path(const char *text, const char *rest, struct uri *uri, struct ft_err *err)
{
	size_t n = strlen(rest);

	if (n == 0)
		return bad(err, text, "path", "is missing");
	if (uri->scheme == URI_UNIX && n > URI_UNIX_PATH_MAX)
		return bad(err, text, "path", "longer than 107 characters (a UNIX socket's bound)");
	if (n > URI_PATH_MAX)
		return bad(err, text, "path", "longer than 4095 characters");
	memcpy(uri->path, rest, n);
	return 0;
}

int uri_parse(const char *text, struct uri *uri, struct ft_err *err)
{
	const char *rest = text;

	memset(uri, 0, sizeof *uri);
	if (!strncmp(rest, "kemari:", 7)) {
		uri->kemari = true;
		rest += 7;
	}
	for (int s = URI_TLS; s <= URI_FILE; s++) {
		size_t n = strlen(scheme_names[s]);

		if (!strncmp(rest, scheme_names[s], n) && rest[n] == ':') {
			uri->scheme = (enum uri_scheme)s;
			rest += n + 1;
			break;
		}
	}
	if (!uri->scheme)
		return bad(err, text, "scheme",
			   uri->kemari ? "must be kemari:tls:, kemari:tcp: or kemari:unix:"
				       : "must be tls:, tcp:, unix: or file:, the first three also "
					 "after kemari:");
	if (uri->kemari && uri->scheme == URI_FILE)
		return bad(err, text, "scheme", "a file is no peer to be protected by");
	return uri_is_tcp_based(uri) ? parse_address(text, rest, uri, err)
				     : parse_path(text, rest, uri, err);
}

char *uri_format(const struct uri *uri, char *out, size_t size)
{
	const char *prefix = uri->kemari ? "kemari:" : "", *scheme = scheme_names[uri->scheme];
	bool brackets = strchr(uri->host, ':') != NULL;

	if (uri_is_tcp_based(uri))
		snprintf(out, size, "%s%s:%s%s%s:%u", prefix, scheme, brackets ? "[" : "",
			 uri->host, brackets ? "]" : "", uri->port);
	else
		snprintf(out, size, "%s%s:%s", prefix, scheme, uri->path);
	return out;
}

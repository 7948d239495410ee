// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "transport/uri.h"

static void good(const char *text, enum uri_scheme scheme, bool kemari, const char *host,
		 unsigned port, const char *path)
{
	struct uri uri;
	struct ft_err err = {0};
	char out[URI_TEXT_MAX + 1];

	assert_int_equal(uri_parse(text, &uri, &err), 0);
	assert_int_equal(err.code, 0);
	assert_int_equal(uri.scheme, scheme);
	assert_int_equal(uri.kemari, kemari);
	assert_string_equal(uri.host, host);
	assert_int_equal(uri.port, port);
	assert_string_equal(uri.path, path);
	assert_string_equal(uri_format(&uri, out, sizeof out), text);
}

static void bad(const char *text, const char *says)
{
	struct uri uri;
	struct ft_err err = {0};

	assert_int_equal(uri_parse(text, &uri, &err), -EINVAL);
	assert_int_equal(err.code, EINVAL);
	if (!strstr(err.text, says))
		fail_msg("%s: \"%s\" does not say \"%s\"", text, err.text, says);
	assert_int_equal(uri_parse(text, &uri, NULL), -EINVAL);
}

static void test_good(void **state)
{
	(void)state;
	good("kemari:tls:host-b.example.com:4444", URI_TLS, true, "host-b.example.com", 4444, "");
	good("kemari:tcp:10.0.0.2:1", URI_TCP, true, "10.0.0.2", 1, "");
	good("kemari:unix:/run/kemari/web1.sock", URI_UNIX, true, "", 0, "/run/kemari/web1.sock");
	good("tls:[fd00::1]:65535", URI_TLS, false, "fd00::1", 65535, "");
	good("tcp:[::]:4444", URI_TCP, false, "::", 4444, "");
	good("kemari:tls:[fe80::1%eth0]:4444", URI_TLS, true, "fe80::1%eth0", 4444, "");
	good("unix:relative:with:colons", URI_UNIX, false, "", 0, "relative:with:colons");
	good("file:/var/lib/a b.snap", URI_FILE, false, "", 0, "/var/lib/a b.snap");
	good("tcp:under_score:80", URI_TCP, false, "under_score", 80, "");
}

static void test_bad(void **state)
{
	(void)state;
	bad("", "scheme");
	bad("kemari:", "scheme: must be kemari:tls:");
	bad("http://host", "scheme");
	bad("tls", "scheme");
	bad("TLS:host:1", "scheme");
	bad("kemari:kemari:tls:host:1", "scheme");
	bad("kemari:file:/x", "scheme: a file is no peer");
	bad("tls:", "host: is missing");
	bad("tls::4444", "host: is missing");
	bad("tls:[]:4444", "host: is missing");
	bad("tls:host", "port: is missing");
	bad("tls:host:", "port: is missing");
	bad("tls:[::1]", "port: is missing");
	bad("tls:[::1]4444", "port: is missing");
	bad("tls:[::1:4444", "host: '[' without ']'");
	bad("tls:fd00::1:4444", "host: an IPv6 address goes in brackets");
	bad("tls:[10.0.0.1]:1", "host: not an IPv6 address");
	bad("tls:[fe80::1%]:1", "host: zone");
	bad("tls:10.0.0.256:1", "host: not an IPv4 address");
	bad("tls:10.0.1:1", "host: not an IPv4 address");
	bad("tls:a..b:1", "host: empty label");
	bad("tls:-a:1", "host: character");
	bad("tls:a b:1", "host: character");
	bad("tls:a/b:1", "host: character");
	bad("tls:host:0", "port: must be 1 to 65535");
	bad("tls:host:65536", "port: must be 1 to 65535");
	bad("tls:host:99999999999999999999", "port: must be 1 to 65535");
	bad("tls:host:-1", "port: not a number");
	bad("tls:host:80x", "port: not a number");
	bad("tls:host: 80", "port: not a number");
	bad("unix:", "path: is missing");
	bad("file:", "path: is missing");
}

/* prefix, n times 'a', suffix */
static char *long_text(const char *prefix, size_t n, const char *suffix)
{
	size_t p = strlen(prefix);
	char *text = malloc(p + n + strlen(suffix) + 1);

	assert_non_null(text);
	memcpy(text, prefix, p);
	memset(text + p, 'a', n);
	strcpy(text + p + n, suffix);
	return text;
}

static void test_bounds(void **state)
{
	static const struct {
		const char *prefix, *suffix;
		size_t max;
		const char *says;
	} cases[] = {
		{"kemari:unix:", "", URI_UNIX_PATH_MAX, "path: longer"},
		{"file:", "", URI_PATH_MAX, "path: longer"},
		{"tls:", ":1", 63, "host: a label"},
		{"tls:a.", ":1", 63, "host: a label"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		char *text = long_text(cases[i].prefix, cases[i].max, cases[i].suffix);
		char *more = long_text(cases[i].prefix, cases[i].max + 1, cases[i].suffix);
		struct uri uri;

		assert_int_equal(uri_parse(text, &uri, NULL), 0);
		bad(more, cases[i].says);
		free(text);
		free(more);
	}
	char *text = long_text("tls:", 100000, ":1");
	bad(text, "host: longer than 253");
	free(text);
}

static void test_format_cuts(void **state)
{
	struct uri uri;
	char out[8];

	(void)state;
	assert_int_equal(uri_parse("kemari:tls:host:1", &uri, NULL), 0);
	assert_string_equal(uri_format(&uri, out, sizeof out), "kemari:");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_format_cuts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: Apache-2.0
// What pki makes is checked with OpenSSL's own verifier, and what tls_config says about wrong files
// with files that are wrong.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include "tests/fixture/transport.h"

#define DAY_S 86400

struct dirs {
	char ca[64], other[64];
};

static int setup(void **state)
{
	static struct dirs d;

	strcpy(d.ca, "/tmp/ft-test-pki-XXXXXX");
	strcpy(d.other, "/tmp/ft-test-pki-XXXXXX");
	if (!mkdtemp(d.ca) || !mkdtemp(d.other))
		return -1;
	*state = &d;
	return pki_init(d.ca, NULL) || pki_init(d.other, NULL);
}

static int teardown(void **state)
{
	struct dirs *d = *state;

	remove_dir(d->ca);
	remove_dir(d->other);
	return 0;
}

static char *path_of(const char *dir, const char *file)
{
	static char path[4][200];
	static unsigned i;

	snprintf(path[++i % 4], sizeof path[0], "%s/%s", dir, file);
	return path[i % 4];
}

static X509 *read_cert(const char *path)
{
	FILE *f = fopen(path, "r");
	X509 *cert = f ? PEM_read_X509(f, NULL, NULL, NULL) : NULL;

	assert_non_null(cert);
	fclose(f);
	return cert;
}

static void says(const struct ft_err *err, int code, const char *text)
{
	assert_int_equal(err->code, code);
	if (!strstr(err->text, text))
		fail_msg("\"%s\" does not say \"%s\"", err->text, text);
}

static mode_t mode_of(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return st.st_mode & 0777;
}

static void test_init(void **state)
{
	struct dirs *d = *state;
	struct ft_err err;
	X509 *ca = read_cert(path_of(d->ca, "ca.pem"));
	int days, seconds;

	assert_int_equal(mode_of(path_of(d->ca, "ca.key")), 0600);
	assert_int_equal(X509_check_ca(ca), 1);
	assert_true(ASN1_TIME_diff(&days, &seconds, NULL, X509_get0_notAfter(ca)));
	assert_true(days >= PKI_CA_DAYS - 1 && days <= PKI_CA_DAYS);
	X509_free(ca);
	assert_int_equal(pki_init(d->ca, &err), -EEXIST);
	says(&err, EEXIST, "ca.pem: exists already, and is not overwritten");
	unlink(path_of(d->other, "ca.pem"));
	assert_int_equal(pki_init(d->other, &err), -EEXIST);
	says(&err, EEXIST, "ca.key: exists already");
	unlink(path_of(d->other, "ca.key"));
	assert_int_equal(pki_init(d->other, &err), 0);
	assert_int_equal(pki_init("/proc/no/such", &err), -ENOENT);
	says(&err, ENOENT, "/proc/no/such");
}

static void test_issue(void **state)
{
	static const char *const hosts[] = {"a.example", "10.1.2.3", "fd00::5"};
	struct dirs *d = *state;
	X509 *cert, *ca = read_cert(path_of(d->ca, "ca.pem"));
	EVP_PKEY *key = X509_get_pubkey(ca);
	struct ft_err err;
	FILE *f;

	assert_int_equal(pki_issue(d->ca, "many", hosts, 3, &err), 0);
	assert_int_equal(mode_of(path_of(d->ca, "many.key")), 0600);
	cert = read_cert(path_of(d->ca, "many.pem"));
	assert_int_equal(X509_verify(cert, key), 1);
	assert_int_equal(X509_check_issued(ca, cert), X509_V_OK);
	assert_int_equal(X509_check_ca(cert), 0);
	assert_int_equal(X509_check_purpose(cert, X509_PURPOSE_SSL_SERVER, 0), 1);
	assert_int_equal(X509_check_purpose(cert, X509_PURPOSE_SSL_CLIENT, 0), 1);
	assert_int_equal(X509_check_host(cert, "a.example", 0, 0, NULL), 1);
	assert_int_equal(X509_check_host(cert, "b.example", 0, 0, NULL), 0);
	assert_int_equal(
		X509_check_host(cert, "many", 0, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL), 0);
	assert_int_equal(X509_check_ip_asc(cert, "10.1.2.3", 0), 1);
	assert_int_equal(X509_check_ip_asc(cert, "fd00::5", 0), 1);
	assert_int_equal(X509_check_ip_asc(cert, "10.1.2.4", 0), 0);
	X509_free(cert);
	f = fopen(path_of(d->ca, "many.key"), "r");
	EVP_PKEY_free(key);
	key = PEM_read_PrivateKey(f, NULL, NULL, NULL);
	fclose(f);
	cert = read_cert(path_of(d->ca, "many.pem"));
	assert_int_equal(X509_check_private_key(cert, key), 1);
	X509_free(cert);
	EVP_PKEY_free(key);

	assert_int_equal(pki_issue(d->ca, "host-a", NULL, 0, &err), 0);
	cert = read_cert(path_of(d->ca, "host-a.pem"));
	assert_int_equal(
		X509_check_host(cert, "host-a", 0, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL), 1);
	X509_free(cert);
	assert_int_equal(pki_issue(d->ca, "10.9.8.7", NULL, 0, &err), 0);
	cert = read_cert(path_of(d->ca, "10.9.8.7.pem"));
	assert_int_equal(X509_check_ip_asc(cert, "10.9.8.7", 0), 1);
	X509_free(cert);
	X509_free(ca);
}

static void test_never_beyond_the_ca(void **state)
{
	struct dirs *d = *state;
	X509 *cert, *ca = read_cert(path_of(d->ca, "ca.pem"));

	assert_int_equal(pki_issue_for(d->ca, "long", NULL, 0, time(NULL),
				       time(NULL) + (time_t)2 * PKI_CA_DAYS * DAY_S, NULL),
			 0);
	cert = read_cert(path_of(d->ca, "long.pem"));
	assert_int_equal(ASN1_TIME_compare(X509_get0_notAfter(cert), X509_get0_notAfter(ca)), 0);
	X509_free(cert);
	X509_free(ca);
}

static void test_refused_names(void **state)
{
	static const struct {
		const char *name, *host, *says;
	} cases[] = {
		{"", NULL, "must have 1 to 64"},
		{"../x", NULL, "letters, digits"},
		{"a/b", NULL, "letters, digits"},
		{".hidden", NULL, "begins with '.'"},
		{"-v", NULL, "begins with '-'"},
		{"ca", NULL, "authority's own"},
		{"a b", NULL, "letters, digits"},
		{"ok", "x,DNS:bank.example", "host \"x,DNS:bank.example\": neither"},
		{"ok", "", "neither a name nor an address"},
		{"ok", "10.0.0.256", "neither a name nor an address"},
		{"ok", "*.example", "neither a name nor an address"},
	};
	struct dirs *d = *state;
	struct ft_err err;
	char name[80];

	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		assert_int_equal(pki_issue(d->ca, cases[i].name, &cases[i].host,
					   cases[i].host != NULL, &err),
				 -EINVAL);
		says(&err, EINVAL, cases[i].says);
	}
	assert_int_equal(access(path_of(d->ca, "ok.pem"), F_OK), -1);
	memset(name, 'a', sizeof name);
	name[PKI_NAME_MAX + 1] = 0;
	assert_int_equal(pki_issue(d->ca, name, NULL, 0, &err), -EINVAL);
	name[PKI_NAME_MAX] = 0;
	assert_int_equal(pki_issue(d->ca, name, NULL, 0, &err), 0);
}

static void test_nothing_overwritten(void **state)
{
	struct dirs *d = *state;
	struct ft_err err;

	assert_int_equal(pki_issue(d->ca, "twice", NULL, 0, &err), 0);
	assert_int_equal(pki_issue(d->ca, "twice", NULL, 0, &err), -EEXIST);
	says(&err, EEXIST, "twice.pem: exists already");
	unlink(path_of(d->ca, "twice.pem"));
	assert_int_equal(pki_issue(d->ca, "twice", NULL, 0, &err), -EEXIST);
	says(&err, EEXIST, "twice.key: exists already");
	/* A failure half way leaves no half. */
	assert_int_equal(pki_issue("/tmp/ft-test-no-such-dir", "x", NULL, 0, &err), -ENOENT);
	says(&err, ENOENT, "is there a CA?");
}

static int load(const char *ca, const char *cert, const char *key, struct ft_err *err)
{
	struct tls_files files = {ca, cert, key, NULL};
	struct tls_config *config = NULL;
	int r = tls_config_load(&files, &config, err);

	assert_int_equal(ERR_peek_error(), 0);
	tls_config_free(config);
	return r;
}

static void test_config(void **state)
{
	struct dirs *d = *state;
	struct ft_err err = {0};
	time_t now = time(NULL);
	char ca[200], cert[200], key[200];
	FILE *f;

	strcpy(ca, path_of(d->ca, "ca.pem"));
	strcpy(cert, path_of(d->ca, "conf.pem"));
	strcpy(key, path_of(d->ca, "conf.key"));
	assert_int_equal(pki_issue(d->ca, "conf", NULL, 0, NULL), 0);
	assert_int_equal(pki_issue(d->ca, "conf2", NULL, 0, NULL), 0);
	assert_int_equal(load(ca, cert, key, &err), 0);

	assert_int_equal(load(NULL, cert, key, &err), -EINVAL);
	says(&err, EINVAL, "TLS: ca is not configured");
	assert_int_equal(load(ca, cert, NULL, &err), -EINVAL);
	says(&err, EINVAL, "TLS: key is not configured");
	assert_int_equal(
		tls_config_load(&(struct tls_files){ca, cert, key, (const char *const[]){"", NULL}},
				&(struct tls_config *){0}, &err),
		-EINVAL);
	says(&err, EINVAL, "TLS: peer: must have 1 to 253 characters");
	assert_int_equal(load("/no/ca.pem", cert, key, &err), -ENOENT);
	says(&err, ENOENT, "TLS CA file /no/ca.pem: No such file");
	assert_int_equal(load(ca, "/no/cert.pem", key, &err), -ENOENT);
	says(&err, ENOENT, "TLS certificate /no/cert.pem: No such file");
	assert_int_equal(load(ca, cert, "/no/key", &err), -ENOENT);
	says(&err, ENOENT, "TLS key /no/key: No such file");
	assert_int_equal(load(ca, cert, path_of(d->ca, "conf2.key"), &err), -EINVAL);
	says(&err, EINVAL, "conf2.key: is not the key of certificate ");

	f = fopen(path_of(d->ca, "junk.pem"), "w");
	fputs("this is no certificate\n", f);
	fclose(f);
	assert_int_equal(load(path_of(d->ca, "junk.pem"), cert, key, &err), -EINVAL);
	says(&err, EINVAL, "junk.pem: ");
	assert_int_equal(load(ca, path_of(d->ca, "junk.pem"), key, &err), -EINVAL);
	says(&err, EINVAL, "junk.pem: ");
	assert_int_equal(load(ca, cert, path_of(d->ca, "junk.pem"), &err), -EINVAL);
	says(&err, EINVAL, "TLS key ");

	assert_int_equal(load(path_of(d->other, "ca.pem"), cert, key, &err), -EINVAL);
	says(&err, EINVAL, "does not verify with CA file");
	assert_int_equal(pki_issue_for(d->ca, "old", NULL, 0, now - 2 * DAY_S, now - DAY_S, NULL),
			 0);
	assert_int_equal(load(ca, path_of(d->ca, "old.pem"), path_of(d->ca, "old.key"), &err),
			 -EKEYEXPIRED);
	says(&err, EKEYEXPIRED, "old.pem: has expired");
	assert_int_equal(pki_issue_for(d->ca, "new", NULL, 0, now + DAY_S, now + 2 * DAY_S, NULL),
			 0);
	assert_int_equal(load(ca, path_of(d->ca, "new.pem"), path_of(d->ca, "new.key"), &err),
			 -EINVAL);
	says(&err, EINVAL, "new.pem: is not valid yet");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_init, setup, teardown),
		cmocka_unit_test_setup_teardown(test_issue, setup, teardown),
		cmocka_unit_test_setup_teardown(test_never_beyond_the_ca, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused_names, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_overwritten, setup, teardown),
		cmocka_unit_test_setup_teardown(test_config, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

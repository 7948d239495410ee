// SPDX-License-Identifier: Apache-2.0
// Names go into the certificate through OpenSSL's structures, never through its configuration
// language, so that none of them can say more than a name. Files are made with O_EXCL, the key
// first; if anything fails, what was made is removed again.
#include "transport/pki.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/tls_internal.h"

#define DAY_S	    86400
#define SERIAL_BITS 127 /* random: no counter to keep; positive, within RFC 5280's 20 bytes */
#define SKEW_S                                                                                     \
	DAY_S /* clocks of hosts differ; a new certificate should be valid on all of them          \
	       */
#define DNS_MAX 253

struct pki_files {
	char cert[PATH_MAX];
	char key[PATH_MAX];
};

static int crypto_error(const char *what, struct ft_err *err)
{
	char buf[128];

	return ft_err_set(err, EIO, "pki: %s: %s", what, tls_queue_reason(buf, sizeof buf));
}

/* ---- files ---- */

static int name_files(const char *dir, const char *name, struct pki_files *files,
		      struct ft_err *err)
{
	if (snprintf(files->cert, PATH_MAX, "%s/%s.pem", dir, name) >= PATH_MAX ||
	    snprintf(files->key, PATH_MAX, "%s/%s.key", dir, name) >= PATH_MAX)
		return ft_err_set(err, ENAMETOOLONG, "pki: %.200s: %s", dir,
				  strerror(ENAMETOOLONG));
	return 0;
}

static int check_absent(const char *path, struct ft_err *err)
{
	struct stat st;

	if (!lstat(path, &st))
		return ft_err_set(err, EEXIST, "pki: %s: exists already, and is not overwritten",
				  path);
	return errno == ENOENT ? 0 : ft_err_set(err, errno, "pki: %s: %s", path, strerror(errno));
}

/* Exactly one of key and cert is given. */
static int write_pem(const char *path, mode_t mode, EVP_PKEY *key, X509 *cert, struct ft_err *err)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode), code = 0;
	FILE *f;
	bool ok;

	if (fd < 0)
		return ft_err_set(err, errno, "pki: %s: %s", path, strerror(errno));
	f = fdopen(fd, "w");
	if (!f) {
		code = errno;
		close(fd);
	} else {
		ok = key ? PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL)
			 : PEM_write_X509(f, cert);
		if (!ok || fflush(f) || fsync(fd))
			code = errno ? errno : EIO;
		if (fclose(f) && !code)
			code = errno;
	}
	if (!code)
		return 0;
	ERR_clear_error();
	unlink(path);
	return ft_err_set(err, code, "pki: %s: %s", path, strerror(code));
}

static int write_pair(const struct pki_files *files, EVP_PKEY *key, X509 *cert, struct ft_err *err)
{
	int r = write_pem(files->key, 0600, key, NULL, err);

	if (r)
		return r;
	r = write_pem(files->cert, 0644, NULL, cert, err);
	if (r)
		unlink(files->key);
	return r;
}

static FILE *open_read(const char *path, struct ft_err *err)
{
	FILE *f = fopen(path, "re");

	if (!f)
		ft_err_set(err, errno, "pki: %s: %s%s", path, strerror(errno),
			   errno == ENOENT ? " (is there a CA? see pki init)" : "");
	return f;
}

static int load_ca(const struct pki_files *files, EVP_PKEY **key, X509 **cert, struct ft_err *err)
{
	FILE *f = open_read(files->cert, err);

	if (!f)
		return -err->code;
	*cert = PEM_read_X509(f, NULL, NULL, NULL);
	fclose(f);
	if (!*cert)
		return crypto_error(files->cert, err);
	f = open_read(files->key, err);
	if (!f)
		return -err->code;
	*key = PEM_read_PrivateKey(f, NULL, NULL, NULL);
	fclose(f);
	if (!*key)
		return crypto_error(files->key, err);
	if (!X509_check_private_key(*cert, *key)) {
		ERR_clear_error();
		return ft_err_set(err, EINVAL, "pki: %s: is not the key of %s", files->key,
				  files->cert);
	}
	return 0;
}

/* ---- names ---- */

static bool is_name_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c == '-' || c == '_' || c == '.';
}

/* NAME becomes a file name: nothing that leaves the directory or hides in it. */
static int check_name(const char *name, struct ft_err *err)
{
	size_t n = strlen(name);

	if (n == 0 || n > PKI_NAME_MAX)
		return ft_err_set(err, EINVAL, "pki: name \"%.80s\": must have 1 to %d characters",
				  name, PKI_NAME_MAX);
	for (size_t i = 0; i < n; i++)
		if (!is_name_char(name[i]))
			return ft_err_set(
				err, EINVAL,
				"pki: name \"%s\": letters, digits, '-', '_' and '.' only", name);
	if (name[0] == '.' || name[0] == '-')
		return ft_err_set(err, EINVAL, "pki: name \"%s\": begins with '%c'", name, name[0]);
	if (!strcmp(name, "ca"))
		return ft_err_set(err, EINVAL, "pki: name \"ca\": is the authority's own");
	return 0;
}

static GENERAL_NAME *make_general_name(const char *host)
{
	GENERAL_NAME *name = GENERAL_NAME_new();
	ASN1_OCTET_STRING *ip = a2i_IPADDRESS(host);
	ASN1_IA5STRING *dns = ip ? NULL : ASN1_IA5STRING_new();

	ERR_clear_error();
	if (!name || (!ip && (!dns || !ASN1_STRING_set(dns, host, -1)))) {
		GENERAL_NAME_free(name);
		ASN1_OCTET_STRING_free(ip);
		ASN1_IA5STRING_free(dns);
		return NULL;
	}
	GENERAL_NAME_set0_value(name, ip ? GEN_IPADD : GEN_DNS, ip ? (void *)ip : (void *)dns);
	return name;
}

static int check_host(const char *host, struct ft_err *err)
{
	unsigned char address[16];
	size_t n = strlen(host);

	if (inet_pton(AF_INET, host, address) == 1 || inet_pton(AF_INET6, host, address) == 1)
		return 0;
	/* Digits and dots only would be a name to OpenSSL, and to nobody else. */
	if (n == 0 || n > DNS_MAX || strspn(host, "0123456789.") == n)
		return ft_err_set(err, EINVAL, "pki: host \"%.80s\": neither a name nor an address",
				  host);
	for (size_t i = 0; i < n; i++)
		if (!is_name_char(host[i]))
			return ft_err_set(err, EINVAL,
					  "pki: host \"%.80s\": neither a name nor an address",
					  host);
	return 0;
}

static int add_alt_names(X509 *cert, const char *const *hosts, unsigned hosts_n, struct ft_err *err)
{
	GENERAL_NAMES *names = GENERAL_NAMES_new();
	int r = 0;

	for (unsigned i = 0; names && !r && i < hosts_n; i++) {
		GENERAL_NAME *name = make_general_name(hosts[i]);

		if (!name || !sk_GENERAL_NAME_push(names, name)) {
			GENERAL_NAME_free(name);
			r = crypto_error(hosts[i], err);
		}
	}
	if (!r && (!names || !X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 0, 0)))
		r = crypto_error("subject alternative names", err);
	GENERAL_NAMES_free(names);
	return r;
}

/* ---- certificates ---- */

static bool add_ext(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509_EXTENSION *ext;
	bool ok;

	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	ok = ext && X509_add_ext(cert, ext, -1);
	X509_EXTENSION_free(ext);
	return ok;
}

static bool set_serial(X509 *cert)
{
	BIGNUM *bn = BN_new();
	bool ok = bn && BN_rand(bn, SERIAL_BITS, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) &&
		  BN_to_ASN1_INTEGER(bn, X509_get_serialNumber(cert));

	BN_free(bn);
	return ok;
}

/* Everything but extensions and signature. NULL: in OpenSSL's queue. */
static X509 *make_cert(const char *common_name, EVP_PKEY *key, const X509_NAME *issuer, time_t from,
		       time_t until)
{
	X509 *cert = X509_new();
	X509_NAME *name = cert ? X509_get_subject_name(cert) : NULL;

	if (cert && X509_set_version(cert, X509_VERSION_3) && set_serial(cert) &&
	    ASN1_TIME_set(X509_getm_notBefore(cert), from) &&
	    ASN1_TIME_set(X509_getm_notAfter(cert), until) &&
	    X509_NAME_add_entry_by_NID(name, NID_commonName, MBSTRING_UTF8,
				       (const unsigned char *)common_name, -1, -1, 0) &&
	    X509_set_issuer_name(cert, issuer ? issuer : name) && X509_set_pubkey(cert, key))
		return cert;
	X509_free(cert);
	return NULL;
}

static bool finish_ca(X509 *cert, EVP_PKEY *key)
{
	return add_ext(cert, cert, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
	       add_ext(cert, cert, NID_key_usage, "critical,keyCertSign,cRLSign") &&
	       add_ext(cert, cert, NID_subject_key_identifier, "hash") &&
	       X509_sign(cert, key, EVP_sha256());
}

static bool finish_host(X509 *cert, X509 *ca, EVP_PKEY *ca_key)
{
	return add_ext(cert, ca, NID_basic_constraints, "critical,CA:FALSE") &&
	       add_ext(cert, ca, NID_key_usage, "critical,digitalSignature") &&
	       add_ext(cert, ca, NID_ext_key_usage, "serverAuth,clientAuth") &&
	       add_ext(cert, ca, NID_subject_key_identifier, "hash") &&
	       add_ext(cert, ca, NID_authority_key_identifier, "keyid:always") &&
	       X509_sign(cert, ca_key, EVP_sha256());
}

int pki_init(const char *dir, struct ft_err *err)
{
	struct pki_files files;
	time_t now = time(NULL);
	EVP_PKEY *key = NULL;
	X509 *cert = NULL;
	int r = name_files(dir, "ca", &files, err);

	if (r)
		return r;
	if (mkdir(dir, 0700) && errno != EEXIST)
		return ft_err_set(err, errno, "pki: %s: %s", dir, strerror(errno));
	r = check_absent(files.cert, err);
	if (!r)
		r = check_absent(files.key, err);
	if (r)
		return r;
	ERR_clear_error();
	key = EVP_EC_gen("P-256");
	if (key)
		cert = make_cert("Kemari-FT CA", key, NULL, now - SKEW_S,
				 now + (time_t)PKI_CA_DAYS * DAY_S);
	if (!cert || !finish_ca(cert, key))
		r = crypto_error("CA", err);
	else
		r = write_pair(&files, key, cert, err);
	X509_free(cert);
	EVP_PKEY_free(key);
	return r;
}

static int issue(const struct pki_files *ca_files, const struct pki_files *files, const char *name,
		 const char *const *hosts, unsigned hosts_n, time_t from, time_t until,
		 struct ft_err *err)
{
	EVP_PKEY *ca_key = NULL, *key = NULL;
	X509 *ca = NULL, *cert = NULL;
	int r = load_ca(ca_files, &ca_key, &ca, err);

	if (!r) {
		key = EVP_EC_gen("P-256");
		cert = key ? make_cert(name, key, X509_get_subject_name(ca), from, until) : NULL;
		if (!cert)
			r = crypto_error(name, err);
	}
	/* A certificate that outlives its CA would fail on a day that nobody looks for in it. */
	if (!r && ASN1_TIME_compare(X509_get0_notAfter(cert), X509_get0_notAfter(ca)) > 0 &&
	    !X509_set1_notAfter(cert, X509_get0_notAfter(ca)))
		r = crypto_error(name, err);
	if (!r)
		r = add_alt_names(cert, hosts, hosts_n, err);
	if (!r && !finish_host(cert, ca, ca_key))
		r = crypto_error(name, err);
	if (!r)
		r = write_pair(files, key, cert, err);
	X509_free(cert);
	X509_free(ca);
	EVP_PKEY_free(key);
	EVP_PKEY_free(ca_key);
	return r;
}

int pki_issue_for(const char *dir, const char *name, const char *const *hosts, unsigned hosts_n,
		  time_t from, time_t until, struct ft_err *err)
{
	struct pki_files ca_files, files;
	struct ft_err local;
	int r;

	err = err ? err : &local;
	if (hosts_n == 0) {
		hosts = &name;
		hosts_n = 1;
	}
	if (hosts_n > PKI_HOSTS_MAX)
		return ft_err_set(err, EINVAL, "pki: %u hosts: at most %d", hosts_n, PKI_HOSTS_MAX);
	r = check_name(name, err);
	for (unsigned i = 0; !r && i < hosts_n; i++)
		r = check_host(hosts[i], err);
	if (!r)
		r = name_files(dir, "ca", &ca_files, err);
	if (!r)
		r = name_files(dir, name, &files, err);
	if (!r)
		r = check_absent(files.cert, err);
	if (!r)
		r = check_absent(files.key, err);
	if (r)
		return r;
	ERR_clear_error();
	return issue(&ca_files, &files, name, hosts, hosts_n, from, until, err);
}

int pki_issue(const char *dir, const char *name, const char *const *hosts, unsigned hosts_n,
	      struct ft_err *err)
{
	time_t now = time(NULL);

	return pki_issue_for(dir, name, hosts, hosts_n, now - SKEW_S,
			     now + (time_t)PKI_HOST_DAYS * DAY_S, err);
}

// SPDX-License-Identifier: Apache-2.0
// OpenSSL's errors say what its code met; operators need what their certificates lack. Anything not
// in these tables keeps OpenSSL's words.
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#include "transport/tls_internal.h"

struct reason {
	int reason;
	int code;
	const char *text;
};

/* What we found wrong, or what the peer's alert says that it found wrong with us. */
static const struct reason reasons[] = {
	{SSL_R_WRONG_VERSION_NUMBER, EPROTO, "peer does not speak TLS"},
	{SSL_R_HTTP_REQUEST, EPROTO, "peer does not speak TLS (but HTTP)"},
	{SSL_R_PACKET_LENGTH_TOO_LONG, EPROTO, "peer does not speak TLS"},
	{SSL_R_UNSUPPORTED_PROTOCOL, EPROTO, "peer does not speak TLS 1.3"},
	{SSL_R_TLSV1_ALERT_PROTOCOL_VERSION, EPROTO, "peer does not speak TLS 1.3"},
	{SSL_R_NO_SHARED_CIPHER, EPROTO, "peer has no cipher suite of ours"},
	{SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE, EACCES, "peer showed no certificate"},
	{SSL_R_UNEXPECTED_EOF_WHILE_READING, EPIPE, "closed by the peer"},
	{SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC, EBADMSG, "record was corrupted on the way"},
	{SSL_R_TLSV1_ALERT_UNKNOWN_CA, EACCES,
	 "peer refuses our certificate: not signed by its CA"},
	{SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED, EACCES, "peer refuses our certificate: expired"},
	{SSL_R_SSLV3_ALERT_BAD_CERTIFICATE, EACCES,
	 "peer refuses our certificate: another name than it expects, or not valid yet"},
	{SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN, EACCES, "peer refuses our certificate"},
	{SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED, EACCES, "peer wants a certificate of us"},
	{SSL_R_SSLV3_ALERT_BAD_RECORD_MAC, EBADMSG, "peer got a corrupted record"},
};

const char *tls_queue_reason(char *buf, size_t size)
{
	unsigned long e = ERR_peek_last_error();
	const char *text = ERR_reason_error_string(e);

	if (text)
		snprintf(buf, size, "%s", text);
	else
		snprintf(buf, size, e ? "error %lx" : "unknown error", e);
	ERR_clear_error();
	return buf;
}

char *tls_names(X509 *cert, char *out, size_t size)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	size_t used = 0;

	snprintf(out, size, "no name");
	for (int i = 0; i < sk_GENERAL_NAME_num(names) && used < size; i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
		const char *comma = used ? ", " : "";
		char ip[INET6_ADDRSTRLEN];
		int n = 0;

		if (name->type == GEN_DNS) {
			const ASN1_IA5STRING *dns = name->d.dNSName;

			n = snprintf(out + used, size - used, "%s%.*s", comma,
				     ASN1_STRING_length(dns), ASN1_STRING_get0_data(dns));
		} else if (name->type == GEN_IPADD) {
			const ASN1_OCTET_STRING *addr = name->d.iPAddress;
			int family = ASN1_STRING_length(addr) == 4 ? AF_INET : AF_INET6;

			if (family == AF_INET6 && ASN1_STRING_length(addr) != 16)
				continue;
			inet_ntop(family, ASN1_STRING_get0_data(addr), ip, sizeof ip);
			n = snprintf(out + used, size - used, "%s%s", comma, ip);
		}
		used += n > 0 ? (size_t)n : 0;
	}
	GENERAL_NAMES_free(names);
	/* The names come from the other side, and a terminal is not the place for its control
	 * characters. */
	for (char *p = out; *p; p++)
		if (*p < ' ' || *p > '~')
			*p = '?';
	return out;
}

/* The peer's certificate did not verify. */
static int explain_certificate(long verdict, const char *expected, const char *seen,
			       struct ft_err *err)
{
	switch (verdict) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
		return ft_err_set(err, EACCES, "peer's certificate has expired");
	case X509_V_ERR_CERT_NOT_YET_VALID:
		return ft_err_set(err, EACCES,
				  "peer's certificate is not valid yet (check the clocks)");
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		return ft_err_set(err, EACCES, "peer's certificate is not for %s but for %s",
				  expected, seen);
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
		return ft_err_set(err, EACCES, "peer's certificate is not signed by our CA");
	default:
		return ft_err_set(err, EACCES, "peer's certificate: %s",
				  X509_verify_cert_error_string(verdict));
	}
}

int tls_explain(SSL *ssl, const char *expected, const char *seen, struct ft_err *err)
{
	int reason = ERR_GET_REASON(ERR_peek_last_error());
	char buf[128];

	if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED) {
		ERR_clear_error();
		return explain_certificate(SSL_get_verify_result(ssl), expected, seen, err);
	}
	for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
		if (reasons[i].reason == reason) {
			ERR_clear_error();
			return ft_err_set(err, reasons[i].code, "%s", reasons[i].text);
		}
	}
	return ft_err_set(err, EPROTO, "TLS: %s", tls_queue_reason(buf, sizeof buf));
}

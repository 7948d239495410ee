/* SPDX-License-Identifier: Apache-2.0 */
/* A small certificate authority in a directory, for people without one: DIR/ca.pem, DIR/ca.key, and
 * per host DIR/NAME.pem, DIR/NAME.key. EC P-256, SHA-256. Nothing is ever overwritten; keys are
 * readable by their owner only. A certificate serves for both sides of a connection. Blocking file
 * access; any thread. Errors are one line that names the file or the name. */
#ifndef TRANSPORT_PKI_H
#define TRANSPORT_PKI_H

#include <time.h>

#include "ft/err.h"

#define PKI_CA_DAYS   3650
#define PKI_HOST_DAYS 1825 /* and never beyond the CA's */
#define PKI_NAME_MAX  64   /* X.509's bound of a common name */
#define PKI_HOSTS_MAX 32

/* Makes dir (0700) if it is not there. -EEXIST: there is a CA already. */
int pki_init(const char *dir, struct ft_err *err);
/* A certificate for the hosts (DNS names or IP addresses); with hosts_n 0 for NAME itself. -EEXIST:
 * NAME has one already. */
int pki_issue(const char *dir, const char *name, const char *const *hosts, unsigned hosts_n,
	      struct ft_err *err);
/* The same, valid from `from` until `until`. */
int pki_issue_for(const char *dir, const char *name, const char *const *hosts, unsigned hosts_n,
		  time_t from, time_t until, struct ft_err *err);

#endif

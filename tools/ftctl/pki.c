// SPDX-License-Identifier: Apache-2.0
/* A certificate authority and host certificates, for people without one. Asks no agent. */
#include "tools/ftctl/ftctl.h"

#include <limits.h>
#include <string.h>

#include "transport/pki.h"

static int print_pair(const struct ftctl *ctl, const char *dir, const char *name, const char *label)
{
	char cert[PATH_MAX], key[PATH_MAX];

	snprintf(cert, sizeof cert, "%s/%s.pem", dir, name);
	snprintf(key, sizeof key, "%s/%s.key", dir, name);
	if (ctl->json)
		return print_json(
			json_pack("{s:o, s:o}", label, json_text(cert), "key", json_text(key)));
	printf("%s\n%s\n", cert, key);
	return FTCTL_OK;
}

int run_pki(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	struct ft_err err;

	if (!strcmp(what, "init")) {
		if (argc != 3)
			return fail_usage(ctl, command, "pki init takes a folder");
		if (pki_init(argv[2], &err))
			return fail(ctl, CTL_ERR_FAILED, "%s", err.text);
		return print_pair(ctl, argv[2], "ca", "ca");
	}
	if (!strcmp(what, "issue")) {
		if (argc < 4)
			return fail_usage(ctl, command, "pki issue takes a folder and a name");
		if (!ctl_name_ok(argv[3]))
			return fail_usage(ctl, command, "'%s' is not a name (%s)", argv[3],
					  CTL_NAME_RULE);
		if (pki_issue(argv[2], argv[3], (const char *const *)argv + 4, (unsigned)argc - 4,
			      &err))
			return fail(ctl, CTL_ERR_FAILED, "%s", err.text);
		return print_pair(ctl, argv[2], argv[3], "cert");
	}
	return fail_usage(ctl, command, "pki: %s",
			  *what ? "unknown subcommand" : "what? init or issue");
}

// SPDX-License-Identifier: Apache-2.0
/* ftctl migrate: by a URI with kemari: the guest is protected, by one without it moves. */
#include "tools/ftctl/ftctl.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "transport/uri.h"

#define ROUNDS_MAX 30 /* as many as a migration without postcopy has */

enum { OPT_THROTTLE = 256, OPT_AFTER, OPT_RECOVER };

static int parse_rounds(const struct ftctl *ctl, const struct command *command, const char *text,
			Ctl__Request *r)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || n > ROUNDS_MAX)
		return fail_usage(ctl, command, "--postcopy-after %s: 0 to %d rounds", text,
				  ROUNDS_MAX);
	r->rounds = (uint32_t)n;
	r->postcopy = true;
	return 0;
}

static int parse(const struct ftctl *ctl, const struct command *command, int argc, char **argv,
		 Ctl__Request *r)
{
	static const struct option longs[] = {
		{"auto-throttle", no_argument, NULL, OPT_THROTTLE},
		{"postcopy-after", required_argument, NULL, OPT_AFTER},
		{"recover", no_argument, NULL, OPT_RECOVER},
		{0}};
	int opt, ret = 0;

	while (!ret && (opt = getopt_long(argc, argv, ":pn", longs, NULL)) != -1) {
		if (opt == ':')
			return fail_usage(ctl, command, "migrate: %s: needs a value",
					  argv[optind - 1]);
		if (opt == '?')
			return fail_usage(ctl, command, "migrate: unknown option %s",
					  argv[optind - 1]);
		if (opt == OPT_AFTER)
			ret = parse_rounds(ctl, command, optarg, r);
		r->throttle |= opt == OPT_THROTTLE;
		r->recover |= opt == OPT_RECOVER;
		r->postcopy |= opt == 'p';
		r->demand_only |= opt == 'n';
	}
	return ret;
}

/* What does not go together. */
static int check(const struct ftctl *ctl, const struct command *command, int words,
		 const Ctl__Request *r)
{
	if (r->recover && (r->postcopy || r->throttle))
		return fail_usage(ctl, command, "--recover goes on with what was begun: -n only");
	if (words != 2 && !(r->recover && words == 1))
		return fail_usage(ctl, command, "migrate takes a name and a URI");
	if (r->demand_only && !r->postcopy && !r->recover)
		return fail_usage(ctl, command, "-n is only for postcopy, -p");
	if (r->throttle && r->postcopy)
		return fail_usage(ctl, command,
				  "--auto-throttle: postcopy has no rounds that must converge");
	return 0;
}

static int check_uri(const struct ftctl *ctl, const struct command *command, const char *name,
		     const Ctl__Request *r)
{
	struct ft_err err;
	struct uri uri;

	if (uri_parse(r->uri, &uri, &err))
		return fail_usage(ctl, command, "%s", err.text);
	if (uri.scheme == URI_FILE)
		return fail_usage(ctl, command, "to save a guest to a file: ftctl snapshot %s %s",
				  name, r->uri);
	if (uri.kemari && (r->throttle || r->postcopy || r->recover))
		return fail_usage(ctl, command,
				  "the options are for live migration: a URI without kemari:");
	return 0;
}

int run_migrate(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	Ctl__Request request = CTL__REQUEST__INIT;
	int ret = parse(ctl, command, argc, argv, &request), words = argc - optind;

	if (!ret)
		ret = check(ctl, command, words, &request);
	if (!ret && words == 2) {
		request.uri = argv[optind + 1];
		ret = check_uri(ctl, command, argv[optind], &request);
	}
	return ret ? ret : ask_and_tell(ctl, command, argv[optind], &request);
}

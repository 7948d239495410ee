// SPDX-License-Identifier: Apache-2.0
/* drill: the command line of tools/drill. */
#include "tools/drill/drill.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "tools/ftctl/ftctl.h"

#define TAKEOVER_MS_MIN 100
#define TAKEOVER_MS_MAX 20000

enum {
	OPT_KILL = 256,
	OPT_ROUNDS,
	OPT_VMM,
	OPT_ARBITER,
	OPT_DISK,
	OPT_TAKEOVER,
	OPT_KEEP,
	OPT_SOAK,
	OPT_SEED,
	OPT_ATTACH,
	OPT_RETURN,
	OPT_DURABILITY,
	OPT_SET
};

/* 0, or what is wrong with the option's value. */
static const char *take_option(struct drill_options *o, int *arbiter, int opt, const char *value)
{
	char *end;
	int kill;

	switch (opt) {
	case OPT_KILL:
		kill = drill_kill_parse(value);
		o->kill = (enum drill_kill)(kill < 0 ? 0 : kill);
		o->kill_given = true;
		return kill < 0 ? "--kill is one of " DRILL_KILL_NAMES : NULL;
	case OPT_ROUNDS:
		o->rounds = (unsigned)strtoul(value, &end, 10);
		return *end || end == value || !o->rounds || o->rounds > DRILL_ROUNDS_MAX
			       ? "--rounds is a number from 1 to 100"
			       : NULL;
	case OPT_VMM:
		o->vmm = !strcmp(value, "pocket") ? DRILL_VMM_POCKET : DRILL_VMM_QEMU;
		return strcmp(value, "pocket") && strcmp(value, "qemu") ? "--vmm is qemu or pocket"
									: NULL;
	case OPT_ARBITER:
		for (int i = DRILL_ARBITER_NONE; i <= DRILL_ARBITER_ETCD; i++)
			if (!strcmp(value, drill_arbiter_name((enum drill_arbiter)i)))
				*arbiter = i;
		return *arbiter < 0 ? "--arbiter is none, file or etcd" : NULL;
	case OPT_DISK:
		o->shared_disk = !strcmp(value, "shared");
		return strcmp(value, "shared") && strcmp(value, "replicated")
			       ? "--disk is replicated or shared"
			       : NULL;
	case OPT_TAKEOVER:
		o->takeover_ms = (unsigned)strtoul(value, &end, 10);
		return *end || end == value || o->takeover_ms < TAKEOVER_MS_MIN ||
				       o->takeover_ms > TAKEOVER_MS_MAX
			       ? "--takeover is a number of milliseconds from 100 to 20000"
			       : NULL;
	case OPT_SOAK:
		o->soak_s = (unsigned)strtoul(value, &end, 10);
		return *end || end == value || !o->soak_s || o->soak_s > SOAK_S_MAX
			       ? "--soak is a number of seconds from 1 to 86400"
			       : NULL;
	case OPT_SEED:
		o->seed = strtoull(value, &end, 10);
		return *end || end == value ? "--seed is a number" : NULL;
	case OPT_ATTACH:
		o->attach = true;
		return NULL;
	case OPT_DURABILITY:
		o->durable = !strcmp(value, "disk");
		return strcmp(value, "disk") && strcmp(value, "memory")
			       ? "--durability is memory or disk"
			       : NULL;
	case OPT_SET:
		if (o->sets_n == DRILL_SETS_MAX)
			return "--set at most 8 times";
		o->sets[o->sets_n++] = value;
		return NULL;
	case OPT_RETURN:
		o->give_back = true;
		return NULL;
	case OPT_KEEP:
		o->keep = true;
		return NULL;
	default:
		return "drill: unknown option, or its value is missing";
	}
}

static int default_arbiter(const struct drill_options *o)
{
	if (o->soak_s)
		return DRILL_ARBITER_FILE;
	return o->kill >= DRILL_PART_FIRST ? DRILL_ARBITER_ETCD : DRILL_ARBITER_NONE;
}

int run_drill(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	static const struct option longs[] = {
		{"kill", required_argument, NULL, OPT_KILL},
		{"rounds", required_argument, NULL, OPT_ROUNDS},
		{"vmm", required_argument, NULL, OPT_VMM},
		{"arbiter", required_argument, NULL, OPT_ARBITER},
		{"disk", required_argument, NULL, OPT_DISK},
		{"takeover", required_argument, NULL, OPT_TAKEOVER},
		{"keep", no_argument, NULL, OPT_KEEP},
		{"attach", no_argument, NULL, OPT_ATTACH},
		{"return", no_argument, NULL, OPT_RETURN},
		{"durability", required_argument, NULL, OPT_DURABILITY},
		{"set", required_argument, NULL, OPT_SET},
		{"soak", required_argument, NULL, OPT_SOAK},
		{"seed", required_argument, NULL, OPT_SEED},
		{0}};
	struct drill_options o = {.run_dir = ctl->run_dir, .json = ctl->json, .rounds = 1};
	struct ft_err err = {0};
	const char *mistake;
	bool reported;
	int opt, ret, arbiter = -1; /* -1: as the fault needs it */

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		mistake = take_option(&o, &arbiter, opt, optarg);
		if (mistake)
			return fail_usage(ctl, command, "%s", mistake);
	}
	if (argc - optind > 1)
		return fail_usage(ctl, command, "drill takes at most one name");
	o.name = argv[optind];
	if (o.attach && (o.name || o.shared_disk || o.sets_n))
		return fail_usage(ctl, command,
				  "--attach goes with neither a name nor --disk shared nor --set");
	if (o.name && o.sets_n)
		return fail_usage(ctl, command, "--set goes with a pair of the drill's own");
	if (o.give_back && (o.name || o.soak_s || o.attach || o.kill == DRILL_STANDBY ||
			    o.kill == DRILL_SWITCH || o.kill == DRILL_LINK))
		return fail_usage(ctl, command,
				  "--return goes with --kill host, agent, vmm or freeze only");
	if (o.soak_s && (o.name || o.kill_given))
		return fail_usage(ctl, command, "--soak goes with neither a name nor --kill");
	if (arbiter < 0)
		arbiter = default_arbiter(&o);
	o.arbiter = (enum drill_arbiter)arbiter;
	if (o.soak_s && o.arbiter == DRILL_ARBITER_NONE)
		return fail_usage(ctl, command,
				  "--soak needs an arbiter by which each side can win");
	if (o.kill >= DRILL_PART_FIRST && (o.arbiter != DRILL_ARBITER_ETCD || o.name))
		return fail_usage(ctl, command,
				  "partitions are drilled with --arbiter etcd, on a pair of "
				  "the drill's own");
	ret = drill_run(&o, &reported, &err);
	/* With --json a drill that ran has told its error in its own object. */
	if (ret != DRILL_OK && !reported)
		fail(ctl, ret == DRILL_IMPOSSIBLE ? CTL_ERR_NOT_AVAILABLE : CTL_ERR_FAILED,
		     "drill: %s", err.text);
	return ret;
}

// SPDX-License-Identifier: Apache-2.0
/* ftctl: what operators and scripts tell the agents of this host. This file has the program's own
 * options, the table of commands and the help; a new command is a line in the table and a function
 * in ftctl/. */
#include "tools/ftctl/ftctl.h"

#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const struct command commands[] = {
	{"status", "[NAME]", "state and figures of one guest, or of all", 
	 "Without NAME: a table of all guests that have an agent in the run directory.",
	 run_status, 5000},
	{"wait", "NAME STATE [--timeout SECONDS]", "block until a state is reached",
	 "STATE is one of starting, solo, syncing, protected, standby, takeover, fenced,\n"
	 "stopped, failed. Exit code 4: not reached within the timeout. It is an error if\n"
	 "the guest ends in another state that it cannot leave.",
	 run_wait, -1},
	{"migrate", "[-p [-n] [--postcopy-after N] | --auto-throttle] NAME URI | --recover [-n] NAME [URI]", "protect a guest by a standby, or move it",
	 "URI names the standby's agent: kemari:tls:HOST:PORT, kemari:tcp:HOST:PORT\n"
	 "(plaintext, only with tls { insecure = true }) or kemari:unix:PATH. Returns when\n"
	 "the guest is protected, or with the reason why it is not. Interrupting the\n"
	 "command interrupts nothing else; see wait and cancel.\n"
	 "\n"
	 "Without kemari: the guest moves (live migration): its memory and its replicated\n"
	 "disks follow it while it runs, until the rest fits max_downtime_ms of the guest\n"
	 "file; then it stops here, goes on there, and this agent ends. The target is\n"
	 "ft-agent --incoming with such a URI. If anything fails before the target has\n"
	 "confirmed, the guest goes on here; ftctl cancel NAME gives up.\n"
	 "\n"
	 "With -p (postcopy) the guest goes on there at once and its memory follows: what it\n"
	 "touches first, the rest in the background. Replicated disks are copied before. If\n"
	 "the link is lost, the guest stands still as soon as it needs a page that is here;\n"
	 "nothing is lost, and --recover goes on when the link is back. Returns when all of\n"
	 "its memory is there (-n: when the guest is).\n"
	 "\n"
	 "  --auto-throttle     slow the guest down, more and more, while it writes faster than\n"
	 "                      can be sent (without: the migration fails then)\n"
	 "  -p                  postcopy\n"
	 "  --postcopy-after N  postcopy, after N rounds: what was not written since is there\n"
	 "  -n                  only pages that the guest touches follow; --recover without -n\n"
	 "                      after the link was lost sends the others as well",
	 run_migrate, -1},
	{"checkpoint", "NAME", "one checkpoint now", "Returns when it is committed.",
	 run_checkpoint, 60000},
	{"failover", "NAME", "standby: take over now; primary: planned switch",
	 "On the standby: takes over from the last committed checkpoint. On the primary:\n"
	 "nothing is lost, and the two exchange roles.",
	 run_plain, 120000},
	{"failback", "NAME", "planned switch home",
	 "On either host of a protected guest: if it runs away from home, a planned switch\n"
	 "back, without loss. Home is the host where the guest was started first, or what\n"
	 "the guest file says (home).",
	 run_plain, 120000},
	{"cancel", "NAME", "leave protection; the guest runs on solo", "",
	 run_plain, 60000},
	{"verify", "NAME", "compare the standby's copy of RAM with the guest's",
	 "On the primary: takes a checkpoint, digests the guest's RAM in the same pause, and\n"
	 "compares it with the standby's image at that epoch. If they differ, the error's\n"
	 "code is \"mismatch\".",
	 run_verify, 120000},
	{"snapshot", "NAME file:PATH [--incremental] [--direct] [--jobs N] [--max-bandwidth BYTES] [--no-disks] [--verify]",
	 "save a running guest's memory, devices and disks",
	 "Of a guest that runs solo: it is paused for its device state only, and the file\n"
	 "holds its memory as it was in that pause, raw images beside it its disks. At the\n"
	 "standby of a protected guest: the last committed checkpoint, and the guest does not\n"
	 "notice.\n"
	 "\n"
	 "QEMU 9 and later can restore the file too (-incoming file:PATH with the capability\n"
	 "mapped-ram); ft-agent --restore file:PATH does with any. Interrupting the command,\n"
	 "or ftctl cancel NAME, leaves the guest running and no file.\n"
	 "\n"
	 "  --incremental          update the files, if they are there: only what changed since\n"
	 "                         is written, first to FILE.journal, so that whatever happens\n"
	 "                         leaves the old snapshot or the new one\n"
	 "  --direct               past the page cache\n"
	 "  --jobs N               threads that write (at most 16; default: the host's\n"
	 "                         processors that the guest leaves, 1 to 4)\n"
	 "  --max-bandwidth BYTES  a second; with K, M or G at its end (pages that the guest\n"
	 "                         overwrites meanwhile count, but do not wait)\n"
	 "  --no-disks             leave the guest's disks out\n"
	 "  --verify               digest memory in the pause, which it prolongs by about 0.3 s\n"
	 "                         per GiB, and compare the file with that",
	 run_snapshot, -1},
	{"bitmap", "add|remove|enable|disable|clear|list|sha256 NAME DISK [BITMAP] [--granularity BYTES]",
	 "named dirty bitmaps of a disk, for incremental backups",
	 "A bitmap notes what the guest writes, in units of its granularity: a power of two\n"
	 "from 512 to 1M bytes (default 64K). A disk has at most 16. They survive restarts\n"
	 "of agent and guest, and a takeover; after a crash of a solo guest's agent or host\n"
	 "those that were enabled are inconsistent, and can only be removed.\n"
	 "\n"
	 "A disk with a bitmap is served to backup clients, read-only, as the guest sees it\n"
	 "at each moment, at the URI that list prints; its bitmaps are the NBD contexts\n"
	 "qemu:dirty-bitmap:BITMAP. sha256 prints a digest of the map, the same on both\n"
	 "hosts at the same checkpoint.",
	 run_bitmap, 60000},
	{"backup", "begin|end|abort NAME DISK [BITMAP]",
	 "a disk as it is at one moment, for backup clients",
	 "begin serves the disk as it is now, read-only, while the guest writes on, at the URI\n"
	 "that is printed; and BITMAP as the context qemu:dirty-bitmap:BITMAP, as it is now.\n"
	 "What the guest overwrites is kept aside, beside the image, until the end.\n"
	 "\n"
	 "end: the backup is good; only what was written since begin is dirty in BITMAP then.\n"
	 "abort: it is not; BITMAP is as if there had been none.",
	 run_backup, 60000},
	{"history", "NAME",
	 "past checkpoints that a standby keeps",
	 "At the standby, with ft { history = N } in the guest file (kemari-guest(5)): epoch,\n"
	 "time and size on the disk of each, oldest first. One of them is started with\n"
	 "ft-agent --guest FILE --restore history:EPOCH, or history:TIME.",
	 run_history, 10000},
	{"drill", "[NAME] [--kill WHAT] [--rounds N | --soak SECONDS [--seed N]] [--arbiter none|file|etcd] [--disk replicated|shared] [--takeover MS] [--vmm qemu|pocket] [--durability memory|disk] [--set KEY=VALUE] [--attach] [--return] [--keep]",
	 "rehearse a failover and report what a client saw",
	 "Without NAME: brings up a pair of its own on this machine, in network namespaces\n"
	 "(needs root): a Linux guest in QEMU if there is one (tests/guest/build; FT_GUEST_DIR),\n"
	 "else the built-in machine pocket over loopback. A client with one connection checks\n"
	 "every answer; everything is removed afterwards (--keep: but for logs and images).\n"
	 "\n"
	 "With NAME, on the primary of a protected guest: a planned switch, which loses\n"
	 "nothing; or --kill agent, or --kill vmm, which break what they say.\n"
	 "\n"
	 "--return: after the takeover the lost host comes back, is sent what differs, and the\n"
	 "guest goes home (failback), all under the client's eyes.\n"
	 "--attach: the guest's QEMU is started without us (q35, modern virtio, plain -m);\n"
	 "it is attached to, let go again, and protected from there.\n"
	 "--set: a key of the guest file for both hosts, such as cpus=2 or memory=4G.\n"
	 "--soak: strikes of all kinds for so long, as the seed draws them.\n"
	 "--takeover: silence after which a host counts as lost (takeover_ms, 300).\n"
	 "WHAT is one of\n"
	 "  host     the primary host dies: agent, VMM and keeper, its links go down at once\n"
	 "  agent    the primary's agent is killed\n"
	 "  vmm      the primary's QEMU is killed\n"
	 "  freeze   the primary host stops, and wakes up again later\n"
	 "  link     the replication link is cut\n"
	 "  standby  the standby host dies\n"
	 "  switch   planned switch, roles are exchanged\n"
	 "or a partition of primary, standby and an etcd cluster (--arbiter etcd):\n"
	 "  partition:pair | deaf-primary | deaf-standby   the hosts lose each other, or one way\n"
	 "  partition:primary | standby | all              these are alone\n"
	 "  partition:primary-arbiter | standby-arbiter    these two lose each other\n"
	 "  partition:arbiter                              it is alone; then the primary host dies\n"
	 "Exit code 77: this machine lacks what was asked for, nothing was done.",
	 run_drill, -1},
	{"stop", "NAME", "shut the guest and its agent down", "",
	 run_plain, 120000},
	{"top", "", "live table of all guests", "Refreshed every second; printed once if the output is no terminal.",
	 run_top, 1000},
	{"pki", "init DIR | issue DIR NAME [HOST-OR-IP]...", "a CA and host certificates",
	 "init makes DIR/ca.pem and DIR/ca.key. issue makes DIR/NAME.pem and DIR/NAME.key,\n"
	 "valid for the hosts and addresses given. Keep ca.key away from the hosts.",
	 run_pki, 0},
};
/* clang-format on */
#define COMMANDS_N (sizeof commands / sizeof *commands)

static const char global_help[] =
	"  --run-dir DIR  where the agents' control sockets are (default: environment\n"
	"                 KEMARI_RUN_DIR, else " CTL_RUN_DIR_DEFAULT ")\n"
	"  --json         print one JSON object, errors too: {\"error\": {\"code\", \"message\"}}\n"
	"  --help         this text, or after a command that command's\n"
	"  --version      version of this program\n"
	"\n"
	"Exit codes: 0 done, 1 failed, 2 bad command line, 4 timeout of wait.\n";

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < COMMANDS_N; i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

static int print_help(const struct command *command)
{
	if (command) {
		printf("usage: ftctl [--run-dir DIR] [--json] %s %s\n\n%c%s.\n", command->name,
		       command->synopsis, command->summary[0] - 'a' + 'A', command->summary + 1);
		if (*command->help)
			printf("\n%s\n", command->help);
		printf("\nOptions:\n%s", global_help);
		return FTCTL_OK;
	}
	printf("usage: ftctl [--run-dir DIR] [--json] COMMAND ...\n\nCommands:\n");
	for (size_t i = 0; i < COMMANDS_N; i++)
		printf("  %-12s %s\n", commands[i].name, commands[i].summary);
	printf("\nOptions:\n%s", global_help);
	return FTCTL_OK;
}

struct globals {
	struct ftctl ctl;
	bool help, version;
	const char *mistake; /* an option without its value, or an unknown one before the command */
};

/* Takes the program's options out of argv wherever they are, so that `ftctl status NAME --json`
 * works. Returns how many words are left. */
static int take_globals(struct globals *g, int argc, char **argv)
{
	int n = 0;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--json")) {
			g->ctl.json = true;
		} else if (!strncmp(argv[i], "--run-dir=", 10)) {
			g->ctl.run_dir = argv[i] + 10;
		} else if (!strcmp(argv[i], "--run-dir")) {
			if (++i < argc)
				g->ctl.run_dir = argv[i];
			else
				g->mistake = "--run-dir needs a folder";
		} else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			g->help = true;
		} else if (!strcmp(argv[i], "--version") && !n) {
			g->version = true;
		} else if (*argv[i] == '-' && !n) {
			g->mistake = "unknown option before the command";
		} else {
			argv[n++] = argv[i];
		}
	}
	argv[n] = NULL;
	return n;
}

int main(int argc, char **argv)
{
	const char *env = getenv(CTL_RUN_DIR_ENV);
	struct globals g = {.ctl.run_dir = env && *env ? env : CTL_RUN_DIR_DEFAULT};
	const struct command *command;

	argc = take_globals(&g, argc, argv);
	command = argc ? find_command(argv[0]) : NULL;
	if (g.mistake)
		return fail_usage(&g.ctl, NULL, "%s", g.mistake);
	if (argc && !command)
		return fail_usage(&g.ctl, NULL, "unknown command '%s'", argv[0]);
	if (g.help)
		return print_help(command);
	if (g.version) {
		puts("ftctl " FT_VERSION);
		return FTCTL_OK;
	}
	if (!command)
		return fail_usage(&g.ctl, NULL, "no command");
	return command->run(&g.ctl, command, argc, argv);
}

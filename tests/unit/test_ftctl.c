// SPDX-License-Identifier: Apache-2.0
/* ftctl's command line, its help, and the one command that asks no agent: pki. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/ftctl_lab.h"

#define MIGRATE_USAGE                                                                              \
	"usage: ftctl migrate [-p [-n] [--postcopy-after N] | --auto-throttle] NAME URI | "        \
	"--recover [-n] NAME [URI]\n"

static void test_command_line(void **state)
{
	static const struct {
		const char *line;
		int code;
		const char *err;
	} wrong[] = {
		{"", 2, "ftctl: no command\ntry: ftctl --help\n"},
		{"frob web1", 2, "ftctl: unknown command 'frob'\ntry: ftctl --help\n"},
		{"--frob status", 2,
		 "ftctl: unknown option before the command\ntry: ftctl --help\n"},
		{"status --run-dir", 2, "ftctl: --run-dir needs a folder\ntry: ftctl --help\n"},
		{"status a b", 2,
		 "ftctl: status takes one name at most\nusage: ftctl status [NAME]\n"},
		{"status ../web1", 2,
		 "ftctl: '../web1' is not a guest's name (1 to 63 of A-Z a-z 0-9 . _ -, a letter "
		 "or digit first)\n"},
		{"history", 2, "ftctl: history takes a name\nusage: ftctl history NAME\n"},
		{"cancel", 2, "ftctl: cancel takes a name\nusage: ftctl cancel NAME\n"},
		{"verify a b", 2, "ftctl: verify takes a name\nusage: ftctl verify NAME\n"},
		{"top web1", 2, "ftctl: top takes no arguments\nusage: ftctl top\n"},
		{"wait web1", 2,
		 "ftctl: wait takes a name and a state\nusage: ftctl wait NAME STATE [--timeout "
		 "SECONDS]\n"},
		{"wait web1 solo --timeout", 2,
		 "ftctl: --timeout needs a number of seconds\nusage: ftctl wait NAME STATE "
		 "[--timeout SECONDS]\n"},
		{"wait web1 solo --timeout soon", 2,
		 "ftctl: --timeout: 'soon' is not a number of seconds up to a day\n"
		 "usage: ftctl wait NAME STATE [--timeout SECONDS]\n"},
		{"migrate web1", 2, "ftctl: migrate takes a name and a URI\n" MIGRATE_USAGE},
		{"migrate -n web1 tls:h:1", 2,
		 "ftctl: -n is only for postcopy, -p\n" MIGRATE_USAGE},
		{"migrate -x web1 tls:h:1", 2, "ftctl: migrate: unknown option -x\n" MIGRATE_USAGE},
		{"migrate web1 tls:h:1 --postcopy-after", 2,
		 "ftctl: migrate: --postcopy-after: needs a value\n" MIGRATE_USAGE},
		{"migrate web1 tls:h:1 --postcopy-after 31", 2,
		 "ftctl: --postcopy-after 31: 0 to 30 rounds\n" MIGRATE_USAGE},
		{"migrate -p web1 kemari:tls:h:1", 2,
		 "ftctl: the options are for live migration: a URI without "
		 "kemari:\n" MIGRATE_USAGE},
		{"migrate -p --auto-throttle web1 tls:h:1", 2,
		 "ftctl: --auto-throttle: postcopy has no rounds that must "
		 "converge\n" MIGRATE_USAGE},
		{"migrate --recover -p web1", 2,
		 "ftctl: --recover goes on with what was begun: -n only\n" MIGRATE_USAGE},
		{"migrate web1 file:/x", 2,
		 "ftctl: to save a guest to a file: ftctl snapshot web1 file:/x\n" MIGRATE_USAGE},
		{"snapshot web1 tls:h:1", 2,
		 "ftctl: snapshot tls:h:1: not file:PATH\n"
		 "usage: ftctl snapshot NAME file:PATH [--incremental] [--direct] [--jobs N] "
		 "[--max-bandwidth "
		 "BYTES] "
		 "[--no-disks] [--verify]\n"},
		{"snapshot web1 file:/x --jobs 17", 2,
		 "ftctl: --jobs 17: 1 to 16\n"
		 "usage: ftctl snapshot NAME file:PATH [--incremental] [--direct] [--jobs N] "
		 "[--max-bandwidth "
		 "BYTES] "
		 "[--no-disks] [--verify]\n"},
		{"snapshot web1 file:/x --max-bandwidth 1Q", 2,
		 "ftctl: --max-bandwidth 1Q: bytes a second, as 100M\n"
		 "usage: ftctl snapshot NAME file:PATH [--incremental] [--direct] [--jobs N] "
		 "[--max-bandwidth "
		 "BYTES] "
		 "[--no-disks] [--verify]\n"},
		{"snapshot web1 file:/x --jobs", 2,
		 "ftctl: snapshot: --jobs: needs a value\n"
		 "usage: ftctl snapshot NAME file:PATH [--incremental] [--direct] [--jobs N] "
		 "[--max-bandwidth "
		 "BYTES] "
		 "[--no-disks] [--verify]\n"},
		{"pki", 2,
		 "ftctl: pki: what? init or issue\nusage: ftctl pki init DIR | issue DIR NAME "
		 "[HOST-OR-IP]...\n"},
		{"pki sign", 2,
		 "ftctl: pki: unknown subcommand\nusage: ftctl pki init DIR | issue DIR NAME "
		 "[HOST-OR-IP]...\n"},
	};
	char text[512];

	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		ftctl(wrong[i].line);
		ftctl_expect_text(wrong[i].code, "", wrong[i].err);
	}
	ftctl("migrate web1 kemari:tls:host:0");
	assert_int_equal(cli.run.code, 2);
	assert_non_null(strstr(cli.run.err_text, "port"));
	ftctl("frob --json");
	ftctl_expect_json(
		2, "{\"error\": {\"code\": \"usage\", \"message\": \"unknown command 'frob'\"}}");
	ftctl("status web2");
	snprintf(text, sizeof text, "ftctl: guest web2: no agent is running here (%s/web2.sock)\n",
		 cli.run_dir);
	ftctl_expect_text(1, "", text);
	ftctl("--run-dir=/nonexistent cancel web1");
	ftctl_expect_text(1, "",
			  "ftctl: guest web1: no agent is running here (/nonexistent/web1.sock)\n");
	assert_int_equal(cli.agent.requests, 0);
}

static void test_help(void **state)
{
	static const char *const names[] = {"status", "wait",	"migrate", "checkpoint", "failover",
					    "cancel", "verify", "stop",	   "top",	 "pki"};
	const char *source = getenv("FT_SOURCE_DIR");
	char line[64], usage[64], path[512];
	static char manual[32768];
	FILE *f;

	(void)state;
	snprintf(path, sizeof path, "%s/tools/man/ftctl.1", source ? source : ".");
	f = fopen(path, "r");
	assert_non_null(f);
	manual[fread(manual, 1, sizeof manual - 1, f)] = 0;
	fclose(f);
	ftctl("--version");
	ftctl_expect_text(0, "ftctl " FT_VERSION "\n", "");
	ftctl("--help");
	assert_int_equal(cli.run.code, 0);
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		snprintf(line, sizeof line, "\n  %-12s ", names[i]);
		ftctl("--help");
		assert_non_null(strstr(cli.run.out_text, line));
		snprintf(line, sizeof line, "\n.It Cm %s", names[i]);
		assert_non_null(strstr(manual, line));
		snprintf(line, sizeof line, "%s --help", names[i]);
		snprintf(usage, sizeof usage, "usage: ftctl [--run-dir DIR] [--json] %s", names[i]);
		ftctl(line);
		assert_int_equal(strncmp(cli.run.out_text, usage, strlen(usage)), 0);
		assert_int_equal(cli.run.code, 0);
	}
}

static void test_pki(void **state)
{
	static const char *const files[] = {"ca.pem", "ca.key", "hostA.pem", "hostA.key"};
	char line[256], expected[512], path[128];
	struct stat st;

	(void)state;
	snprintf(line, sizeof line, "pki init %s/pki --json", cli.dir);
	snprintf(expected, sizeof expected,
		 "{\"ca\": \"%s/pki/ca.pem\", \"key\": \"%s/pki/ca.key\"}", cli.dir, cli.dir);
	ftctl(line);
	ftctl_expect_json(0, expected);
	ftctl(line);
	assert_int_equal(cli.run.code, 1);
	assert_non_null(strstr(cli.run.out_text, "\"code\": \"failed\""));
	snprintf(line, sizeof line, "pki issue %s/pki hostA hostA.example 192.0.2.1", cli.dir);
	snprintf(expected, sizeof expected, "%s/pki/hostA.pem\n%s/pki/hostA.key\n", cli.dir,
		 cli.dir);
	ftctl(line);
	ftctl_expect_text(0, expected, "");
	for (int i = 0; i < 4; i++) {
		snprintf(path, sizeof path, "%s/pki/%s", cli.dir, files[i]);
		assert_int_equal(stat(path, &st), 0);
		assert_true(st.st_size > 0);
		assert_int_equal(unlink(path), 0);
	}
	snprintf(path, sizeof path, "%s/pki", cli.dir);
	assert_int_equal(rmdir(path), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_command_line, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_help, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_pki, ftctl_setup, ftctl_teardown),
	};

	if (!ftctl_find())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: Apache-2.0
/* The table of transitions, written out once more as a picture, and the setter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "ft/log.h"
#include "ft/state.h"

/* Row: from, column: to, both in the order of the enum. */
static const char *const picture[FT_STATE_MAX] = {
	/*                starting, sOlo, sYncing, Protected, standBy, Takeover, Fenced, Stopped,
	   fAiled */
	[FT_STARTING] = "xO..B.FSA",  [FT_SOLO] = ".xY...FSA",	  [FT_SYNCING] = ".OxP..FSA",
	[FT_PROTECTED] = ".O.xB.FSA", [FT_STANDBY] = "....xTFSA", [FT_TAKEOVER] = ".O...xFSA",
	[FT_FENCED] = "....B.xSA",    [FT_STOPPED] = ".......x.", [FT_FAILED] = ".......Sx",
};

static void test_table(void **state)
{
	(void)state;
	for (int from = 0; from < FT_STATE_MAX; from++) {
		assert_int_equal(strlen(picture[from]), FT_STATE_MAX);
		for (int to = 0; to < FT_STATE_MAX; to++) {
			bool valid = ft_state_valid((enum ft_state)from, (enum ft_state)to);

			if (valid != (picture[from][to] != '.'))
				fail_msg("%s -> %s", ft_state_name((enum ft_state)from),
					 ft_state_name((enum ft_state)to));
		}
	}
}

/* What arbitration rests on: no way from a host that lost, or that was never granted, to a guest
 * that runs. */
static void test_no_unasked_guest(void **state)
{
	(void)state;
	assert_false(ft_state_valid(FT_FENCED, FT_SOLO));
	assert_false(ft_state_valid(FT_FENCED, FT_TAKEOVER));
	for (int to = FT_SOLO; to <= FT_PROTECTED; to++)
		assert_false(ft_state_valid(FT_STANDBY, (enum ft_state)to));
}

static void test_names(void **state)
{
	(void)state;
	for (int s = 0; s < FT_STATE_MAX; s++)
		assert_int_equal(ft_state_parse(ft_state_name((enum ft_state)s)), s);
	assert_string_equal(ft_state_name(FT_PROTECTED), "protected");
	assert_int_equal(ft_state_parse("protecte"), -1);
	assert_int_equal(ft_state_parse("Protected"), -1);
	assert_int_equal(ft_state_parse(""), -1);
}

struct seen {
	int calls;
	enum ft_state from, to;
	char reason[FT_REASON_MAX];
};

static void changed(void *ctx, enum ft_state from, enum ft_state to, const char *reason)
{
	struct seen *seen = ctx;

	seen->calls++;
	seen->from = from;
	seen->to = to;
	snprintf(seen->reason, sizeof seen->reason, "%s", reason);
}

static void test_set(void **state)
{
	struct seen seen = {0};
	struct ft_state_var var = {.changed = changed, .ctx = &seen};
	char longer[2 * FT_REASON_MAX];

	(void)state;
	ft_state_set(&var, FT_SOLO, 5, "guest %s started", "web1");
	assert_int_equal(var.now, FT_SOLO);
	assert_int_equal(var.since_ns, 5);
	assert_string_equal(var.reason, "guest web1 started");
	assert_int_equal(seen.calls, 1);
	assert_int_equal(seen.from, FT_STARTING);
	assert_int_equal(seen.to, FT_SOLO);
	assert_string_equal(seen.reason, var.reason);

	/* Staying replaces the reason and nothing else; the old one may be part of the new. */
	ft_state_set(&var, FT_SOLO, 9, "%s; alone", var.reason);
	assert_string_equal(var.reason, "guest web1 started; alone");
	assert_int_equal(var.since_ns, 5);
	assert_int_equal(seen.calls, 1);

	memset(longer, 'x', sizeof longer - 1);
	longer[sizeof longer - 1] = '\0';
	ft_state_set(&var, FT_FAILED, 10, "%s", longer);
	assert_int_equal(strlen(var.reason), FT_REASON_MAX - 1);

	var = (struct ft_state_var){0};
	ft_state_set(&var, FT_STANDBY, 1, "no callback is fine");
	assert_int_equal(var.now, FT_STANDBY);
}

static void test_invalid_is_a_bug(void **state)
{
	pid_t pid = fork();
	int status;

	(void)state;
	assert_true(pid >= 0);
	if (pid == 0) {
		struct ft_state_var var = {.now = FT_FENCED};

		close(STDERR_FILENO);
		ft_state_set(&var, FT_SOLO, 1, "must not happen");
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_no_unasked_guest),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_set),
		cmocka_unit_test(test_invalid_is_a_bug),
	};

	ft_log_level_set(FT_LOG_WARN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}

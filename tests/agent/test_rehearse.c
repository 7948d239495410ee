// SPDX-License-Identifier: Apache-2.0
/* `ftctl drill NAME` on an operator's own pair: what it does, what it refuses, and that the guest's
 * client notices no more than a gap. */
#include "tests/agent/harness.h"

static struct host a, b;
static struct kv_client client;

static int setup(void **state)
{
	place_clear(state);
	pocket_pair(&a, &b, "", "");
	kv_open(&client);
	kv_work(&client, 5);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 5);
	return 0;
}

static int teardown(void **state)
{
	kv_close(&client);
	if (a.agent)
		host_stop(&a);
	host_stop(&b);
	return place_clear(state);
}

/* What ftctl said, on both its outputs. */
static const char *drill(const struct host *on, const char *options, int code)
{
	const char *build = getenv("FT_BUILD_DIR");
	char said[300];

	snprintf(said, sizeof said, "%s", at("said"));
	shell("%s/ftctl --run-dir %s drill " GUEST " %s >%s 2>&1; test $? -eq %d",
	      build ? build : "build", on->run, options, said, code);
	return file_text(said);
}

static void switches(void **state)
{
	(void)state;
	assert_non_null(strstr(drill(&a, "", 0), "planned switch done in"));
	wait_state(&b, "protected", PROTECT_MS);
	kv_work(&client, 10);
	ask_ok(&b, "verify", NULL);
	assert_non_null(strstr(drill(&b, "--kill switch", 0), "lost 0"));
	wait_state(&a, "protected", PROTECT_MS);
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
}

static void kills_the_agent(void **state)
{
	(void)state;
	assert_non_null(strstr(drill(&a, "--kill agent", 0), "the agent here is dead"));
	host_kill(&a); /* only reaps it */
	wait_state(&b, "solo", GOES_ON_MS);
	kv_work(&client, 10);
}

/* Nothing is touched by what cannot be. */
static void refuses(void **state)
{
	(void)state;
	assert_non_null(strstr(drill(&a, "--kill host", 1), "only switch, agent and vmm"));
	assert_non_null(strstr(drill(&a, "--kill vmm", 1), "no process of its own"));
	assert_non_null(strstr(drill(&b, "", 1), "needs the primary of a protected guest"));
	assert_state(&a, "protected");
	kv_work(&client, 5);
	ask_ok(&a, "verify", NULL);
}

int main(void)
{
#define PAIR(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {PAIR(switches), PAIR(kills_the_agent), PAIR(refuses)};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}

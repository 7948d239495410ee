// SPDX-License-Identifier: Apache-2.0
/* A Linux guest moves from small pages to huge ones and back, its memory behind it or before it,
 * and what it holds there is the same: it says so itself, by the digest of a file in its RAM. */
#include "tests/agent/harness.h"
#include "tests/huge_pages.h"

#define HUGE	(3 * 128) /* 256 MiB, of two hosts and a trial of a standby */
#define FILL_MS 60000
#define SHA	64

static struct host a, b;

static char *uri(const struct host *h)
{
	return (char *)(uintptr_t)(unix_uri(h == &a ? "a.sock" : "b.sock") + strlen("kemari:"));
}

static void target(struct host *to, const char *huge)
{
	const char *id = to == &a ? "A" : "B";
	char console[64], socket[64], image[64];

	snprintf(image, sizeof image, "disk.root.image=%s.img", id);
	snprintf(console, sizeof console, "console.log=%s.console", id);
	snprintf(socket, sizeof socket, "console.socket=%s.tty.sock", id);
	host_start(to, at("g.conf"), "--set", image, "--set", console, "--set", socket, "--set",
		   huge, "--incoming", uri(to), NULL);
	wait_state(to, "standby", START_MS);
}

static void move(struct host *from, struct host *to, const char *huge, bool postcopy,
		 unsigned rounds)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;

	target(to, huge);
	r.command = (char *)"migrate";
	r.uri = uri(to);
	r.postcopy = postcopy;
	r.rounds = rounds;
	reply = ask_any(from, &r);
	if (reply->error[0])
		fail_msg("%s: %s", from->id, reply->message);
	printf("%s: %s\n", from->id, reply->status->reason);
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(host_reap(from, START_MS), 0);
	wait_state(to, "solo", GOES_ON_MS);
	ticks_on(to);
}

/* What the guest says its file's digest is; the nth time that it is asked. */
static void digest(const struct host *h, unsigned nth, char out[SHA + 1])
{
	uint64_t until = now_ms() + FILL_MS;
	const char *found = NULL;
	char mark[32], line[96];

	snprintf(mark, sizeof mark, "sum %u is ", nth);
	snprintf(line, sizeof line, "echo su''m %u is $(sha256sum /fill)", nth);
	guest_type(h, line);
	while (!found || strlen(found) < strlen(mark) + SHA) {
		breathe(until, "the guest tells a digest");
		found = strstr(file_text(at("%s.console", h->id)), mark);
	}
	memcpy(out, found + strlen(mark), SHA);
	out[SHA] = '\0';
	assert_int_equal(strspn(out, "0123456789abcdef"), SHA);
}

static void there_and_back(bool postcopy, unsigned rounds)
{
	char before[SHA + 1], there[SHA + 1], back[SHA + 1];

	a = host_make("A");
	b = host_make("B");
	shell("rm -f %s %s", at("*.img"), at("*.kemari"));
	qemu_conf(at("g.conf"), "ft.dirty=2000:16", "", "");
	qemu_start(&a, at("g.conf"));
	guest_type(&a, "dd if=/dev/urandom of=/fill bs=1M count=48 2>/dev/null");
	digest(&a, 1, before);
	move(&a, &b, "hugepages=true", postcopy, rounds);
	assert_true(huge_pages_number("free_hugepages") < huge_pages_number("nr_hugepages"));
	digest(&b, 2, there);
	assert_string_equal(before, there);
	move(&b, &a, "hugepages=false", postcopy, rounds);
	digest(&a, 3, back);
	assert_string_equal(before, back);
	host_stop(&a);
	assert_int_equal(children(), 0);
}

static void precopy(void **state)
{
	(void)state;
	there_and_back(false, 0);
}

static void postcopy(void **state)
{
	(void)state;
	there_and_back(true, 0);
}

/* Then some of a huge page's small ones are there, and some follow. */
static void hybrid(void **state)
{
	(void)state;
	there_and_back(true, 1);
}

/* Both hosts have it in huge pages; the standby's has what the guest had when the primary died. */
static void protected(void **state)
{
	char before[SHA + 1], after[SHA + 1];

	(void)state;
	a = host_make("A");
	b = host_make("B");
	shell("rm -f %s %s", at("*.img"), at("*.kemari"));
	qemu_conf(at("g.conf"), "", "", "hugepages = true\n");
	qemu_start(&a, at("g.conf"));
	guest_type(&a, "dd if=/dev/urandom of=/fill bs=1M count=48 2>/dev/null");
	digest(&a, 1, before);
	qemu_standby(&b, unix_uri("b.sock"), NULL);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	wait_state(&a, "protected", PROTECT_MS);
	host_kill(&a);
	wait_state(&b, "solo", GOES_ON_MS);
	digest(&b, 2, after);
	assert_string_equal(before, after);
	host_stop(&b);
	wait_children(0, GOES_ON_MS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(postcopy, place_clear),
		cmocka_unit_test_teardown(hybrid, place_clear),
		cmocka_unit_test_teardown(precopy, place_clear),
		cmocka_unit_test_teardown(protected, place_clear),
	};
	int failed;

	if (!huge_pages_take(HUGE))
		return 77;
	need_qemu();
	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return place_close() + failed;
}

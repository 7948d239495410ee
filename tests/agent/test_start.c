// SPDX-License-Identifier: Apache-2.0
/* Starts that must not succeed: each says why in one line and with the exit code of the interface,
 * and hurts nobody who runs. */
#include <arpa/inet.h>
#include <sys/socket.h>

#include "eventtap/block/metadata.h"
#include "tests/agent/harness.h"
#include "transport/pki.h"

#define POCKET                                                                                     \
	"name = \"g\"\nvmm = \"pocket\"\nmemory = \"32M\"\nprogram = \"kv\"\n"                     \
	"nic net0 { attach = \"udp:127.0.0.1:7700\" }\ntls { insecure = true }\n"
#define DISK "disk root { image = \"A.img\" size = \"8M\" }\n"

static struct host a, b;

static int setup(void **state)
{
	(void)state;
	a = host_make("A");
	b = host_make("B");
	return 0;
}

static void guest_file_mistakes(void **state)
{
	static const struct {
		const char *text, *says;
	} cases[] = {
		{"", "name"},
		{"name = \"-x\"\n", "is not a name"},
		{"name = \"g\"\nmemory = \"12X\"\n", "is not a size"},
		{"name = \"g\"\nmemory = \"1M\"\n", "at least 16M"},
		{"name = \"g\"\nvmm = \"xen\"\n", "is none of"},
		{"name = \"g\"\nbogus = 1\n", "bogus"},
		{"name = \"g\"\nmemory = \"64M\n", ":"},
		{"name = \"g\"\nmemory = \"64M\"\ndisk root { }\n", "image"},
		{"name = \"g\"\ndisk root { image = \"a\" mode = \"copied\" }\n", "is none of"},
		{"name = \"g\"\nnic n { attach = \"wire:x\" }\n", "attach"},
		{"name = \"g\"\nnic n { attach = \"bridge:b\" mac = \"x\" }\n", "MAC"},
		{"name = \"g\"\nft { trigger = \"never\" }\n", "is none of"},
		{"name = \"g\"\nft { max_overhead = 2 }\n", "out of range"},
		{"name = \"g\"\nft { takeover_ms = 1 }\n", "takeover_ms"},
		{"name = \"g\"\narbiter { type = \"file\" }\n", "dir"},
		{"name = \"g\"\ntls { ca = \"ca.pem\" }\n", "tls"},
		{"name = \"g\"\nqemu { attach = \"/x.qmp\" }\nmemory = \"64M\"\n", "attach"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		write_file(at("bad.conf"), "%s", cases[i].text);
		if (host_try(&a, at("bad.conf"), NULL) != 1)
			fail_msg("case %zu: %s; it said: %s", i, cases[i].text, file_text(a.log));
		host_one_error(&a, cases[i].says);
	}
	assert_int_equal(host_try(&a, at("none.conf"), NULL), 1);
	host_one_error(&a, "No such file");
	write_file(at("g.conf"), POCKET DISK);
	assert_int_equal(host_try(&a, at("g.conf"), "--set", "memory=oops", NULL), 1);
	host_one_error(&a, "--set memory");
	assert_int_equal(host_try(&a, at("g.conf"), "stray", NULL), 1);
	host_one_error(&a, "stray");
	assert_int_equal(children(), 0);
}

static void incoming_mistakes(void **state)
{
	static const char *const cases[][2] = {
		{"kemari:tcp:127.0.0.1", "--incoming"},
		{"kemari:tcp:127.0.0.1:0", "--incoming"},
		{"nonsense", "--incoming"},
		{"kemari:tls:127.0.0.1:7000", "tls { ca"},
		{"tls:127.0.0.1:7000", "tls { ca"},
		{"file:/srv/guest", "--incoming"},
		{"kemari:tcp:203.0.113.9:7000", "203.0.113.9"},
	};

	(void)state;
	write_file(at("g.conf"), POCKET DISK);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		assert_int_equal(host_try(&a, at("g.conf"), "--incoming", cases[i][0], NULL), 2);
		host_one_error(&a, cases[i][1]);
	}
	write_file(at("g.conf"),
		   "name = \"g\"\nvmm = \"pocket\"\nmemory = \"32M\"\nprogram = \"kv\"\n" DISK);
	assert_int_equal(
		host_try(&a, at("g.conf"), "--incoming", "kemari:tcp:127.0.0.1:7000", NULL), 2);
	host_one_error(&a, "plaintext");
}

static void two_agents(void **state)
{
	struct host second = host_make("A");
	struct kv_client c;

	(void)state;
	snprintf(second.log, sizeof second.log, "%s", at("second.log"));
	write_file(at("g.conf"), POCKET DISK);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	kv_open(&c);
	kv_work(&c, 5);
	assert_int_equal(host_try(&second, at("g.conf"), NULL), 2);
	host_one_error(&second, "another agent");
	assert_int_equal(
		host_try(&second, at("g.conf"), "--incoming", "kemari:tcp:127.0.0.1:7000", NULL),
		2);
	kv_work(&c, 5);
	kv_close(&c);
	assert_state(&a, "solo");
	host_stop(&a);
	assert_int_equal(children(), 0);
}

static void port_in_use(void **state)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				 .sin_port = htons(7000)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)state;
	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
	assert_int_equal(listen(fd, 1), 0);
	write_file(at("g.conf"), POCKET DISK);
	assert_int_equal(
		host_try(&a, at("g.conf"), "--incoming", "kemari:tcp:127.0.0.1:7000", NULL), 2);
	host_one_error(&a, "kemari:tcp:127.0.0.1:7000");
	close(fd);
	/* A unix socket that somebody listens on is not taken away from them. */
	host_start(&a, at("g.conf"), "--incoming", unix_uri("x.sock"), NULL);
	wait_state(&a, "standby", START_MS);
	assert_int_equal(host_try(&b, at("g.conf"), "--incoming", unix_uri("x.sock"), NULL), 2);
	host_one_error(&b, "x.sock");
	host_stop(&a);
	assert_int_not_equal(access(at("x.sock"), F_OK), 0);
}

static void run_directory(void **state)
{
	char deep[200];

	(void)state;
	write_file(at("g.conf"), POCKET DISK);
	write_file(at("file"), "no folder\n");
	snprintf(a.run, sizeof a.run, "%s", at("file"));
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "file");
	snprintf(a.run, sizeof a.run, "%s", at("no/such/folder"));
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "no/such/folder");
	memset(deep, 'x', sizeof deep);
	deep[90] = '\0';
	snprintf(a.run, sizeof a.run, "%.*s", (int)sizeof a.run - 1, at("%s", deep));
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "longer than");
}

static void stale_image(enum store_state stale, const char *says)
{
	struct metadata_record record = {.generation = 3, .epoch = 9, .state = stale};
	struct ft_err err = {0};
	struct metadata meta;

	assert_int_equal(metadata_open(at("A.img"), &meta, &err), 0);
	assert_int_equal(metadata_write(&meta, &record, &err), 0);
	metadata_close(&meta);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, says);
	shell("rm %s", at("A.img.kemari"));
}

static void images(void **state)
{
	static const struct {
		const char *prepare, *says;
	} cases[] = {
		{"rm -f A.img", "A.img"},
		{"rm -f A.img; mkdir A.img", "A.img"},
		{"rm -rf A.img; mkfifo A.img", "A.img"},
		{"rm -rf A.img; : > A.img", "empty"},
		{"printf 'QFI\\373' > A.img; truncate -s 8M A.img", "qcow"},
		{"rm -f A.img; ln -s A.img A.img", "A.img"},
		{"rm -f A.img; truncate -s 8M A.img; printf nonsense > A.img.kemari",
		 "A.img.kemari"},
	};

	(void)state;
	write_file(at("g.conf"), POCKET "disk root { image = \"A.img\" }\n");
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		shell("cd %s && %s", place, cases[i].prepare);
		if (host_try(&a, at("g.conf"), NULL) != 2)
			fail_msg("case %zu: %s; it said: %s", i, cases[i].prepare,
				 file_text(a.log));
		host_one_error(&a, cases[i].says);
		host_one_error(&a, "disk root");
	}
	shell("rm %s", at("A.img.kemari"));
	stale_image(STORE_OUTDATED, "Outdated");
	stale_image(STORE_INCONSISTENT, "Inconsistent");
	make_image(at("A.img"), 4 << 20);
	write_file(at("g.conf"), POCKET DISK);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "4194304 bytes");
}

static void certificates(void **state)
{
	struct ft_err err = {0};

	(void)state;
	shell("rm -rf %s/pki; mkdir %s/pki", place, place);
	assert_int_equal(pki_init(at("pki"), &err), 0);
	assert_int_equal(pki_issue(at("pki"), "h", (const char *const[]){"127.0.0.1"}, 1, &err), 0);
	assert_int_equal(pki_issue(at("pki"), "other", (const char *const[]){"127.0.0.1"}, 1, &err),
			 0);
	write_file(at("g.conf"), POCKET DISK);
	assert_int_equal(host_try(&a, at("g.conf"), "--set", "tls.ca=pki/none.pem", "--set",
				  "tls.cert=pki/h.pem", "--set", "tls.key=pki/h.key", NULL),
			 2);
	host_one_error(&a, "none.pem");
	assert_int_equal(host_try(&a, at("g.conf"), "--set", "tls.ca=pki/ca.pem", "--set",
				  "tls.cert=pki/h.pem", "--set", "tls.key=pki/other.key", NULL),
			 2);
	host_one_error(&a, "other.key");
	write_file(at("pki/bad.pem"), "no certificate\n");
	assert_int_equal(host_try(&a, at("g.conf"), "--set", "tls.ca=pki/ca.pem", "--set",
				  "tls.cert=pki/bad.pem", "--set", "tls.key=pki/h.key", NULL),
			 2);
	host_one_error(&a, "bad.pem");
}

static void qemu(void **state)
{
	(void)state;
	write_file(at("g.conf"),
		   "name = \"g\"\nmemory = \"64M\"\nqemu { binary = \"/nowhere/qemu\" }\n" DISK);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "/nowhere/qemu");
	write_file(at("g.conf"), "name = \"g\"\nqemu { attach = \"nobody.qmp\" }\n");
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "nobody.qmp");
	write_file(at("g.conf"), "name = \"g\"\n");
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "only a standby");
	write_file(at("g.conf"),
		   "name = \"g\"\nmemory = \"64M\"\nnic n { attach = \"bridge:nobridge\" }\n" DISK);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "nobridge");
	assert_int_equal(children(), 0);
}

/* The image is in use by somebody who locks as QEMU does. */
static void image_locked(void **state)
{
	(void)state;
	if (system("command -v qemu-system-x86_64 >/dev/null") != 0)
		skip();
	write_file(at("g.conf"), "name = \"g\"\nmemory = \"64M\"\n" DISK);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	assert_int_equal(host_try(&b, at("g.conf"), NULL), 2);
	host_one_error(&b, "Is another process using the image");
	assert_state(&a, "solo");
	host_stop(&a);
	assert_int_equal(children(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(guest_file_mistakes, setup, place_clear),
		cmocka_unit_test_setup_teardown(incoming_mistakes, setup, place_clear),
		cmocka_unit_test_setup_teardown(two_agents, setup, place_clear),
		cmocka_unit_test_setup_teardown(port_in_use, setup, place_clear),
		cmocka_unit_test_setup_teardown(run_directory, setup, place_clear),
		cmocka_unit_test_setup_teardown(images, setup, place_clear),
		cmocka_unit_test_setup_teardown(certificates, setup, place_clear),
		cmocka_unit_test_setup_teardown(qemu, setup, place_clear),
		cmocka_unit_test_setup_teardown(image_locked, setup, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}

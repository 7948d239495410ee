// SPDX-License-Identifier: Apache-2.0
/* What an agent and its processes are still able to do, as the kernel has it, and what others can
 * do to it: a client of its NBD server that wants to cost as much as it can. */
#include <errno.h>
#include <libnbd.h>
#include <dirent.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "eventtap/block/nbd_proto.h"
#include "eventtap/block/nbd_server.h"
#include "tests/agent/harness.h"

#define STRANGERS 1000
#define ROUNDS	  200 /* requests of a client that reads no answer */
/* What a request may cost, for each connection; what the allocator keeps of it is reused. */
#define NBD_KIB_MAX (NBD_CONNECTIONS_MAX * (NBD_REQUEST_MAX / 1024) + 8192)

static struct host a, b;

static const unsigned long long pocket_rights =
	RIGHT(CAP_NET_BIND_SERVICE) | RIGHT(CAP_DAC_OVERRIDE);

static void pocket_agent(void **state)
{
	struct kv_client client;

	(void)state;
	pocket_pair(&a, &b, "", "");
	kv_open(&client);
	kv_work(&client, 3);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	wait_state(&a, "protected", PROTECT_MS);
	for (struct host *h = &a; h; h = h == &a ? &b : NULL) {
		assert_rights(h->agent, pocket_rights);
		assert_filtered(h->agent);
		assert_rights(child_of(h->agent, "ft-helper"), 0);
		assert_rights(child_of(h->agent, "ft-keeper"), RIGHT(CAP_KILL));
	}
	kv_work(&client, 10);
	kv_close(&client);
	host_stop(&a);
	host_stop(&b);
}

/* Root's, whatever the umask: sockets, logs, memory that was spilt. */
static void files_are_private(void **state)
{
	struct dirent *e;
	struct stat st;
	DIR *run;

	(void)state;
	umask(0);
	pocket_pair(&a, &b, "", "");
	umask(022);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	wait_state(&a, "protected", PROTECT_MS);
	assert_int_equal(stat(a.run, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	run = opendir(a.run);
	assert_non_null(run);
	while ((e = readdir(run))) {
		if (*e->d_name == '.')
			continue;
		assert_int_equal(stat(at("A/%s", e->d_name), &st), 0);
		if (st.st_mode & 077)
			fail_msg("%s: mode %o", e->d_name, st.st_mode & 07777);
	}
	closedir(run);
	host_stop(&a);
	host_stop(&b);
}

static int nbd_dial(void)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	struct timeval limit = {10, 0};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(to.sun_path, sizeof to.sun_path, "%s", at("A/%s.nbd0", GUEST));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
	return fd;
}

/* A client that was let in by the rules, and asks for everything at once. */
static struct nbd_handle *greedy(void)
{
	struct nbd_handle *nbd = nbd_create();
	uint8_t request[NBD_REQUEST_BYTES] = {0};

	assert_non_null(nbd);
	if (nbd_connect_unix(nbd, at("A/%s.nbd0", GUEST)) < 0) {
		nbd_close(nbd);
		return NULL; /* there is no room for more of them */
	}
	nbd_put32(request, NBD_REQUEST_MAGIC);
	nbd_put16(request + 6, NBD_CMD_READ);
	nbd_put32(request + 24, 8u << 20); /* the whole disk */
	for (unsigned i = 0; i < ROUNDS; i++)
		if (send(nbd_aio_get_fd(nbd), request, sizeof request,
			 MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
			break;
	return nbd;
}

static void nbd_clients_cost_no_more_than_their_bound(void **state)
{
	struct nbd_handle *clients[NBD_CONNECTIONS_MAX];
	uint64_t until = now_ms() + START_MS;
	unsigned descriptors_before, n = 0;
	struct kv_client client;
	unsigned long before;

	(void)state;
	pocket_pair(&a, &b, "", "");
	kv_open(&client);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 50);
	before = rss_kib(a.agent);
	descriptors_before = descriptors(a.agent);
	for (unsigned i = 0; i < NBD_CONNECTIONS_MAX; i++)
		n += (clients[i] = greedy()) != NULL;
	assert_int_equal(n, NBD_CONNECTIONS_MAX - 1); /* one is the guest's */
	for (unsigned i = 0; i < STRANGERS; i++) {
		int fd = nbd_dial();

		(void)!send(fd, "\xff\xff\xff\xff", 1 + i % 4, MSG_NOSIGNAL | MSG_DONTWAIT);
		close(fd);
		if (i % 100 == 0)
			kv_work(&client, 1);
	}
	assert_true(descriptors(a.agent) <= descriptors_before + NBD_CONNECTIONS_MAX);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	assert_true(rss_kib(a.agent) <= before + NBD_KIB_MAX);
#else
	(void)before;
#endif
	kv_work(&client, 20);
	assert_state(&a, "protected");
	for (unsigned i = 0; i < NBD_CONNECTIONS_MAX; i++)
		nbd_close(clients[i]);
	while (descriptors(a.agent) > descriptors_before)
		breathe(until, "descriptors");
	ask_ok(&a, "verify", NULL);
	kv_close(&client);
	host_stop(&a);
	host_stop(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(pocket_agent, place_clear),
		cmocka_unit_test_teardown(files_are_private, place_clear),
		cmocka_unit_test_teardown(nbd_clients_cost_no_more_than_their_bound, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}

// SPDX-License-Identifier: Apache-2.0
// An NBD server that says what it likes, cut anywhere, wrong anywhere.
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/pocket_lab.h"
#include "vmm-glue/pocket/nbd.h"
#include "vmm-glue/pocket/sock.h"

struct liar {
	int listener;
	const uint8_t *text;
	size_t len;
};

static void *lie(void *arg)
{
	struct liar *l = arg;
	struct pollfd p = {.fd = l->listener, .events = POLLIN};
	uint8_t junk[4096];
	int fd;

	if (poll(&p, 1, POCKET_LAB_DEADLINE_MS) != 1)
		return NULL;
	fd = accept(l->listener, NULL, NULL);
	(void)!send(fd, l->text, l->len, MSG_NOSIGNAL);
	shutdown(fd, SHUT_WR);
	while (read(fd, junk, sizeof junk) > 0)
		;
	close(fd);
	return NULL;
}

// Greeting, NBD_REP_INFO with 64 KiB and flush, NBD_REP_ACK, one good reply, one bad.
static const uint8_t nbd_text[] = {
	'N',  'B',  'D',  'M',	'A',  'G',  'I',  'C',	'I',  'H', 'A', 'V', 'E', 'O', 'P', 'T', 0,
	3,    0,    3,	  0xe8, 0x89, 4,    0x55, 0x65, 0xa9, 0,   0,	0,   7,	  0,   0,   0,	 3,
	0,    0,    0,	  12,	0,    0,    0,	  0,	0,    0,   0,	1,   0,	  0,   0,   5,	 0,
	3,    0xe8, 0x89, 4,	0x55, 0x65, 0xa9, 0,	0,    0,   7,	0,   0,	  0,   1,   0,	 0,
	0,    0,    0x67, 0x44, 0x66, 0x98, 0,	  0,	0,    0,   0,	0,   0,	  0,   0,   0,	 0,
	1,    0x67, 0x44, 0x66, 0x98, 0,    0,	  0,	28,   0,   0,	0,   0,	  0,   0,   0,	 2,
	0x67, 0x44, 0x66, 0x98, 0,    0,    0,	  0,	0,    0,   0,	0,   0,	  0,   0,   9,
};

#define NBD_HANDSHAKE (18 + 32 + 20)

static int talk(const uint8_t *text, size_t len, struct pocket_nbd **n, pthread_t *thread,
		struct liar *l, struct ft_err *err)
{
	uint64_t bytes = 0;
	int rc;

	unlink(pocket_lab_path("nbd"));
	*l = (struct liar){
		.listener = psock_listen(pocket_lab_path("nbd"), err), .text = text, .len = len};
	assert_true(l->listener >= 0);
	assert_int_equal(pthread_create(thread, NULL, lie, l), 0);
	rc = pocket_nbd_open(pocket_lab_path("nbd"), n, &bytes, err);
	if (!rc)
		assert_int_equal(bytes, 65536);
	return rc;
}

static void lying_nbd_server_is_survived(void **state)
{
	struct pocket_nbd *n = NULL;
	struct ft_err err = {0};
	uint8_t text[sizeof nbd_text], data[512] = {0};
	pthread_t thread;
	struct liar l;
	unsigned refused = 0;

	(void)state;
	assert_int_equal(talk(nbd_text, sizeof nbd_text, &n, &thread, &l, &err), 0);
	assert_int_equal(pocket_nbd_write(n, 0, data, sizeof data), 0);
	assert_int_equal(pocket_nbd_write(n, 0, data, sizeof data), -ENOSPC);
	assert_int_equal(pocket_nbd_flush(n), -EIO); // a reply to another request
	assert_int_equal(pocket_nbd_flush(n), -EIO); // and that was the end of it
	pocket_nbd_close(n);
	pthread_join(thread, NULL);
	close(l.listener);
	for (size_t i = 0; i < NBD_HANDSHAKE; i++) {
		memcpy(text, nbd_text, sizeof text);
		text[i] ^= 0x41;
		n = NULL;
		if (i < 40 || i > 49) { // but for the size and flags, which may be anything
			assert_true(talk(text, NBD_HANDSHAKE, &n, &thread, &l, &err) || i == 17 ||
				    i == 16);
			refused += !n;
			pocket_nbd_close(n);
			pthread_join(thread, NULL);
			close(l.listener);
		}
		if (i % 8 == 0) { // ends early
			assert_int_equal(talk(nbd_text, i, &n, &thread, &l, &err), -EPIPE);
			pthread_join(thread, NULL);
			close(l.listener);
		}
	}
	assert_true(refused > 50);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lying_nbd_server_is_survived),
	};

	return cmocka_run_group_tests(tests, pocket_lab_setup, pocket_lab_teardown);
}

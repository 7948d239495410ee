// SPDX-License-Identifier: Apache-2.0
// The pocket machine's taps, in and out, with a redirector and an NBD server at the other end, and
// takeover of the address from a machine that is still there.
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/pocket_lab.h"
#include "vmm-glue/pocket/sock.h"

struct relay {
	int out_listener, in_listener, out, in;
	pid_t nbd;
	struct vmm_tap_points points;
};

static void relay_open(struct relay *r)
{
	struct ft_err err = {0};
	int fd = -1;

	memset(r, 0, sizeof *r);
	r->out = r->in = -1;
	strcpy(r->points.nics[0].out, pocket_lab_path("out"));
	strcpy(r->points.nics[0].in, pocket_lab_path("in"));
	strcpy(r->points.disks[0].nbd, pocket_lab_path("nbd"));
	r->out_listener = psock_listen(r->points.nics[0].out, &err);
	r->in_listener = psock_listen(r->points.nics[0].in, &err);
	assert_true(r->out_listener >= 0 && r->in_listener >= 0);
	r->nbd = fork();
	if (!r->nbd) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execlp("qemu-nbd", "qemu-nbd", "-k", r->points.disks[0].nbd, "-f", "raw", "-t",
		       "-x", "", pocket_lab_path("image"), NULL);
		_exit(127);
	}
	// Its socket file is there a moment before it listens.
	for (uint64_t deadline = psock_deadline(POCKET_LAB_DEADLINE_MS); fd < 0;) {
		fd = psock_connect(r->points.disks[0].nbd, NULL);
		assert_true(psock_now() < deadline);
		if (fd < 0)
			poll(NULL, 0, 5);
	}
	close(fd);
}

static void relay_accept(struct relay *r)
{
	r->out = accept4(r->out_listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	r->in = accept4(r->in_listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(r->out >= 0 && r->in >= 0);
}

static void relay_close(struct relay *r)
{
	close(r->out);
	close(r->in);
	close(r->out_listener);
	close(r->in_listener);
	unlink(r->points.nics[0].out);
	unlink(r->points.nics[0].in);
	kill(r->nbd, SIGTERM);
	waitpid(r->nbd, NULL, 0);
	unlink(r->points.disks[0].nbd);
}

// One frame from the guest, length in front.
static size_t relay_take(struct relay *r, uint8_t *frame)
{
	uint32_t len;

	assert_int_equal(psock_read_all(r->out, frame, 4, psock_deadline(POCKET_LAB_DEADLINE_MS)),
			 0);
	memcpy(&len, frame, 4);
	len = ntohl(len);
	assert_in_range(len, POCKET_FRAME_ADDR, POCKET_FRAME_MAX);
	assert_int_equal(
		psock_read_all(r->out, frame + 4, len, psock_deadline(POCKET_LAB_DEADLINE_MS)), 0);
	return 4 + len;
}

static void taps_hold_and_release(void **state)
{
	struct pocket_config config;
	struct relay r;
	struct kv_client c;
	struct kv_answer a;
	struct ft_err err = {0};
	struct vmm *vmm;
	uint8_t frame[4 + POCKET_FRAME_MAX];
	char request[KV_REQUEST_MAX];

	(void)state;
	if (access("/usr/bin/qemu-nbd", X_OK)) {
		print_message("skipped: no qemu-nbd\n");
		skip();
	}
	pocket_lab_config(&config, 0);
	vmm = pocket_lab_start(&config);
	kv_client_open(&c, pocket_port(vmm));
	for (unsigned i = 0; i < 20; i++)
		kv_client_put(&c);
	for (unsigned round = 0; round < 3; round++) {
		relay_open(&r);
		pocket_fault_next(vmm, POCKET_FAULT_TAPS);
		assert_int_equal(vmm->ops->taps_in(vmm, &r.points, &err), -EIO);
		close(accept(r.out_listener, NULL, NULL));
		close(accept(r.in_listener, NULL, NULL));
		kv_client_put(&c);
		if (vmm->ops->taps_in(vmm, &r.points, &err))
			fail_msg("%s", err.text);
		relay_accept(&r);
		assert_int_equal(vmm->ops->taps_in(vmm, &r.points, &err), 0);
		for (unsigned i = 0; i < 20; i++) {
			size_t n;

			kv_client_say(&c, request, sizeof request);
			n = relay_take(&r, frame);
			assert_false(kv_client_answered(
				&c, &a, i ? 0 : 50)); // it is held by us, and nobody else has it
			if (i % 2) {		      // in pieces
				assert_int_equal(
					psock_write_all(r.in, frame, 3, psock_deadline(100)), 0);
				assert_int_equal(psock_write_all(r.in, frame + 3, n - 3,
								 psock_deadline(100)),
						 0);
			} else {
				assert_int_equal(
					psock_write_all(r.in, frame, n, psock_deadline(100)), 0);
			}
			assert_true(kv_client_answered(&c, &a, POCKET_LAB_DEADLINE_MS));
			kv_client_check(&c, request, &a);
			pocket_lab_expect_journal(&c);
		}
		// Stopped, it sends nothing; what was released meanwhile leaves when it goes on.
		kv_client_say(&c, request, sizeof request);
		(void)relay_take(&r, frame);
		assert_int_equal(vmm->ops->stop(vmm, &err), 0);
		assert_int_equal(psock_write_all(r.in, frame, 4 + ntohl(*(uint32_t *)frame),
						 psock_deadline(100)),
				 0);
		assert_false(kv_client_answered(&c, &a, 50));
		assert_int_equal(vmm->ops->cont(vmm, &err), 0);
		assert_true(kv_client_answered(&c, &a, POCKET_LAB_DEADLINE_MS));
		kv_client_check(&c, request, &a);
		// What was released just before the taps come out leaves all the same.
		kv_client_say(&c, request, sizeof request);
		assert_int_equal(
			psock_write_all(r.in, frame, relay_take(&r, frame), psock_deadline(100)),
			0);
		assert_int_equal(vmm->ops->taps_out(vmm, 0, &err), 0);
		assert_int_equal(vmm->ops->taps_out(vmm, 0, &err), 0);
		assert_true(kv_client_answered(&c, &a, POCKET_LAB_DEADLINE_MS));
		kv_client_check(&c, request, &a);
		kv_client_put(&c);
		pocket_lab_expect_journal(&c);
		relay_close(&r);
	}
	assert_int_equal(c.repeats, 0);
	vmm->ops->free(vmm);
	close(c.fd);
}

static void broken_tap_stops_the_network_only(void **state)
{
	static const uint8_t no_frame[8] = {0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4};
	struct pocket_config config;
	struct relay r;
	struct kv_client c;
	struct kv_answer a;
	struct ft_err err = {0};
	struct vmm *vmm;
	char request[KV_REQUEST_MAX];

	(void)state;
	if (access("/usr/bin/qemu-nbd", X_OK)) {
		print_message("skipped: no qemu-nbd\n");
		skip();
	}
	pocket_lab_config(&config, 0);
	vmm = pocket_lab_start(&config);
	kv_client_open(&c, pocket_port(vmm));
	relay_open(&r);
	strcpy(r.points.disks[0].nbd, pocket_lab_path("nothing"));
	assert_int_equal(vmm->ops->taps_in(vmm, &r.points, &err), -ENOENT);
	assert_non_null(strstr(err.text, "pocket: taps: disk root: "));
	close(accept(r.out_listener, NULL, NULL));
	close(accept(r.in_listener, NULL, NULL));
	strcpy(r.points.disks[0].nbd, pocket_lab_path("nbd"));
	assert_int_equal(vmm->ops->taps_in(vmm, &r.points, &err), 0);
	relay_accept(&r);
	assert_int_equal(psock_write_all(r.in, no_frame, sizeof no_frame, psock_deadline(100)), 0);
	close(r.out);
	r.out = -1;
	kv_client_say(&c, request, sizeof request);
	assert_false(kv_client_answered(&c, &a, 100));
	assert_string_equal(vmm->ops->status(vmm), "running");
	// The NBD server dies: the guest sees an error, and goes on when the image is back.
	kill(r.nbd, SIGKILL);
	waitpid(r.nbd, NULL, 0);
	assert_int_equal(vmm->ops->taps_out(vmm, 0, &err), 0);
	(void)send(c.fd, request, strlen(request), 0);
	assert_true(kv_client_answered(&c, &a, POCKET_LAB_DEADLINE_MS));
	kv_client_check(&c, request, &a);
	kv_client_put(&c);
	r.nbd = fork();
	if (!r.nbd)
		_exit(0);
	relay_close(&r);
	vmm->ops->free(vmm);
	close(c.fd);
}

static void standby_takes_the_address_over(void **state)
{
	struct pocket_config config;
	struct vmm *old, *standby;
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX);
	uint64_t pfns[POCKET_LAB_RAM / 4096];
	struct ft_err err = {0};
	struct kv_client c;

	(void)state;
	pocket_lab_config(&config, 0);
	old = pocket_lab_start(&config);
	kv_client_open(&c, pocket_port(old));
	for (unsigned i = 0; i < 100; i++)
		kv_client_put(&c);
	snprintf(config.nic_attach, sizeof config.nic_attach, "udp:127.0.0.1:%u", pocket_port(old));
	assert_int_equal(pocket_arm(&config, &standby, &err), 0);
	assert_string_equal(standby->ops->status(standby), "inmigrate");
	assert_int_equal(pocket_port(standby), 0);
	assert_int_equal(old->ops->stop(old, &err), 0);
	for (unsigned i = 0; i < POCKET_LAB_RAM / 4096; i++)
		pfns[i] = i;
	assert_int_equal(old->ops->read_pages(old, pfns, POCKET_LAB_RAM / 4096,
					      standby->ops->image(standby), &err),
			 0);
	// The old one is frozen with its socket open, and the standby has its datagrams all the
	// same.
	if (standby->ops->resume(standby, bytes, pocket_state(old, bytes), &err))
		fail_msg("%s", err.text);
	for (unsigned i = 0; i < 100; i++)
		kv_client_put(&c);
	assert_int_equal(c.repeats, 0);
	pocket_lab_expect_journal(&c);
	old->ops->free(old);
	standby->ops->free(standby);
	free(bytes);
	close(c.fd);
}

// Taps go in while it still waits: frames of the last checkpoint that are given to them leave when
// it runs, its disk is behind the tap from its first write on.
static void armed_machine_resumes_behind_taps(void **state)
{
	struct pocket_config config;
	struct vmm *old, *standby;
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX), frame[4 + POCKET_FRAME_MAX];
	uint64_t pfns[POCKET_LAB_RAM / 4096];
	char request[KV_REQUEST_MAX];
	struct kv_answer a;
	struct ft_err err = {0};
	struct kv_client c;
	struct relay r;
	size_t n;

	(void)state;
	if (access("/usr/bin/qemu-nbd", X_OK)) {
		print_message("skipped: no qemu-nbd\n");
		skip();
	}
	pocket_lab_config(&config, 0);
	old = pocket_lab_start(&config);
	kv_client_open(&c, pocket_port(old));
	kv_client_put(&c);
	snprintf(config.nic_attach, sizeof config.nic_attach, "udp:127.0.0.1:%u", pocket_port(old));
	relay_open(&r);
	assert_int_equal(old->ops->taps_in(old, &r.points, &err), 0);
	relay_accept(&r);
	kv_client_say(&c, request, sizeof request);
	n = relay_take(&r, frame); // held, and in the checkpoint
	assert_int_equal(old->ops->stop(old, &err), 0);
	assert_int_equal(pocket_arm(&config, &standby, &err), 0);
	for (unsigned i = 0; i < POCKET_LAB_RAM / 4096; i++)
		pfns[i] = i;
	assert_int_equal(old->ops->read_pages(old, pfns, POCKET_LAB_RAM / 4096,
					      standby->ops->image(standby), &err),
			 0);
	(void)pocket_state(old, bytes);
	pocket_crash(old);
	close(r.out);
	close(r.in);
	if (standby->ops->taps_in(standby, &r.points, &err))
		fail_msg("%s", err.text);
	relay_accept(&r);
	assert_int_equal(psock_write_all(r.in, frame, n, psock_deadline(100)), 0);
	assert_false(kv_client_answered(&c, &a, 20));
	if (standby->ops->resume(standby, bytes, pocket_state(old, bytes), &err))
		fail_msg("%s", err.text);
	assert_true(kv_client_answered(&c, &a, POCKET_LAB_DEADLINE_MS));
	kv_client_check(&c, request, &a);
	kv_client_say(&c, request, sizeof request);
	n = relay_take(&r, frame);
	assert_int_equal(psock_write_all(r.in, frame, n, psock_deadline(100)), 0);
	assert_true(kv_client_answered(&c, &a, POCKET_LAB_DEADLINE_MS));
	kv_client_check(&c, request, &a);
	pocket_lab_expect_journal(&c);
	old->ops->free(old);
	standby->ops->free(standby);
	relay_close(&r);
	free(bytes);
	close(c.fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(taps_hold_and_release),
		cmocka_unit_test(broken_tap_stops_the_network_only),
		cmocka_unit_test(standby_takes_the_address_over),
		cmocka_unit_test(armed_machine_resumes_behind_taps),
	};

	return cmocka_run_group_tests(tests, pocket_lab_setup, pocket_lab_teardown);
}

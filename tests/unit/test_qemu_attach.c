// SPDX-License-Identifier: Apache-2.0
// A guest that was started by somebody else, without any thought of us: q35, modern virtio, plain
// -m memory, -drive. It is attached to, tapped while it writes, let go, attached to again after an
// agent died, and fails over into a QEMU made from its command line.
#include "test_qemu_guest.h"

#include "eventtap/net/net_tap.h"
#include "vmm-glue/qemu/spawn.h"

#define CHECKPOINTS 10

static struct process theirs, nbd_server;

static void start_theirs(void)
{
	char drive[VMM_PATH_MAX + 64], serial[VMM_PATH_MAX + 64], qmp[VMM_PATH_MAX + 64];
	char *argv[] = {"qemu-system-x86_64",
			"-machine",
			"q35",
			"-accel",
			"tcg",
			"-cpu",
			"max",
			"-m",
			"256",
			"-nodefaults",
			"-display",
			"none",
			"-vga",
			"none",
			"-kernel",
			guest_kernel,
			"-initrd",
			guest_initrd,
			"-append",
			"console=ttyS0 quiet panic=1 tsc=unstable",
			"-drive",
			drive,
			"-device",
			"virtio-blk-pci,drive=d0",
			"-netdev",
			"tap,id=n0,ifname=tapp,script=no,downscript=no",
			"-device",
			"virtio-net-pci,netdev=n0,mac=52:54:00:00:00:02",
			"-chardev",
			serial,
			"-serial",
			"chardev:ser",
			"-qmp",
			qmp,
			NULL};
	bool listens = false;
	int watch;

	guest_make_disk(guest_path("theirs.img"));
	snprintf(drive, sizeof drive, "file=%s,format=raw,if=none,id=d0,discard=unmap",
		 guest_path("theirs.img"));
	snprintf(serial, sizeof serial, "socket,id=ser,path=%s,server=on,wait=off,logfile=%s",
		 guest_path("theirs.tty"), guest_path("theirs.console"));
	snprintf(qmp, sizeof qmp, "unix:%s,server=on,wait=off", guest_path("theirs.qmp"));
	watch = inotify_init1(IN_CLOEXEC);
	inotify_add_watch(watch, guest_run, IN_CREATE);
	assert_ok(process_spawn(&theirs, argv, NULL, 0, guest_path("theirs.log"), err));
	while (!listens) {
		char buf[4096];
		ssize_t n = read(watch, buf, sizeof buf);

		for (char *p = buf; p < buf + n;
		     p += sizeof(struct inotify_event) + ((struct inotify_event *)p)->len)
			listens = listens ||
				  !strcmp(((struct inotify_event *)p)->name, "theirs.console");
	}
	close(watch);
	wait_file(guest_path("theirs.console"), is_ready, 0, BOOT_MS);
}

/* Another server for the same image, as the agent's would be. */
/* A socket is there before anybody listens on it. */
static void wait_listening(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	uint64_t deadline = qemu_deadline_ns(5000);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", path);
	while (connect(fd, (struct sockaddr *)&addr, sizeof addr)) {
		assert_true(qemu_ms_left(deadline) > 0);
		poll(NULL, 0, 1);
	}
	close(fd);
}

static void start_nbd(const char *image)
{
	char options[VMM_PATH_MAX + 128];
	char *argv[] = {"qemu-nbd",	   "--persistent", "--shared=4",
			"--discard=unmap", "-k",	   (char *)guest_path("nbd.sock"),
			"--image-opts",	   options,	   NULL};
	int watch = inotify_init1(IN_CLOEXEC);
	bool listens = false;

	snprintf(options, sizeof options,
		 "driver=raw,file.driver=file,file.locking=off,file.filename=%s", image);
	unlink(guest_path("nbd.sock"));
	inotify_add_watch(watch, guest_run, IN_CREATE);
	assert_ok(process_spawn(&nbd_server, argv, NULL, 0, guest_path("nbd.log"), err));
	while (!listens) {
		char buf[4096];
		ssize_t n = read(watch, buf, sizeof buf);

		for (char *p = buf; p < buf + n;
		     p += sizeof(struct inotify_event) + ((struct inotify_event *)p)->len)
			listens = listens || !strcmp(((struct inotify_event *)p)->name, "nbd.sock");
	}
	close(watch);
	wait_listening(guest_path("nbd.sock"));
}

static void stop_nbd(void)
{
	process_kill(&nbd_server);
	assert_true(process_ended(&nbd_server, 5000));
	process_close(&nbd_server);
}

static struct vmm *attach(void)
{
	struct vmm *vm = NULL;

	assert_ok(qemu_attach(guest_path("theirs.qmp"), "theirs", guest_run, NULL, &vm, err));
	return vm;
}

static void finds_what_there_is(void **state)
{
	struct vmm *vm = attach();
	struct vmm_info info;

	(void)state;
	vm->ops->info(vm, &info);
	assert_int_equal(info.pid, theirs.pid);
	assert_int_equal(info.ram_bytes, GUEST_MEMORY);
	assert_int_equal(info.disks_n, 1);
	assert_string_equal(info.disks[0].id, "d0");
	assert_string_equal(info.disks[0].image, guest_path("theirs.img"));
	assert_int_equal(info.disks[0].bytes, GUEST_DISK);
	assert_int_equal(info.nics_n, 1);
	assert_string_equal(info.nics[0].id, "n0");
	assert_string_equal(vm->ops->status(vm), "running");
	assert_memory_equal(qemu_machine(vm), "pc-q35-", 7);
	assert_ok(vm->ops->check(vm, err));
	vm->ops->free(vm);
}

static unsigned writes_seen(int tty, int line)
{
	unsigned n = 0;
	char *at;

	guest_type(tty, "tail -n 1 /w.log; echo LINE-$((%d))\n", line);
	wait_file(guest_path("theirs.console"), has_line, line, 20000);
	at = (char *)file_text(guest_path("theirs.console"));
	for (char *t = at; (t = strstr(t, "\nw ")); t++)
		sscanf(t, "\nw %u", &n);
	return n;
}

static void taps_come_and_go_under_io(void **state)
{
	struct vmm_tap_points points = {0};
	struct vmm *vm = attach();
	unsigned before, after;
	struct relay relay;
	int tcp, tty;

	(void)state;
	tty = tty_open(guest_path("theirs.tty"));
	guest_type(tty, "gl disk /dev/vda 1000000 v >/w.log &\n");
	tcp = guest_tcp();
	tcp_echo(tcp, 1);
	before = writes_seen(tty, 1);
	snprintf(points.disks[0].nbd, VMM_PATH_MAX, "%s", guest_path("nbd.sock"));
	snprintf(points.nics[0].out, VMM_PATH_MAX, "%s", guest_path("net.out"));
	snprintf(points.nics[0].in, VMM_PATH_MAX, "%s", guest_path("net.in"));
	for (int round = 0; round < 2;
	     round++) { /* the first moves the disk to a node of ours, the second finds it there */
		start_nbd(guest_path("theirs.img"));
		relay_listen(&relay);
		assert_ok(vm->ops->taps_in(vm, &points, err));
		relay_accept(&relay);
		echo_through(&relay, tcp);
		assert_true(relay.frames > 0);
		after = writes_seen(tty, 2 + 2 * round);
		assert_true(after > before);
		before = after;
		assert_ok(vm->ops->taps_out(vm, 0, err));
		relay_close(&relay);
		stop_nbd();
		tcp_echo(tcp, 2);
		after = writes_seen(tty, 3 + 2 * round);
		assert_true(after > before);
		before = after;
		assert_int_equal(access(guest_path("theirs.taps"), F_OK), -1);
	}
	guest_type(tty, "echo ERRORS-$(dmesg | grep -c -i 'i/o error')-; echo LINE-$((10))\n");
	wait_file(guest_path("theirs.console"), has_line, 10, 20000);
	assert_non_null(strstr(file_text(guest_path("theirs.console")), "ERRORS-0-"));
	close(tcp);
	shutdown(tty, SHUT_RDWR);
	vm->ops->free(vm);
}

/* Frames do not come back through QEMU: we have its interface. */
static void frames_leave_by_the_interface(void **state)
{
	struct vmm_tap_points points = {0};
	struct net_tap_config config = {
		.id = "n0", .out_path = points.nics[0].out, .held_bytes_max = 16u << 20};
	struct vmm *vm = attach();
	struct tap_stats stats;
	struct ft_err why = {0};
	struct tap *tap;
	int tcp = guest_tcp();

	(void)state;
	snprintf(points.disks[0].nbd, VMM_PATH_MAX, "%s", guest_path("nbd.sock"));
	snprintf(points.nics[0].out, VMM_PATH_MAX, "%s", guest_path("net.out"));
	for (int round = 0; round < 3; round++) {
		config.host_fd = vmm_nic_fd(vm, 0, &why);
		if (config.host_fd < 0)
			fail_msg("%s", why.text);
		start_nbd(guest_path("theirs.img"));
		assert_ok(net_tap_open(&config, &tap, err));
		assert_ok(vm->ops->taps_in(vm, &points, err));
		tcp_echo(tcp, 1 + round);
		tap->ops->stats(tap, &stats);
		assert_true(stats.outputs > 0);
		assert_int_equal(stats.dropped, 0);
		assert_ok(vm->ops->taps_out(vm, 0, err));
		tap->ops->free(tap);
		stop_nbd();
		tcp_echo(tcp, 10 + round);
	}
	close(tcp);
	vm->ops->free(vm);
}

static void errors_undo_themselves(void **state)
{
	struct vmm_tap_points points = {0};
	struct vmm *vm = attach();
	struct ft_err why = {0};
	struct relay relay;
	int tcp;

	(void)state;
	snprintf(points.disks[0].nbd, VMM_PATH_MAX, "%s", guest_path("nobody.sock"));
	snprintf(points.nics[0].out, VMM_PATH_MAX, "%s", guest_path("net.out"));
	snprintf(points.nics[0].in, VMM_PATH_MAX, "%s", guest_path("net.in"));
	relay_listen(&relay);
	assert_true(vm->ops->taps_in(vm, &points, &why) < 0);
	assert_non_null(strstr(why.text, "disk d0: tap: "));
	relay_close(&relay);
	tcp = guest_tcp();
	tcp_echo(tcp, 1);
	close(tcp);
	assert_true(vm->ops->taps_in(vm, &points, &why) < 0); /* nobody listens */
	assert_non_null(strstr(why.text, "nic n0: tap: "));
	vm->ops->free(vm);
}

/* An agent dies with everything in place and half a command sent; the next one finds a guest as it
 * was. */
static void a_dead_agents_taps_are_removed(void **state)
{
	struct vmm_tap_points points = {0};
	struct vmm *vm = attach();
	struct vmm_info info;
	struct relay relay;
	unsigned before;
	int tcp, tty;

	(void)state;
	snprintf(points.disks[0].nbd, VMM_PATH_MAX, "%s", guest_path("nbd.sock"));
	snprintf(points.nics[0].out, VMM_PATH_MAX, "%s", guest_path("net.out"));
	snprintf(points.nics[0].in, VMM_PATH_MAX, "%s", guest_path("net.in"));
	start_nbd(guest_path("theirs.img"));
	relay_listen(&relay);
	assert_ok(vm->ops->taps_in(vm, &points, err));
	relay_accept(&relay);
	assert_ok(vm->ops->track_start(vm, err));
	assert_ok(vm->ops->checkpoint_prepare(vm, err));
	relay_close(&relay);
	vm->ops->free(vm); /* taps stay */
	stop_nbd();

	tty = tty_open(guest_path("theirs.tty"));
	vm = attach();
	vm->ops->info(vm, &info);
	assert_string_equal(info.disks[0].image, guest_path("theirs.img"));
	assert_ok(vm->ops->check(vm, err));
	tcp = guest_tcp();
	tcp_echo(tcp, 1);
	before = writes_seen(tty, 20);
	assert_true(writes_seen(tty, 21) > before);
	close(tcp);
	shutdown(tty, SHUT_RDWR);
	vm->ops->free(vm);
}

static void fails_over_from_its_command_line(void **state)
{
	const char *replace[] = {guest_path("theirs.img"), guest_path("copy.img"), "tapp", "taps",
				 NULL};
	const char *directories[] = {guest_run, NULL, NULL};
	struct qemu_arm_rules rules = {.name = "copy",
				       .run_dir = guest_run,
				       .replace = replace,
				       .directories = directories};
	struct vmm *vm = attach(), *s = NULL;
	struct ft_err why = {0};
	struct staging st;
	uint64_t here, there, t;
	char **argv;
	int tcp, tty, tick;

	(void)state;
	assert_ok(qemu_command_line(vm, &argv, err));
	/* Kernel and initrd are not below the run directory. */
	guest_make_disk(guest_path("copy.img"));
	assert_int_equal(qemu_arm_command_line((const char *const *)argv, &rules, &s, &why),
			 -EPERM);
	assert_non_null(strstr(why.text, "not below an allowed directory"));
	directories[1] = "/";
	assert_ok(qemu_arm_command_line((const char *const *)argv, &rules, &s, err));
	qemu_command_line_free(argv);
	tty = tty_open(guest_path("theirs.tty"));
	guest_type(tty, "kill $(pidof gl)\n");
	tcp = guest_tcp();
	assert_ok(vm->ops->track_start(vm, err));
	staging_init(&st, 4096, s->ops->image(s));
	for (int i = 0; i < CHECKPOINTS; i++) {
		assert_ok(vm->ops->checkpoint_prepare(vm, err));
		tcp_echo(tcp, i);
		staging_checkpoint(&st, vm, false);
	}
	printf("state %zu bytes, pause %.2f ms, held %.2f ms\n", st.capture.state_len,
	       (double)st.capture.pause_ns / 1e6, (double)st.capture.held_ns / 1e6);
	staging_checkpoint(&st, vm, true);
	assert_ok(qemu_trial_prepare(s, err));
	t = qemu_now_ns();
	assert_ok(s->ops->trial(s, st.capture.state, st.capture.state_len, err));
	printf("trial %.1f ms\n", (double)(qemu_now_ns() - t) / 1e6);
	assert_ok(vm->ops->ram_digest(vm, &here, err));
	assert_ok(s->ops->ram_digest(s, &there, err));
	assert_int_equal(here, there);
	tick = last_tick(guest_path("theirs.console"));
	vm->ops->quit(vm, false, 0);
	vm->ops->free(vm);
	shutdown(tty, SHUT_RDWR);
	guest_command("cp %s %s", guest_path("theirs.img"), guest_path("copy.img"));
	tty = unix_connect(guest_path("copy.ser.sock"));
	t = qemu_now_ns();
	assert_ok(s->ops->resume(s, st.capture.state, st.capture.state_len, err));
	printf("resume %.2f ms\n", (double)(qemu_now_ns() - t) / 1e6);
	tcp_echo(tcp, CHECKPOINTS);
	for (int got = 0; got < tick + 5;) {
		struct pollfd p = {.fd = tty, .events = POLLIN};
		static char text[65536];
		static size_t have;
		ssize_t len;
		char end;
		int n;

		assert_true(poll(&p, 1, 10000) > 0);
		len = read(tty, text + have, sizeof text - 1 - have);
		assert_true(len > 0);
		text[have += (size_t)len] = '\0';
		for (char *at = text; (at = strstr(at, "tick ")); at++)
			if (sscanf(at, "tick %d%c", &n, &end) == 2)
				got = n;
		assert_true(got == 0 || got >= tick);
	}
	assert_ok(s->ops->check(s, err)); /* it is an ordinary guest now */
	assert_ok(s->ops->track_start(s, err));
	st.image = NULL;
	ft_bitmap_set_all(&st.pending);
	staging_checkpoint(&st, s, false);
	s->ops->quit(s, false, 0);
	s->ops->free(s);
	staging_free(&st);
	close(tcp);
	close(tty);
	assert_true(process_ended(&theirs, 1000));
	process_close(&theirs);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(finds_what_there_is),
		cmocka_unit_test(taps_come_and_go_under_io),
		cmocka_unit_test(frames_leave_by_the_interface),
		cmocka_unit_test(errors_undo_themselves),
		cmocka_unit_test(a_dead_agents_taps_are_removed),
		cmocka_unit_test(fails_over_from_its_command_line),
	};
	int failed;

	guest_setup();
	start_theirs();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	guest_teardown();
	return failed;
}

// SPDX-License-Identifier: Apache-2.0
// What cannot be protected is refused before anything is touched, in one line that says why. No
// guest runs here: firmware is enough.
#include "test_qemu_guest.h"

#include "vmm-glue/qemu/options.h"

static struct qemu_config bare(const char *const *args)
{
	return (struct qemu_config){.name = "bare",
				    .run_dir = guest_run,
				    .memory_bytes = 32u << 20,
				    .cpus = 1,
				    .args = args};
}

static void check_says(const char *const *args, const char *words)
{
	struct qemu_config c = bare(args);
	struct ft_err why = {0};
	struct vmm *vm = NULL;

	assert_ok(qemu_start(&c, &vm, err));
	if (words) {
		assert_int_equal(vm->ops->check(vm, &why), -ENOTSUP);
		if (!strstr(why.text, words))
			fail_msg("'%s' does not say '%s'", why.text, words);
		assert_null(strchr(why.text, '\n'));
	} else {
		assert_ok(vm->ops->check(vm, err));
	}
	vm->ops->quit(vm, false, 0);
	vm->ops->free(vm);
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void plain_is_fine(void **state)
{
	(void)state;
	check_says(NULL, NULL);
}

static void graphics_memory_is_refused(void **state)
{
	(void)state;
	check_says(ARGS("-vga", "std"), "-vga none");
}

static void balloon_is_refused(void **state)
{
	(void)state;
	check_says(ARGS("-device", "virtio-balloon-pci"), "memory balloon");
}

static void flash_is_refused(void **state)
{
	(void)state;
	guest_command("truncate -s 1M %s", guest_path("flash.img"));
	check_says(ARGS("-drive", "if=pflash,format=raw,node-name=fl,file.driver=null-co,file.size="
				  "1048576,file.read-zeroes=on"),
		   "memory besides RAM");
}

static void qcow2_is_refused(void **state)
{
	char drive[VMM_PATH_MAX + 64];

	(void)state;
	guest_command("qemu-img create -q -f qcow2 %s 16M", guest_path("q.qcow2"));
	snprintf(drive, sizeof drive, "file=%s,format=qcow2,if=virtio,id=q0",
		 guest_path("q.qcow2"));
	check_says(ARGS("-drive", drive), "disk q0: format qcow2");
}

static void other_networks_are_refused(void **state)
{
	(void)state;
	check_says(ARGS("-netdev", "hubport,id=h0,hubid=0", "-device", "virtio-net-pci,netdev=h0"),
		   "nic h0: type hub");
}

static void iothreads_are_refused(void **state)
{
	(void)state;
	check_says(ARGS("-object", "iothread,id=io0"), "iothreads");
}

static void unmigratable_devices_are_refused(void **state)
{
	(void)state;
	check_says(ARGS("-cpu", "max,migratable=off,+invtsc"), NULL); /* TCG ignores it */
	check_says(ARGS("-device", "ivshmem-plain,memdev=m", "-object",
			"memory-backend-ram,id=m,size=1M"),
		   "memory besides RAM");
}

/* The descriptor is what counts, so a file of that name will do. */
static void vhost_is_refused(void **state)
{
	(void)state;
	guest_command("truncate -s 1M /dev/vhost-kemari-test");
	check_says(ARGS("-drive", "file=/dev/vhost-kemari-test,format=raw,if=virtio"),
		   "/dev/vhost-kemari-test");
	unlink("/dev/vhost-kemari-test");
}

static void start_says_what_qemu_says(void **state)
{
	struct qemu_config c = bare(ARGS("-device", "no-such-device"));
	struct ft_err why = {0};
	struct vmm *vm = NULL;

	(void)state;
	assert_true(qemu_start(&c, &vm, &why) < 0);
	assert_non_null(strstr(why.text, "'no-such-device' is not a valid device model name"));
	c = bare(NULL);
	c.binary = "/nowhere/qemu";
	assert_int_equal(qemu_start(&c, &vm, &why), -ENOENT);
	c = bare(NULL);
	c.name = "../escape";
	assert_int_equal(qemu_start(&c, &vm, &why), -EINVAL);
	c = bare(NULL);
	c.memory_bytes = 12345;
	assert_int_equal(qemu_start(&c, &vm, &why), -EINVAL);
}

/* ---- command lines of a peer ---- */

static void peer_says(const char *const *args, const char *words)
{
	const char *const directories[] = {guest_run, NULL};
	struct qemu_arm_rules rules = {.name = "peer",
				       .run_dir = guest_run,
				       .directories = directories,
				       .memory_bytes_max = 1u << 30};
	const char *argv[32] = {"qemu-system-x86_64", "-nodefaults", "-m", "32", "-machine", "pc"};
	struct ft_err why = {0};
	struct vmm *vm = NULL;
	unsigned n = 6;

	while (args && *args)
		argv[n++] = *args++;
	if (!words) {
		assert_ok(qemu_arm_command_line(argv, &rules, &vm, err));
		assert_string_equal(vm->ops->status(vm), "inmigrate");
		vm->ops->quit(vm, false, 0);
		vm->ops->free(vm);
		return;
	}
	assert_true(qemu_arm_command_line(argv, &rules, &vm, &why) < 0);
	if (!strstr(why.text, words))
		fail_msg("'%s' does not say '%s'", why.text, words);
	assert_null(vm);
}

static void a_peers_command_line_is_not_trusted(void **state)
{
	char drive[VMM_PATH_MAX + 64];

	(void)state;
	guest_make_disk(guest_path("d.img"));
	peer_says(ARGS("-fw_cfg", "name=opt/x,file=/etc/shadow"), "-fw_cfg is not allowed");
	peer_says(ARGS("/etc/shadow"), "not allowed");
	peer_says(ARGS("-hda", "/etc/shadow"), "-hda is not allowed");
	peer_says(ARGS("-readconfig", "x"), "-readconfig is not allowed");
	peer_says(ARGS("-drive", "file=/etc/shadow,format=raw,if=virtio"),
		  "not below an allowed directory");
	snprintf(drive, sizeof drive, "file=%s/../../../etc/shadow,format=raw,if=virtio",
		 guest_run);
	peer_says(ARGS("-drive", drive), "not below an allowed directory");
	assert_int_equal(symlink("/etc/shadow", guest_path("link.img")), 0);
	snprintf(drive, sizeof drive, "file=%s,format=raw,if=virtio", guest_path("link.img"));
	peer_says(ARGS("-drive", drive), "not below an allowed directory");
	snprintf(drive, sizeof drive, "file=%s,format=qcow2,if=virtio", guest_path("d.img"));
	peer_says(ARGS("-drive", drive), "format=qcow2 is not allowed");
	snprintf(drive, sizeof drive, "file=%s,format=raw,if=virtio,file.driver=ssh",
		 guest_path("d.img"));
	peer_says(ARGS("-drive", drive), "file.driver is not allowed");
	peer_says(ARGS("-blockdev", "driver=nbd,node-name=n,server.type=unix"),
		  "server.type is not allowed");
	peer_says(ARGS("-blockdev",
		       "{\"driver\":\"file\",\"filename\":\"/etc/shadow\",\"node-name\":\"x\"}"),
		  "not below");
	/* A script is not refused but never run: the interface does not exist, and nobody makes it.
	 */
	peer_says(ARGS("-netdev", "tap,id=n,ifname=../x,script=/bin/sh"),
		  "ifname=../x is not allowed");
	peer_says(ARGS("-netdev", "tap,id=n,helper=/bin/sh"), "helper is not allowed");
	peer_says(ARGS("-netdev", "user,id=n,smb=/"), "type=user is not allowed");
	peer_says(ARGS("-netdev", "tap,id=n,ifname=tapp,vhost=on"), "vhost=on is not allowed");
	peer_says(ARGS("-device", "vfio-pci,host=00:01.0"), "driver=vfio-pci is not allowed");
	peer_says(ARGS("-device", "virtio-net-pci,romfile=/etc/shadow"),
		  "romfile=/etc/shadow is not allowed");
	/* What JSON calls one key, printed as QEMU's own notation, would be two. */
	peer_says(
		ARGS("-device", "{\"driver\":\"virtio-net-pci\",\"romfile=/etc/shadow,x\":\"1\"}"),
		"is no key");
	snprintf(drive, sizeof drive, "file=%s,format=raw,if=virtio,aio=/etc/shadow",
		 guest_path("d.img"));
	peer_says(ARGS("-drive", drive), "'/' is not allowed there");
	peer_says(ARGS("-global", "virtio-net-pci.romfile=/etc/shadow"),
		  "'/' is not allowed there");
	peer_says(ARGS("-object", "secret,id=s,file=/etc/shadow"),
		  "qom-type=secret is not allowed");
	peer_says(ARGS("-object", "rng-random,id=r,filename=/etc/shadow"),
		  "filename=/etc/shadow is not allowed");
	peer_says(ARGS("-chardev", "udp,id=u,host=1.2.3.4,port=1"), "backend=udp is not allowed");
	peer_says(ARGS("-serial", "braille"), "-serial braille is not allowed");
	peer_says(ARGS("-vga", "std"), "only none is allowed");
	peer_says(ARGS("-m", "64G"), "more than this host allows");
	peer_says(ARGS("-m", "32,slots=4"), "only a size is allowed");
	peer_says(ARGS("-m", "-1B"), "only a size is allowed");
	peer_says(ARGS("-m", "32 "), "only a size is allowed");
	peer_says(ARGS("-machine", "pc,kernel=/etc/shadow"), "is not allowed");
	peer_says(ARGS("-kernel", "/etc/shadow"), "not below an allowed directory");
	peer_says(ARGS("-device"), "without a value");
}

static void a_good_command_line_is_taken(void **state)
{
	char drive[VMM_PATH_MAX + 64], blockdev[VMM_PATH_MAX + 128];

	(void)state;
	guest_make_disk(guest_path("d1.img"));
	guest_make_disk(guest_path("d2.img"));
	snprintf(drive, sizeof drive, "file=%s,format=raw,if=none,id=d1,cache=none,aio=threads",
		 guest_path("d1.img"));
	snprintf(blockdev, sizeof blockdev,
		 "{\"driver\":\"raw\",\"node-name\":\"d2\",\"file\":{\"driver\":\"file\","
		 "\"filename\":\"%s\"}}",
		 guest_path("d2.img"));
	peer_says(ARGS("-drive", drive, "-device", "virtio-blk-pci,drive=d1", "-blockdev", blockdev,
		       "-device", "{\"driver\":\"virtio-blk-pci\",\"drive\":\"d2\"}", "-serial",
		       "mon:stdio", "-monitor", "none", "-object",
		       "rng-random,id=r,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r",
		       "-name", "x,debug-threads=on", "-qmp", "unix:/somewhere,server=on"),
		  NULL);
}

static void options_read_as_qemu_reads_them(void **state)
{
	json_t *o = options_parse("tap,id=a,,b,vhost=off,flag", "type");
	char text[128];

	(void)state;
	assert_string_equal(options_get(o, "type"), "tap");
	assert_string_equal(options_get(o, "id"), "a,b");
	assert_string_equal(options_get(o, "flag"), "on");
	assert_true(options_print(o, "type", text, sizeof text));
	assert_memory_equal(text, "tap,", 4);
	assert_non_null(strstr(text, "id=a,,b"));
	json_decref(o);
	o = options_parse(
		"{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"cache\":{\"direct\":true}}}",
		"driver");
	assert_string_equal(options_get(o, "file.driver"), "file");
	assert_string_equal(options_get(o, "file.cache.direct"), "on");
	assert_false(options_print(o, "driver", text, 8));
	json_decref(o);
	assert_null(options_parse("{\"a\":", NULL));
	assert_null(options_parse(",a=1", NULL)); /* an empty part */
	/* Two commas are one in a value. A key ends at the first. */
	assert_null(options_parse("a,,b=1", NULL));
	assert_null(options_parse("=1", NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(plain_is_fine),
		cmocka_unit_test(graphics_memory_is_refused),
		cmocka_unit_test(balloon_is_refused),
		cmocka_unit_test(flash_is_refused),
		cmocka_unit_test(qcow2_is_refused),
		cmocka_unit_test(other_networks_are_refused),
		cmocka_unit_test(iothreads_are_refused),
		cmocka_unit_test(unmigratable_devices_are_refused),
		cmocka_unit_test(vhost_is_refused),
		cmocka_unit_test(start_says_what_qemu_says),
		cmocka_unit_test(a_peers_command_line_is_not_trusted),
		cmocka_unit_test(a_good_command_line_is_taken),
		cmocka_unit_test(options_read_as_qemu_reads_them),
	};
	int failed;

	guest_setup();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	guest_teardown();
	return failed;
}

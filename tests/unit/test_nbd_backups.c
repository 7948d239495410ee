// SPDX-License-Identifier: Apache-2.0
// The read-only export for backups: what the guest writes is seen there, nothing is written there,
// and the disk's named bitmaps are contexts as QEMU has them.
#include <errno.h>
#include <libnbd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/nbd_server.h"
#include "tests/fixture/nbd_lab.h"

struct seen {
	char list[1024]; // "offset+length=state " of the context asked for
	const char *context;
	uint64_t at;
};

static int on_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
		      size_t n, int *error)
{
	struct seen *seen = opaque;
	(void)error;
	if (strcmp(context, seen->context) != 0)
		return 0;
	assert_int_equal(offset, seen->at);
	for (size_t i = 0; i < n; i += 2) {
		size_t used = strlen(seen->list);
		snprintf(seen->list + used, sizeof(seen->list) - used, "%u=%u ", entries[i] >> 10,
			 entries[i + 1]);
		seen->at += entries[i];
	}
	return 0;
}

static void expect_status(struct nbd_handle *nbd, const char *context, uint64_t offset,
			  uint64_t len, const char *want)
{
	struct seen seen = {.context = context, .at = offset};
	nbd_extent_callback fn = {.callback = on_extents, .user_data = &seen};
	if (nbd_block_status(nbd, len, offset, fn, 0) < 0)
		fail_msg("%s", nbd_get_error());
	assert_string_equal(seen.list, want);
}

static int count_contexts(void *opaque, const char *context)
{
	(void)context;
	++*(unsigned *)opaque;
	return 0;
}

static char refusal[512];

static int on_debug(void *opaque, const char *context, const char *text)
{
	(void)opaque;
	(void)context;
	if (strstr(text, "arriving"))
		snprintf(refusal, sizeof(refusal), "%s", text);
	return 0;
}

static unsigned listed(const char *query)
{
	struct nbd_handle *nbd = nbd_create();
	unsigned n = 0;
	nbd_context_callback fn = {.callback = count_contexts, .user_data = &n};
	char path[112];
	snprintf(path, sizeof(path), "%s.backup", lab.sock);
	nbd_set_opt_mode(nbd, true);
	if (query)
		nbd_add_meta_context(nbd, query);
	assert_int_equal(nbd_connect_unix(nbd, path), 0);
	assert_true(nbd_opt_list_meta_context(nbd, fn) >= 0);
	nbd_opt_abort(nbd);
	nbd_close(nbd);
	return n;
}

// Its guest has moved here, its bits follow: it is not to be had, and the server says why.
static void test_not_arrived(struct bitmaps *s)
{
	const struct bitmap_info what = {.name = "comes", .granularity = 65536, .enabled = true};
	char path[112], why[NBD_REFUSAL_MAX];
	snprintf(path, sizeof(path), "%s.backup", lab.sock);
	assert_int_equal(bitmaps_incoming_add(s, &what, &lab.err), 0);
	bitmaps_incoming_run(s);
	assert_int_equal(listed("qemu:dirty-bitmap:"), 3);
	for (unsigned arrived = 0; arrived < 2; arrived++) {
		struct nbd_handle *nbd = nbd_create();
		refusal[0] = '\0';
		nbd_set_debug(nbd, true);
		nbd_set_debug_callback(nbd, (nbd_debug_callback){.callback = on_debug});
		nbd_add_meta_context(nbd, "qemu:dirty-bitmap:comes");
		assert_int_equal(nbd_connect_unix(nbd, path), 0);
		assert_int_equal(nbd_can_meta_context(nbd, "qemu:dirty-bitmap:comes"), arrived);
		snprintf(why, sizeof(why), "%s", refusal);
		if (!arrived != (strstr(why, "still arriving") != NULL))
			fail_msg("the server said '%s'", why);
		nbd_close(nbd);
		if (!arrived)
			assert_int_equal(bitmaps_incoming_end(s, "comes", &lab.err), 0);
	}
	bitmaps_incoming_finish(s);
	assert_int_equal(bitmaps_remove(s, "comes", &lab.err), 0);
}

static void test_backups(void **state)
{
	(void)state;
	struct bitmaps *s = disk_tap_bitmaps(lab.tap);
	char path[112], block[4096] = {1};
	snprintf(path, sizeof(path), "%s.backup", lab.sock);
	assert_int_equal(bitmaps_add(s, "b0", 65536, &lab.err), 0);
	assert_int_equal(bitmaps_add(s, "fine", 4096, &lab.err), 0);
	assert_int_equal(bitmaps_add(s, "off", 4096, &lab.err), 0);
	assert_int_equal(bitmaps_enable(s, "off", false, &lab.err), 0);
	assert_int_equal(disk_tap_backups(lab.tap, path, &lab.err), 0);
	assert_int_equal(disk_tap_backups(lab.tap, path, &lab.err), 0);
	struct nbd_handle *guest = disk_lab_connect(), *nbd = nbd_create();
	nbd_set_strict_mode(nbd, 0);
	nbd_add_meta_context(nbd, "qemu:dirty-bitmap:fine");
	nbd_add_meta_context(nbd, "qemu:dirty-bitmap:b0");
	nbd_add_meta_context(nbd, "qemu:dirty-bitmap:nonsense");
	nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION);
	assert_int_equal(nbd_connect_unix(nbd, path), 0);
	assert_int_equal(nbd_can_meta_context(nbd, "qemu:dirty-bitmap:b0"), 1);
	assert_int_equal(nbd_can_meta_context(nbd, "qemu:dirty-bitmap:nonsense"), 0);
	assert_int_equal(nbd_is_read_only(nbd), 1);
	assert_int_equal(nbd_get_size(nbd), NBD_LAB_BYTES);
	// It reads what the guest writes, and writes nothing.
	assert_int_equal(nbd_pwrite(guest, block, 4096, 1u << 20, 0), 0);
	assert_int_equal(nbd_zero(guest, 8192, (1u << 20) + 65536, 0), 0);
	assert_int_equal(nbd_trim(guest, 4096, 8u << 20, 0), 0);
	block[0] = 0;
	assert_int_equal(nbd_pread(nbd, block, 4096, 1u << 20, 0), 0);
	assert_int_equal(block[0], 1);
	assert_int_equal(nbd_pwrite(nbd, block, 4096, 0, 0), -1);
	assert_int_equal(nbd_get_errno(), EPERM);
	assert_int_equal(nbd_zero(nbd, 4096, 0, 0), -1);
	assert_int_equal(nbd_trim(nbd, 4096, 0, 0), -1);
	expect_status(nbd, "qemu:dirty-bitmap:fine", 0, NBD_LAB_BYTES,
		      "1024=0 4=1 60=0 8=1 7096=0 4=1 8188=0 ");
	expect_status(nbd, "qemu:dirty-bitmap:b0", 0, NBD_LAB_BYTES,
		      "1024=0 128=1 7040=0 64=1 8128=0 ");
	expect_status(nbd, "qemu:dirty-bitmap:fine", (1u << 20) + 512, 4096, "3=1 0=0 ");
	expect_status(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION, 1u << 20, 4096, "4=0 ");
	assert_int_equal(listed(NULL), 4);
	assert_int_equal(listed("qemu:"), 3);
	assert_int_equal(listed("qemu:dirty-bitmap:"), 3);
	assert_int_equal(listed("base:"), 1);
	assert_int_equal(listed("qemu:dirty-bitmap:fine"), 1);
	assert_int_equal(listed("qemu:dirty"), 0);
	test_not_arrived(s);
	// A bitmap that goes while it is read is an error, and the connection stays.
	assert_int_equal(bitmaps_remove(s, "b0", &lab.err), 0);
	struct seen seen = {.context = "none"};
	nbd_extent_callback fn = {.callback = on_extents, .user_data = &seen};
	assert_int_equal(nbd_block_status(nbd, 4096, 0, fn, 0), -1);
	assert_int_equal(nbd_pread(nbd, block, 4096, 0, 0), 0);
	nbd_close(nbd);
	nbd_close(guest);
	// The tools that people use.
	if (nbd_lab_has("nbdinfo"))
		nbd_lab_run("nbdinfo --map=qemu:dirty-bitmap:fine "
			    "\"nbd+unix:///root?socket=$S.backup\" | "
			    "grep -q \"1048576 *4096 *1\"");
	if (nbd_lab_has("qemu-img"))
		nbd_lab_run("qemu-img map --output=json --image-opts "
			    "driver=nbd,export=root,server.type="
			    "unix,server.path=$S.backup,x-dirty-bitmap=qemu:dirty-bitmap:fine | "
			    "grep -q \"start.*1048576.*length.*4096.*data.*false\"");
	if (nbd_lab_has("nbdcopy"))
		nbd_lab_run(
			"nbdcopy \"nbd+unix:///root?socket=$S.backup\" $D/full && cmp $D/full $I");
	disk_tap_backups_end(lab.tap);
	assert_int_equal(access(path, F_OK), -1);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(bitmaps_remove(s, i ? "fine" : "off", &lab.err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_backups, nbd_lab_setup, nbd_lab_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}

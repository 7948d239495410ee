// SPDX-License-Identifier: Apache-2.0
// The disk tap in all its modes, written to over NBD as a VMM would: what a standby makes of the
// copy and of the epochs is compared byte for byte with the primary's image, and a shared disk with
// a model in memory.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/block/metadata.h"
#include "eventtap/store.h"

#define BYTES	    ((8u << 20) + 12345) /* the last block is a short one */
#define WRITERS	    3
#define EPOCHS	    200
#define OP_MAX	    (192u << 10)
#define DEADLINE_MS 10000

static char dir[64], image[96], copy[96], sock[96];
static struct tap *tap;
static struct tap_chain chain;
static struct ft_err err;
static atomic_uint pressures, outputs;
static const uint8_t blank[BYTES];
static uint8_t scratch[1 << 20], ours[BYTES], theirs[BYTES], model[BYTES];

static void on_pressure(void *ctx)
{
	(void)ctx;
	atomic_fetch_add(&pressures, 1);
}

static void on_output(void *ctx)
{
	(void)ctx;
	atomic_fetch_add(&outputs, 1);
}

static void make_image(const char *path, uint64_t bytes)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	close(fd);
}

// Lets through as many as it has.
static struct {
	unsigned left, passed;
	bool inside;
} gate;

static bool gate_enter(void *ctx)
{
	(void)ctx;
	assert_false(gate.inside);
	if (!gate.left)
		return false;
	gate.left--;
	gate.passed++;
	return gate.inside = true;
}

static void gate_leave(void *ctx)
{
	(void)ctx;
	assert_true(gate.inside);
	gate.inside = false;
}

static void open_tap(bool shared, size_t log_bytes_max)
{
	const struct disk_tap_config config = {
		.id = "root",
		.device = 2,
		.image = image,
		.shared = shared,
		.gate = {.enter = gate_enter, .leave = gate_leave},
		.uuid = "00112233-4455-6677-8899-aabbccddeeff",
		.socket = sock,
		.log_bytes_max = log_bytes_max,
		.spill_dir = dir,
	};
	if (disk_tap_open(&config, &tap, &err) < 0)
		fail_msg("%s", err.text);
	tap->notify = (struct tap_notify){.pressure = on_pressure, .output = on_output};
	chain = (struct tap_chain){0};
	tap_chain_add(&chain, tap);
	pressures = outputs = 0;
	gate.left = UINT_MAX;
	gate.passed = 0;
}

static int setup(void **state)
{
	(void)state;
	// In memory where possible: hundreds of epochs with flushes are about order, not about
	// disks.
	strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/kemari-tap-XXXXXX"
						  : "/tmp/kemari-tap-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(image, sizeof(image), "%s/disk.img", dir);
	snprintf(copy, sizeof(copy), "%s/copy.img", dir);
	snprintf(sock, sizeof(sock), "%s/disk.sock", dir);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	char path[128];
	tap_chain_free(&chain);
	tap = NULL;
	umount2(dir, MNT_DETACH);
	const char *const names[] = {
		"disk.img",	   "disk.img.kemari",	      "disk.img.kemari-bitmaps", "copy.img",
		"copy.img.kemari", "copy.img.kemari-bitmaps", "copy.img.kemari-changes"};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
		unlink(path);
	}
	return rmdir(dir);
}

static struct nbd_handle *connect_nbd(void)
{
	struct nbd_handle *nbd = nbd_create();
	assert_non_null(nbd);
	nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION);
	nbd_set_strict_mode(nbd, 0);
	if (nbd_connect_unix(nbd, sock) < 0)
		fail_msg("%s", nbd_get_error());
	return nbd;
}

static uint64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void tick(void)
{
	const struct timespec ms = {.tv_nsec = 1000000};
	nanosleep(&ms, NULL);
}

static void read_file(const char *path, uint8_t *buf)
{
	int fd = open(path, O_RDONLY);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, buf, BYTES, 0), BYTES);
	close(fd);
}

static void expect_identical(const char *when, uint64_t n)
{
	read_file(image, ours);
	read_file(copy, theirs);
	if (memcmp(ours, theirs, BYTES) == 0)
		return;
	for (uint64_t i = 0; i < BYTES; i++)
		if (ours[i] != theirs[i])
			fail_msg("%s %llu: byte %llu differs: %02x, copy %02x", when,
				 (unsigned long long)n, (unsigned long long)i, ours[i], theirs[i]);
}

// ---- random writers ----

struct writer {
	pthread_t thread;
	struct nbd_handle *nbd;
	unsigned seed, ops;
	atomic_bool *stop; // instead of a number of operations
	uint64_t hot;	   // operations begin below this
	int failed;
	char why[200];
	uint8_t buf[OP_MAX];
};

// One random change; the same to mirror, if there is one.
static int random_op(struct writer *w, uint8_t *mirror)
{
	unsigned r = (unsigned)rand_r(&w->seed);
	uint64_t len = r % 16 == 0 ? (uint64_t)rand_r(&w->seed) % OP_MAX + 1
				   : (uint64_t)(rand_r(&w->seed) % 8 + 1) * 4096;
	uint64_t offset = (uint64_t)rand_r(&w->seed) % w->hot;
	if (r % 3)
		offset &= ~UINT64_C(511);
	if (offset + len > BYTES)
		len = BYTES - offset;
	bool zeroes = true;
	int ret;
	switch (rand_r(&w->seed) % 12) {
	case 0:
		ret = nbd_zero(w->nbd, len, offset, 0);
		break;
	case 1:
		ret = nbd_zero(w->nbd, len, offset, LIBNBD_CMD_FLAG_NO_HOLE | LIBNBD_CMD_FLAG_FUA);
		break;
	case 2:
		ret = nbd_trim(w->nbd, len, offset, 0);
		break;
	case 3:
		return nbd_flush(w->nbd, 0);
	default:
		zeroes = false;
		memset(w->buf, (int)(r >> 8), len);
		memcpy(w->buf, &r, len < sizeof(r) ? len : sizeof(r));
		ret = nbd_pwrite(w->nbd, w->buf, len, offset,
				 r % 32 == 1 ? LIBNBD_CMD_FLAG_FUA : 0);
	}
	if (mirror && zeroes)
		memset(mirror + offset, 0, len);
	else if (mirror)
		memcpy(mirror + offset, w->buf, len);
	return ret;
}

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	for (unsigned i = 0; w->stop ? !atomic_load(w->stop) : i < w->ops; i++)
		if (random_op(w, NULL) < 0 && w->failed++ == 0)
			snprintf(w->why, sizeof(w->why), "%s", nbd_get_error());
	return NULL;
}

static struct writer *writers_new(unsigned seed, uint64_t hot)
{
	struct writer *w = calloc(WRITERS, sizeof(*w));
	for (int i = 0; i < WRITERS; i++) {
		w[i].nbd = connect_nbd();
		w[i].seed = seed + (unsigned)i;
		w[i].hot = hot;
	}
	return w;
}

static void writers_start(struct writer *w, unsigned ops, atomic_bool *stop)
{
	for (int i = 0; i < WRITERS; i++) {
		w[i].ops = ops;
		w[i].stop = stop;
		assert_int_equal(pthread_create(&w[i].thread, NULL, writer_main, &w[i]), 0);
	}
}

static void writers_join(struct writer *w)
{
	for (int i = 0; i < WRITERS; i++)
		pthread_join(w[i].thread, NULL);
	for (int i = 0; i < WRITERS; i++)
		if (w[i].failed)
			fail_msg("%d operations failed, first: %s", w[i].failed, w[i].why);
}

static void writers_free(struct writer *w)
{
	for (int i = 0; i < WRITERS; i++)
		nbd_close(w[i].nbd);
	free(w);
}

// ---- named bitmaps ----

static const char *const bitmap_names[] = {"finest", "usual", "coarse"};
static const uint32_t granularities[] = {512, 65536, 1u << 20};

static void add_bitmaps(void)
{
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(
			bitmaps_add(disk_tap_bitmaps(tap), bitmap_names[i], granularities[i], &err),
			0);
}

static void read_map(struct bitmaps *s, unsigned i, uint8_t map[8192], struct bitmap_info *info)
{
	assert_true(bitmaps_info(s, i, info));
	assert_true(info->map_bytes <= 8192);
	assert_int_equal(bitmaps_read(s, info->name, 0, map, info->map_bytes), 0);
}

// The standby's are the tap's as of the epoch that was closed last.
static void expect_same_bitmaps(struct store *s, const char *when, uint64_t epoch)
{
	for (unsigned i = 0; i < 3; i++) {
		uint8_t here[8192], there[8192];
		struct bitmap_info a, b;
		read_map(disk_tap_bitmaps(tap), i, here, &a);
		read_map(store_bitmaps(s), i, there, &b);
		if (memcmp(&a, &b, sizeof(a)) != 0 || memcmp(here, there, a.map_bytes) != 0)
			fail_msg("%s %llu: bitmap %s: %llu bytes dirty here, %llu there", when,
				 (unsigned long long)epoch, a.name,
				 (unsigned long long)a.dirty_bytes,
				 (unsigned long long)b.dirty_bytes);
	}
}

// ---- the engine's part ----

static struct store *open_store(void)
{
	struct store *s = NULL;
	if (store_open("root", copy, STORE_REPLICATED, BYTES, NULL, &s, &err) < 0)
		fail_msg("%s", err.text);
	return s;
}

// Copies at most max parts. Returns how many it was.
static unsigned sync_some(struct store *s, unsigned max)
{
	unsigned n = 0;
	for (; n < max; n++) {
		uint64_t offset;
		uint32_t len;
		bool zero;
		int ret = disk_tap_sync_next(tap, scratch, 256u << 10, &offset, &len, &zero, &err);
		if (ret == 0)
			break;
		assert_int_equal(ret, 1);
		assert_true(len > 0 && (zero || len <= 256u << 10));
		assert_int_equal(
			store_sync_write(s, offset, zero ? NULL : scratch, len, zero, &err), 0);
	}
	return n;
}

// Ships an epoch in parts of odd sizes, so that records are cut anywhere. Returns its bytes.
static size_t ship(struct store *s, uint64_t epoch, unsigned *seed)
{
	static uint8_t pending[DISK_TAP_LOG_BYTES];
	struct tap_chain_cursor at = {0};
	size_t have = 0, total = 0, n;
	do {
		size_t room = (size_t)rand_r(seed) % 100000 + 1;
		n = tap_chain_export(&chain, epoch, &at, pending + have, room);
		have += n;
		total += n;
		struct tap_record rec;
		size_t done = 0;
		long len;
		while ((len = tap_record_parse(pending + done, have - done, &rec, NULL)) > 0) {
			assert_int_equal(rec.device, 2);
			if (s && store_apply(s, &rec, &err) < 0)
				fail_msg("%s", err.text);
			done += (size_t)len;
		}
		assert_true(len == 0);
		memmove(pending, pending + done, have - done);
		have -= done;
	} while (n > 0);
	assert_int_equal(have, 0);
	return total;
}

static void close_epoch(uint64_t epoch)
{
	if (tap_chain_close_epoch(&chain, epoch, &err) < 0)
		fail_msg("%s", err.text);
}

static void expect_held(uint64_t bytes)
{
	struct tap_stats stats;
	tap_chain_stats(&chain, &stats);
	assert_int_equal(stats.held_bytes, bytes);
	if (bytes == 0)
		assert_int_equal(stats.held_outputs, 0);
}

// ---- tests ----

static void test_copy_under_writes(void **state)
{
	(void)state;
	make_image(image, BYTES);
	open_tap(false, DISK_TAP_LOG_BYTES);
	struct store *s = open_store();
	struct writer *w = writers_new(1, BYTES);
	writers_start(w, 100, NULL);
	writers_join(w);
	assert_int_equal(disk_tap_behind_bytes(tap), 0); // PASS remembers nothing
	disk_tap_mark_all_behind(tap);
	assert_int_equal(disk_tap_behind_bytes(tap), BYTES);
	tap_chain_set_mode(&chain, TAP_TRACK);
	atomic_bool stop = false;
	writers_start(w, 0, &stop);
	unsigned copied = 0;
	for (uint64_t end = now_ms() + 1000; now_ms() < end;)
		copied += sync_some(s, 20);
	atomic_store(&stop, true);
	writers_join(w);
	while (sync_some(s, 100))
		;
	assert_true(copied > BYTES / (256u << 10));
	assert_int_equal(disk_tap_behind_bytes(tap), 0);
	expect_identical("copy", 0);
	// A range by hand; holes come as holes.
	disk_tap_mark_range_behind(tap, 65536 * 3 - 1, 2);
	assert_int_equal(disk_tap_behind_bytes(tap), 65536 * 2);
	assert_int_equal(nbd_trim(w[0].nbd, 65536 * 4, 0, 0), 0);
	uint64_t offset;
	uint32_t len;
	bool zero = false;
	assert_int_equal(disk_tap_sync_next(tap, scratch, 65536, &offset, &len, &zero, &err), 1);
	assert_true(zero);
	writers_free(w);
	store_free(s);
}

// Random writers on overlapping ranges, checkpoints that fail, protection that is lost and comes
// back.
static void test_epochs(void **state)
{
	(void)state;
	unsigned seed = 4711;
	make_image(image, BYTES);
	open_tap(false, DISK_TAP_LOG_BYTES);
	struct store *s = open_store();
	struct writer *w = writers_new(77, 1u << 20);
	add_bitmaps();
	disk_tap_mark_all_behind(tap);
	tap_chain_set_mode(&chain, TAP_TRACK);
	writers_start(w, 20, NULL);
	sync_some(s, 10);
	writers_join(w);
	tap_chain_set_mode(&chain, TAP_HOLD);
	for (uint64_t epoch = 1; epoch <= EPOCHS; epoch++) {
		w[0].hot = w[1].hot = w[2].hot = epoch % 10 ? 1u << 20 : BYTES;
		writers_start(w, (unsigned)rand_r(&seed) % 8, NULL);
		writers_join(w);
		close_epoch(epoch);
		assert_int_equal(disk_tap_behind_bytes(tap), 0);
		unsigned luck = (unsigned)rand_r(&seed) % 16;
		if (luck ==
		    0) { // the checkpoint failed: the same epoch again, with what came since
			writers_start(w, 3, NULL);
			writers_join(w);
			close_epoch(epoch);
		} else if (luck == 1) { // the standby is lost and comes back
			tap_chain_set_mode(&chain, rand_r(&seed) % 2 ? TAP_TRACK : TAP_PASS);
			expect_held(0);
			tap_chain_set_mode(&chain, TAP_TRACK);
			writers_start(w, 5, NULL);
			sync_some(s, 2);
			writers_join(w);
			tap_chain_set_mode(&chain, TAP_HOLD);
			close_epoch(epoch);
		}
		ship(s, epoch, &seed);
		assert_int_equal(store_commit(s, 1, epoch, &err), 0);
		expect_identical("epoch", epoch);
		expect_same_bitmaps(s, "epoch", epoch);
		if (epoch % 7 == 0)
			assert_int_equal(
				bitmaps_clear(disk_tap_bitmaps(tap), bitmap_names[epoch % 3], &err),
				0);
		if (rand_r(&seed) % 4) {
			assert_int_equal(tap_chain_release(&chain, epoch, &err), 0);
			expect_held(0);
		}
	}
	assert_int_equal(outputs, 0);
	assert_int_equal(store_activate(s, 2, EPOCHS, true, &err), 0);
	expect_identical("activated", EPOCHS);
	writers_free(w);
	store_free(s);
}

static void expect_model(struct nbd_handle *nbd)
{
	assert_int_equal(nbd_pread(nbd, ours, BYTES, 0, 0), 0);
	assert_memory_equal(ours, model, BYTES);
}

static int zero_extents(void *ctx, const char *context, uint64_t offset, uint32_t *entries,
			size_t n, int *error)
{
	(void)context;
	(void)error;
	uint64_t *end = ctx;
	for (size_t i = 0; i < n; i += 2) {
		if (entries[i + 1] & LIBNBD_STATE_ZERO)
			assert_memory_equal(model + offset, blank, entries[i]);
		offset += entries[i];
	}
	*end = offset;
	return 0;
}

static void test_shared(void **state)
{
	(void)state;
	static uint8_t at_close[2][BYTES];
	make_image(image, BYTES);
	open_tap(true, DISK_TAP_LOG_BYTES);
	memset(model, 0, BYTES);
	add_bitmaps();
	struct writer *w = writers_new(99, BYTES);
	for (int i = 0; i < 50; i++)
		assert_int_equal(random_op(w, model), 0);
	read_file(image, ours);
	assert_memory_equal(ours, model, BYTES); // PASS
	disk_tap_mark_all_behind(tap);
	assert_int_equal(disk_tap_behind_bytes(tap), 0); // the peer has this very image
	tap_chain_set_mode(&chain, TAP_HOLD);
	close_epoch(1);
	memcpy(at_close[1], model, BYTES);
	for (uint64_t epoch = 2; epoch <= 60; epoch++) {
		for (int i = 0; i < 30; i++)
			assert_int_equal(random_op(w, model), 0);
		expect_model(w[1].nbd);
		read_file(image, ours);
		assert_memory_equal(ours, at_close[1],
				    BYTES); // nothing of it has reached the image
		close_epoch(epoch);
		memcpy(at_close[0], model, BYTES);
		for (int i = 0; i < 5; i++)
			assert_int_equal(random_op(w, model), 0);
		assert_int_equal(tap_chain_release(&chain, epoch, &err), 0);
		read_file(image, ours);
		assert_memory_equal(ours, at_close[0], BYTES);
		memcpy(at_close[1], at_close[0], BYTES);
		expect_model(w[1].nbd);
		for (uint64_t offset = 0; offset < BYTES;) {
			nbd_extent_callback fn = {.callback = zero_extents, .user_data = &offset};
			assert_int_equal(nbd_block_status(w[0].nbd, BYTES - offset, offset, fn, 0),
					 0);
		}
	}
	expect_model(w[2].nbd);
	tap_chain_set_mode(&chain, TAP_PASS);
	expect_held(0);
	assert_int_equal(nbd_flush(w[0].nbd, 0), 0);
	read_file(image, ours);
	assert_memory_equal(ours, model, BYTES);
	// What is not dirty is as it was.
	for (unsigned i = 0; i < 3; i++)
		for (uint64_t at = 0, len; at < BYTES; at += len) {
			bool dirty = true;
			len = BYTES - at;
			assert_int_equal(bitmaps_at(disk_tap_bitmaps(tap), bitmap_names[i], at,
						    &len, &dirty),
					 0);
			for (uint64_t byte = at; !dirty && byte < at + len; byte++)
				assert_int_equal(model[byte], 0);
		}
	writers_free(w);
}

// The descriptors that this process has of the image have these flags.
static unsigned image_descriptors(int flags)
{
	DIR *fds = opendir("/proc/self/fd");
	unsigned n = 0;
	for (struct dirent *e; (e = readdir(fds));) {
		char path[512], target[512];
		snprintf(path, sizeof(path), "/proc/self/fd/%s", e->d_name);
		ssize_t len = readlink(path, target, sizeof(target) - 1);
		target[len > 0 ? len : 0] = '\0';
		n += !strcmp(target, image) && (fcntl(atoi(e->d_name), F_GETFL) & flags) == flags;
	}
	closedir(fds);
	return n;
}

// A lease that lapses in the middle: what was written is not written again, the rest later, and
// nothing is written without it. A write that has returned is on the storage.
static void test_gate(void **state)
{
	(void)state;
	enum { WRITES = 10 };
	static uint8_t block[4096];
	make_image(image, BYTES);
	open_tap(true, DISK_TAP_LOG_BYTES);
	assert_int_equal(image_descriptors(O_DSYNC), 1);
	tap_chain_set_mode(&chain, TAP_HOLD);
	close_epoch(1);
	struct nbd_handle *nbd = connect_nbd();
	for (unsigned epoch = 2; epoch < 5; epoch++) {
		memset(block, (int)epoch, sizeof(block));
		for (unsigned i = 0; i < WRITES; i++)
			assert_int_equal(nbd_pwrite(nbd, block, sizeof(block), i * 8192, 0), 0);
		close_epoch(epoch);
		gate.left = gate.passed = 0;
		for (unsigned lapses = 0; lapses <= WRITES; lapses++) {
			read_file(image, ours);
			for (unsigned i = 0; i < WRITES; i++)
				assert_int_equal(ours[i * 8192], i < gate.passed ? epoch
								 : epoch == 2	 ? 0
										 : epoch - 1);
			int ret = tap_chain_release(&chain, epoch, &err);
			assert_int_equal(ret, lapses == WRITES ? 0 : -EAGAIN);
			gate.left = 1;
		}
		assert_int_equal(gate.passed, WRITES);
	}
	// Alone, by a grant: no lease is needed.
	gate.left = 0;
	memset(block, 99, sizeof(block));
	assert_int_equal(nbd_pwrite(nbd, block, sizeof(block), 0, 0), 0);
	tap_chain_set_mode(&chain, TAP_PASS);
	read_file(image, ours);
	assert_int_equal(ours[0], 99);
	nbd_close(nbd);
}

static void checkpoint(uint64_t *epoch)
{
	close_epoch(++*epoch);
	assert_int_equal(tap_chain_release(&chain, *epoch, &err), 0);
}

// As many checkpoints as it takes: the log may be full of what the others wrote, and then a write
// is answered when it has been released, which nobody else here does.
static void write_through_checkpoints(struct nbd_handle *nbd, const uint8_t *buf, size_t len,
				      uint64_t offset, uint64_t *epoch)
{
	int64_t cookie = nbd_aio_pwrite(nbd, buf, len, offset, NBD_NULL_COMPLETION, 0);
	assert_true(cookie >= 0);
	uint64_t end = now_ms() + DEADLINE_MS;
	int done;
	while ((done = nbd_aio_command_completed(nbd, (uint64_t)cookie)) == 0) {
		assert_true(now_ms() < end);
		checkpoint(epoch);
		assert_true(nbd_poll(nbd, 0) >= 0);
	}
	assert_int_equal(done, 1);
}

// Readers and writers while epochs close and are released, in a log that is full again and again:
// every byte read is one that was written, none older than what was answered.
static void test_shared_race(void **state)
{
	(void)state;
	make_image(image, BYTES);
	open_tap(true, 512u << 10);
	tap_chain_set_mode(&chain, TAP_HOLD);
	close_epoch(1);
	struct writer *w = writers_new(5, BYTES / 2);
	atomic_bool stop = false;
	writers_start(w, 0, &stop);
	struct nbd_handle *nbd = connect_nbd();
	uint64_t epoch = 1, end = now_ms() + 1000;
	uint8_t block[8192], back[8192];
	for (unsigned i = 0; now_ms() < end; i++) {
		memset(block, (int)i, sizeof(block));
		write_through_checkpoints(nbd, block, sizeof(block), BYTES - 65536, &epoch);
		assert_int_equal(nbd_aio_pread(nbd, back, sizeof(back), BYTES - 65536,
					       NBD_NULL_COMPLETION, 0) >= 0,
				 1);
		checkpoint(&epoch);
		while (nbd_aio_in_flight(nbd) > 0)
			assert_true(nbd_poll(nbd, DEADLINE_MS) > 0);
		assert_memory_equal(back, block, sizeof(block));
		if (i % 16 == 15) {
			tap_chain_set_mode(&chain, TAP_PASS);
			tap_chain_set_mode(&chain, TAP_HOLD);
			close_epoch(++epoch);
		}
	}
	atomic_store(&stop, true);
	tap_chain_set_mode(&chain, TAP_PASS); // or who waits for room is never done
	writers_join(w);
	assert_true(epoch > 20);
	assert_int_equal(nbd_pread(nbd, theirs, BYTES, 0, 0), 0);
	read_file(image, ours);
	assert_memory_equal(ours, theirs, BYTES);
	nbd_close(nbd);
	writers_free(w);
}

// ---- bounds ----

struct filler {
	pthread_t thread;
	struct nbd_handle *nbd;
	unsigned n;
	atomic_uint done;
	int ret;
};

// n writes of 256 KiB.
static void *filler_main(void *arg)
{
	struct filler *f = arg;
	static uint8_t block[256u << 10];
	for (unsigned i = 0; i < f->n && f->ret == 0; i++) {
		f->ret = nbd_pwrite(f->nbd, block, sizeof(block), (i % 16) * sizeof(block), 0);
		atomic_fetch_add(&f->done, 1);
	}
	return NULL;
}

static void wait_waiting(unsigned n)
{
	struct disk_tap_info info;
	for (uint64_t end = now_ms() + DEADLINE_MS;; tick()) {
		disk_tap_info(tap, &info);
		if (info.writers_waiting == n)
			return;
		if (now_ms() > end)
			fail_msg("%u writers wait, not %u", info.writers_waiting, n);
	}
}

static void wait_done(struct filler *f, unsigned n)
{
	for (uint64_t end = now_ms() + DEADLINE_MS; f->done != n; tick())
		if (now_ms() > end)
			fail_msg("%u writes are done, not %u", f->done, n);
}

static void test_bounds(void **state)
{
	(void)state;
	struct disk_tap_info info;
	bool shared = *(bool *)*state;
	make_image(image, BYTES);
	open_tap(shared, 4u << 20);
	tap_chain_set_mode(&chain, TAP_HOLD);
	close_epoch(1);
	struct filler f = {.nbd = connect_nbd(), .n = 64};
	assert_int_equal(pthread_create(&f.thread, NULL, filler_main, &f), 0);
	wait_waiting(1);
	assert_int_equal(pressures, 1);
	wait_done(&f, 8); // half of 4 MiB
	// Released: as many again.
	close_epoch(2);
	assert_int_equal(tap_chain_release(&chain, 2, &err), 0);
	wait_done(&f, 16);
	wait_waiting(1);
	assert_int_equal(pressures, 2);
	// A checkpoint fires: the rest is answered, in memory and beyond it in the file.
	disk_tap_firing(tap, true);
	pthread_join(f.thread, NULL);
	assert_int_equal(f.ret, 0);
	disk_tap_info(tap, &info);
	assert_true(info.spilled_bytes >= 8u << 20);
	close_epoch(3);
	disk_tap_firing(tap, false);
	unsigned seed = 1;
	assert_true(ship(NULL, 3, &seed) > 48 * (256u << 10));
	assert_int_equal(nbd_pread(f.nbd, scratch, sizeof(scratch), 0, 0), 0);
	assert_int_equal(tap_chain_release(&chain, 3, &err), 0);
	disk_tap_info(tap, &info);
	assert_int_equal(info.spilled_bytes, 0);
	assert_int_equal(info.log_bytes, 0);
	// A tap that ends answers those who wait.
	f.done = 0;
	assert_int_equal(pthread_create(&f.thread, NULL, filler_main, &f), 0);
	wait_waiting(1);
	disk_tap_info(tap, &info);
	assert_int_equal(info.writers_waiting, 1);
	tap_chain_free(&chain);
	pthread_join(f.thread, NULL);
	assert_int_equal(f.ret, -1);
	nbd_close(f.nbd);
}

// ---- faults ----

static void test_full_disk(void **state)
{
	(void)state;
	if (mount("tmpfs", dir, "tmpfs", 0, "size=4m") < 0) {
		print_message("needs to mount a tmpfs: %s\n", strerror(errno));
		skip();
	}
	make_image(image, BYTES);
	snprintf(copy, sizeof(copy), "%s-copy.img", dir);
	open_tap(false, DISK_TAP_LOG_BYTES);
	struct store *s = open_store();
	disk_tap_mark_all_behind(tap);
	tap_chain_set_mode(&chain, TAP_TRACK);
	tap_chain_set_mode(&chain, TAP_HOLD);
	close_epoch(1);
	unsigned seed = 3;
	ship(s, 1, &seed);
	struct nbd_handle *nbd = connect_nbd();
	memset(ours, 0xab, 6u << 20);
	assert_int_equal(nbd_pwrite(nbd, ours, 1u << 20, 0, 0), 0);
	assert_int_equal(nbd_pwrite(nbd, ours, 6u << 20, 1u << 20, 0), -1);
	assert_int_equal(nbd_get_errno(), ENOSPC);
	struct disk_tap_info info;
	disk_tap_info(tap, &info);
	assert_int_equal(info.io_errors, 1);
	assert_non_null(strstr(info.last_error, "No space left"));
	// The part that was written is in the epoch all the same.
	assert_true(disk_tap_behind_bytes(tap) > 0);
	close_epoch(2);
	assert_int_equal(disk_tap_behind_bytes(tap), 0);
	ship(s, 2, &seed);
	assert_int_equal(store_commit(s, 1, 2, &err), 0);
	expect_identical("full disk", 2);
	// The tap lives: there is room again.
	assert_int_equal(nbd_trim(nbd, 7u << 20, 0, 0), 0);
	assert_int_equal(nbd_pwrite(nbd, ours, 1u << 20, 7u << 20, LIBNBD_CMD_FLAG_FUA), 0);
	close_epoch(3);
	ship(s, 3, &seed);
	assert_int_equal(store_commit(s, 1, 3, &err), 0);
	expect_identical("room again", 3);
	nbd_close(nbd);
	store_free(s);
	unlink(copy);
	char path[128];
	snprintf(path, sizeof(path), "%s" METADATA_SUFFIX, copy);
	unlink(path);
}

// No room for the log either: the bitmap remembers, and the epoch is whole once there is room.
static void test_no_spill(void **state)
{
	(void)state;
	make_image(image, BYTES);
	open_tap(false, 2u << 20);
	struct store *s = open_store();
	disk_tap_mark_all_behind(tap);
	tap_chain_set_mode(&chain, TAP_TRACK);
	while (sync_some(s, 100))
		;
	tap_chain_set_mode(&chain, TAP_HOLD);
	close_epoch(1);
	disk_tap_firing(tap, true);
	struct nbd_handle *nbd = connect_nbd();
	// Even root creates no file in a folder that is not there.
	char away[96];
	snprintf(away, sizeof(away), "%s-away", dir);
	assert_int_equal(rename(dir, away), 0);
	for (unsigned i = 0; i < 16; i++) {
		memset(scratch, (int)i + 1, 256u << 10);
		assert_int_equal(nbd_pwrite(nbd, scratch, 256u << 10, i * (256u << 10), 0), 0);
	}
	assert_true(disk_tap_behind_bytes(tap) > 0);
	assert_true(tap_chain_close_epoch(&chain, 2, &err) < 0);
	assert_non_null(strstr(err.text, "what the peer lacks"));
	assert_int_equal(rename(away, dir), 0);
	close_epoch(2);
	assert_int_equal(disk_tap_behind_bytes(tap), 0);
	unsigned seed = 8;
	ship(s, 2, &seed);
	assert_int_equal(store_commit(s, 1, 2, &err), 0);
	expect_identical("no spill", 2);
	nbd_close(nbd);
	store_free(s);
}

static void test_fenced(void **state)
{
	(void)state;
	bool shared = *(bool *)*state;
	struct metadata_record record;
	make_image(image, BYTES);
	open_tap(shared, 4u << 20);
	assert_int_equal(disk_tap_set_generation(tap, 5, 6, &err), 0);
	assert_int_equal(metadata_read(image, &record, &err), 0);
	assert_int_equal(record.generation, 5);
	assert_int_equal(record.state, STORE_UP_TO_DATE);
	assert_string_equal(record.uuid, "00112233-4455-6677-8899-aabbccddeeff");
	assert_int_equal(disk_tap_set_protected(tap, true, 7, &err), 0);
	assert_int_equal(disk_tap_set_generation(tap, 8, 0, &err), 0); // does not end it
	assert_int_equal(metadata_read(image, &record, &err), 0);
	assert_int_equal(record.state, STORE_PROTECTED);
	assert_int_equal(record.generation, 8);
	assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -ESTALE);
	assert_non_null(strstr(err.text, "was protected by a standby"));
	assert_int_equal(disk_tap_set_protected(tap, false, 8, &err), 0);
	// Whoever else could start from it now: the lock says that a guest runs from it.
	assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -EBUSY);
	tap_chain_set_mode(&chain, TAP_HOLD);
	close_epoch(1);
	struct filler f = {.nbd = connect_nbd(), .n = 64};
	assert_int_equal(pthread_create(&f.thread, NULL, filler_main, &f), 0);
	wait_waiting(1); // who waits is refused too
	tap_chain_discard(&chain);
	pthread_join(f.thread, NULL);
	assert_int_equal(f.ret, -1);
	expect_held(0);
	assert_int_equal(nbd_pwrite(f.nbd, scratch, 512, 0, 0), -1);
	assert_int_equal(nbd_get_errno(), ESHUTDOWN);
	assert_int_equal(nbd_flush(f.nbd, 0), -1);
	assert_int_equal(tap_chain_release(&chain, 1, &err), -ESHUTDOWN);
	assert_int_equal(tap_chain_close_epoch(&chain, 2, &err), -ESHUTDOWN);
	tap_chain_set_mode(&chain, TAP_PASS); // does not lift it
	assert_int_equal(nbd_zero(f.nbd, 512, 0, 0), -1);
	assert_int_equal(metadata_read(image, &record, &err), 0);
	assert_int_equal(record.state, shared ? STORE_UP_TO_DATE : STORE_OUTDATED);
	if (shared) { // untouched, and free for the other host
		struct metadata other;
		assert_int_equal(metadata_open(image, &other, &err), 0);
		metadata_close(&other);
		struct stat st;
		assert_int_equal(stat(image, &st), 0);
		assert_int_equal(st.st_blocks, 0);
	}
	nbd_close(f.nbd);
	tap_chain_free(&chain);
	if (!shared) {
		assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -ESTALE);
		const struct disk_tap_config config = {.id = "root",
						       .image = image,
						       .socket = sock,
						       .log_bytes_max = 4u << 20,
						       .spill_dir = dir};
		assert_int_equal(disk_tap_open(&config, &tap, &err), -ESTALE);
	}
}

static void test_yield(void **state)
{
	(void)state;
	struct metadata other;
	make_image(image, BYTES);
	open_tap(true, 4u << 20);
	assert_int_equal(disk_tap_set_protected(tap, true, 3, &err), 0);
	assert_int_equal(disk_tap_reclaim(tap, 0, &err), 0); // nothing to do
	assert_int_equal(metadata_open(image, &other, &err), -EBUSY);
	// The other host has it for the moment, but does not become its owner.
	assert_int_equal(disk_tap_yield(tap, &err), 0);
	assert_int_equal(metadata_open(image, &other, &err), 0);
	assert_int_equal(disk_tap_set_generation(tap, 4, 0, &err), -EBUSY);
	assert_int_equal(disk_tap_reclaim(tap, 0, &err), -EBUSY);
	metadata_close(&other);
	assert_int_equal(disk_tap_reclaim(tap, 0, &err), 0);
	assert_int_equal(metadata_open(image, &other, &err), -EBUSY);
	assert_int_equal(disk_tap_set_generation(tap, 4, 0, &err), 0);
	// It takes over, and runs the guest without holding the lock.
	assert_int_equal(disk_tap_yield(tap, &err), 0);
	struct store *s;
	assert_int_equal(store_open("root", image, STORE_SHARED, BYTES, "", &s, &err), 0);
	assert_int_equal(store_commit(s, 4, 9, &err), 0);
	assert_int_equal(store_activate(s, 5, 9, true, &err), 0);
	store_free(s);
	assert_int_equal(disk_tap_reclaim(tap, 0, &err), -EBUSY);
	assert_non_null(strstr(err.text, "generation 5"));
	// However often it is asked.
	assert_int_equal(disk_tap_reclaim(tap, 0, &err), -EBUSY);
	assert_int_equal(disk_tap_reclaim(tap, 6, &err), -EBUSY);
	// It could not run the guest, and says so.
	assert_int_equal(disk_tap_reclaim(tap, 5, &err), 0);
	assert_int_equal(metadata_open(image, &other, &err), -EBUSY);
	assert_int_equal(disk_tap_set_generation(tap, 6, 0, &err), 0);
	assert_int_equal(disk_tap_yield(tap, &err), 0);
	assert_int_equal(disk_tap_reclaim(tap, 5, &err), 0);
	tap_chain_discard(&chain);
	assert_int_equal(disk_tap_reclaim(tap, 0, &err), -ESHUTDOWN);
}

static void test_replay(void **state)
{
	(void)state;
	make_image(image, BYTES);
	open_tap(true, 4u << 20);
	memset(scratch, 9, 4096);
	struct tap_record rec = {
		.kind = TAP_DISK_WRITE, .device = 2, .arg = 512, .len = 4096, .data = scratch};
	assert_int_equal(tap_chain_replay(&chain, &rec, &err), 0);
	rec.arg = BYTES;
	assert_int_equal(tap_chain_replay(&chain, &rec, &err), -EPROTO);
	rec = (struct tap_record){.kind = TAP_DISK_FLUSH, .device = 2};
	assert_int_equal(tap_chain_replay(&chain, &rec, &err), 0);
	read_file(image, ours);
	assert_int_equal(ours[512], 9);
	assert_int_equal(ours[4607], 9);
	assert_int_equal(ours[4608], 0);
}

int main(void)
{
	static bool yes = true, no = false;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_copy_under_writes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_epochs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_shared, setup, teardown),
		cmocka_unit_test_setup_teardown(test_gate, setup, teardown),
		cmocka_unit_test_setup_teardown(test_shared_race, setup, teardown),
		{"test_bounds replicated", test_bounds, setup, teardown, &no},
		{"test_bounds shared", test_bounds, setup, teardown, &yes},
		cmocka_unit_test_setup_teardown(test_full_disk, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_spill, setup, teardown),
		{"test_fenced replicated", test_fenced, setup, teardown, &no},
		{"test_fenced shared", test_fenced, setup, teardown, &yes},
		cmocka_unit_test_setup_teardown(test_yield, setup, teardown),
		cmocka_unit_test_setup_teardown(test_replay, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}

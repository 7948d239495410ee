/* SPDX-License-Identifier: Apache-2.0 */
/* A standby whose primary writes memory and two disks all the time, for tests of snapshots of it.
 * What the n-th write does depends on n alone, and n is in the device state: so what is in the
 * files says which moment they have to be of, and they are compared with that byte for byte, memory
 * and both disks. */
#ifndef TEST_STANDBY_WITH_DISKS_H
#define TEST_STANDBY_WITH_DISKS_H

#include "tests/unit/snapshot_fixture.h"

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include "eventtap/store.h"
#include "eventtap/tap.h"
#include "vmm-glue/snapshot/companions.h"
#include "vmm-glue/snapshot/increment.h"

#define MEMORY	   (4ull << 20)
#define PAGES	   (MEMORY / VMM_PAGE_BYTES)
#define DISKS	   2
#define DISK_BYTES ((3u << 20) + 12345) /* the last page is there in part */
#define WRITE_MAX  (64u << 10)
#define BATCH	   4 /* writes of an epoch */
#define STALL_MS   10000

/* ---- what the n-th write does ---- */

struct content {
	uint8_t ram[MEMORY], disks[DISKS][DISK_BYTES];
};

struct deed {
	uint64_t page; /* is filled with n, or cleared */
	bool clear;
	unsigned disk;
	enum tap_kind kind;
	uint64_t at, len;
};

static inline uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static inline struct deed deed_of(uint64_t n)
{
	uint64_t h = mix(n), g = mix(h + 1);
	struct deed d = {.page = h % PAGES, .clear = h >> 60 == 0, .disk = h >> 32 & 1};
	unsigned dice = h >> 40 & 15;

	d.kind = dice < 12 ? TAP_DISK_WRITE : dice < 14 ? TAP_DISK_ZERO : TAP_DISK_TRIM;
	d.at = g % (DISK_BYTES / 512) * 512;
	d.len = (1 + (g >> 32) % (WRITE_MAX / 512)) * 512;
	/* A corner is written more often than the rest, and the end is reached. */
	if (g >> 60 == 0)
		d.at %= 128u << 10;
	if (d.len > DISK_BYTES - d.at)
		d.len = DISK_BYTES - d.at;
	return d;
}

static inline void fill(uint8_t *to, uint64_t len, uint64_t n)
{
	for (uint64_t at = 0; at < len; at += 512)
		memset(to + at, (uint8_t)(n + (n >> 8) + at / 512),
		       len - at < 512 ? len - at : 512);
}

static inline void fill_page(uint8_t *page, uint64_t n, bool clear)
{
	memset(page, 0, VMM_PAGE_BYTES);
	for (unsigned i = 0; i < 8 && !clear; i++)
		memcpy(page + 512 * (size_t)i, &n, sizeof n);
}

/* *c is what it was after the writes up to `from`. */
static inline void replay(struct content *c, uint64_t from, uint64_t to)
{
	while (from++ < to) {
		struct deed d = deed_of(from);
		uint8_t *at = c->disks[d.disk] + d.at;

		fill_page(c->ram + d.page * VMM_PAGE_BYTES, from, d.clear);
		if (d.kind == TAP_DISK_WRITE)
			fill(at, d.len, from);
		else
			memset(at, 0, d.len);
	}
}

/* ---- the standby ---- */

static struct vmm *vmm;
static struct since *since;
static struct disks_since *disks_since;
static struct store *stores[DISKS];
static char images[DISKS][128];
static const char *const ids[DISKS] = {"root", "data"};
static uint64_t written; /* n */
static int news_fd;
static pthread_t writer;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* whoever has it is the loop */
static atomic_bool stop;

static inline void write_once(void)
{
	static uint8_t data[WRITE_MAX];
	struct deed d = deed_of(++written);
	uint64_t len = htole64(d.len);
	struct tap_record rec = {.kind = d.kind, .arg = d.at, .len = sizeof len};

	fill_page((uint8_t *)vmm_image(vmm) + d.page * VMM_PAGE_BYTES, written, d.clear);
	rec.data = (uint8_t *)&len;
	if (d.kind == TAP_DISK_WRITE) {
		fill(data, d.len, written);
		rec.data = data;
		rec.len = (uint32_t)d.len;
	}
	assert_ok(store_apply(stores[d.disk], &rec, err));
}

static inline void write_epoch(void)
{
	for (unsigned i = 0; i < BATCH; i++)
		write_once();
	for (unsigned i = 0; i < DISKS; i++)
		assert_ok(store_commit(stores[i], 1, written, err));
}

static inline void *write_on(void *ctx)
{
	(void)ctx;
	while (!stop) {
		pthread_mutex_lock(&lock);
		write_epoch();
		pthread_mutex_unlock(&lock);
		poll(NULL, 0, 1);
	}
	return NULL;
}

static inline void open_stores(void)
{
	for (unsigned i = 0; i < DISKS; i++)
		assert_ok(store_open(ids[i], images[i], STORE_REPLICATED, DISK_BYTES, NULL,
				     &stores[i], err));
	write_epoch();
}

static inline void free_stores(void)
{
	for (unsigned i = 0; i < DISKS; i++)
		store_free(stores[i]);
}

static inline void open_world(const char *folder)
{
	news_fd = eventfd(0, EFD_CLOEXEC);
	written = 0;
	for (unsigned i = 0; i < DISKS; i++) {
		snprintf(images[i], sizeof images[i], "%s/%s.img", folder, ids[i]);
		(void)unlink(images[i]);
	}
	assert_ok(pocket_arm(&(struct pocket_config){.name = "g",
						     .uuid = FIXTURE_UUID,
						     .memory_bytes = MEMORY,
						     .program = POCKET_DIRTY},
			     &vmm, err));
	memset(vmm_image(vmm), 0, MEMORY);
	open_stores();
	disks_since = disks_since_new();
	stop = false;
	assert_int_equal(pthread_create(&writer, NULL, write_on, NULL), 0);
}

static inline void stop_writing(void)
{
	if (stop)
		return;
	stop = true;
	pthread_join(writer, NULL);
}

static inline void close_world(void)
{
	stop_writing();
	since_free(since);
	since = NULL;
	disks_since_free(disks_since);
	free_stores();
	vmm_free(vmm);
	close(news_fd);
}

static bool has_small;
static char path[128];

static inline int setup(void **state)
{
	(void)state;
	fixture_folder();
	assert_int_equal(mkdir(fixture_path("world"), 0700), 0);
	has_small = fixture_small("60m");
	assert_int_equal(mkdir(fixture_path("fast"), 0700), 0);
	if (has_small)
		assert_int_equal(mount("none", fixture_path("fast"), "tmpfs", 0, "size=20m"), 0);
	snprintf(path, sizeof path, "%s", fixture_path(has_small ? "small/s" : "s"));
	open_world(fixture_path("world"));
	return 0;
}

static inline int teardown(void **state)
{
	(void)state;
	close_world();
	umount2(fixture_path("fast"), MNT_DETACH);
	fixture_remove();
	return 0;
}

/* ---- snapshots of it ---- */

static inline void on_news(void *ctx)
{
	(void)ctx;
	eventfd_write(news_fd, 1);
}

static inline void wait_news(void)
{
	struct pollfd p = {.fd = news_fd, .events = POLLIN};
	eventfd_t n;

	assert_int_equal(poll(&p, 1, FIXTURE_WAIT_MS), 1);
	eventfd_read(news_fd, &n);
}

static inline struct disks_config disks_config(void)
{
	struct disks_config c = {.path = path,
				 .verify = true,
				 .since = disks_since,
				 .stall_max_ms = STALL_MS,
				 .n = DISKS};

	for (unsigned i = 0; i < DISKS; i++) {
		c.disks[i].id = ids[i];
		c.disks[i].image = images[i];
		c.disks[i].store = stores[i];
	}
	return c;
}

/* The device state: n, and something behind it. */
static inline void state_now(uint8_t state[64])
{
	memset(state, 0x5a, 64);
	memcpy(state, &written, sizeof written);
}

static inline int run(struct increment *inc, struct snapshot_progress *p, struct ft_err *err)
{
	int rc;

	while (increment_wants(inc) != INCREMENT_END) {
		uint8_t state[64];

		wait_news();
		if (increment_wants(inc) != INCREMENT_MOMENT)
			continue;
		pthread_mutex_lock(&lock);
		state_now(state);
		increment_stamp(inc, 1, written, 1000 + written);
		increment_moment(inc, vmm, state, sizeof state);
		pthread_mutex_unlock(&lock);
	}
	pthread_mutex_lock(&lock);
	rc = increment_end(inc, p, err);
	pthread_mutex_unlock(&lock);
	return rc;
}

/* ---- what is in the files ---- */

static inline void assert_ram(const struct source *s, const uint8_t *want)
{
	static uint8_t page[VMM_PAGE_BYTES];

	for (uint64_t pfn = 0; pfn < PAGES; pfn++) {
		memset(page, 0, sizeof page);
		if (source_has(s, pfn))
			assert_int_equal(source_read(s, pfn, 1, page), 0);
		assert_memory_equal(page, want + pfn * VMM_PAGE_BYTES, sizeof page);
	}
}

/* As who restores gets it: through the companions' copy, on a filesystem without a slow fsync. */
static inline void assert_disk(const struct companion *c, const uint8_t *want)
{
	char image[128], line[300];
	uint8_t *got = malloc(DISK_BYTES);
	int fd;

	snprintf(image, sizeof image, "%s", fixture_path("fast/restored.img"));
	assert_ok(companions_put(c, image, COMPANIONS_REFUSE, err));
	fd = open(image, O_RDONLY);
	assert_int_equal(pread(fd, got, DISK_BYTES, 0), DISK_BYTES);
	close(fd);
	assert_memory_equal(got, want, DISK_BYTES);
	free(got);
	snprintf(line, sizeof line, "rm -f %s*", image);
	assert_int_equal(system(line), 0);
}

/* Of the moment that its state says, which is returned. */
static inline uint64_t assert_of_one_moment(const struct source *s)
{
	struct content *want = calloc(1, sizeof *want);
	uint8_t *state = malloc(VMM_STATE_BYTES_MAX);
	struct companions c;
	uint64_t n;
	size_t len;

	assert_ok(source_state(s, "pocket", state, &len, err));
	assert_int_equal(len, 64);
	memcpy(&n, state, sizeof n);
	replay(want, 0, n);
	assert_ram(s, want->ram);
	assert_ok(companions_open(s, &c, err));
	assert_int_equal(c.n, DISKS);
	for (unsigned i = 0; i < DISKS; i++)
		assert_disk(companions_find(&c, ids[i]), want->disks[i]);
	companions_close(&c);
	free(want);
	free(state);
	return n;
}

static inline uint64_t written_now(void)
{
	uint64_t n;

	pthread_mutex_lock(&lock);
	n = written;
	pthread_mutex_unlock(&lock);
	return n;
}

static inline void wait_written(uint64_t n)
{
	uint64_t until = fixture_now_ms() + FIXTURE_WAIT_MS, from = written_now();

	while (written_now() - from < n) {
		assert_true(fixture_now_ms() < until);
		poll(NULL, 0, 1);
	}
}

static inline void write_epochs_up_to(uint64_t n)
{
	pthread_mutex_lock(&lock);
	while (written < n)
		write_epoch();
	pthread_mutex_unlock(&lock);
}

#endif

// SPDX-License-Identifier: Apache-2.0
// The race of those who write pages with those who save them, with nothing else around: threads
// write into memory as fast as they can, each noting nothing; a saver takes every page once, as it
// was at the moment. Savers with the three classic faults planted (released before it was copied;
// released with its neighbours by one who has not claimed it; saved without a claim) show that the
// test would see them.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ft/snapshot/claims.h"
#include "tests/unit/snapshot_fixture.h"
#include "vmm-glue/snapshot/frozen.h"

#define PAGES	     4096u
#define BYTES	     ((size_t)PAGES * VMM_PAGE_BYTES)
#define WRITERS	     2
#define SCANNERS     2
#define NEAR_PAGES   8
#define ROUNDS	     10
#define MUTANT_TRIES 50

enum mutant { RIGHT, RELEASED_FIRST, RELEASED_OTHERS, NOT_CLAIMED };

static struct {
	/* the guest */
	uint8_t *ram;
	int fd;
	pthread_t writers[WRITERS];
	_Atomic unsigned gate; /* 1: writers run; 2: they stand still; 0: they end */
	_Atomic unsigned standing;
	_Atomic uint64_t longest_ns, writes;
	/* the saver */
	enum mutant mutant;
	struct frozen *frozen;
	struct claims claims;
	uint8_t *expected, *saved;
	_Atomic uint32_t times[PAGES];
	_Atomic bool scanned[PAGES / CLAIMS_WORD_PAGES];
} w;

/* A guest's CPU: writes a page after another in an order of its own, and looks at the clock. */
static void *write_pages(void *ctx)
{
	uint64_t seed = (uintptr_t)ctx * 0x9e3779b97f4a7c15u, longest = 0;

	while (w.gate) {
		uint64_t before, took, *page;

		if (w.gate == 2) {
			w.standing++;
			while (w.gate == 2)
				sched_yield();
			w.standing--;
		}
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		page = (uint64_t *)(w.ram + (seed >> 33) % PAGES * VMM_PAGE_BYTES);
		before = fixture_now_ns();
		/* At both ends, for a torn page to show. */
		__atomic_store_n(page, seed, __ATOMIC_RELAXED);
		__atomic_store_n(page + 511, seed, __ATOMIC_RELAXED);
		took = fixture_now_ns() - before;
		longest = took > longest ? took : longest;
		w.writes++;
	}
	if (longest > w.longest_ns)
		w.longest_ns = longest;
	return NULL;
}

/* Word by word, for savers that are wrong do it at the same time. */
static void save(uint64_t pfn, const uint8_t *bytes)
{
	uint64_t *to = (uint64_t *)(w.saved + pfn * VMM_PAGE_BYTES), word;

	for (unsigned i = 0; i < VMM_PAGE_BYTES / sizeof word; i++) {
		memcpy(&word, bytes + i * sizeof word, sizeof word);
		__atomic_store_n(to + i, word, __ATOMIC_RELAXED);
	}
	w.times[pfn]++;
}

static void read_page(uint64_t pfn, size_t n, uint8_t *to)
{
	int rc = frozen_read(w.frozen, pfn, n, to);

	assert_true(rc >= 0);
	if (rc)
		memset(to, 0, n * VMM_PAGE_BYTES);
}

/* Until a scanner has released it, for a writer to come in between. */
static void wait_for_scanner(uint64_t pfn)
{
	const uint64_t *was = (const uint64_t *)(w.expected + pfn * VMM_PAGE_BYTES),
		       *page = (const uint64_t *)(w.ram + pfn * VMM_PAGE_BYTES);
	uint64_t until = fixture_now_ms() + FIXTURE_WAIT_MS;

	while ((!w.scanned[pfn / CLAIMS_WORD_PAGES] ||
		(__atomic_load_n(page, __ATOMIC_RELAXED) == *was &&
		 __atomic_load_n(page + 511, __ATOMIC_RELAXED) == was[511])) &&
	       fixture_now_ms() < until)
		poll(NULL, 0, 1);
}

static void on_fault(void *ctx, uint64_t pfn)
{
	uint64_t first = pfn / CLAIMS_WORD_PAGES * CLAIMS_WORD_PAGES, mine;
	/* Alone, or with its neighbours. */
	unsigned near = w.mutant == RIGHT && pfn % 3 ? NEAR_PAGES : 1;
	uint8_t bytes[VMM_PAGE_BYTES];

	(void)ctx;
	mine = claims_page(&w.claims, pfn, near);
	if (!mine && w.mutant != NOT_CLAIMED)
		return;
	if (w.mutant == RELEASED_FIRST) {
		frozen_release(w.frozen, pfn, 1);
		sched_yield();
	}
	if (w.mutant == RELEASED_OTHERS)
		wait_for_scanner(pfn);
	if (w.mutant == NOT_CLAIMED)
		mine = UINT64_C(1) << pfn % CLAIMS_WORD_PAGES;
	for (unsigned i = 0; claims_run(mine, &i); i++) {
		read_page(first + i, 1, bytes);
		save(first + i, bytes);
	}
	for (unsigned i = 0, n; (n = claims_run(mine, &i)); i += n)
		frozen_release(w.frozen, first + i, n);
}

static void *scan(void *ctx)
{
	uint8_t *bytes = malloc(CLAIMS_WORD_PAGES * VMM_PAGE_BYTES);
	uint64_t word, mine;

	(void)ctx;
	while (claims_next(&w.claims, &word, &mine)) {
		uint64_t pfn = word * CLAIMS_WORD_PAGES;

		if (w.mutant == RELEASED_FIRST)
			frozen_release(w.frozen, pfn, CLAIMS_WORD_PAGES);
		read_page(pfn, CLAIMS_WORD_PAGES, bytes);
		if (w.mutant != RIGHT)
			frozen_release(w.frozen, pfn, CLAIMS_WORD_PAGES);
		for (unsigned i = 0, n; w.mutant == RIGHT && (n = claims_run(mine, &i)); i += n)
			frozen_release(w.frozen, pfn + i, n);
		w.scanned[word] = true;
		if (w.mutant == NOT_CLAIMED)
			mine = UINT64_MAX;
		for (; mine; mine &= mine - 1) {
			unsigned i = (unsigned)__builtin_ctzll(mine);

			save(pfn + i, bytes + (size_t)i * VMM_PAGE_BYTES);
		}
	}
	free(bytes);
	return NULL;
}

/* One snapshot. Returns how many pages are wrong. */
static unsigned round_of(enum mutant mutant)
{
	struct vmm_ram ram = {.pidfd = -1, .address = (uintptr_t)w.ram, .bytes = BYTES, .fd = w.fd};
	pthread_t scanners[SCANNERS];
	struct frozen_stats stats;
	unsigned wrong = 0;

	w.mutant = mutant;
	memset(w.times, 0, sizeof w.times);
	memset(w.scanned, 0, sizeof w.scanned);
	assert_int_equal(claims_init(&w.claims, PAGES), 0);
	assert_ok(frozen_open(&ram, &(struct frozen_ops){.fault = on_fault}, &w.frozen, err));
	w.gate = 2;
	while (w.standing < WRITERS)
		sched_yield();
	assert_int_equal(pread(w.fd, w.expected, BYTES, 0), BYTES);
	assert_ok(frozen_moment(w.frozen, err));
	w.gate = 1;
	for (unsigned i = 0; i < SCANNERS; i++)
		assert_int_equal(pthread_create(&scanners[i], NULL, scan, NULL), 0);
	for (unsigned i = 0; i < SCANNERS; i++)
		pthread_join(scanners[i], NULL);
	frozen_stats(w.frozen, &stats);
	frozen_close(w.frozen);
	claims_free(&w.claims);
	for (uint64_t pfn = 0; pfn < PAGES; pfn++)
		wrong += w.times[pfn] != 1 ||
			 memcmp(w.saved + pfn * VMM_PAGE_BYTES, w.expected + pfn * VMM_PAGE_BYTES,
				VMM_PAGE_BYTES) != 0;
	return wrong;
}

static void each_page_once_and_as_it_was(void **state)
{
	uint64_t writes = w.writes;

	(void)state;
	for (unsigned i = 0; i < ROUNDS; i++)
		assert_int_equal(round_of(RIGHT), 0);
	assert_true(w.writes > writes);
}

static void seen(enum mutant mutant)
{
	unsigned wrong = 0;

	for (unsigned i = 0; i < MUTANT_TRIES && !wrong; i++)
		wrong = round_of(mutant);
	assert_true(wrong > 0);
}

static void planted_faults_are_seen(void **state)
{
	(void)state;
	seen(RELEASED_FIRST);
	seen(RELEASED_OTHERS);
	seen(NOT_CLAIMED);
	assert_int_equal(round_of(RIGHT), 0);
}

static int setup(void **state)
{
	(void)state;
	w.fd = memfd_create("guest", MFD_CLOEXEC);
	w.saved = malloc(BYTES);
	w.expected = malloc(BYTES);
	if (w.fd < 0 || ftruncate(w.fd, BYTES) || !w.saved || !w.expected)
		return 1;
	w.ram = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, w.fd, 0);
	w.gate = 1;
	for (uintptr_t i = 0; i < WRITERS; i++)
		if (pthread_create(&w.writers[i], NULL, write_pages, (void *)(i + 1)))
			return 1;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	w.gate = 0;
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(w.writers[i], NULL);
	print_message("longest time that a write took: %llu us\n",
		      (unsigned long long)w.longest_ns / 1000);
	munmap(w.ram, BYTES);
	close(w.fd);
	free(w.saved);
	free(w.expected);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_page_once_and_as_it_was),
		cmocka_unit_test(planted_faults_are_seen),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

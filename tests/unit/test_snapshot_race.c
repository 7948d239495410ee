// SPDX-License-Identifier: Apache-2.0
// The narrowest place of a snapshot, held open: between the fault thread's claim of a page and its
// copy, the worker who goes over the neighbours comes by, every time. He must let the writers of
// his own pages go, and not the one who waits for this page. What the linker wraps (see
// CMakeLists.txt) is what snapshot.c calls; the fault thread's own releases are frozen.c's.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>
#include <sys/eventfd.h>

#include "ft/snapshot/claims.h"
#include "tests/unit/snapshot_fixture.h"
#include "vmm-glue/snapshot/frozen.h"
#include "vmm-glue/snapshot/snapshot.h"

#define HELD_MIN    20 /* times that the place is to be held open */
#define ROUNDS_MAX  50
#define MEMORY	    (32ull << 20)
#define PAGES	    (MEMORY / VMM_PAGE_BYTES)
#define PAGES_PER_S 20000
#define DONE_MS	    60000

static struct {
	_Atomic uint64_t released[PAGES / CLAIMS_WORD_PAGES]; /* by workers */
	_Atomic unsigned held, late, released_by_other;
} w;

int __real_frozen_release(struct frozen *f, uint64_t pfn, size_t n);
int __wrap_frozen_release(struct frozen *f, uint64_t pfn, size_t n);
int __real_frozen_read(const struct frozen *f, uint64_t pfn, size_t n, uint8_t *to);
int __wrap_frozen_read(const struct frozen *f, uint64_t pfn, size_t n, uint8_t *to);

int __wrap_frozen_release(struct frozen *f, uint64_t pfn, size_t n)
{
	int rc = __real_frozen_release(f, pfn, n);
	uint64_t pages = (n < CLAIMS_WORD_PAGES ? UINT64_C(1) << n : 0) - 1;

	w.released[pfn / CLAIMS_WORD_PAGES] |= pages << (pfn % CLAIMS_WORD_PAGES);
	return rc;
}

/* A worker, who reads whole words, goes on. The fault thread waits until the other 63 pages of its
 * word are released. */
int __wrap_frozen_read(const struct frozen *f, uint64_t pfn, size_t n, uint8_t *to)
{
	_Atomic uint64_t *released = &w.released[pfn / CLAIMS_WORD_PAGES];
	uint64_t page = UINT64_C(1) << (pfn % CLAIMS_WORD_PAGES), until;

	if (n == 1) {
		w.held++;
		until = fixture_now_ms() + DONE_MS / 2;
		while ((*released | page) != UINT64_MAX && fixture_now_ms() < until)
			poll(NULL, 0, 1);
		w.late += (*released | page) != UINT64_MAX;
		w.released_by_other += (*released & page) != 0;
	}
	return __real_frozen_read(f, pfn, n, to);
}

static void on_done(void *ctx)
{
	eventfd_write(*(int *)ctx, 1);
}

static struct vmm *start_guest(void)
{
	struct pocket_config config = {.name = "g",
				       .uuid = FIXTURE_UUID,
				       .memory_bytes = MEMORY,
				       .program = POCKET_DIRTY,
				       .dirty_pages_per_s = PAGES_PER_S};
	struct vmm *vmm;

	assert_ok(pocket_start(&config, &vmm, err));
	fixture_wait_dirtied(vmm, PAGES / 2);
	return vmm;
}

static void who_claimed_a_page_releases_it(void **state)
{
	int done_fd = eventfd(0, EFD_CLOEXEC);
	struct snapshot_config config = {
		.jobs = 2, .verify = true, .bytes_per_s = 100 << 20, .done = on_done};
	struct vmm *vmm;

	(void)state;
	fixture_folder();
	config.path = fixture_path("race.snap");
	config.ctx = &done_fd;
	vmm = start_guest();
	for (unsigned round = 0; round < ROUNDS_MAX && w.held < HELD_MIN; round++) {
		struct pollfd p = {.fd = done_fd, .events = POLLIN};
		struct snapshot_progress progress;
		struct snapshot *s;
		eventfd_t n;

		memset(w.released, 0, sizeof w.released);
		assert_ok(snapshot_begin(&config, vmm, &s, err));
		assert_int_equal(poll(&p, 1, DONE_MS), 1);
		eventfd_read(done_fd, &n);
		/* Its digest is RAM's in the pause, or this fails. */
		assert_ok(snapshot_end(s, &progress, err));
	}
	print_message("%u times a page was claimed by a fault\n", w.held);
	assert_true(w.held >= HELD_MIN);
	assert_int_equal(w.late, 0);
	assert_int_equal(w.released_by_other, 0);
	vmm_free(vmm);
	close(done_fd);
	fixture_remove();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_claimed_a_page_releases_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

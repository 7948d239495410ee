// SPDX-License-Identifier: Apache-2.0
// Huge pages: a fault brings all of one. What ordinary pages do as well is in test_pages.c.
#include <errno.h>
#include <linux/memfd.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fixture/pages_lab.h"
#include "vmm-glue/postcopy/page_huge.h"

static void one_huge_page_at_once(void **state)
{
	struct pages_lab *t = *state;
	struct page_client_stats stats;

	pages_lab_needs_huge();
	pages_lab_begin(t, false);
	for (uint64_t i = 0; i < PAGE_HUGE_PAGES; i++)
		assert_true(pages_lab_word(&t->to, PAGE_HUGE_PAGES + i) ==
			    pages_lab_stamp(PAGE_HUGE_PAGES + i));
	do
		page_client_stats(t->client, &stats);
	while (stats.fault_us.max == 0 && poll(NULL, 0, 1) == 0);
	assert_int_equal(stats.pages.pages_done, PAGE_HUGE_PAGES);
	assert_int_equal(stats.pages.faults, 1);
	assert_int_equal(stats.waiting, 0);
	page_server_background(t->server, true);
	pages_lab_wait_client(t, PAGES_DONE);
	pages_lab_wait_server(t, PAGES_DONE);
	pages_lab_expect_same(t);
}

/* The kernel may have pages of 1 GiB, which are too large to wait for. */
static void gigantic_pages(void **state)
{
	struct pages_lab *t = *state;
	struct vmm_ram ram = t->to.where;
	struct page_client *c;
	struct ft_err err = {0};

	ram.fd = memfd_create("gigantic", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_1GB);
	if (ram.fd < 0) {
		print_message("no huge pages of 1 GiB here: %s\n", strerror(errno));
		skip();
	}
	assert_int_equal(page_client_new(&ram, 1, pages_lab_news, &t->to, &c, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "2 MiB is the most"));
	close(ram.fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		PAGES_LAB_TEST(gigantic_pages),
		PAGES_LAB_TEST_HUGE(one_huge_page_at_once),
		PAGES_LAB_TEST_BOTH(one_huge_page_at_once),
	};

	pages_lab_take_huge();
	return cmocka_run_group_tests(tests, NULL, NULL);
}

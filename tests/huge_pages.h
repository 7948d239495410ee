/* SPDX-License-Identifier: Apache-2.0 */
/* Huge pages of 2 MiB for a test: what the machine lacks is asked of it, and given back at the end.
 * Tests that do so exclude each other (RESOURCE_LOCK huge_pages in CMake). */
#ifndef TESTS_HUGE_PAGES_H
#define TESTS_HUGE_PAGES_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HUGE_FOLDER "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static long huge_pages_before = -1;

static inline long huge_pages_number(const char *name)
{
	char path[128];
	long n = -1;
	FILE *f;

	snprintf(path, sizeof path, HUGE_FOLDER "%s", name);
	f = fopen(path, "re");
	if (!f || fscanf(f, "%ld", &n) != 1)
		n = -1;
	if (f)
		fclose(f);
	return n;
}

static inline void huge_pages_set(long n)
{
	FILE *f = fopen(HUGE_FOLDER "nr_hugepages", "we");

	if (!f)
		return;
	fprintf(f, "%ld", n);
	fclose(f);
}

static inline void huge_pages_give_back(void)
{
	if (huge_pages_before >= 0)
		huge_pages_set(huge_pages_before);
	huge_pages_before = -1;
}

/* False: the machine has not so many, and a line was printed that says so. */
static inline bool huge_pages_take(long n)
{
	long unused = huge_pages_number("free_hugepages") - huge_pages_number("resv_hugepages");

	if (unused < n) {
		huge_pages_before = huge_pages_number("nr_hugepages");
		atexit(huge_pages_give_back);
		huge_pages_set(huge_pages_before + n - unused);
		unused = huge_pages_number("free_hugepages") - huge_pages_number("resv_hugepages");
	}
	if (unused >= n)
		return true;
	printf("skipped: %ld huge pages of 2 MiB are needed, this machine gives %ld\n", n, unused);
	huge_pages_give_back();
	return false;
}

#endif

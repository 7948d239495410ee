// SPDX-License-Identifier: Apache-2.0
// The snapshot file's frame: what is written is read again, byte for byte what QEMU 10 writes for
// the same machine, and every way to damage it is refused by name.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ft/snapshot/claims.h"
#include "ft/snapshot/mapped_ram.h"

#define FILE_MAX (32u << 20)

static uint8_t *file; /* FILE_MAX */
static uint64_t file_bytes;

static int read_file(void *ctx, uint64_t offset, void *to, size_t len)
{
	(void)ctx;
	assert_true(offset + len <= file_bytes);
	memcpy(to, file + offset, len);
	return 0;
}

static int parse(struct mapped_ram *m, struct ft_err *err)
{
	struct mapped_ram_reader r = {.read = read_file, .bytes = file_bytes};

	return mapped_ram_parse(&r, m, err);
}

static void plan(struct mapped_ram *m)
{
	*m = (struct mapped_ram){.machine = "pc-i440fx-7.2",
				 .blocks_n = 2,
				 .blocks = {{.name = "ram0", .bytes = 1u << 20},
					    {.name = "/rom@etc/acpi/tables", .bytes = 65 * 4096}}};
	mapped_ram_plan(m);
}

static const uint8_t qemu_state[] = "QEVM\0\0\0\3\4device sections\0";
#define QEMU_STATE_BYTES (sizeof qemu_state - 1) /* ends with the 00 */

/* A whole file of the plan. */
static void write_file(const struct mapped_ram *m, const char *kind, const uint8_t *state,
		       size_t len)
{
	memset(file, 0, FILE_MAX);
	for (unsigned i = 0; i < m->blocks_n; i++) {
		uint8_t head[MAPPED_RAM_HEAD_MAX];
		uint64_t at;
		size_t n = mapped_ram_head(m, i, &at, head);

		assert_int_equal(at + n, m->blocks[i].bitmap_offset);
		memcpy(file + at, head, n);
	}
	assert_int_equal(m->tail_offset + mapped_ram_tail(file + m->tail_offset), m->state_offset);
	file_bytes =
		m->state_offset + mapped_ram_pack_state(kind, state, len, file + m->state_offset);
	assert_true(file_bytes < FILE_MAX);
}

static void written_is_read(void **state)
{
	struct mapped_ram m, got;
	struct ft_err err = {0};
	uint8_t out[64], packed[sizeof out];
	size_t len;

	(void)state;
	plan(&m);
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	if (parse(&got, &err))
		fail_msg("%s", err.text);
	assert_string_equal(got.machine, m.machine);
	assert_int_equal(got.blocks_n, 2);
	for (unsigned i = 0; i < 2; i++) {
		assert_string_equal(got.blocks[i].name, m.blocks[i].name);
		assert_int_equal(got.blocks[i].bytes, m.blocks[i].bytes);
		assert_int_equal(got.blocks[i].bitmap_offset, m.blocks[i].bitmap_offset);
		assert_int_equal(got.blocks[i].pages_offset, m.blocks[i].pages_offset);
		assert_int_equal(got.blocks[i].pages_offset % MAPPED_RAM_ALIGN_BYTES, 0);
	}
	assert_int_equal(got.tail_offset, m.tail_offset);
	assert_int_equal(got.state_offset, m.state_offset);
	assert_int_equal(got.state_bytes, QEMU_STATE_BYTES - 8);
	memcpy(packed, file + got.state_offset, got.state_bytes);
	assert_int_equal(mapped_ram_unpack_state("qemu", packed, got.state_bytes, out, &len, &err),
			 0);
	assert_int_equal(len, QEMU_STATE_BYTES);
	assert_memory_equal(out, qemu_state, len);
}

/* A machine of another kind has its state in a section of its own, and nobody takes one for the
 * other. */
static void state_of_another_machine(void **state)
{
	static const uint8_t blob[] = "POCKETST\0any bytes\0{";
	struct mapped_ram m, got;
	struct ft_err err = {0};
	uint8_t out[128];
	size_t len;

	(void)state;
	plan(&m);
	write_file(&m, "pocket", blob, sizeof blob);
	assert_int_equal(parse(&got, &err), 0);
	assert_int_equal(mapped_ram_unpack_state("pocket", file + got.state_offset, got.state_bytes,
						 out, &len, &err),
			 0);
	assert_int_equal(len, sizeof blob);
	assert_memory_equal(out, blob, len);
	assert_int_equal(mapped_ram_unpack_state("packet", file + got.state_offset, got.state_bytes,
						 out, &len, &err),
			 -EBADMSG);
	for (size_t cut = 0; cut < 26; cut++)
		assert_int_equal(mapped_ram_unpack_state("pocket", file + got.state_offset, cut,
							 out, &len, &err),
				 -EBADMSG);
}

/* The first bytes of a file that QEMU 10.0.2 wrote for -machine pc-i440fx-7.2 -m 32. */
static void head_is_qemus(void **state)
{
	static const char qemus[] =
		"\x51\x45\x56\x4d\x00\x00\x00\x03\x07\x00\x00\x00\x0d\x70\x63\x2d\x69\x34\x34\x30"
		"\x66\x78\x2d\x37\x2e\x32\x05\x1a\x63\x6f\x6e\x66\x69\x67\x75\x72\x61\x74\x69\x6f"
		"\x6e\x2f\x63\x61\x70\x61\x62\x69\x6c\x69\x74\x69\x65\x73\x00\x00\x00\x01\x00\x00"
		"\x00\x01\x0a\x6d\x61\x70\x70\x65\x64\x2d\x72\x61\x6d\x01\x00\x00\x00\x01\x03\x72"
		"\x61\x6d\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x02\x00\x00\x04\x04\x72"
		"\x61\x6d\x30\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00"
		"\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x8b\x00\x00\x00\x00\x00\x10\x00\x00";
	struct mapped_ram m = {.machine = "pc-i440fx-7.2",
			       .blocks_n = 1,
			       .blocks = {{.name = "ram0", .bytes = 32u << 20}}};
	uint8_t head[MAPPED_RAM_HEAD_MAX];
	uint64_t at;

	(void)state;
	mapped_ram_plan(&m);
	assert_int_equal(mapped_ram_head(&m, 0, &at, head), sizeof qemus - 1);
	assert_memory_equal(head, qemus, sizeof qemus - 1);
}

static void put(uint64_t at, uint64_t value, unsigned width)
{
	for (unsigned i = 0; i < width; i++)
		file[at + i] = (uint8_t)(value >> (8 * (width - 1 - i)));
}

/* Refused, for a reason that has this text. */
static void refused(const char *text)
{
	struct mapped_ram m;
	struct ft_err err = {0};

	assert_int_equal(parse(&m, &err), -EBADMSG);
	if (!strstr(err.text, text))
		fail_msg("'%s' is not about '%s'", err.text, text);
}

static void hostile_files(void **state)
{
	/* Where things are in the plan's file. */
	const uint64_t config_n = 9, sub = 26, capability = 62, section = 73, total = 90, name = 98,
		       used = 103, version = 111, page = 115, bitmap = 123, pages = 131;
	const struct {
		uint64_t at, value;
		unsigned width;
		const char *why;
	} damages[] = {
		{0, 'X', 1, "no QEVM"},
		{4, 4, 4, "version"},
		{8, 6, 1, "no configuration section"},
		{config_n, 0, 4, "machine type"},
		{config_n, 0xffffffff, 4, "machine type"},
		{config_n + 4, 7, 1, "machine type"},
		{sub, 1, 1, "mapped-ram"},
		{sub, 9, 1, "configuration section"},
		{sub + 2, 'x', 1, "subsection"},
		{capability - 4, 0xffff, 4, "number of capabilities"},
		{capability + 1, 'M', 1, "without the capability mapped-ram"},
		{section, 2, 1, "configuration section"},
		{section + 6, 'x', 1, "other than ram"},
		{section + 9, 1, 4, "instance"},
		{section + 13, 3, 4, "version of the section"},
		{total, (1u << 20) | 0x10, 8, "no list of RAM blocks"},
		{total, 4, 8, "no RAM block"},
		{total, (1u << 20) - 4096 + 4, 8, "longer than their sum"},
		{total, UINT64_MAX - 4095 + 4, 8, "RAM block"},
		{name, 0, 1, "name of a RAM block"},
		{name + 1, '\n', 1, "name of a RAM block"},
		{used, 0, 8, "length of a RAM block"},
		{used, 4095, 8, "length of a RAM block"},
		{used, 1ull << 60, 8, "length of a RAM block"},
		{version, 2, 4, "version of a RAM block"},
		{page, 8192, 8, "page size"},
		{bitmap, 0, 8, "place of a bitmap"},
		{bitmap, bitmap, 8, "place of a bitmap"},
		{bitmap, UINT64_MAX, 8, "place of a bitmap"},
		{bitmap, (1u << 20) - 24, 8, "block's pages"},
		{pages, 0, 8, "block's pages"},
		{pages, (1u << 20) + 4096, 8, "block's pages"},
		{pages, UINT64_MAX & ~0xfffffull, 8, "block's pages"},
		{pages, 3u << 20, 8, "it ends before the pages"},
	};
	struct mapped_ram m, got;

	(void)state;
	plan(&m);
	for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
		write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
		put(damages[i].at, damages[i].value, damages[i].width);
		refused(damages[i].why);
	}
	/* The second block, behind the first one's pages. */
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	put(m.blocks[1].bitmap_offset - 16, m.blocks[0].bitmap_offset, 8);
	refused("place of a bitmap");
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	put(m.blocks[1].bitmap_offset - 8, 1u << 20, 8);
	refused("block's pages");
	m.blocks[1] = m.blocks[0];
	mapped_ram_plan(&m);
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	refused("two RAM blocks of one name");

	plan(&m);
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	put(m.tail_offset, 0x11, 8);
	refused("something else than an end");
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	put(m.tail_offset + 8, 0, 1);
	refused("no footer");
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	put(m.tail_offset + 9, 7, 4);
	refused("footer of another section");
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	put(m.tail_offset + 13, 4, 1);
	refused("no end of the section ram");
	/* A QEMU with multifd. */
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	memmove(file + m.tail_offset + 8, file + m.tail_offset, file_bytes - m.tail_offset);
	file_bytes += 8;
	put(m.tail_offset, 0x200, 8);
	assert_int_equal(parse(&got, NULL), 0);
	for (uint64_t at = m.tail_offset; at < m.tail_offset + 70 * 8; at += 8)
		put(at, 0x200, 8);
	file_bytes = m.tail_offset + 70 * 8;
	refused("something else than an end");
}

static void cut_files(void **state)
{
	struct mapped_ram m, got;

	(void)state;
	plan(&m);
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	for (uint64_t whole = file_bytes, n = 1; n < whole; n++) {
		/* Within the pages one place is like any other. */
		if (n > m.blocks[0].pages_offset + 4 && n < m.tail_offset - 4 && n % 4093)
			continue;
		file_bytes = whole - n;
		/* Behind the 00 of the sections only the description is missing, or it seems
		 * so: sections have no lengths. */
		if (file[file_bytes - 1] == 0 && n <= 7)
			assert_int_equal(parse(&got, NULL), 0);
		else
			assert_int_equal(parse(&got, NULL), -EBADMSG);
	}
	file_bytes = 0;
	refused("ends too early");
}

static void state_without_an_end(void **state)
{
	struct mapped_ram m;

	(void)state;
	plan(&m);
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	file[file_bytes - 6] ^= 1; /* length of the description */
	refused("no end");
	write_file(&m, "qemu", qemu_state, QEMU_STATE_BYTES);
	file_bytes = m.state_offset;
	refused("no device state");
	memset(file + m.state_offset, 1, MAPPED_RAM_STATE_MAX + 100);
	file_bytes = m.state_offset + MAPPED_RAM_STATE_MAX + 100;
	refused("no end");
	file[file_bytes - 1] = 0;
	refused("too much device state");
}

static void bits_beyond_the_end(void **state)
{
	struct mapped_ram m;

	(void)state;
	plan(&m);
	assert_int_equal(mapped_ram_words(&m.blocks[0]), 4);
	assert_int_equal(mapped_ram_words(&m.blocks[1]), 2);
	assert_int_equal(mapped_ram_check_word(&m.blocks[0], 3, UINT64_MAX, NULL), 0);
	assert_int_equal(mapped_ram_check_word(&m.blocks[1], 0, UINT64_MAX, NULL), 0);
	assert_int_equal(mapped_ram_check_word(&m.blocks[1], 1, 1, NULL), 0);
	assert_int_equal(mapped_ram_check_word(&m.blocks[1], 1, 3, NULL), -EBADMSG);
}

/* ---- claims ---- */

#define CLAIM_PAGES   (64 * 1000 + 7)
#define CLAIM_THREADS 4

struct claimer {
	struct claims *claims;
	uint8_t *times; /* how often a page was claimed */
	unsigned seed;
	bool scans;
	pthread_t thread;
};

static void took(struct claimer *c, uint64_t pfn)
{
	assert_true(pfn < CLAIM_PAGES);
	__atomic_fetch_add(&c->times[pfn], 1, __ATOMIC_RELAXED);
}

static void take_all(struct claimer *c, uint64_t word, uint64_t mine)
{
	for (; mine; mine &= mine - 1)
		took(c, word * CLAIMS_WORD_PAGES + (unsigned)__builtin_ctzll(mine));
}

/* Scanners, whom faults interrupt, and threads that do nothing but fault. */
static void *claim(void *ctx)
{
	struct claimer *c = ctx;
	uint64_t word = 0, mine = 0;

	while (c->scans ? claims_next(c->claims, &word, &mine) : claims_left(c->claims)) {
		uint64_t pfn = (uint64_t)rand_r(&c->seed) % CLAIM_PAGES;

		take_all(c, pfn / CLAIMS_WORD_PAGES, claims_page(c->claims, pfn, 1u << pfn % 7));
		take_all(c, word, mine);
		mine = 0;
	}
	return NULL;
}

static void each_page_is_claimed_once(void **state)
{
	uint8_t *times = calloc(1, CLAIM_PAGES);
	struct claimer c[CLAIM_THREADS];
	struct claims claims;

	(void)state;
	assert_int_equal(claims_init(&claims, CLAIM_PAGES), 0);
	for (unsigned i = 0; i < CLAIM_THREADS; i++) {
		c[i] = (struct claimer){
			.claims = &claims, .times = times, .seed = i, .scans = i % 2};
		assert_int_equal(pthread_create(&c[i].thread, NULL, claim, &c[i]), 0);
	}
	for (unsigned i = 0; i < CLAIM_THREADS; i++)
		pthread_join(c[i].thread, NULL);
	for (unsigned i = 0; i < CLAIM_PAGES; i++)
		assert_int_equal(times[i], 1);
	claims_free(&claims);
	free(times);
}

/* Runs come in order, are apart, and are the word's pages. */
static void check_runs(uint64_t pages)
{
	uint64_t seen = 0;
	unsigned end = 0;

	for (unsigned i = 0, n; (n = claims_run(pages, &i)); end = i += n) {
		assert_true(i + n <= CLAIMS_WORD_PAGES && (end == 0 || i > end));
		for (unsigned k = i; k < i + n; k++)
			seen |= UINT64_C(1) << k;
	}
	assert_true(seen == pages);
}

static void runs_are_a_words_pages(void **state)
{
	uint64_t x = 88172645463325252u;

	(void)state;
	check_runs(0);
	check_runs(UINT64_MAX);
	for (unsigned i = 0; i < CLAIMS_WORD_PAGES; i++) {
		check_runs(UINT64_C(1) << i);
		check_runs(~(UINT64_C(1) << i));
		check_runs(UINT64_MAX << i);
	}
	for (unsigned i = 0; i < 10000; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		check_runs(i % 2 ? x : x & x >> 32);
	}
}

static int setup(void **state)
{
	(void)state;
	file = malloc(FILE_MAX);
	return !file;
}

static int teardown(void **state)
{
	(void)state;
	free(file);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(written_is_read),
		cmocka_unit_test(state_of_another_machine),
		cmocka_unit_test(head_is_qemus),
		cmocka_unit_test(hostile_files),
		cmocka_unit_test(cut_files),
		cmocka_unit_test(state_without_an_end),
		cmocka_unit_test(bits_beyond_the_end),
		cmocka_unit_test(each_page_is_claimed_once),
		cmocka_unit_test(runs_are_a_words_pages),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

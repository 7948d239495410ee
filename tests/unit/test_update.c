// SPDX-License-Identifier: Apache-2.0
// A snapshot of one megabyte and the changes that make another of it, with whatever a crash may
// leave of the two: every beginning of the journal, every mixture of the file.
#include "tests/unit/snapshot_fixture.h"

#include <endian.h>
#include <errno.h>

#include "ft/page.h"
#include "ft/file_io.h"
#include "vmm-glue/snapshot/frame.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/snapshot/update.h"

#define PAGES	 256
#define BYTES	 (PAGES * (uint64_t)VMM_PAGE_BYTES)
#define ID	 77
#define MIXTURES 200
#define STRIDE	 4099 /* between lengths that are tried where nothing special is */

struct world {
	uint8_t ram[BYTES], state[5000];
	size_t state_len;
};

static struct world old, new;
static uint8_t *image_old, *image_new; /* the files, as they are to be */
static size_t len_old, len_new;
static struct changes_head frame;
static char path[128], journal[CHANGES_PATH_MAX];

static void fill(struct world *w, const struct world *from, unsigned state_len)
{
	for (unsigned i = 0; i < PAGES; i++) {
		uint8_t *page = w->ram + (size_t)i * VMM_PAGE_BYTES;

		if (from && random() % 2)
			memcpy(page, from->ram + (size_t)i * VMM_PAGE_BYTES, VMM_PAGE_BYTES);
		else if (random() % 3 == 0)
			memset(page, 0, VMM_PAGE_BYTES);
		else
			for (unsigned k = 0; k < VMM_PAGE_BYTES; k++)
				page[k] = (uint8_t)random();
	}
	w->state_len = state_len;
	for (unsigned k = 0; k < state_len; k++)
		w->state[k] = (uint8_t)random();
}

static size_t pack(const struct world *w, uint8_t *out)
{
	return mapped_ram_pack_state("pocket", w->state, w->state_len, out);
}

static uint8_t *slurp(const char *file, size_t *len)
{
	int fd = open(file, O_RDONLY);
	struct stat st;
	uint8_t *all;

	assert_true(fd >= 0 && !fstat(fd, &st));
	*len = (size_t)st.st_size;
	all = malloc(*len + 1);
	assert_int_equal(file_read(fd, all, *len, 0), 0);
	close(fd);
	return all;
}

static void spit(const char *file, const uint8_t *all, size_t len)
{
	int fd = open(file, O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(file_write(fd, all, len, 0), 0);
	close(fd);
}

static void write_snapshot(const struct world *w)
{
	struct mapped_ram m = {.machine = "pocket", .blocks_n = 1};
	static uint8_t packed[sizeof w->state + MAPPED_RAM_TAIL_MAX];
	_Atomic uint64_t bitmap[PAGES / 64] = {0};
	struct out_file file;

	strcpy(m.blocks[0].name, "ram");
	m.blocks[0].bytes = BYTES;
	mapped_ram_plan(&m);
	assert_ok(out_file_open(&file, path, m.state_offset, false, err));
	for (unsigned i = 0; i < PAGES; i++) {
		const uint8_t *page = w->ram + (size_t)i * VMM_PAGE_BYTES;

		if (page_is_zero(page))
			continue;
		bitmap[i / 64] |= UINT64_C(1) << (i % 64);
		assert_int_equal(out_file_write(&file, page, VMM_PAGE_BYTES,
						m.blocks[0].pages_offset + i * VMM_PAGE_BYTES,
						false),
				 0);
	}
	assert_ok(frame_write(&file, &m, bitmap, packed, pack(w, packed), err));
	assert_ok(out_file_commit(&file, err));
	frame = (struct changes_head){.id = ID,
				      .ram_bytes = BYTES,
				      .bitmap_offset = m.blocks[0].bitmap_offset,
				      .pages_offset = m.blocks[0].pages_offset,
				      .state_offset = m.state_offset};
}

/* All pages that differ, some of them put twice, and with other content first. */
static void write_journal(void)
{
	static uint8_t packed[sizeof new.state + MAPPED_RAM_TAIL_MAX], page[VMM_PAGE_BYTES];
	struct changes_out c;

	assert_ok(changes_create(&c, journal, &frame, err));
	for (unsigned i = 0; i < PAGES; i++) {
		const uint8_t *want = new.ram + (size_t)i *VMM_PAGE_BYTES;

		if (!memcmp(want, old.ram + (size_t)i * VMM_PAGE_BYTES, VMM_PAGE_BYTES))
			continue;
		memset(page, random() % 2 ? 7 : 0, sizeof page);
		if (random() % 2)
			assert_int_equal(changes_put(&c, i, 1, page), 0);
		assert_int_equal(changes_put(&c, i, 1, want), 0);
		assert_true(changes_has(&c, i));
		assert_int_equal(changes_get(&c, i, page), !page_is_zero(want));
	}
	assert_ok(changes_seal(&c, packed, pack(&new, packed), err));
	changes_close(&c, true);
}

static int setup(void **state)
{
	static const unsigned lens[] = {1200, 5000};

	(void)state;
	fixture_folder();
	srandom(3);
	fixture_small("20m");
	snprintf(path, sizeof path, "%s", fixture_path("small/s"));
	assert_true(update_journal_path(path, journal));
	fill(&old, NULL, lens[random() % 2]);
	fill(&new, &old, lens[random() % 2] / 2);
	write_snapshot(&new);
	image_new = slurp(path, &len_new);
	write_snapshot(&old);
	image_old = slurp(path, &len_old);
	write_journal();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	free(image_old);
	free(image_new);
	fixture_remove();
	return 0;
}

static void mark(uint32_t id)
{
	uint8_t opening[CHANGES_MARK_BYTES];
	int fd = open(path, O_RDWR);

	changes_mark(id, opening);
	assert_int_equal(file_write(fd, opening, sizeof opening, 0), 0);
	close(fd);
}

static void assert_world(const struct world *w)
{
	static uint8_t bytes[VMM_STATE_BYTES_MAX], page[VMM_PAGE_BYTES];
	struct source s;
	size_t len;

	assert_ok(source_open(path, &s, err));
	for (unsigned i = 0; i < PAGES; i++) {
		memset(page, 0, sizeof page);
		if (source_has(&s, i))
			assert_int_equal(source_read(&s, i, 1, page), 0);
		assert_memory_equal(page, w->ram + (size_t)i * VMM_PAGE_BYTES, sizeof page);
	}
	assert_ok(source_state(&s, "pocket", bytes, &len, err));
	assert_int_equal(len, w->state_len);
	assert_memory_equal(bytes, w->state, len);
	source_close(&s);
}

static void assert_file(const uint8_t *image, size_t len)
{
	size_t got_len;
	uint8_t *got = slurp(path, &got_len);

	assert_int_equal(got_len, len);
	assert_memory_equal(got, image, len);
	free(got);
}

static void applied(void **state)
{
	struct changes c;
	int fd;

	(void)state;
	assert_world(&old);
	fd = update_open(path, NULL);
	assert_true(fd >= 0);
	assert_ok(changes_open(journal, &c, err));
	assert_ok(changes_verify(&c, err));
	assert_ok(update_apply(fd, path, &c, NULL, err));
	assert_file(image_new, len_new);
	/* Once more changes nothing. */
	assert_ok(update_apply(fd, path, &c, NULL, err));
	assert_file(image_new, len_new);
	changes_end(&c);
	close(fd);
	assert_world(&new);
	/* The next whole snapshot of this name has no journal beside it. */
	assert_int_equal(access(journal, F_OK), 0);
	update_forget(path);
	assert_int_equal(access(journal, F_OK), -1);
}

/* A marked file whose journal is cut off anywhere, or damaged anywhere, is refused and not touched;
 * one without the mark is the old snapshot, whatever lies beside it. */
static void every_prefix(void **state)
{
	size_t len, marked_len;
	uint8_t *all = slurp(journal, &len), *marked;
	struct ft_err error;
	struct source s;

	(void)state;
	mark(ID);
	marked = slurp(path, &marked_len);
	for (size_t n = 0; n < len; n += n < CHANGES_HEAD_BYTES || n + 300 > len ? 1 : STRIDE) {
		spit(journal, all, n);
		memset(&error, 0, sizeof error);
		assert_int_equal(source_open(path, &s, &error), -EBADMSG);
		assert_non_null(strstr(error.text, "an update of it was interrupted"));
		if (n >= CHANGES_HEAD_BYTES && n < CHANGES_PAGES_AT)
			continue; /* nothing is there */
		all[n] ^= 0x10;
		spit(journal, all, len);
		assert_int_equal(source_open(path, &s, &error), -EBADMSG);
		all[n] ^= 0x10;
	}
	assert_file(marked, marked_len);
	unlink(journal);
	assert_int_equal(source_open(path, &s, &error), -ENOENT);
	spit(journal, all, len);
	mark(ID + 1);
	assert_int_equal(source_open(path, &s, &error), -EBADMSG);
	assert_non_null(strstr(error.text, "of another one"));
	spit(path, image_old, len_old);
	for (size_t n = 0; n < len; n += 10 * STRIDE) {
		spit(journal, all, n);
		assert_world(&old);
	}
	spit(journal, all, len);
	spit(path, marked, marked_len);
	assert_world(&new);
	assert_file(image_new, len_new);
	assert_int_equal(access(journal, F_OK), -1);
	free(all);
	free(marked);
}

/* Any page, any part of the bitmap and of the state may have reached the disk or not, or in part.
 */
static void every_mixture(void **state)
{
	size_t len, longer = len_old > len_new ? len_old : len_new, n;
	uint8_t *all = slurp(journal, &len), *mixed = malloc(longer);
	uint64_t bitmap_end = frame.bitmap_offset + PAGES / 8;

	(void)state;
	for (unsigned round = 0; round < MIXTURES; round++) {
		n = random() % 2 ? len_old : len_new;
		for (size_t at = 0, piece; at < n; at += piece) {
			const uint8_t *from = random() % 2 ? image_old : image_new;
			size_t has = from == image_old ? len_old : len_new;

			piece = 1 + (size_t)random() % (at < bitmap_end ? 8 : VMM_PAGE_BYTES);
			piece = at + piece > n ? n - at : piece;
			for (size_t i = at; i < at + piece; i++)
				mixed[i] = i < has ? from[i] : (uint8_t)random();
		}
		memcpy(mixed, image_old, frame.bitmap_offset);
		spit(path, mixed, n);
		spit(journal, all, len);
		mark(ID);
		assert_world(&new);
		assert_file(image_new, len_new);
	}
	free(all);
	free(mixed);
}

/* Heads that say what cannot be. */
static void hostile(void **state)
{
	struct changes_head bad[12];
	uint8_t packed[CHANGES_HEAD_BYTES];
	struct ft_err error;
	struct changes_head got;

	(void)state;
	frame.pages_n = 3;
	frame.zeroes_n = 2;
	frame.state_bytes = 100;
	for (unsigned i = 0; i < 12; i++)
		bad[i] = frame;
	bad[1].ram_bytes = 0;
	bad[2].ram_bytes += 1;
	bad[3].ram_bytes = MAPPED_RAM_BYTES_MAX * 2;
	bad[4].bitmap_offset = UINT64_MAX;
	bad[5].pages_offset += 4096;
	bad[6].pages_offset = 0;
	bad[7].state_offset = 0;
	bad[8].state_offset = UINT64_MAX;
	bad[9].pages_n = PAGES + 1;
	bad[10].zeroes_n = UINT64_MAX;
	bad[11].state_bytes = 0;
	for (unsigned i = 0; i < 12; i++) {
		changes_head_pack(&bad[i], packed);
		assert_int_equal(changes_head_parse(packed, changes_bytes(&bad[i]), &got, &error),
				 i ? -EBADMSG : 0);
	}
	changes_head_pack(&frame, packed);
	assert_int_equal(changes_head_parse(packed, changes_bytes(&frame) - 1, &got, &error),
			 -EBADMSG);
}

/* A disk's has no offsets and no state, or it is none. */
static void hostile_disk(void **state)
{
	struct changes_head disk = {.id = 7, .ram_bytes = PAGES * 4096ull, .pages_n = 3}, got;
	struct changes_head bad[4] = {disk, disk, disk, disk};
	uint8_t packed[CHANGES_HEAD_BYTES];
	struct ft_err error;

	(void)state;
	bad[1].state_bytes = 1;
	bad[2].bitmap_offset = 4096;
	bad[3].state_offset = disk.ram_bytes;
	for (unsigned i = 0; i < 4; i++) {
		changes_head_pack(&bad[i], packed);
		assert_int_equal(changes_head_parse(packed, changes_bytes(&bad[i]), &got, &error),
				 i ? -EBADMSG : 0);
	}
}

static void hostile_index(void **state)
{
	static const struct {
		uint64_t a, b, zero;
		int rc;
	} cases[] = {{1, 2, 3, 0},
		     {1, 1, 3, -EBADMSG},
		     {1, 2, 2, -EBADMSG},
		     {1, PAGES, 3, -EBADMSG},
		     {1, 2, UINT64_MAX, -EBADMSG}};

	(void)state;
	for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
		uint64_t seen[PAGES / 64] = {0},
				      index[6] = {htole64(cases[i].a),	  0, htole64(cases[i].b), 0,
						  htole64(cases[i].zero), 0};
		struct changes_head h = frame;
		struct ft_err error;

		h.pages_n = 2;
		h.zeroes_n = 1;
		h.state_bytes = 8;
		h.sum = XXH3_64bits(index, sizeof index);
		assert_int_equal(changes_check(&h, (uint8_t *)index, seen, &error), cases[i].rc);
		h.sum++;
		assert_int_equal(changes_check(&h, (uint8_t *)index, seen, &error), -EBADMSG);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(applied, setup, teardown),
		cmocka_unit_test_setup_teardown(every_prefix, setup, teardown),
		cmocka_unit_test_setup_teardown(every_mixture, setup, teardown),
		cmocka_unit_test_setup_teardown(hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(hostile_disk, setup, teardown),
		cmocka_unit_test_setup_teardown(hostile_index, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: Apache-2.0
/* A snapshot's file that is brought up to date in place (vmm-glue/snapshot/update.h), by a host
 * that may die at any call, with its power or without, while it writes and while it completes what
 * it had begun. What is restored afterwards is the old snapshot or the new one, and the new one if
 * the update had ended. Worlds of their own, whose chance is the seed's. */
#include "tests/sim/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/sim/files.h"
#include "vmm-glue/snapshot/frame.h"
#include "vmm-glue/snapshot/update.h"

#define PATH	    "/sim/A/s"
#define UPDATES_MAX 4
#define STEPS_MAX   90 /* that an update takes */
#define DEATHS_MAX  3  /* in a row, of who opens the file */

struct kept {
	struct world *world;
	struct node *node;
	struct memory_guest guest;
	bool has, known; /* the file is there; what was written since is known */
	struct memory is;
	/* A name that nobody has synced may be lost with the power, as long as no update did. */
	bool unsettled, had;
	struct memory was;
};

/* ---- a whole one ---- */

static int write_pages(const struct out_file *file, const struct mapped_ram_block *block,
		       const struct memory *m, _Atomic uint64_t *bitmap)
{
	uint8_t page[MAPPED_RAM_PAGE_BYTES];
	int rc = 0;

	for (unsigned i = 0; i < MEMORY_PAGES && !rc; i++) {
		if (!m->page[i])
			continue;
		memory_page(m->page[i], page);
		*bitmap |= UINT64_C(1) << i;
		rc = out_file_write(file, page, sizeof page,
				    block->pages_offset + i * MAPPED_RAM_PAGE_BYTES, false);
	}
	return rc;
}

static int take_whole(struct kept *k, struct memory *then, struct ft_err *err)
{
	uint8_t tail[MAPPED_RAM_TAIL_MAX + 64];
	_Atomic uint64_t bitmap = 0;
	static struct mapped_ram m;
	static struct out_file file;
	bool none[MEMORY_PAGES] = {0};
	int rc;

	memory_layout(&m);
	memory_scan(&k->guest, false, none);
	*then = k->guest.now;
	rc = out_file_open(&file, PATH, m.state_offset, false, err);
	if (rc)
		return rc;
	rc = write_pages(&file, &m.blocks[0], then, &bitmap);
	if (rc)
		ft_err_set(err, -rc, "write");
	memory_run(&k->guest);
	if (!rc)
		rc = frame_write(&file, &m, &bitmap, tail, memory_tail(then, tail), err);
	if (!rc)
		rc = out_file_commit(&file, err);
	else
		out_file_discard(&file);
	if (!rc)
		update_forget(PATH);
	return rc;
}

/* ---- an update ---- */

static int create_journal(struct kept *k, const struct source *s, struct changes_out *journal,
			  struct ft_err *err)
{
	struct changes_head head = {.id = memory_id(k->world),
				    .ram_bytes = s->ram->bytes,
				    .bitmap_offset = s->ram->bitmap_offset,
				    .pages_offset = s->ram->pages_offset,
				    .state_offset = s->layout.state_offset};

	return changes_create(journal, PATH UPDATE_SUFFIX, &head, err);
}

static int apply(int fd, struct ft_err *err)
{
	static struct changes changes;
	int rc = changes_open(PATH UPDATE_SUFFIX, &changes, err);

	if (rc)
		return rc;
	rc = update_apply(fd, PATH, &changes, NULL, err);
	changes_end(&changes);
	return rc;
}

static int update(struct kept *k, struct memory *then, struct ft_err *err)
{
	static struct changes_out journal;
	static struct source source;
	int fd = update_open(PATH, err), rc;

	if (fd < 0)
		return fd;
	rc = source_open_fd(fd, PATH, &source, err);
	if (!rc) {
		rc = create_journal(k, &source, &journal, err);
		if (!rc) {
			rc = memory_save(&k->guest, k->known, &source, &journal, then, err);
			if (!rc)
				rc = apply(fd, err);
			changes_close(&journal, update_is_begun(fd));
		}
		source_close(&source);
	}
	close(fd);
	return rc;
}

/* ---- what is there ---- */

/* As a restore does it, which may have to complete an update, and may die of that too. */
static int open_for_restore(struct kept *k, struct source *s, struct ft_err *err)
{
	for (unsigned i = 0;; i++) {
		int rc;

		memory_may_die(k->node, i < DEATHS_MAX ? 40 : 0, STEPS_MAX / 2);
		rc = source_open(PATH, s, err);
		if (!k->node->dying) {
			k->node->crash_in = 0;
			return rc;
		}
		if (!rc)
			source_close(s);
		(void)memory_died(k->node);
	}
}

/* then: what it may be too; whole: in a file of its own. */
static void check(struct kept *k, const struct memory *then, bool whole)
{
	static struct source s;
	struct ft_err err = {0};
	int rc = open_for_restore(k, &s, &err);

	if (rc && err.code == ENOENT && (!k->has || (k->unsettled && !k->had))) {
		k->has = k->unsettled = false;
		return;
	}
	if (rc) {
		world_violation(k->world, "the file cannot be opened: %s", err.text);
		return;
	}
	if (then && memory_is(then, &s)) {
		if (!k->unsettled) {
			k->was = k->is;
			k->had = k->has;
		}
		k->unsettled = k->unsettled || whole;
		k->is = *then;
		k->has = true;
	} else if (k->unsettled && k->had && memory_is(&k->was, &s)) {
		k->is = k->was;
	} else if (!k->has || !memory_is(&k->is, &s)) {
		world_violation(k->world, "snapshot: the file is neither the old one nor the new");
	}
	source_close(&s);
}

static void save(struct kept *k,
		 int (*how)(struct kept *k, struct memory *then, struct ft_err *err))
{
	struct ft_err err = {0};
	struct memory then;
	bool died;
	int rc;

	memory_may_die(k->node, 60, STEPS_MAX);
	rc = how(k, &then, &err);
	died = memory_died(k->node);
	if (rc && !died)
		world_violation(k->world, "nothing is wrong, and it fails: %s", err.text);
	/* What was written since is known to a process, for the file that it saved last. */
	k->known = !died && !rc;
	if (!rc) {
		k->is = then;
		k->has = true;
		k->unsettled = false;
		if (world_chance(k->world, 30))
			files_power_lost(k->node);
	}
	check(k, rc ? &then : NULL, how == take_whole);
}

void increments_run(struct world *w, struct node *n)
{
	struct kept k = {.world = w, .node = n, .guest.world = w};

	memory_run(&k.guest);
	for (uint64_t i = world_range(w, 1, UPDATES_MAX); i && !w->violated; i--) {
		save(&k, k.has && world_chance(w, 85) ? update : take_whole);
		memory_run(&k.guest);
	}
}

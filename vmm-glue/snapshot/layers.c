// SPDX-License-Identifier: Apache-2.0
// For each page: where its newest content is.
#include "vmm-glue/snapshot/layers.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct place {
	uint32_t layer; /* counted from 1; 0: the file itself */
	uint32_t slot;
};

struct layers {
	unsigned n;
	struct changes *all;
	struct place *places;
};

static bool is_of(const struct source *s, const struct changes_head *h)
{
	return h->ram_bytes == s->ram->bytes && h->bitmap_offset == s->ram->bitmap_offset &&
	       h->pages_offset == s->ram->pages_offset && h->state_offset == s->layout.state_offset;
}

static struct layers *layers_of(struct source *s)
{
	if (s->layers)
		return s->layers;
	s->layers = calloc(1, sizeof *s->layers);
	if (!s->layers)
		return NULL;
	s->layers->places = calloc(mapped_ram_pages(s->ram), sizeof *s->layers->places);
	return s->layers->places ? s->layers : NULL;
}

static void put_over(struct source *s, const struct changes *c)
{
	struct layers *l = s->layers;
	uint64_t hash;

	for (uint64_t i = 0; i < c->head.pages_n; i++) {
		uint64_t pfn = changes_page(c->index, i, &hash);

		l->places[pfn] = (struct place){l->n, (uint32_t)i};
		s->bitmap[pfn / 64] |= UINT64_C(1) << (pfn % 64);
	}
	for (uint64_t i = 0; i < c->head.zeroes_n; i++) {
		uint64_t pfn = changes_zero(&c->head, c->index, i);

		s->bitmap[pfn / 64] &= ~(UINT64_C(1) << (pfn % 64));
	}
}

static bool fits(size_t state_bytes)
{
	return state_bytes && state_bytes <= MAPPED_RAM_STATE_MAX;
}

static int add(struct source *s, struct changes *c, struct ft_err *err)
{
	struct layers *l = layers_of(s);
	struct changes *all = l ? realloc(l->all, (l->n + 1) * sizeof *all) : NULL;

	if (!all)
		return ft_err_set(err, ENOMEM, "%s: out of memory", c->path);
	l->all = all;
	if (!is_of(s, &c->head) ||
	    (!s->disk_bytes && !fits(mapped_ram_state_len(changes_state(c), c->head.state_bytes))))
		return ft_err_set(err, EBADMSG, "%s: is of another snapshot", c->path);
	l->all[l->n++] = *c;
	put_over(s, c);
	return 0;
}

int layers_add(struct source *s, struct changes *c, struct ft_err *err)
{
	int rc = add(s, c, err);

	if (rc)
		changes_end(c);
	return rc;
}

int layers_read(const struct source *s, uint64_t pfn, size_t n, uint8_t *to)
{
	const struct layers *l = s->layers;
	int rc = 0;

	for (size_t at = 0, run; at < n && !rc; at += run) {
		const struct place *p = &l->places[pfn + at];
		uint8_t *page = to + at * MAPPED_RAM_PAGE_BYTES;

		run = 1;
		while (at + run < n && p[run].layer == p->layer &&
		       (!p->layer || p[run].slot == p->slot + run))
			run++;
		if (p->layer)
			rc = changes_read(&l->all[p->layer - 1], p->slot, run, page);
		else
			rc = source_read_file(s, pfn + at, run, page);
	}
	return rc;
}

int layers_copy(struct source *s, const struct source *from, struct ft_err *err)
{
	struct changes c;
	int rc = 0;

	for (unsigned i = 0; from->layers && i < from->layers->n && !rc; i++) {
		rc = changes_open(from->layers->all[i].path, &c, err);
		if (!rc)
			rc = layers_add(s, &c, err);
	}
	return rc;
}

const char *layers_path(const struct source *s, unsigned i)
{
	return s->layers && i < s->layers->n ? s->layers->all[i].path : NULL;
}

static const struct changes *newest(const struct source *s)
{
	return &s->layers->all[s->layers->n - 1];
}

const uint8_t *layers_description(const struct source *s, size_t *len)
{
	return mapped_ram_description(changes_state(newest(s)), newest(s)->head.state_bytes, len);
}

const uint8_t *layers_state(const struct source *s, size_t *len)
{
	*len = mapped_ram_state_len(changes_state(newest(s)), newest(s)->head.state_bytes);
	return changes_state(newest(s));
}

void layers_free(struct layers *l)
{
	if (!l)
		return;
	for (unsigned i = 0; i < l->n; i++)
		changes_end(&l->all[i]);
	free(l->all);
	free(l->places);
	free(l);
}

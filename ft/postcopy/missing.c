// SPDX-License-Identifier: Apache-2.0
#include "ft/postcopy/missing.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

bool ft_missing_next(const struct ft_bitmap *missing, uint64_t *at, uint8_t *body, uint8_t *words,
		     struct ft_msg *msg)
{
	uint64_t left = missing->bits - *at;
	Ft__Missing m = FT__MISSING__INIT;

	if (!left)
		return false;
	m.first = *at;
	/* All of it, as when a guest moves without rounds, needs no bits. */
	m.all = missing->count == missing->bits;
	m.pages = m.all || left < FT_MISSING_PAGES ? left : FT_MISSING_PAGES;
	*at += m.pages;
	m.last = *at == missing->bits;
	*msg = (struct ft_msg){.type = FT_MSG_MISSING, .body = body};
	msg->body_len = (uint32_t)ft__missing__pack(&m, body);
	assert(msg->body_len <= FT_MSG_BODY_SMALL);
	if (m.all)
		return true;
	for (uint64_t i = 0; i < (m.pages + 63) / 64; i++) {
		uint64_t le = htole64(missing->words[m.first / 64 + i]);

		memcpy(words + i * sizeof le, &le, sizeof le);
	}
	msg->payload = words;
	msg->payload_len = (uint32_t)((m.pages + 63) / 64 * 8);
	return true;
}

static int take_words(struct ft_bitmap *b, const Ft__Missing *m, const struct ft_msg *msg)
{
	for (uint64_t i = 0; i < msg->payload_len / 8; i++) {
		uint64_t le, word;

		memcpy(&le, msg->payload + i * sizeof le, sizeof le);
		for (word = le64toh(le); word; word &= word - 1) {
			uint64_t bit = i * 64 + (uint64_t)__builtin_ctzll(word);

			if (bit >= m->pages)
				return -EPROTO;
			ft_bitmap_set(b, m->first + bit);
		}
	}
	return 0;
}

int ft_missing_take(struct ft_bitmap *b, const struct ft_msg *msg, bool *last, struct ft_err *err)
{
	Ft__Missing *m = ft__missing__unpack(NULL, msg->body_len, msg->body);
	int rc = -EPROTO;

	if (!m)
		return ft_err_set(err, EPROTO, "MISSING: body does not parse");
	if (m->first % 64 == 0 && m->first < b->bits && m->pages &&
	    m->pages <= b->bits - m->first) {
		if (m->all)
			ft_bitmap_set_range(b, m->first, m->pages);
		else if (m->pages <= FT_MISSING_PAGES &&
			 msg->payload_len == (m->pages + 63) / 64 * 8)
			rc = take_words(b, m, msg);
		if (m->all)
			rc = 0;
	}
	*last = m->last;
	ft__missing__free_unpacked(m, NULL);
	return rc ? ft_err_set(err, EPROTO,
			       "MISSING: not within the guest's RAM, or of another length")
		  : 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A bitmap of missing pages as MISSING messages. Payload: one bit a page, little endian words of
 * 64, beginning with a page that is a multiple of 64. */
#ifndef FT_POSTCOPY_MISSING_H
#define FT_POSTCOPY_MISSING_H

#include "ft/bitmap.h"
#include "ft/link.h"
#include "ft/msg.h"

#define FT_MISSING_PAGES ((uint64_t)FT_PAYLOAD_MAX * 8) /* of one message: 8 GiB of RAM */

/* Fills *msg (all but generation and epoch) with the part that begins at page *at, which moves on;
 * body has room for FT_MSG_BODY_SMALL and must live as long as *msg, words for FT_PAYLOAD_MAX.
 * False: that was all. */
bool ft_missing_next(const struct ft_bitmap *missing, uint64_t *at, uint8_t *body, uint8_t *words,
		     struct ft_msg *msg);
/* The other side: b |= what it says. *last: that was all. -EPROTO: not within b, or malformed. */
int ft_missing_take(struct ft_bitmap *b, const struct ft_msg *msg, bool *last, struct ft_err *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What follows a guest beside its pages, in messages of its own on the connections for pages, while
 * the guest runs there already: its disks' bitmaps (eventtap/block/bitmaps_follow.h). It is no part
 * of memory: nobody waits for it, and the guest goes on without it. Calls come from the threads
 * that move pages. */
#ifndef FT_POSTCOPY_CARGO_H
#define FT_POSTCOPY_CARGO_H

#include <stdbool.h>

#include "ft/err.h"
#include "ft/link.h"

struct ft_cargo;
struct ft_cargo_ops {
	/* Source: the next message, all but its generation; valid until the next call. False: all
	 * was sent. */
	bool (*next)(struct ft_cargo *c, struct ft_msg *msg);
	/* Source: the target has said how far it has come (lacks()). -EPROTO: it cannot have. */
	int (*go_on)(struct ft_cargo *c, const struct ft_msg *msg, struct ft_err *err);
	/* Target: what next() made. -EPROTO. Input is hostile. */
	int (*take)(struct ft_cargo *c, const struct ft_msg *msg, struct ft_err *err);
	/* Target: a lost link is back. Valid until the next call. */
	void (*lacks)(struct ft_cargo *c, struct ft_msg *msg);
	/* Target: nothing more is to come. */
	bool (*all)(struct ft_cargo *c);
};

struct ft_cargo {
	const struct ft_cargo_ops *ops; /* of one side */
};

#endif

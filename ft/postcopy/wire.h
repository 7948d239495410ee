/* SPDX-License-Identifier: Apache-2.0 */
/* A connection that carries pages, used by a thread of its own: calls block. transport/wire.h makes
 * one of a link. All calls but cut() from one thread at a time. */
#ifndef FT_POSTCOPY_WIRE_H
#define FT_POSTCOPY_WIRE_H

#include <stdbool.h>

#include "ft/err.h"
#include "ft/link.h"

struct ft_wire;
struct ft_wire_ops {
	/* Returns when all of it is with the kernel. -ECANCELED: cut(). */
	int (*send)(struct ft_wire *w, const struct ft_msg *msg, struct ft_err *err);
	/* The next message, verified; its payload is valid until the next call. 1; 0: none now
	 * (without `wait`); -errno: the connection is over. */
	int (*receive)(struct ft_wire *w, struct ft_msg *msg, bool wait, struct ft_err *err);
	/* Readable when receive() may find something. */
	int (*fd)(const struct ft_wire *w);
	/* Any thread: send() and receive() return, now and ever after. */
	void (*cut)(struct ft_wire *w);
	void (*close)(struct ft_wire *w);
};

struct ft_wire {
	const struct ft_wire_ops *ops;
};

#endif

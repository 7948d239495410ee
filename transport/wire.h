/* SPDX-License-Identifier: Apache-2.0 */
/* struct ft_wire over a link's connection: the same frames, the same checks, for a thread that
 * blocks. */
#ifndef TRANSPORT_WIRE_H
#define TRANSPORT_WIRE_H

#include "ft/postcopy/wire.h"

/* The link's connection, with its place in the sequence of frames; the link is freed in any case,
 * as by close(). Both sides do it at the same point of the conversation; nothing of ours may be
 * queued then (-EPROTO), and what has arrived early is not lost. May be called in the link's
 * callbacks. */
int wire_of_link(struct ft_link *link, struct ft_wire **out, struct ft_err *err);

#endif

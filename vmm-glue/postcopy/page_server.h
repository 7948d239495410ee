/* SPDX-License-Identifier: Apache-2.0 */
/* The source's half of postcopy's memory: the RAM of a guest that stopped here and runs elsewhere
 * goes there, what is asked for at once over a connection of its own, the rest in the background
 * over another. Pages stay here until the target says that it has them all, so a connection that
 * breaks costs time and nothing else.
 *
 *   urgent   target -> ASK, MISSING and BITMAP (after a lost link), ALL
 *            source -> PAGES, what was asked for
 *   bulk     source -> PAGES, many; BITMAP
 *
 * Two threads while there are connections. Calls are the owner's thread's; it hears by tell(), on
 * another thread, that page_server_state() has changed. */
#ifndef VMM_GLUE_POSTCOPY_PAGE_SERVER_H
#define VMM_GLUE_POSTCOPY_PAGE_SERVER_H

#include "ft/bitmap.h"
#include "ft/postcopy/cargo.h"
#include "ft/postcopy/wire.h"
#include "vmm-glue/vmm.h"

enum page_state {
	PAGES_IDLE,    /* nothing was given away yet */
	PAGES_SERVING, /* (or receiving) */
	PAGES_CUT,     /* likewise, but a connection broke: page_*_connect() goes on */
	PAGES_DONE,    /* all are there */
	PAGES_FAILED   /* for good: RAM cannot be read, or placed */
};

struct page_stats {
	uint64_t pages, pages_done; /* missing at the switch, and no more */
	uint64_t faults;	    /* pages that were asked for */
	uint64_t bytes;		    /* on the wire, both connections */
};

struct page_server;
/* generation: of the session; every message bears it. The RAM's descriptors are duplicated: it is
 * readable as long as they are, even if the VM's process is gone. */
int page_server_new(const struct vmm_ram *ram, uint64_t generation, void (*tell)(void *ctx),
		    void *ctx, struct page_server **out, struct ft_err *err);
/* Both are taken in any case. Connections that are there are given up first. */
int page_server_connect(struct page_server *s, struct ft_wire *urgent, struct ft_wire *bulk,
			struct ft_err *err);
/* The guest stands still, and the target lacks these pages. background: they go without being asked
 * for, too. */
void page_server_give(struct page_server *s, const struct ft_bitmap *missing, bool background);
/* Before _connect(): this follows the guest, too; it outlives the server. */
void page_server_cargo(struct page_server *s, struct ft_cargo *cargo);
/* Turned on or off later. From the first call on the guest runs there, and the cargo follows. */
void page_server_background(struct page_server *s, bool on);
/* The target did not take the guest: nothing is given any more. */
void page_server_take_back(struct page_server *s);
enum page_state page_server_state(struct page_server *s, struct ft_err *why);
void page_server_stats(struct page_server *s, struct page_stats *stats);
/* Accepts NULL. */
void page_server_free(struct page_server *s);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The target's half of postcopy's memory: a guest runs here whose RAM is not here yet. A
 * userfaultfd of the VM's address space in missing mode makes who touches such a page wait until it
 * was fetched; the rest comes in the background. What is missing is missing from the file behind
 * RAM, too, so until the end nobody may look at this RAM but through the VM's own page tables:
 * reading a hole elsewhere fills it with zeroes.
 *
 * A connection that breaks: the guest goes on until it touches a page that is not there, and waits.
 * If this process dies the VM's own copy of the descriptor keeps those who wait waiting for ever,
 * so its keeper has to end it. Zeroes are never seen in place of a page.
 *
 * Two threads, one for those who wait and one for the background. Calls are the owner's thread's;
 * it hears by tell(), on another thread, that page_client_state() or _here() has changed. */
#ifndef VMM_GLUE_POSTCOPY_PAGE_CLIENT_H
#define VMM_GLUE_POSTCOPY_PAGE_CLIENT_H

#include "ft/stats.h"
#include "vmm-glue/postcopy/page_server.h"

#define PAGE_CLIENT_BUCKETS 24 /* the last: 8 s and more */

struct page_client_stats {
	struct page_stats pages;
	struct ft_figure fault_us; /* from hearing of a fault to the page's being there */
	uint64_t histogram[PAGE_CLIENT_BUCKETS]; /* [i]: of 2^i us or more, [0] also less */
	uint64_t since_ns;   /* CLOCK_MONOTONIC of the switch, 0: there was none */
	uint64_t elapsed_ns; /* from then on, until now or until all was there */
	uint64_t waiting;    /* pages for which somebody waits now */
};

struct page_client;
/* Takes the userfaultfd of a VM that waits. -ENOTSUP: its RAM is not in a file, or in huge
 * pages of more than 2 MiB. Else
 * as inject_uffd(). <= 1 s */
int page_client_new(const struct vmm_ram *ram, uint64_t generation, void (*tell)(void *ctx),
		    void *ctx, struct page_client **out, struct ft_err *err);
/* Both are taken in any case. Connections that are there are given up first. */
int page_client_connect(struct page_client *c, struct ft_wire *urgent, struct ft_wire *bulk,
			struct ft_err *err);
/* Before _begin(): this follows the guest, too; it outlives the client. PAGES_DONE waits for it,
 * the memory does not. */
void page_client_cargo(struct page_client *c, struct ft_cargo *cargo);
/* Some of it is not awaited any more. */
void page_client_look(struct page_client *c);
/* All pages are here and the memory is ordinary; the cargo is not all here. tell() says so. */
bool page_client_here(struct page_client *c);
/* The connections are given up: PAGES_CUT follows. */
void page_client_cut(struct page_client *c);
/* The VM is about to run: from here on what is missing is missing. There are connections. */
int page_client_begin(struct page_client *c, const struct ft_bitmap *missing, struct ft_err *err);
enum page_state page_client_state(struct page_client *c, struct ft_err *why);
void page_client_stats(struct page_client *c, struct page_client_stats *stats);
/* Before PAGES_DONE: the VM must not run any more. Accepts NULL. */
void page_client_free(struct page_client *c);

#endif

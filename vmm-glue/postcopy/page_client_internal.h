/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of a page client share:
 *
 *   page_client.c   the owner's calls
 *   page_faults.c   the thread for those who wait: userfaultfd and urgent connection
 *   page_take.c     what comes over either connection, and the thread of the background */
#ifndef VMM_GLUE_POSTCOPY_PAGE_CLIENT_INTERNAL_H
#define VMM_GLUE_POSTCOPY_PAGE_CLIENT_INTERNAL_H

#include <pthread.h>

#include "ft/postcopy/taker.h"
#include "vmm-glue/postcopy/page_client.h"
#include "vmm-glue/postcopy/page_huge.h"

#define WAITING_MAX 64 /* whose times are kept; more are only not measured */

struct page_client {
	/* set at the start */
	struct vmm_ram ram;
	uint64_t generation;
	void (*tell)(void *ctx);
	void *ctx;
	int uffd, wake_fd;
	struct ft_cargo *cargo;

	/* the owner's */
	struct ft_wire *urgent, *bulk; /* as they were connected; closed by the owner */
	bool begun, fault_started, fill_started;
	pthread_t fault_thread, fill_thread;

	/* the fault thread's */
	struct ft_wire *line; /* urgent, as long as it is good */
	bool look;	      /* it is new: something may have been read from the socket already */
	bool ordinary;	      /* the memory is */

	pthread_mutex_t lock;	/* guards all below */
	struct page_huge *huge; /* NULL: RAM is in small pages. Set at the start */
	struct ft_taker taker;
	enum page_state state;
	struct ft_err why;
	struct ft_wire *next_line; /* a new urgent connection */
	bool leaving, lost, here;
	struct {
		uint64_t pfn, since_ns;
	} waiting[WAITING_MAX];
	unsigned waiting_n;
	struct page_client_stats stats;
	struct ft_series fault_us;
};

/* ---- page_client.c: any thread ---- */

uint64_t page_client_now_ns(void);
/* And tells the owner, if that is news. why may be NULL. */
void page_client_set_state(struct page_client *c, enum page_state state, const struct ft_err *why);
bool page_client_pages_are_here(struct page_client *c);
/* And all else that follows the guest. */
bool page_client_is_all(struct page_client *c);

/* ---- page_take.c ---- */

/* What is decoded and not placed yet; one a thread. */
#define RUN_PAGES 16 /* placed by one call */
struct page_run {
	bool urgent; /* each is waited for */
	uint64_t pfn;
	size_t n;
	bool zero;
	uint8_t bytes[RUN_PAGES * VMM_PAGE_BYTES];
};

/* Somebody waits for this page, which was asked for. */
void page_note_wait_locked(struct page_client *c, uint64_t pfn);
/* Places what a message brings. */
int page_take(struct page_client *c, struct page_run *run, const struct ft_msg *msg,
	      struct ft_err *err);
/* The threads; ctx: struct page_client. */
void *page_fill_main(void *ctx);

/* ---- page_faults.c ---- */

void *page_faults_main(void *ctx);

#endif

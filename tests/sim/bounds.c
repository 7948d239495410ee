// SPDX-License-Identifier: Apache-2.0
/* Memory and queues: what is named a bound is one, at every moment. */
#include "tests/sim/world.h"

#include "eventtap/block/disk_tap_internal.h"
#include "ft/engine_internal.h" /* white box: all that it holds */

/* The journal, its successor and its folder. */
#define FILES_OF_JOURNAL 3
/* Images, metadata with its successor and a folder, for the VM, tap and store of each disk; and its
 * copy. */
#define FILES_PER_DISK 7

static void over(struct node *n, const char *what, uint64_t is, uint64_t max)
{
	if (is > max)
		world_violation(n->world, "%s: %s: %llu, the bound is %llu", n->name, what,
				(unsigned long long)is, (unsigned long long)max);
}

static void check_engine(struct node *n)
{
	const struct ft_engine *e = n->engine;
	const struct ft_stage *g = &e->standby.stage;
	size_t staging = e->config.staging_bytes;

	over(n, "captured pages", e->primary.capture.pages_n * VMM_PAGE_BYTES, staging);
	over(n, "captured state", e->primary.capture.state_len, VMM_STATE_BYTES_MAX);
	over(n, "memory for staged pages", g->pages.ram_max, staging);
	over(n, "memory for staged outputs", g->events[0].ram_max + g->events[1].ram_max,
	     2 * staging);
}

static void check_disk_tap(struct node *n, const struct disk_tap *t)
{
	uint64_t soft = n->world->options.disk_log_bytes / 2;
	/* A writer is let in below the bound, and while the VMM drains. */
	uint64_t slack = (SIM_WRITES_MAX + 2) * (SECTOR + TAP_RECORD_HEADER);

	/* Closing puts in what the copier had left, and a checkpoint that fails leaves it there. */
	slack += SIM_DISK_BYTES + 64 * TAP_RECORD_HEADER;
	/* After HOLD, while the image does not take them, only the spill file bounds them. */
	if (t->mode == TAP_HOLD)
		over(n, "a disk's held writes", t->log.bytes, soft + slack);
	over(n, "segments of a disk's log in memory", t->log.memory_segments,
	     t->log.memory_segments_max);
}

void check_bounds(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++) {
		struct node *n = &w->nodes[i];

		if (n->crashed || !n->engine)
			continue;
		check_engine(n);
		if (n->net_tap && !sim_net_within_bounds(n->net_tap))
			world_violation(w, "%s: the NIC holds more than its bound", n->name);
		for (unsigned d = 0; d < SIM_DISKS; d++)
			if (n->disks[d].tap)
				check_disk_tap(n, (const struct disk_tap *)n->disks[d].tap);
		over(n, "open files", files_open_count(n),
		     SIM_DISKS * FILES_PER_DISK + FILES_OF_JOURNAL);
	}
}

// SPDX-License-Identifier: Apache-2.0
// What goes over the wire for what was dirty, while the guest writes memory and disk as it does in
// a drill.
#include <stdio.h>

#include "pair.h"

#define START_LOAD "payload dirty 2000 16; payload write 1 /dev/vda 8"
#define STOP_LOAD  GUEST_END("dirty") "; " GUEST_END("write")

int bench_wire(struct bench *b, struct ft_err *err)
{
	struct bench_figure f = {
		.name = "wire", .unit = "MiB", .kind = BENCH_AT_MOST, .reach = 0.25};
	struct pair_status before, after;
	int rc = pair_up(b, err);

	if (rc)
		return rc;
	rc = pair_type(b->pair, START_LOAD, err);
	bench_idle_ms(500); /* past the load's own start */
	if (!rc)
		rc = pair_status(b->pair, &before, err);
	bench_idle_ms(b->quick ? 1500 : 10000);
	if (!rc)
		rc = pair_status(b->pair, &after, err);
	if (!rc)
		rc = pair_type(b->pair, STOP_LOAD, err);
	if (rc)
		return rc;
	f.value = (double)(after.sent - before.sent) / (1 << 20);
	f.floor = (double)(after.raw - before.raw) / (1 << 20);
	snprintf(f.note, sizeof f.note,
		 "wire and raw bytes of %llu checkpoints; 2000 pages/s, 1 MiB/s to disk",
		 (unsigned long long)(after.checkpoints - before.checkpoints));
	bench_report(&f);
	return 0;
}

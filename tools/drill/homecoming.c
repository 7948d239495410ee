// SPDX-License-Identifier: Apache-2.0
/* After a takeover: the lost host comes up again with its old image, becomes the standby while the
 * guest runs, is sent what differs and nothing else, and the guest goes home. */
#include <errno.h>

#include "tools/drill/scene.h"

/* What a guest of ours can write between two strikes is a small part of its disk. */
#define COPIED_SHARE_MAX 4

static int look_at_disks(struct drill *d, struct round *r, struct ft_err *err)
{
	Ctl__Reply *reply = NULL;
	int rc = ask_agent(d, d->primary, "status", NULL, DRILL_STOP_MS, &reply, err);

	if (rc)
		return rc;
	r->disk_alike = reply->status ? reply->status->disk_alike : 0;
	r->disk_noted = reply->status ? reply->status->disk_known : 0;
	r->disk_copied = reply->status ? reply->status->disk_copied : 0;
	ctl__reply__free_unpacked(reply, NULL);
	if (d->o->shared_disk ||
	    r->disk_copied <= (r->disk_alike + r->disk_copied) / COPIED_SHARE_MAX)
		return 0;
	return ft_err_set(err, EILSEQ,
			  "the returning host was sent %llu KiB of disk and had %llu KiB already",
			  (unsigned long long)r->disk_copied >> 10,
			  (unsigned long long)r->disk_alike >> 10);
}

static void measure_gap(struct drill *d, struct round *r, uint64_t since_ns)
{
	static uint64_t times[DRILL_TIMES_MAX];
	size_t n = client_times(d->client, since_ns, times, DRILL_TIMES_MAX);

	for (size_t i = 1; i < n; i++)
		if ((double)(times[i] - times[i - 1]) / 1e6 > r->home_gap_ms)
			r->home_gap_ms = (double)(times[i] - times[i - 1]) / 1e6;
}

int homecoming(struct drill *d, struct round *r, struct ft_err *err)
{
	unsigned home = r->old_primary;
	uint64_t since = drill_now_ns();
	int rc;

	say(d, "%s comes back with its old image, as the standby of %s", d->hosts[home].id,
	    d->hosts[d->primary].id);
	rc = pair_protect(d, err);
	if (!rc)
		rc = look_at_disks(d, r, err);
	if (rc)
		return rc;
	say(d,
	    "protected again; of its disk %llu KiB were as they should be, %s, %llu KiB were sent",
	    (unsigned long long)r->disk_alike >> 10,
	    r->disk_noted ? "as both hosts had noted" : "as a comparison showed",
	    (unsigned long long)r->disk_copied >> 10);
	rc = ask_agent(d, d->primary, "failback", NULL, DRILL_TAKEOVER_MS, NULL, err);
	if (rc)
		return rc;
	d->primary = home;
	rc = wait_state(d, home, "protected", DRILL_PROTECT_MS, err);
	if (!rc)
		rc = wait_answers(d, answers(d), DRILL_ANSWERS, DRILL_TAKEOVER_MS, err);
	measure_gap(d, r, since);
	if (!rc)
		say(d, "the guest is home on %s, protected; longest silence on the way %.0f ms",
		    d->hosts[home].id, r->home_gap_ms);
	return rc;
}

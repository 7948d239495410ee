// SPDX-License-Identifier: Apache-2.0
// What a host may do with its disks when it comes up: start the guest from them, or not; and what a
// journal makes of a standby's disks after a power cut.
#include "eventtap/store.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "eventtap/block/image.h"
#include "eventtap/block/journal.h"
#include "eventtap/block/metadata.h"
#include "ft/log.h"

// From now on it is the guest's disk, whatever it was. A shared disk may be under the tap of
// another host's guest, and only the lock tells.
static int settle(const char *image, struct ft_err *err)
{
	struct metadata meta;
	int ret = metadata_open(image, &meta, err);
	if (ret < 0)
		return ret;
	struct metadata_record record = meta.record;
	record.state = STORE_UP_TO_DATE;
	if (meta.record.state != STORE_UP_TO_DATE)
		ret = metadata_write(&meta, &record, err);
	metadata_close(&meta);
	return ret;
}

static int force_damaged(const char *image, const struct ft_err *why, struct ft_err *err)
{
	char path[PATH_MAX + sizeof(METADATA_SUFFIX)];
	ft_warn("%s: forced: what is lost by starting from it cannot be known", why->text);
	snprintf(path, sizeof(path), "%s%s", image, METADATA_SUFFIX);
	return unlink(path) < 0 ? ft_err_set(err, errno, "%s: remove: %s", path, strerror(errno))
				: 0;
}

int store_check_startable(const char *image, enum store_right right, struct ft_err *err)
{
	struct metadata_record record;
	int ret = metadata_read(image, &record, err);
	if (ret == -ENOENT)
		return 0;
	if (ret == -EBADMSG && right == STORE_RIGHT_FORCE) {
		struct ft_err why = *err;
		return force_damaged(image, &why, err);
	}
	bool settled = (right == STORE_RIGHT_GRANTED && record.state == STORE_PROTECTED) ||
		       (right == STORE_RIGHT_STANDBY && record.state == STORE_CONSISTENT) ||
		       right == STORE_RIGHT_FORCE;
	if (ret == 0 && !settled)
		ret = metadata_startable(image, &record, err);
	if (ret < 0)
		return ret;
	if (right == STORE_RIGHT_FORCE && record.state != STORE_UP_TO_DATE)
		ft_warn("disk %s: forced: %s at generation %" PRIu64 " epoch %" PRIu64
			": lost is %s",
			image, metadata_state_name(record.state), record.generation, record.epoch,
			metadata_loss(&record));
	return settle(image, err);
}

bool store_is_consistent(const char *image, uint64_t generation)
{
	struct metadata_record record;
	return metadata_read(image, &record, NULL) == 0 && record.state == STORE_CONSISTENT &&
	       record.generation == generation;
}

uint64_t store_generation(const char *image)
{
	struct metadata_record record;
	return metadata_read(image, &record, NULL) == 0 ? record.generation : 0;
}

// ---- after a power cut ----

struct recovery {
	const struct store_disk *disks;
	unsigned n;
	struct image images[JOURNAL_DISKS_MAX];
	struct journal_disk open[JOURNAL_DISKS_MAX];
	struct metadata metas[JOURNAL_DISKS_MAX];
	bool unknown; // one has no metadata: nobody knows what was done to it
	// Of those that are not Inconsistent: they were written when all images were durable.
	bool settled;
	struct metadata_record as;
};

static int open_all(struct recovery *r, struct ft_err *err)
{
	int ret = 0;
	for (unsigned i = 0; i < r->n; i++)
		r->images[i].fd = r->metas[i].fd = -1;
	for (unsigned i = 0; i < r->n && ret == 0; i++) {
		r->open[i].id = r->disks[i].id;
		if (!r->disks[i].image)
			continue;
		ret = metadata_open(r->disks[i].image, &r->metas[i], err);
		r->unknown |= ret == 0 && r->metas[i].fresh;
		if (ret == 0 && !r->unknown)
			ret = image_open(r->disks[i].image, true, &r->images[i], err);
		if (ret < 0 || r->unknown)
			break;
		r->open[i].image = &r->images[i];
		if (r->metas[i].record.state != STORE_INCONSISTENT) {
			r->settled = true;
			r->as = r->metas[i].record;
		}
	}
	return ret;
}

static void close_all(struct recovery *r)
{
	for (unsigned i = 0; i < r->n; i++) {
		image_close(&r->images[i]);
		metadata_close(&r->metas[i]);
	}
}

static int write_all(struct recovery *r, struct ft_err *err)
{
	int ret = 0;
	for (unsigned i = 0; i < r->n && ret == 0; i++) {
		if (!r->disks[i].image || r->metas[i].record.state != STORE_INCONSISTENT)
			continue;
		struct metadata_record record = r->metas[i].record;
		record.generation = r->as.generation;
		record.epoch = r->as.epoch;
		record.state = r->as.state;
		ret = metadata_write(&r->metas[i], &record, err);
	}
	return ret;
}

static int recover(struct recovery *r, const char *journal, struct ft_err *err)
{
	int ret = open_all(r, err);
	if (ret == 0 && r->unknown)
		return 0;
	if (ret == 0 && !r->settled) {
		r->as.state = STORE_CONSISTENT;
		ret = journal_replay(journal, r->open, r->n, &r->as.generation, &r->as.epoch, err);
		// Nothing but a copy that is no copy: as without a journal.
		if (ret == -EBADMSG) {
			ft_warn("%s", err->text);
			return 0;
		}
		if (ret == 0)
			ft_info("journal %s: the disks are at generation %" PRIu64 " epoch %" PRIu64
				", the last that was acknowledged",
				journal, r->as.generation, r->as.epoch);
	}
	return ret == 0 ? write_all(r, err) : ret;
}

int store_recover(const char *journal, const struct store_disk *disks, unsigned n,
		  struct ft_err *err)
{
	struct recovery r = {.disks = disks, .n = n};
	assert(n <= JOURNAL_DISKS_MAX);
	if (access(journal, F_OK) < 0)
		return 0;
	int ret = recover(&r, journal, err);
	close_all(&r);
	// Only now: a crash before replays it again.
	return ret < 0 ? ret : journal_remove(journal, err);
}

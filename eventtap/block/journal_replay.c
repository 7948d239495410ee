// SPDX-License-Identifier: Apache-2.0
// Reading a journal after a power cut. An entry is looked at twice: whether it is whole, and then,
// record by record, to be applied. Nothing of an entry that is not whole is applied.
#include "eventtap/block/journal.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "eventtap/block/journal_format.h"
#include "eventtap/block/record.h"

#define PIECE_BYTES (256u << 10)

struct reader {
	struct image file;
	uint64_t nonce;
	const struct journal_disk *disks;
	unsigned disks_n;
	uint8_t *buf; // one record
	size_t buf_max;
};

static int read_header(struct reader *r)
{
	struct journal_header header;
	if (r->file.bytes < sizeof(header) ||
	    image_pread(&r->file, (uint8_t *)&header, sizeof(header), 0) < 0)
		return -EBADMSG;
	r->nonce = le64toh(header.nonce);
	if (memcmp(header.magic, JOURNAL_MAGIC, sizeof(header.magic)) != 0 ||
	    le64toh(header.sum) !=
		    journal_sum(&header, offsetof(struct journal_header, sum), r->nonce) ||
	    le32toh(header.version) != JOURNAL_VERSION || le32toh(header.disks) != r->disks_n)
		return -EBADMSG;
	for (unsigned i = 0; i < r->disks_n; i++)
		if (le64toh(header.ids[i]) != XXH3_64bits(r->disks[i].id, strlen(r->disks[i].id)) ||
		    le64toh(header.bytes[i]) != (r->disks[i].image ? r->disks[i].image->bytes : 0))
			return -EBADMSG;
	return 0;
}

static int room_for(struct reader *r, size_t len)
{
	if (len <= r->buf_max)
		return 0;
	uint8_t *larger = realloc(r->buf, len);
	if (!larger)
		return -ENOMEM;
	r->buf = larger;
	r->buf_max = len;
	return 0;
}

// Whether an entry of that epoch or a later one begins at `at` and is whole. *entry in the host's
// byte order.
static bool read_entry(struct reader *r, uint64_t at, uint64_t after, struct journal_entry *entry)
{
	struct journal_entry e;
	if (at > r->file.bytes || r->file.bytes - at < sizeof(e) ||
	    image_pread(&r->file, (uint8_t *)&e, sizeof(e), at) < 0)
		return false;
	memcpy(entry->magic, e.magic, sizeof(e.magic));
	entry->generation = le64toh(e.generation);
	entry->epoch = le64toh(e.epoch);
	entry->bytes = le64toh(e.bytes);
	if (memcmp(e.magic, JOURNAL_ENTRY_MAGIC, sizeof(e.magic)) != 0 ||
	    le64toh(e.sum) != journal_sum(&e, offsetof(struct journal_entry, sum), r->nonce) ||
	    entry->epoch <= after || entry->bytes > r->file.bytes - at - sizeof(e))
		return false;
	XXH3_state_t *hash = XXH3_createState();
	bool good = hash && room_for(r, PIECE_BYTES) == 0;
	if (good)
		XXH3_64bits_reset_withSeed(hash, r->nonce);
	for (uint64_t done = 0, part; good && done < entry->bytes; done += part) {
		part = entry->bytes - done < PIECE_BYTES ? entry->bytes - done : PIECE_BYTES;
		good = image_pread(&r->file, r->buf, part, at + sizeof(e) + done) == 0;
		XXH3_64bits_update(hash, r->buf, part);
	}
	good = good && XXH3_64bits_digest(hash) == le64toh(e.records_sum);
	XXH3_freeState(hash);
	return good;
}

static int apply_record(struct reader *r, uint64_t at, uint64_t left, uint64_t *used)
{
	struct tap_record rec = {0};
	size_t need = TAP_RECORD_HEADER;
	int ret = left < TAP_RECORD_HEADER ? -EBADMSG : room_for(r, PIECE_BYTES);
	if (ret == 0)
		ret = image_pread(&r->file, r->buf, TAP_RECORD_HEADER, at);
	if (ret == 0 && tap_record_parse(r->buf, TAP_RECORD_HEADER, &rec, &need) < 0)
		ret = -EBADMSG;
	if (ret == 0 && need > left)
		ret = -EBADMSG;
	if (ret == 0)
		ret = room_for(r, need);
	if (ret == 0)
		ret = image_pread(&r->file, r->buf, need, at);
	if (ret == 0 && (tap_record_parse(r->buf, need, &rec, NULL) != (long)need ||
			 rec.device >= r->disks_n || !r->disks[rec.device].image))
		ret = -EBADMSG;
	*used = need;
	return ret < 0 ? ret : record_apply(r->disks[rec.device].image, &rec);
}

static int apply_entry(struct reader *r, uint64_t at, uint64_t bytes)
{
	int ret = 0;
	for (uint64_t done = 0, used; done < bytes && ret == 0; done += used)
		ret = apply_record(r, at + done, bytes - done, &used);
	return ret;
}

static int replay(struct reader *r, uint64_t *generation, uint64_t *epoch)
{
	struct journal_entry entry;
	int ret = read_header(r);
	*generation = *epoch = 0;
	for (uint64_t at = sizeof(struct journal_header);
	     ret == 0 && read_entry(r, at, *epoch, &entry); at += sizeof(entry) + entry.bytes) {
		ret = apply_entry(r, at + sizeof(entry), entry.bytes);
		*generation = entry.generation;
		*epoch = entry.epoch;
	}
	for (unsigned i = 0; i < r->disks_n && ret == 0; i++)
		ret = r->disks[i].image ? image_flush(r->disks[i].image) : 0;
	return ret == 0 && *epoch == 0 ? -EBADMSG : ret;
}

int journal_replay(const char *path, const struct journal_disk *disks, unsigned n,
		   uint64_t *generation, uint64_t *epoch, struct ft_err *err)
{
	struct reader r = {.disks = disks, .disks_n = n};
	struct stat st;
	r.file.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (r.file.fd < 0)
		return ft_err_set(err, errno, "journal %s: open: %s", path, strerror(errno));
	int ret = fstat(r.file.fd, &st) < 0 ? -errno : 0;
	r.file.bytes = ret == 0 ? (uint64_t)st.st_size : 0;
	if (ret == 0)
		ret = replay(&r, generation, epoch);
	image_close(&r.file);
	free(r.buf);
	return ret < 0 ? ft_err_set(err, -ret, "journal %s: %s", path,
				    ret == -EBADMSG ? "holds no whole entry for these disks"
						    : strerror(-ret))
		       : 0;
}

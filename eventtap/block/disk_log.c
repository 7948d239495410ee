// SPDX-License-Identifier: Apache-2.0
// Segments come from memory up to the bound, then from slots of the spill file. A slot is allocated
// on its filesystem before it is mapped, so that a full filesystem is an error here and not a
// SIGBUS later. Slots are used again; when none is in use any more, the file is cut to nothing.
#include "eventtap/block/disk_log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PIECE_MIN                                                                                  \
	4096 /* a shorter rest of a segment is left empty rather than filled with a sliver */

void disk_log_init(struct disk_log *log, size_t memory_bytes_max, const char *spill_dir)
{
	*log = (struct disk_log){.spill_fd = -1, .spill_dir = spill_dir};
	log->memory_segments_max = memory_bytes_max / DISK_LOG_SEGMENT_BYTES +
				   (memory_bytes_max % DISK_LOG_SEGMENT_BYTES != 0);
	if (log->memory_segments_max < 2)
		log->memory_segments_max = 2;
}

static struct disk_segment *pop(struct disk_segment **list)
{
	struct disk_segment *segment = *list;
	if (segment)
		*list = segment->next;
	return segment;
}

static int segment_in_memory(struct disk_log *log, struct disk_segment **out)
{
	*out = pop(&log->free_memory);
	if (*out)
		return 0;
	if (log->memory_segments >= log->memory_segments_max)
		return -ENOSPC;
	struct disk_segment *segment = calloc(1, sizeof(*segment));
	uint8_t *bytes = malloc(DISK_LOG_SEGMENT_BYTES);
	if (!segment || !bytes) {
		free(segment);
		free(bytes);
		return -ENOMEM;
	}
	segment->bytes = bytes;
	log->memory_segments++;
	*out = segment;
	return 0;
}

static int open_spill_file(struct disk_log *log)
{
	int fd = open(log->spill_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && errno != ENOENT) {
		char name[PATH_MAX];
		int n = snprintf(name, sizeof(name), "%s/kemari-spill-XXXXXX", log->spill_dir);
		if (n >= (int)sizeof(name))
			return -ENAMETOOLONG;
		fd = mkostemp(name, O_CLOEXEC);
		if (fd >= 0)
			unlink(name);
	}
	if (fd < 0)
		return -errno;
	log->spill_fd = fd;
	return 0;
}

static int new_slot(struct disk_log *log, struct disk_segment **out)
{
	*out = pop(&log->free_slots);
	if (*out)
		return 0;
	if (log->slots >= DISK_LOG_SPILL_MAX)
		return -ENOSPC;
	off_t at = (off_t)log->slots * DISK_LOG_SEGMENT_BYTES;
	int ret = posix_fallocate(log->spill_fd, at, DISK_LOG_SEGMENT_BYTES);
	if (ret != 0)
		return -ret;
	struct disk_segment *segment = calloc(1, sizeof(*segment));
	if (!segment)
		return -ENOMEM;
	segment->spilled = true;
	segment->slot = log->slots++;
	*out = segment;
	return 0;
}

static int segment_in_file(struct disk_log *log, struct disk_segment **out)
{
	int ret = log->spill_fd < 0 ? open_spill_file(log) : 0;
	if (ret == 0)
		ret = new_slot(log, out);
	if (ret < 0)
		return ret;
	struct disk_segment *segment = *out;
	assert(segment);
	void *bytes = mmap(NULL, DISK_LOG_SEGMENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
			   log->spill_fd, (off_t)segment->slot * DISK_LOG_SEGMENT_BYTES);
	if (bytes == MAP_FAILED) {
		ret = -errno;
		segment->next = log->free_slots;
		log->free_slots = segment;
		return ret;
	}
	segment->bytes = bytes;
	log->slots_used++;
	return 0;
}

static int add_segment(struct disk_log *log)
{
	struct disk_segment *segment;
	int ret = segment_in_memory(log, &segment);
	if (ret < 0)
		ret = segment_in_file(log, &segment);
	if (ret < 0)
		return ret;
	segment->next = NULL;
	segment->seq = log->next_seq++;
	segment->closed = false;
	segment->records = 0;
	segment->used = 0;
	if (log->last)
		log->last->next = segment;
	else
		log->first = segment;
	log->last = segment;
	return 0;
}

// Cuts the spill file to nothing once nobody uses it.
static void forget_slots(struct disk_log *log)
{
	struct disk_segment *segment;
	while ((segment = pop(&log->free_slots)))
		free(segment);
	log->slots = 0;
	if (log->spill_fd >= 0) {
		close(log->spill_fd);
		log->spill_fd = -1;
	}
}

static void free_segment(struct disk_log *log, struct disk_segment *segment)
{
	log->bytes -= segment->used;
	log->records -= segment->records;
	if (!segment->spilled) {
		segment->next = log->free_memory;
		log->free_memory = segment;
		return;
	}
	munmap(segment->bytes, DISK_LOG_SEGMENT_BYTES);
	segment->bytes = NULL;
	segment->next = log->free_slots;
	log->free_slots = segment;
	if (--log->slots_used == 0)
		forget_slots(log);
}

static size_t room_left(const struct disk_log *log)
{
	if (!log->last || log->last->closed)
		return 0;
	return DISK_LOG_SEGMENT_BYTES - log->last->used;
}

uint32_t disk_log_piece(const struct disk_log *log, uint64_t len)
{
	size_t room = room_left(log);
	size_t max = room >= TAP_RECORD_HEADER + PIECE_MIN ? room - TAP_RECORD_HEADER
							   : DISK_LOG_RECORD_MAX;
	return len < max ? (uint32_t)len : (uint32_t)max;
}

int disk_log_append(struct disk_log *log, const struct tap_record *rec, const uint8_t **copy,
		    uint64_t *seq)
{
	assert(rec->len <= DISK_LOG_RECORD_MAX);
	size_t whole = TAP_RECORD_HEADER + (size_t)rec->len;
	if (room_left(log) < whole) {
		int ret = add_segment(log);
		if (ret < 0)
			return ret;
	}
	struct disk_segment *segment = log->last;
	assert(segment && segment->bytes);
	uint8_t *at = segment->bytes + segment->used;
	tap_record_put_header(at, rec);
	if (rec->len > 0)
		memcpy(at + TAP_RECORD_HEADER, rec->data, rec->len);
	segment->used += whole;
	segment->records++;
	log->bytes += whole;
	log->records++;
	if (copy)
		*copy = at + TAP_RECORD_HEADER;
	if (seq)
		*seq = segment->seq;
	return 0;
}

void disk_log_close(struct disk_log *log, uint64_t epoch)
{
	for (struct disk_segment *s = log->first; s; s = s->next) {
		if (s->closed) {
			assert(s->epoch <= epoch);
			continue;
		}
		s->closed = true;
		s->epoch = epoch;
	}
}

static bool of_epoch(const struct disk_segment *segment, uint64_t epoch)
{
	return segment && segment->closed && segment->epoch == epoch;
}

size_t disk_log_export(const struct disk_log *log, uint64_t epoch, struct tap_cursor *cursor,
		       uint8_t *out, size_t room)
{
	const struct disk_segment *s = cursor->record;
	size_t done = 0;
	if (!s) {
		for (s = log->first; s && !of_epoch(s, epoch);)
			s = s->next;
		cursor->offset = 0;
	}
	while (s && done < room) {
		if (cursor->offset == s->used) {
			if (!of_epoch(s->next, epoch))
				break;
			s = s->next;
			cursor->offset = 0;
		}
		size_t part = s->used - cursor->offset;
		if (part > room - done)
			part = room - done;
		memcpy(out + done, s->bytes + cursor->offset, part);
		cursor->offset += part;
		done += part;
	}
	cursor->record = (void *)s;
	return done;
}

struct disk_segment *disk_log_next(const struct disk_log *log, const struct disk_segment *segment)
{
	return segment ? segment->next : log->first;
}

bool disk_segment_next(const struct disk_segment *segment, size_t *at, struct tap_record *rec)
{
	if (*at == segment->used)
		return false;
	long n = tap_record_parse(segment->bytes + *at, segment->used - *at, rec, NULL);
	assert(n > 0); // we have written it
	*at += (size_t)n;
	return true;
}

void disk_log_drop(struct disk_log *log, uint64_t epoch)
{
	while (log->first && log->first->closed && log->first->epoch <= epoch) {
		struct disk_segment *segment = log->first;
		log->first = segment->next;
		if (!log->first)
			log->last = NULL;
		free_segment(log, segment);
	}
}

void disk_log_clear(struct disk_log *log)
{
	struct disk_segment *segment;
	while ((segment = pop(&log->first)))
		free_segment(log, segment);
	log->last = NULL;
	while ((segment = pop(&log->free_memory))) {
		free(segment->bytes);
		free(segment);
		log->memory_segments--;
	}
	assert(log->memory_segments == 0);
	assert(log->slots_used == 0);
	assert(log->bytes == 0);
	assert(log->records == 0);
}

void disk_log_free(struct disk_log *log)
{
	disk_log_clear(log);
	forget_slots(log);
}

uint64_t disk_log_spilled_bytes(const struct disk_log *log)
{
	return (uint64_t)log->slots_used * DISK_LOG_SEGMENT_BYTES;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A disk's epochs: its records, serialised as they go over the wire, in order, in segments of fixed
 * size.
 *
 *      segment --> segment --> segment --> segment --> segment
 *      [ epoch 7            ]  [ epoch 8 ]  [ open epoch       ]
 *
 * Unlike eventtap/queue.h, which has one ring of fixed size, it may grow past its bound of memory:
 * segments beyond it are mapped from an unlinked temporary file, so a burst of writes costs disk
 * space and not the guest's I/O. A record lies in one piece and does not move until it is dropped.
 * Not locked. */
#ifndef EVENTTAP_BLOCK_DISK_LOG_H
#define EVENTTAP_BLOCK_DISK_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/err.h"

#define DISK_LOG_SEGMENT_BYTES (1u << 20)
#define DISK_LOG_RECORD_MAX    (DISK_LOG_SEGMENT_BYTES - TAP_RECORD_HEADER) /* data of one record */
#define DISK_LOG_SPILL_MAX     (64u << 10) /* segments in the file: 64 GiB */

struct disk_segment {
	struct disk_segment *next;
	uint64_t seq;	/* running number */
	uint64_t epoch; /* once closed */
	bool closed;
	bool spilled;
	uint32_t slot; /* in the file, if spilled */
	uint32_t records;
	size_t used;
	uint8_t *bytes;
};

struct disk_log {
	struct disk_segment *first, *last;
	struct disk_segment *free_memory, *free_slots;
	uint64_t next_seq;
	size_t memory_segments, memory_segments_max; /* in use and free */
	uint32_t slots, slots_used;
	int spill_fd; /* -1 until it is needed */
	const char *spill_dir;
	/* figures */
	uint64_t bytes, records;
};

/* memory_bytes_max: rounded up to segments, two at least. spill_dir: the caller's, must outlive the
 * log. */
void disk_log_init(struct disk_log *log, size_t memory_bytes_max, const char *spill_dir);
/* Drops all and frees everything. */
void disk_log_free(struct disk_log *log);

/* A write longer than this is to be cut, so that no space is wasted: bytes of `len` that the next
 * record should have. */
uint32_t disk_log_piece(const struct disk_log *log, uint64_t len);
/* Appends to the open epoch. *copy (may be NULL): where its data lies; *seq (may be NULL): of its
 * segment. -ENOMEM, or what the spill file says; then nothing was appended. */
int disk_log_append(struct disk_log *log, const struct tap_record *rec, const uint8_t **copy,
		    uint64_t *seq);
/* The open epoch ends, as `epoch`; again the same: what came since joins it. */
void disk_log_close(struct disk_log *log, uint64_t epoch);
/* tap_ops.export. */
size_t disk_log_export(const struct disk_log *log, uint64_t epoch, struct tap_cursor *cursor,
		       uint8_t *out, size_t room);
/* The first segment, or the one after `segment`; NULL at the end. Closed segments do not change but
 * for their place in the list. */
struct disk_segment *disk_log_next(const struct disk_log *log, const struct disk_segment *segment);
/* The record at *at (0: first) of a segment; *at moves on. False: no more. */
bool disk_segment_next(const struct disk_segment *segment, size_t *at, struct tap_record *rec);
/* Forgets closed epochs up to this one. */
void disk_log_drop(struct disk_log *log, uint64_t epoch);
/* Forgets everything and gives the memory back. */
void disk_log_clear(struct disk_log *log);
uint64_t disk_log_spilled_bytes(const struct disk_log *log);

#endif

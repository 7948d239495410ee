/* SPDX-License-Identifier: Apache-2.0 */
/* Held outputs, by epoch: one ring of serialised records, in order of their arrival.
 *
 *        first          released           closed              end
 *   free   |  on its way   |  e, e+1, ...    |  the open epoch   |   free
 *          +-- pop ------->+-- release ----->+-- close --------->+-- append
 *
 * Records are kept as they go over the wire, so that an export is a copy of bytes. The ring is one
 * memfd mapped twice in a row, so that every record lies in one piece wherever it begins. All
 * memory is bounded by bytes_max and mapped at creation (the kernel gives a page when it is first
 * written); nothing is allocated afterwards.
 *
 * Not locked: the tap's lock guards its queue. A closed epoch's bytes do not change until it is
 * released. */
#ifndef EVENTTAP_QUEUE_H
#define EVENTTAP_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/err.h"

/* Closed epochs that hold something and wait for their release. One is in flight; each checkpoint
 * that fails may leave one more. */
#define QUEUE_EPOCHS_MAX 64

struct queue;

/* bytes_max: rounded up to whole pages; headers count. 0, -EINVAL or what memfd_create(2) and
 * mmap(2) say. */
int queue_new(size_t bytes_max, struct queue **out, struct ft_err *err);
/* Accepts NULL. */
void queue_free(struct queue *q);

/* Copies the record into the open epoch. -ENOBUFS: it does not fit now, nothing was changed. *copy
 * (may be NULL) gets where its data lies until it is popped or discarded. */
int queue_append(struct queue *q, const struct tap_record *rec, const uint8_t **copy);
/* Ends the open epoch under this number, which is at least that of the last close; the same again:
 * what came since joins it. -ENOBUFS: QUEUE_EPOCHS_MAX wait already; the epoch stays open. */
int queue_close(struct queue *q, uint64_t epoch, struct ft_err *err);
/* tap_ops.export of a closed epoch that is not released yet. */
size_t queue_export(const struct queue *q, uint64_t epoch, struct tap_cursor *cursor, uint8_t *out,
		    size_t room);

/* Every epoch up to this one may go out: its records can be peeked at and popped. */
void queue_release(struct queue *q, uint64_t epoch);
/* The same for everything that was appended, the open epoch too; epochs may start at any number
 * again. */
void queue_release_all(struct queue *q);
/* Forgets what is not released; epochs may start at any number again. Returns how many records that
 * were. */
uint64_t queue_discard(struct queue *q);

/* The released record at byte *at, counted from the first one; *at then is the next one's. False:
 * there is none. */
bool queue_peek(const struct queue *q, size_t *at, struct tap_record *rec);
/* Frees the first released record; there must be one. */
void queue_pop(struct queue *q);

/* Is there something in the open epoch / anything at all that is not released? */
bool queue_open(const struct queue *q);
bool queue_holds(const struct queue *q);
size_t queue_bytes_max(const struct queue *q);
/* Fills held_outputs and held_bytes; released ones that are not popped count. */
void queue_stats(const struct queue *q, struct tap_stats *stats);

#endif

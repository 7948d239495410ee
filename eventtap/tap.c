// SPDX-License-Identifier: Apache-2.0
// The record's header, and the chain: each call goes through one wrapper that asserts what the
// contract says and puts the tap's id in front of its error, so that the taps themselves need do
// neither.
#include "eventtap/tap.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

// What the length of a record's data may be.
static const struct {
	uint32_t min, max;
} data_len[TAP_KIND_MAX] = {
	[TAP_NET] = {1, TAP_NET_FRAME_MAX},
	[TAP_CONSOLE] = {1, TAP_RECORD_DATA_MAX},
	[TAP_DISK_WRITE] = {1, TAP_RECORD_DATA_MAX},
	[TAP_DISK_ZERO] = {8, 8},
	[TAP_DISK_TRIM] = {8, 8},
	[TAP_DISK_FLUSH] = {0, 0},
	[TAP_DISK_BITMAP] = {2, TAP_BITMAP_DATA_MAX},
	[TAP_PIO] = {1, 8},
	[TAP_MMIO] = {1, 8},
};
_Static_assert(TAP_NET_FRAME_MAX <= TAP_RECORD_DATA_MAX, "a frame is a record");

static const char *const kind_of_record[TAP_KIND_MAX] = {
	[TAP_NET] = "net",	  [TAP_CONSOLE] = "console", [TAP_DISK_WRITE] = "disk",
	[TAP_DISK_ZERO] = "disk", [TAP_DISK_TRIM] = "disk",  [TAP_DISK_FLUSH] = "disk",
	[TAP_PIO] = "pio",	  [TAP_MMIO] = "pio",	     [TAP_DISK_BITMAP] = "disk",
};

static bool valid(unsigned kind, uint32_t len)
{
	if (kind < TAP_NET || kind >= TAP_KIND_MAX)
		return false;
	if (len < data_len[kind].min || len > data_len[kind].max)
		return false;
	// An access to a port has the width of a register.
	return (kind != TAP_PIO && kind != TAP_MMIO) || (len & (len - 1)) == 0;
}

void tap_record_put_header(uint8_t out[TAP_RECORD_HEADER], const struct tap_record *rec)
{
	uint32_t len = htole32(rec->len);
	uint64_t arg = htole64(rec->arg);

	assert(valid(rec->kind, rec->len));
	out[0] = (uint8_t)rec->kind;
	out[1] = rec->device;
	out[2] = out[3] = 0;
	memcpy(out + 4, &len, sizeof len);
	memcpy(out + 8, &arg, sizeof arg);
}

long tap_record_parse(const uint8_t *buf, size_t len, struct tap_record *rec, size_t *need)
{
	uint32_t data;
	uint64_t arg;
	size_t whole;

	if (need)
		*need = TAP_RECORD_HEADER;
	if (len < TAP_RECORD_HEADER)
		return 0;
	memcpy(&data, buf + 4, sizeof data);
	memcpy(&arg, buf + 8, sizeof arg);
	data = le32toh(data);
	if (!valid(buf[0], data) || buf[2] || buf[3])
		return -EPROTO;
	whole = TAP_RECORD_HEADER + (size_t)data;
	if (need)
		*need = whole;
	if (len < whole)
		return 0;
	*rec = (struct tap_record){
		.kind = buf[0],
		.device = buf[1],
		.len = data,
		.arg = le64toh(arg),
		.data = buf + TAP_RECORD_HEADER,
	};
	return (long)whole;
}

static int place(const struct tap *tap)
{
	static const char *const order[] = {"disk", "console", "pio", "net"};

	for (int i = 0; i < (int)(sizeof order / sizeof *order); i++)
		if (!strcmp(order[i], tap->ops->kind))
			return i;
	assert(!"a tap of unknown kind");
	return -1;
}

void tap_chain_add(struct tap_chain *chain, struct tap *tap)
{
	struct tap **at = &chain->first;

	assert(tap->ops);
	assert(!tap->next);
	while (*at && place(*at) <= place(tap))
		at = &(*at)->next;
	tap->next = *at;
	*at = tap;
}

void tap_chain_remove(struct tap_chain *chain, struct tap *tap)
{
	struct tap **at = &chain->first;

	while (*at && *at != tap)
		at = &(*at)->next;
	if (!tap || !*at)
		return;
	*at = tap->next;
	tap->next = NULL;
}

int tap_chain_set_mode(struct tap_chain *chain, enum tap_mode mode)
{
	int rc = 0;

	for (struct tap *tap = chain->first; tap && !rc; tap = tap->next)
		rc = tap->ops->set_mode(tap, mode);
	return rc;
}

// The tap's name in front of its error; for an error that nobody wants to read, nothing.
static int failed(const struct tap *tap, int rc, struct ft_err *err)
{
	assert(rc < 0);
	ft_err_context(err, "%s", tap->id);
	return rc;
}

int tap_chain_close_epoch(struct tap_chain *chain, uint64_t epoch, struct ft_err *err)
{
	for (struct tap *tap = chain->first; tap; tap = tap->next) {
		int rc = tap->ops->close_epoch(tap, epoch, err);

		if (rc)
			return failed(tap, rc, err);
	}
	return 0;
}

size_t tap_chain_export(struct tap_chain *chain, uint64_t epoch, struct tap_chain_cursor *at,
			uint8_t *out, size_t room)
{
	size_t total = 0;

	if (!at->started) {
		at->link = chain->first;
		at->started = true;
	}
	while (at->link && total < room) {
		size_t n = at->link->ops->export(at->link, epoch, &at->cursor, out + total,
						 room - total);

		assert(n <= room - total);
		total += n;
		if (!n) {
			at->link = at->link->next;
			at->cursor = (struct tap_cursor){0};
		}
	}
	return total;
}

int tap_chain_release(struct tap_chain *chain, uint64_t epoch, struct ft_err *err)
{
	for (struct tap *tap = chain->first; tap; tap = tap->next) {
		int rc = tap->ops->release(tap, epoch, err);

		if (rc)
			return failed(tap, rc, err);
	}
	return 0;
}

void tap_chain_discard(struct tap_chain *chain)
{
	for (struct tap *tap = chain->first; tap; tap = tap->next)
		tap->ops->discard(tap);
}

int tap_chain_replay(struct tap_chain *chain, const struct tap_record *rec, struct ft_err *err)
{
	assert(valid(rec->kind, rec->len));
	for (struct tap *tap = chain->first; tap; tap = tap->next)
		if (tap->device == rec->device &&
		    !strcmp(tap->ops->kind, kind_of_record[rec->kind])) {
			int rc = tap->ops->replay(tap, rec, err);

			return rc ? failed(tap, rc, err) : 0;
		}
	return ft_err_set(err, ENODEV, "replay: %s %u: there is no such tap",
			  kind_of_record[rec->kind], rec->device);
}

void tap_chain_stats(struct tap_chain *chain, struct tap_stats *sum)
{
	*sum = (struct tap_stats){0};
	for (struct tap *tap = chain->first; tap; tap = tap->next) {
		struct tap_stats one = {0};

		tap->ops->stats(tap, &one);
		sum->held_outputs += one.held_outputs;
		sum->held_bytes += one.held_bytes;
		sum->outputs += one.outputs;
		sum->bytes += one.bytes;
		sum->dropped += one.dropped;
		sum->behind_bytes += one.behind_bytes;
	}
}

void tap_chain_free(struct tap_chain *chain)
{
	while (chain->first) {
		struct tap *tap = chain->first;

		chain->first = tap->next;
		tap->ops->free(tap);
	}
}

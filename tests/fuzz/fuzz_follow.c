// SPDX-License-Identifier: Apache-2.0
// What the other side of a postcopy migration says beside pages: which pages it lacks (MISSING),
// which it waits for (ASK), and the bitmaps that follow the guest (of SETUP, and BITMAP both ways).
// An input is a row of messages: a byte that says which, two lengths, body, payload. Whatever
// comes, the pages are within RAM, and what honest messages bring afterwards is whole.
#include <assert.h>
#include <endian.h>
#include <stdint.h>
#include <string.h>

#include "eventtap/block/bitmaps_follow.h"
#include "ft/log.h"
#include "ft/postcopy/giver.h"
#include "ft/postcopy/missing.h"

#define DISK_BYTES ((3u << 20) + 5000)
#define PAGES	   1000
#define PIECE	   64

static struct bitmaps source, store, target;
static struct bitmaps_giver giver;
static struct bitmaps_taker taker;
static struct ft_bitmap missing;
static struct ft_giver pages;
static bool begun;

static void make(void)
{
	Ft__Disk disk = FT__DISK__INIT;

	bitmaps_init(&source, "/nowhere/source", DISK_BYTES);
	bitmaps_init(&store, "/nowhere/store", DISK_BYTES);
	bitmaps_init(&target, "/nowhere/target", DISK_BYTES);
	bitmaps_giver_init(&giver);
	bitmaps_taker_init(&taker);
	giver.piece_max = PIECE;
	assert(!bitmaps_add(&source, "fine", 512, NULL));
	assert(!bitmaps_add(&source, "coarse", 65536, NULL));
	bitmaps_mark(&source, 70000, 5000);
	bitmaps_mark(&source, 3u << 20, 100);
	bitmaps_giver_describe(&giver, 0, &source, &disk);
	assert(!bitmaps_taker_expect(&taker, 0, &store, &disk, NULL));
	assert(!ft_bitmap_init(&missing, PAGES));
	assert(!ft_giver_init(&pages, PAGES));
	begun = false;
}

static void begin(void)
{
	struct bitmaps *sets[VMM_DISKS_MAX] = {&target};

	if (!begun)
		bitmaps_taker_begin(&taker, sets);
	begun = true;
}

static void unmake(void)
{
	bitmaps_taker_end(&taker);
	bitmaps_giver_end(&giver);
	bitmaps_taker_free(&taker);
	bitmaps_giver_free(&giver);
	bitmaps_free(&source);
	bitmaps_free(&store);
	bitmaps_free(&target);
	ft_bitmap_free(&missing);
	ft_giver_free(&pages);
}

static void lacks(const struct ft_msg *msg)
{
	bool last;

	(void)ft_missing_take(&missing, msg, &last, NULL);
	assert(ft_bitmap_next(&missing, 0) <= PAGES);
	ft_giver_owe(&pages, &missing);
}

static void asks(const struct ft_msg *msg)
{
	uint64_t le;

	for (uint32_t at = 0; at + sizeof le <= msg->payload_len; at += sizeof le) {
		memcpy(&le, msg->payload + at, sizeof le);
		assert(ft_giver_asked(&pages, le64toh(le)) == (le64toh(le) < PAGES));
	}
}

static void background(void)
{
	uint64_t pfns[16];
	size_t n = ft_giver_next(&pages, pfns, 16);

	for (size_t i = 0; i < n; i++)
		assert(pfns[i] < PAGES && (!i || pfns[i] > pfns[i - 1]));
}

static void expects(const struct ft_msg *msg)
{
	Ft__Disk *disk = ft__disk__unpack(NULL, msg->body_len, msg->body);

	if (disk && !begun)
		(void)bitmaps_taker_expect(&taker, 1, &store, disk, NULL);
	if (disk)
		ft__disk__free_unpacked(disk, NULL);
	for (unsigned i = 0; i < taker.n; i++)
		assert(taker.list[i].info.map_bytes <= FT_DIRTY_BITS_MAX / 8);
}

static void one(uint8_t what, const struct ft_msg *msg)
{
	struct ft_msg sent;

	switch (what % 8) {
	case 0:
		lacks(msg);
		break;
	case 1:
		asks(msg);
		break;
	case 2:
		background();
		break;
	case 3:
		expects(msg);
		break;
	case 4:
		begin();
		break;
	case 5:
		if (begun)
			(void)taker.cargo.ops->take(&taker.cargo, msg, NULL);
		break;
	case 6:
		(void)giver.cargo.ops->go_on(&giver.cargo, msg, NULL);
		break;
	default:
		if (giver.cargo.ops->next(&giver.cargo, &sent))
			assert(sent.payload_len <= PIECE);
	}
}

/* From where the target is, honestly. */
static void finish(void)
{
	struct ft_msg msg;

	begin();
	while (bitmaps_taker_awaits(&taker, 0)) {
		taker.cargo.ops->lacks(&taker.cargo, &msg);
		assert(!giver.cargo.ops->go_on(&giver.cargo, &msg, NULL));
		assert(giver.cargo.ops->next(&giver.cargo, &msg));
		assert(!taker.cargo.ops->take(&taker.cargo, &msg, NULL));
	}
}

static void quiet(enum ft_log_level level, const char *line)
{
	(void)level;
	(void)line;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	ft_log_sink_set(quiet); /* what is lost is said each time */
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	make();
	while (len >= 3) {
		struct ft_msg msg = {.type = FT_MSG_BITMAP, .body = data + 3};

		msg.body_len = data[1] < len - 3 ? data[1] : (uint32_t)(len - 3);
		msg.payload = msg.body + msg.body_len;
		msg.payload_len = (uint32_t)(len - 3) - msg.body_len;
		if (msg.payload_len > data[2])
			msg.payload_len = data[2];
		one(data[0], &msg);
		data += 3 + msg.body_len + msg.payload_len;
		len -= 3 + msg.body_len + msg.payload_len;
	}
	finish();
	unmake();
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
// A standby's engine against a peer that sends whatever it likes: verified messages, for the link
// has checked the frames, but no more than that. The input is a list of actions: a connection, a
// message (raw, or with a body that parses), time, an operator, an arbiter's answer, a fault of
// this host. The VM, its stores, the arbiter and the links are fakes that check what the engine
// promises (standby_world.c):
//   - an epoch is acknowledged only if all of it arrived, and committed once;
//   - what is committed is not touched by anything but the next whole checkpoint;
//   - the VM is resumed only from a committed epoch, under a generation newer than the primary's;
//   - it keeps at most so many connections, and arms one VM at a time.
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ft/log.h"
#include "ft/page.h"
#include "tests/fuzz/standby_world.h"

static size_t take_bytes(struct input *in, uint8_t *out, size_t max)
{
	size_t n = take(in) | (size_t)take(in) << 8;

	return take_some(in, out, n < max ? n : max);
}

static void arbiter_answers(struct input *in)
{
	unsigned how = take(in);
	struct ft_grant_record now = host.want;
	ft_arbiter_fn *fn = host.asked;

	if (!fn)
		return;
	host.asked = NULL;
	if (how & 4)
		now.generation += how >> 3;
	if (how % 4 == FT_ARBITER_UNREACHABLE)
		memset(&now, 0, sizeof now);
	fn(host.asked_ctx, (enum ft_arbiter_answer)(how % 4), &now, how % 4 ? "fuzz" : "");
}

/* ---- messages ---- */

static void deliver(struct input *in, unsigned type, uint64_t epoch, const uint8_t *body,
		    size_t body_len, const uint8_t *payload, size_t len)
{
	struct fake_link *l = host.links[take(in) % LINKS];
	struct ft_msg msg = {.type = (uint16_t)type,
			     .generation = w.generation,
			     .epoch = epoch,
			     .body_len = (uint32_t)body_len,
			     .payload_len = (uint32_t)len};
	uint8_t *exact = malloc(body_len + len + 1);

	if (body_len)
		msg.body = memcpy(exact, body, body_len);
	if (len)
		msg.payload = memcpy(exact + body_len, payload, len);
	if (l)
		l->base.events.message(l->base.events.ctx, &msg);
	free(exact);
}

static void deliver_body(struct input *in, unsigned type, uint64_t epoch,
			 const ProtobufCMessage *body)
{
	uint8_t packed[4096];
	size_t n = protobuf_c_message_get_packed_size(body);

	assert(n <= sizeof packed);
	protobuf_c_message_pack(body, packed);
	deliver(in, type, epoch, packed, n, NULL, 0);
}

static void do_raw(struct input *in)
{
	uint8_t body[512], payload[4096];
	unsigned type = take(in) % (FT_MSG_TYPE_MAX + 1), where = take(in);
	uint64_t epoch = where & 1 ? w.epoch : where >> 1;
	size_t body_n = take_bytes(in, body, sizeof body),
	       n = take_bytes(in, payload, sizeof payload);

	/* It counts where it could count. */
	w.whole = false;
	deliver(in, type, epoch, body, body_n, payload, n);
}

static void do_hello(struct input *in)
{
	Ft__Hello hello = FT__HELLO__INIT;
	unsigned how = take(in);

	hello.name = (char *)(how & 1 ? "other" : "guest");
	hello.host_id = (char *)(how & 2 ? (how & 4 ? "standby" : "another") : "primary");
	hello.role = how & 8 ? FT__ROLE__ROLE_STANDBY : FT__ROLE__ROLE_PRIMARY;
	hello.heartbeat = how & 16;
	hello.session = 7;
	hello.generation = how & 32 ? UINT64_MAX : w.generation;
	hello.version = (char *)"0";
	deliver_body(in, FT_MSG_HELLO, 0, &hello.base);
}

static void do_setup(struct input *in)
{
	Ft__Disk disk = FT__DISK__INIT, *disks[] = {&disk, &disk};
	Ft__Setup setup = FT__SETUP__INIT;
	unsigned how = take(in);

	disk.id = (char *)"root";
	disk.image = (char *)"root.img";
	setup.session = how & 1 ? 8 : 7;
	setup.resume = how & 2;
	setup.vmm = (char *)"fuzz";
	setup.ram_bytes = RAM_BYTES;
	setup.uuid = (char *)"";
	setup.disks = disks;
	setup.n_disks = how >> 2 & 1;
	/* Generations at the end of their range are as good as any to a standby. */
	if (how & 8)
		w.generation = how & 16 ? UINT64_MAX - (how >> 7) : how >> 5;
	deliver_body(in, FT_MSG_SETUP, 0, &setup.base);
}

static size_t put_page(struct input *in, uint8_t *out)
{
	unsigned pfn = take(in), how = take(in);
	uint8_t *data = out + FT_PAGE_RECORD_HEADER;
	uint32_t hash = ZERO_HASH;
	unsigned kind = FT_PAGE_ZERO, n = 0;

	if (how & 1) {
		kind = how & 128 ? FT_PAGE_PLAIN : FT_PAGE_RAW;
		n = FT_PAGE_BYTES;
		memset(data, (int)(how >> 1), n);
		hash = how & 128 ? 0 : page_hash(data);
	} else if (how & 2) {
		kind = FT_PAGE_DELTA;
		n = RUN_HEADER + WORD_BYTES;
		put16(data, how >> 2);
		put16(data + 2, 1);
		memset(data + RUN_HEADER, (int)how, WORD_BYTES);
		hash = how;
	}
	put32(out, pfn & 128 ? pfn : pfn % PAGES);
	out[4] = (uint8_t)kind;
	out[5] = 0;
	put16(out + 6, n);
	put32(out + 8, hash);
	return FT_PAGE_RECORD_HEADER + n;
}

static void do_pages(struct input *in)
{
	uint8_t payload[4 * FT_PAGE_RECORD_MAX];
	unsigned how = take(in), records = how % 4;
	size_t n = 0;

	for (unsigned i = 0; i <= records; i++)
		n += put_page(in, payload + n);
	if (how & 0x40)
		n -= how % FT_PAGE_RECORD_HEADER; /* cut */
	if (!(how & 0x80))
		w.pages += n;
	deliver(in, FT_MSG_PAGES, how & 0x80 ? 0 : w.epoch, NULL, 0, payload, n);
}

static void do_events(struct input *in)
{
	uint8_t payload[8192];
	unsigned how = take(in), more = take(in);
	struct tap_record rec = {
		.kind = 1 + how % (TAP_KIND_MAX - 1), .device = how >> 6, .arg = how};
	size_t n;

	rec.len = rec.kind == TAP_DISK_FLUSH			      ? 0
		  : rec.kind == TAP_NET || rec.kind == TAP_DISK_WRITE ? 1 + 16 * more
								      : 8;
	memset(payload, (int)how, sizeof payload);
	tap_record_put_header(payload, &rec);
	n = TAP_RECORD_HEADER + rec.len;
	if (how & 32)
		n = (n + 1) / 2; /* the next one begins in the middle of this one */
	w.events += n;
	deliver(in, FT_MSG_EVENTS, w.epoch, NULL, 0, payload, n);
}

static void do_begin(struct input *in)
{
	unsigned how = take(in);

	w.epoch = how & 128 ? UINT64_MAX - (how & 1) : w.stored + how % 4;
	w.pages = w.state = w.events = 0;
	w.whole = false;
	deliver(in, FT_MSG_BEGIN, w.epoch, NULL, 0, NULL, 0);
}

static void do_state(struct input *in)
{
	static uint8_t payload[FT_PAYLOAD_MAX];
	size_t n = take(in) & 1 ? sizeof payload : 1 + take(in);

	w.state += n;
	deliver(in, FT_MSG_STATE, w.epoch, NULL, 0, payload, n);
}

static void do_end(struct input *in)
{
	Ft__End end = FT__END__INIT;
	unsigned how = take(in);

	end.pages_bytes = w.pages + (how & 1);
	end.state_bytes = w.state + (how >> 1 & 1);
	end.events_bytes = w.events + (how >> 2 & 1);
	end.trial = (how & 8) ? w.stored != 0 : w.stored == 0;
	end.digest = how & 16;
	w.whole = !(how & 15) && w.state;
	deliver_body(in, FT_MSG_END, w.epoch, &end.base);
	w.whole = false;
}

static void do_word(struct input *in)
{
	static const uint8_t types[] = {FT_MSG_BYE, FT_MSG_HANDOVER, FT_MSG_REFUSE, FT_MSG_READY,
					FT_MSG_HANDED};
	unsigned how = take(in);
	Ft__Beat beat = FT__BEAT__INIT;

	if (how & 1) {
		beat.patience_ms = how << 24;
		deliver_body(in, FT_MSG_BEAT, 0, &beat.base);
	} else {
		deliver(in, types[how / 2 % sizeof types], w.stored, NULL, 0, NULL, 0);
	}
}

/* ---- what happens otherwise ---- */

static void do_operator(struct input *in)
{
	struct ft_err err = {0};

	switch (take(in) % 4) {
	case 0:
		(void)ft_engine_failover(host.engine, on_done, NULL, &err);
		break;
	case 1:
		assert(ft_engine_cancel(host.engine, &err));
		break;
	case 2:
		assert(ft_engine_checkpoint(host.engine, on_done, NULL, &err));
		break;
	case 3:
		if (w.armed)
			ft_engine_vm_lost(host.engine, false, "killed");
		break;
	}
}

/* The journal's answer, right or wrong, in time or for a checkpoint that was given up long ago. */
static void do_stored(struct input *in)
{
	struct ft_err err = {.code = ENOSPC, .text = "no room"};
	unsigned how = take(in);
	uint64_t epoch = w.sealing;

	if (!epoch)
		return;
	w.sealing = 0;
	w.epoch = epoch;
	w.whole = w.durably = true;
	ft_engine_stored(host.engine, epoch + (how & 1), how & 2 ? &err : NULL);
	w.whole = w.durably = false;
}

static void act(struct input *in);

static void run(const uint8_t *script, size_t len)
{
	struct input in = {.at = script, .left = len};

	while (in.left)
		act(&in);
}

/* The actions by their numbers in act(), each with what it takes; the last byte of a message is its
 * link. */
static const uint8_t meeting[] = {0, 2, 0,  0, /* a connection, HELLO, */
				  3, 4, 0,     /* SETUP */
				  0, 2, 16, 1 /* and the same for heartbeats */};

/* BEGIN, a page, STATE, an event, END; what is in them is the fuzzer's, and now and then a total is
 * wrong. */
static void do_checkpoint(struct input *in)
{
	uint8_t page[2] = {(uint8_t)take(in), (uint8_t)take(in)};
	uint8_t event[2] = {(uint8_t)(take(in) & ~32u), (uint8_t)take(in)};
	unsigned end = take(in);
	const uint8_t script[] = {
		5,	 1,	   0,	     4, 0, page[0],
		page[1], 0,	   6,	     0, 9, 0,
		7,	 event[0], event[1], 0, 8, (uint8_t)(end & 128 ? end & 31 : end & 16),
		0};

	run(script, sizeof script);
}

static void act(struct input *in)
{
	switch (take(in) % 18) {
	case 0:
		do_accepted();
		break;
	case 1:
		do_raw(in);
		break;
	case 2:
		do_hello(in);
		break;
	case 3:
		do_setup(in);
		break;
	case 4:
		do_pages(in);
		break;
	case 5:
		do_begin(in);
		break;
	case 6:
		do_state(in);
		break;
	case 7:
		do_events(in);
		break;
	case 8:
		do_end(in);
		break;
	case 9:
		do_word(in);
		break;
	case 10:
		do_time(in);
		break;
	case 11:
		do_link(in);
		break;
	case 12:
		do_dialed(in);
		break;
	case 13:
		do_operator(in);
		break;
	case 14:
		arbiter_answers(in);
		break;
	case 15:
		host.fail = take(in);
		break;
	case 16:
		do_checkpoint(in);
		break;
	case 17:
		do_stored(in);
		break;
	}
}

static bool is_standby(void)
{
	return ft_engine_state(host.engine) == FT_STANDBY ||
	       ft_engine_state(host.engine) == FT_TAKEOVER;
}

static void check(void)
{
	struct ft_engine_status status;
	uint64_t hash;

	assert(links_n() <= LINKS_MAX);
	if (!is_standby())
		return;
	ft_engine_status(host.engine, &status);
	if (!status.epoch_committed || !w.armed) {
		w.committed_seen = 0;
		return;
	}
	assert(status.epoch_committed == w.stored);
	hash = XXH3_64bits(w.image, sizeof w.image);
	if (status.epoch_committed == w.committed_seen)
		assert(hash == w.image_hash);
	w.committed_seen = status.epoch_committed;
	w.image_hash = hash;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	ft_log_level_set((enum ft_log_level)(FT_LOG_ERROR));
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct ft_engine_config config = host_begin("standby", STAGING);
	struct input in = {.at = data, .left = len};
	struct ft_arbiter *arbiter = &host.arbiter;
	struct ft_err err = {0};
	unsigned how = take(&in);

	memset(&w, 0, sizeof w);
	host.link_ops = &world_link;
	w.generation = 1;
	host.arbiter.ops = &world_arbiter;
	host.vmm.ops = &world_vmm;
	config.takeover_manual = how & 2;
	config.durable = w.durable = how & 32;
	if (how & 1)
		arbiter = host.none = ft_arbiter_none_new(FT_SURVIVOR_STANDBY, FT_SIDE_STANDBY);
	if (ft_engine_new(&config, &world_env, NULL, arbiter, &host.engine, &err))
		abort();
	ft_engine_start_standby(host.engine);
	/* Some begin in the middle, for a blind hand rarely gets that far. */
	if (how & 8)
		run(meeting, sizeof meeting);
	if (how & 16)
		do_checkpoint(&in);
	while (in.left && is_standby()) {
		act(&in);
		check();
	}
	if (how & 4)
		ft_engine_stop(host.engine, "the end");
	host_end();
	return 0;
}

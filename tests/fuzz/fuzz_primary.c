// SPDX-License-Identifier: Apache-2.0
// A primary's engine against a standby that sends whatever it likes, at whatever time: every body
// that a standby may send, well made or not, in an order of the fuzzer's. The input is a list of
// actions, as in fuzz_standby.c. The VM, its tap, the arbiter and the links are fakes that check
// what the engine promises (primary_world.c):
//   - what is held leaves when the checkpoint of its epoch was acknowledged, under this session and
//     generation, and not before;
//   - once a standby may take over, protection ends only when somebody who may say so says that it
//     does not: the standby itself, the arbiter, or, without one, the operator;
//   - a fenced host lets nothing out.
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ft/log.h"
#include "tests/fuzz/primary_world.h"

static size_t take_bytes(struct input *in, uint8_t *out, size_t max)
{
	size_t n = take(in);

	return take_some(in, out, n < max ? n : max);
}

/* ---- messages ---- */

/* What the peer says is the peer's word, whatever it means by it. */
static void heard(const struct ft_msg *msg)
{
	Ft__Hello *hello;

	if (msg->type == FT_MSG_ACK && msg->epoch == w.end && msg->generation == w.generation)
		w.acked = msg->epoch;
	if (msg->type == FT_MSG_BYE)
		w.alone = true;
	if (msg->type != FT_MSG_HELLO)
		return;
	hello = ft__hello__unpack(NULL, msg->body_len, msg->body);
	if (hello && !hello->runs && hello->session == w.session && hello->committed == w.end)
		w.acked = w.end;
	if (hello && !hello->runs && hello->session != w.session)
		w.alone = true;
	if (hello)
		ft__hello__free_unpacked(hello, NULL);
}

static void deliver(struct input *in, unsigned type, uint64_t epoch, const uint8_t *body,
		    size_t body_len, size_t payload_len)
{
	unsigned how = take(in);
	struct fake_link *l = host.links[how % LINKS];
	struct ft_engine_status s;
	struct ft_msg msg = {.type = (uint16_t)type,
			     .epoch = epoch,
			     .body_len = (uint32_t)body_len,
			     .payload_len = (uint32_t)payload_len};
	uint8_t *exact = calloc(1, body_len + payload_len + 1);

	ft_engine_status(host.engine, &s);
	msg.generation = how & 0x80 ? s.generation + 1 : s.generation;
	if (type == FT_MSG_HANDED)
		msg.generation = how & 0x40 ? UINT64_MAX : s.generation + (how >> 3 & 7);
	if (body_len)
		msg.body = memcpy(exact, body, body_len);
	if (payload_len)
		msg.payload = exact + body_len;
	if (l) {
		heard(&msg);
		l->base.events.message(l->base.events.ctx, &msg);
	}
	free(exact);
}

static void deliver_body(struct input *in, unsigned type, uint64_t epoch,
			 const ProtobufCMessage *body)
{
	uint8_t packed[1024];
	size_t n = protobuf_c_message_get_packed_size(body);

	assert(n <= sizeof packed);
	protobuf_c_message_pack(body, packed);
	deliver(in, type, epoch, packed, n, 0);
}

static void do_raw(struct input *in)
{
	uint8_t body[256];
	unsigned type = take(in) % (FT_MSG_TYPE_MAX + 1);
	size_t n = take_bytes(in, body, sizeof body);

	deliver(in, type, w.end, body, n, take(in));
}

static uint64_t counter(unsigned how, uint64_t right)
{
	const uint64_t values[] = {right, right + 1, right - 1, 0, UINT64_MAX, right, right, right};

	return values[how % 8];
}

static void do_hello(struct input *in)
{
	Ft__Hello hello = FT__HELLO__INIT;
	unsigned how = take(in), more = take(in);
	struct ft_engine_status s;

	ft_engine_status(host.engine, &s);
	hello.name = (char *)(how & 1 ? "other" : "guest");
	hello.host_id = (char *)(how & 2 ? (how & 4 ? "primary" : "another") : "standby");
	hello.role = how & 8 ? FT__ROLE__ROLE_PRIMARY : FT__ROLE__ROLE_STANDBY;
	hello.heartbeat = how & 16;
	hello.runs = how & 32;
	hello.session = how & 64 ? w.session : 0;
	hello.committed = how & 128 ? w.end : s.epoch_committed;
	hello.generation = counter(more, s.generation);
	hello.version = (char *)"0";
	deliver_body(in, FT_MSG_HELLO, 0, &hello.base);
}

static void do_refuse(struct input *in)
{
	static char what[300];
	Ft__Refuse refuse = FT__REFUSE__INIT;
	unsigned how = take(in);
	struct ft_engine_status s;

	ft_engine_status(host.engine, &s);
	memset(what, 'x', sizeof what - 1);
	refuse.what = how & 1 ? what : (char *)"no";
	refuse.code = how & 2 ? UINT32_MAX : EBUSY;
	refuse.runs = how & 4;
	refuse.generation = counter(how >> 3, s.generation);
	deliver_body(in, FT_MSG_REFUSE, 0, &refuse.base);
}

static void do_word(struct input *in)
{
	static const uint8_t types[] = {FT_MSG_BYE,   FT_MSG_HANDOVER, FT_MSG_HANDED, FT_MSG_SETUP,
					FT_MSG_BEGIN, FT_MSG_END,      FT_MSG_PAGES,  FT_MSG_STATE};
	Ft__Ready ready = FT__READY__INIT;
	Ft__Digest digest = FT__DIGEST__INIT;
	Ft__Beat beat = FT__BEAT__INIT;
	unsigned how = take(in);
	struct ft_engine_status s;

	ft_engine_status(host.engine, &s);
	switch (how % 5) {
	case 0:
		deliver(in, FT_MSG_ACK, counter(how / 5, w.end), NULL, 0, 0);
		break;
	case 1:
		ready.committed = counter(how / 5, s.epoch_committed);
		deliver_body(in, FT_MSG_READY, 0, &ready.base);
		break;
	case 2:
		digest.value = DIGEST + how / 5 % 2;
		deliver_body(in, FT_MSG_DIGEST, w.end, &digest.base);
		break;
	case 3:
		beat.patience_ms = how << 24;
		deliver_body(in, FT_MSG_BEAT, 0, &beat.base);
		break;
	case 4:
		deliver(in, types[how / 5 % sizeof types], w.end, NULL, 0, 0);
		break;
	}
}

/* ---- what happens otherwise ---- */

static void arbiter_answers(struct input *in)
{
	unsigned how = take(in);
	ft_arbiter_fn *fn = host.asked;
	enum ft_arbiter_answer answer = (enum ft_arbiter_answer)(how % 3);
	struct ft_grant_record now = {0};

	if (!fn)
		return;
	host.asked = NULL;
	/* Somebody else was first; he was, or the swap happened, and nobody heard. */
	if (answer == FT_ARBITER_LOST) {
		w.record.generation += 1 + (how >> 3 & 3);
		strcpy(w.record.holder, how & 4 ? "standby" : "another");
	} else if (answer == FT_ARBITER_GRANTED || how & 4) {
		w.record = host.want;
	}
	if (answer != FT_ARBITER_UNREACHABLE)
		now = w.record;
	if (!strcmp(w.record.holder, "primary") && !w.record.in_sync)
		w.alone = true;
	fn(host.asked_ctx, answer, &now, answer ? "fuzz" : "");
}

static void do_operator(struct input *in)
{
	struct ft_err err = {0};

	switch (take(in) % 6) {
	case 0:
		(void)ft_engine_protect(host.engine, on_done, NULL, &err);
		break;
	case 1:
		w.alone |= host.none != NULL; /* the operator's word is the grant */
		(void)ft_engine_cancel(host.engine, &err);
		break;
	case 2:
		(void)ft_engine_checkpoint(host.engine, on_done, NULL, &err);
		break;
	case 3:
		(void)ft_engine_verify(host.engine, on_done, NULL, &err);
		break;
	case 4:
		(void)ft_engine_failover(host.engine, on_done, NULL, &err);
		break;
	case 5:
		ft_engine_vm_lost(host.engine, take(in) & 1, "killed");
		break;
	}
}

static void do_guest(struct input *in)
{
	unsigned how = take(in);

	w.dirty |= how;
	if (how & 1)
		guest_output();
	if (how & 2)
		ft_engine_pressure(host.engine);
}

static void act(struct input *in)
{
	switch (take(in) % 12) {
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
		do_refuse(in);
		break;
	case 4:
		do_word(in);
		break;
	case 5:
		arbiter_answers(in);
		break;
	case 6:
		do_dialed(in);
		break;
	case 7:
		do_link(in);
		break;
	case 8:
		do_operator(in);
		break;
	case 9:
		do_guest(in);
		break;
	case 10:
		do_time(in);
		break;
	case 11:
		host.fail = take(in);
		break;
	}
}

/* The actions by their numbers in act(), each with what it takes; the last byte of a message is its
 * link. */
static const uint8_t protect[] = {
	8,  0,		/* an operator: protect */
	6,  1,		/* the connection */
	2,  0,	0,  0,	/* HELLO */
	5,  0,	5,  0,	/* the arbiter: nobody's; yours */
	4,  1,	0,	/* READY */
	6,  1,		/* the heartbeat connection */
	2,  16, 0,  1,	/* HELLO */
	10, 1,	10, 1,	/* rounds, the first checkpoint */
	4,  0,	0,	/* ACK */
	5,  0,		/* the arbiter: in sync */
	9,  5,	10, 20, /* outputs, and time for a checkpoint */
};

static void run(const uint8_t *script, size_t len)
{
	struct input in = {.at = script, .left = len};

	while (in.left)
		act(&in);
}

static bool is_primary(void)
{
	enum ft_state s = ft_engine_state(host.engine);

	return s == FT_SOLO || s == FT_SYNCING || s == FT_PROTECTED;
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
	struct ft_engine_config config = host_begin("primary", STAGING);
	struct input in = {.at = data, .left = len};
	struct ft_arbiter *arbiter = &host.arbiter;
	struct ft_err err = {0};
	unsigned how = take(&in);

	memset(&w, 0, sizeof w);
	host.link_ops = &world_link;
	host.arbiter.ops = &world_arbiter;
	host.vmm.ops = &world_vmm;
	if (how & 1) {
		arbiter = host.none = ft_arbiter_none_new(
			how & 2 ? FT_SURVIVOR_PRIMARY : FT_SURVIVOR_STANDBY, FT_SIDE_PRIMARY);
		w.survivor = how & 2;
	}
	if (ft_engine_new(&config, &world_env, NULL, arbiter, &host.engine, &err))
		abort();
	ft_engine_start_solo(host.engine, &host.vmm);
	/* Some begin in the middle, for a blind hand rarely gets that far. */
	if (how & 8)
		run(protect, how & 16 ? sizeof protect : sizeof protect - 9);
	while (in.left && is_primary()) {
		act(&in);
		assert(links_n() <= LINKS_MAX);
	}
	if (how & 4 && is_primary())
		ft_engine_stop(host.engine, "the end");
	host_end();
	return 0;
}

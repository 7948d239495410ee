// SPDX-License-Identifier: Apache-2.0
/* What a broken or hostile peer, NBD client or operator's program may send. The agent closes that
 * connection, says why, and neither the guest nor an honest peer notices. Frames are made with the
 * product's own header code, then spoilt. */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "ft/msg.h"
#include "tests/agent/harness.h"
#include "tests/agent/proxy.h"
#include "tools/agent/ctl_server.h"
#include "transport/frame.h"

#define SEED	     20240611u
#define LINK_IS_BACK "the link is back"

static struct host a, b;
static struct kv_client client;
static uint8_t uuid[FRAME_UUID]; /* the guest's */

static void learn_uuid(void)
{
	Ctl__Reply *reply = status_of(&a);
	const char *text = reply->status->uuid;

	for (unsigned i = 0; i < sizeof uuid; i++, text += 2) {
		text += *text == '-';
		assert_int_equal(sscanf(text, "%2hhx", &uuid[i]), 1);
	}
	ctl__reply__free_unpacked(reply, NULL);
}

static int setup(void **state)
{
	place_clear(state);
	pocket_pair(&a, &b, "", "");
	learn_uuid();
	kv_open(&client);
	kv_work(&client, 3);
	return 0;
}

/* Whatever was sent: both agents are the same processes as before, protected or able to be, and
 * equal. */
static int teardown(void **state)
{
	Ctl__Reply *reply = status_of(&a);
	bool solo = !strcmp(reply->status->state, "solo");

	ctl__reply__free_unpacked(reply, NULL);
	assert_true(process_alive(a.agent) && process_alive(b.agent));
	kv_work(&client, 5);
	if (solo)
		ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 5);
	ask_ok(&a, "verify", NULL);
	kv_close(&client);
	host_stop(&a);
	host_stop(&b);
	return place_clear(state);
}

static int connect_unix(const char *path)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	struct timeval limit = {10, 0};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
		fail_msg("%s: %s", path, strerror(errno));
	return fd;
}

/* It may close while we still send. */
static void put(int fd, const void *data, size_t len)
{
	const uint8_t *at = data;

	while (len) {
		ssize_t n = send(fd, at, len, MSG_NOSIGNAL);

		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return;
		assert_true(n > 0);
		at += n;
		len -= (size_t)n;
	}
}

static void wait_closed(int fd)
{
	char got[4096];
	ssize_t n;

	while ((n = recv(fd, got, sizeof got, 0)) > 0)
		;
	if (n < 0 && errno != ECONNRESET)
		fail_msg("the connection stays open: %s", strerror(errno));
	close(fd);
}

struct frame {
	struct frame_header h;
	uint8_t content[1024], raw[FRAME_HEADER + 1024];
	size_t len;
};

static void frame_make(struct frame *f, uint16_t type, uint64_t seq, uint64_t epoch,
		       const ProtobufCMessage *body, size_t payload)
{
	f->h = (struct frame_header){.type = type,
				     .seq = seq,
				     .generation = 1,
				     .epoch = epoch,
				     .payload_len = (uint32_t)payload};
	if (body)
		f->h.body_len = (uint32_t)protobuf_c_message_pack(body, f->content);
	memset(f->content + f->h.body_len, 0x5a, payload);
	f->h.body_hash = frame_hash(f->content, f->h.body_len);
	f->h.payload_hash = frame_hash(f->content + f->h.body_len, payload);
	memcpy(f->h.uuid, uuid, sizeof uuid);
	frame_encode(&f->h, f->raw);
	f->len = frame_length(&f->h);
	memcpy(f->raw + FRAME_HEADER, f->content, f->len - FRAME_HEADER);
}

static void hello_make(struct frame *f, uint64_t seq, const char *name, const char *host)
{
	Ft__Hello hello = FT__HELLO__INIT;

	hello.name = (char *)(uintptr_t)name;
	hello.host_id = (char *)(uintptr_t)host;
	hello.role = FT__ROLE__ROLE_PRIMARY;
	hello.version = (char *)(uintptr_t) "0";
	hello.runs = true;
	hello.generation = 1;
	frame_make(f, FT_MSG_HELLO, seq, 0, &hello.base, 0);
}

/* One connection, one thing on it, and the standby says `why`. */
static void spoilt(const void *data, size_t len, const char *why)
{
	int fd = connect_unix(at("b.sock"));
	unsigned before = host_lines(&b, why);
	uint64_t until = now_ms() + START_MS;

	put(fd, data, len);
	shutdown(fd, SHUT_WR);
	wait_closed(fd);
	while (host_lines(&b, why) == before) {
		if (now_ms() > until)
			fail_msg("expected '%s'; B said: %s", why, file_text(b.log));
		breathe(until, why);
	}
}

/* frame_encode() refuses to make one, rightly. */
static void oversize(struct frame *f)
{
	uint32_t length = FT_PAYLOAD_MAX + 1;
	uint64_t hash;

	f->h.payload_len = 0;
	frame_encode(&f->h, f->raw);
	memcpy(f->raw + 60, &length, sizeof length);
	hash = frame_hash(f->raw, 80);
	memcpy(f->raw + 80, &hash, sizeof hash);
}

static void frames_at_a_standby(void)
{
	struct frame f;

	hello_make(&f, 1, GUEST, "X");
	f.raw[0] ^= 1;
	spoilt(f.raw, f.len, "magic");
	hello_make(&f, 1, GUEST, "X");
	f.raw[8] = 99;
	spoilt(f.raw, f.len, "peer speaks 99");
	hello_make(&f, 1, GUEST, "X");
	f.raw[10] = 1;
	spoilt(f.raw, f.len, "header length");
	hello_make(&f, 1, GUEST, "X");
	f.raw[60] = 0xff;
	f.raw[62] = 0xff;
	spoilt(f.raw, f.len, "header hash");
	/* A header that is right, about more than a frame may hold. */
	oversize(&f);
	spoilt(f.raw, f.len, "payload length");
	hello_make(&f, 1, GUEST, "X");
	f.raw[FRAME_HEADER + 3] ^= 0x40;
	spoilt(f.raw, f.len, "body is corrupted");
	frame_make(&f, FT_MSG_PAGES, 1, 0, NULL, 100);
	f.raw[f.len - 1] ^= 1;
	spoilt(f.raw, f.len, "payload is corrupted");
	hello_make(&f, 1, GUEST, "X");
	spoilt(f.raw, f.len / 2, "in the middle of a frame");
	spoilt(f.raw, 10, "in the middle of a frame");
	hello_make(&f, 2, GUEST, "X");
	spoilt(f.raw, f.len, "sequence");
	frame_make(&f, FT_MSG_PAGES, 1, 0, NULL, 100);
	spoilt(f.raw, f.len, "PAGES before HELLO");
	hello_make(&f, 1, GUEST, "X");
	f.h.uuid[0] ^= 1;
	frame_encode(&f.h, f.raw);
	spoilt(f.raw, f.len, "uuid");
	hello_make(&f, 1, "other", "X");
	spoilt(f.raw, f.len, "agent is for 'g'");
	hello_make(&f, 1, GUEST, "");
	spoilt(f.raw, f.len, "host id");
	frame_make(&f, FT_MSG_HELLO, 1, 0, NULL, 0);
	spoilt(f.raw, f.len, "hello");
}

static void frames(void **state)
{
	(void)state;
	frames_at_a_standby();
	assert_state(&b, "standby");
}

/* The standby is a guest's life insurance now: a stranger must not end it. */
static void frames_while_protected(void **state)
{
	struct frame f;
	uint64_t before;

	(void)state;
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	before = committed(&a);
	frames_at_a_standby();
	/* A good HELLO, but not of its primary. */
	hello_make(&f, 1, GUEST, "X");
	spoilt(f.raw, f.len, "standby of 'A'");
	kv_work(&client, 20);
	assert_state(&a, "protected");
	assert_true(committed(&a) > before);
	assert_int_equal(host_lines(&a, "standby lost"), 0);
}

/* After a good HELLO: what an engine can be told that makes no sense. */
static void conversation(const struct frame *said, unsigned n)
{
	struct frame hello;
	int fd = connect_unix(at("b.sock"));

	hello_make(&hello, 1, GUEST, "X");
	put(fd, hello.raw, hello.len);
	for (unsigned i = 0; i < n; i++)
		put(fd, said[i].raw, said[i].len);
	shutdown(fd, SHUT_WR);
	wait_closed(fd);
	wait_state(&b, "standby", START_MS);
}

static void conversations(void **state)
{
	Ft__Setup setup = FT__SETUP__INIT;
	Ft__DiskChunk chunk = FT__DISK_CHUNK__INIT;
	Ft__Disk disk = FT__DISK__INIT, *disks[1] = {&disk};
	Ft__End end = FT__END__INIT;
	static struct frame said[4];

	(void)state;
	/* The same frame twice, one too early, one of an older connection. */
	hello_make(&said[0], 1, GUEST, "X");
	conversation(said, 1);
	frame_make(&said[0], FT_MSG_SETUP, 3, 0, NULL, 0);
	conversation(said, 1);
	frame_make(&said[0], FT_MSG_SETUP, 1, 0, NULL, 0);
	conversation(said, 1);
	for (uint16_t type = 0; type < FT_MSG_TYPE_MAX + 3; type++) {
		frame_make(&said[0], type, 2, 7, NULL, 0);
		conversation(said, 1);
		frame_make(&said[0], type, 2, 0, NULL, 200);
		conversation(said, 1);
	}
	setup.vmm = (char *)(uintptr_t) "pocket";
	setup.uuid = (char *)(uintptr_t) "x";
	setup.session = 5;
	setup.nics = 1;
	frame_make(&said[0], FT_MSG_SETUP, 2, 0, &setup.base, 0);
	conversation(said, 1);
	setup.ram_bytes = UINT64_MAX;
	frame_make(&said[0], FT_MSG_SETUP, 2, 0, &setup.base, 0);
	conversation(said, 1);
	/* Armed as it wants to be, then fed with nonsense. */
	setup.ram_bytes = 32u << 20;
	disk.id = (char *)(uintptr_t) "root";
	disk.image = (char *)(uintptr_t) "/etc/passwd";
	disk.bytes = 8u << 20;
	setup.disks = disks;
	setup.n_disks = 1;
	frame_make(&said[0], FT_MSG_SETUP, 2, 0, &setup.base, 0);
	frame_make(&said[1], FT_MSG_PAGES, 3, 0, NULL, 300);
	conversation(said, 2);
	frame_make(&said[1], FT_MSG_EVENTS, 3, 1, NULL, 300);
	conversation(said, 2);
	frame_make(&said[1], FT_MSG_BEGIN, 3, 1, NULL, 0);
	frame_make(&said[2], FT_MSG_EVENTS, 4, 1, NULL, 300);
	end.events_bytes = 300;
	end.state_bytes = 1;
	end.trial = true;
	frame_make(&said[3], FT_MSG_END, 5, 1, &end.base, 0);
	conversation(said, 4);
	chunk.disk = 77;
	chunk.bytes = 100;
	frame_make(&said[1], FT_MSG_DISK, 3, 0, &chunk.base, 100);
	conversation(said, 2);
	chunk.disk = 0;
	chunk.offset = UINT64_MAX - 50;
	frame_make(&said[1], FT_MSG_DISK, 3, 0, &chunk.base, 100);
	conversation(said, 2);
	frame_make(&said[1], FT_MSG_HANDOVER, 3, 9, NULL, 0);
	conversation(said, 2);
}

/* As the generation of the frame, and of the HELLO in it. */
static void frame_generation(struct frame *f, uint64_t generation)
{
	f->h.generation = generation;
	frame_encode(&f->h, f->raw);
}

static void hello_of(struct frame *f, uint64_t generation)
{
	Ft__Hello hello = FT__HELLO__INIT;

	hello.name = (char *)(uintptr_t)GUEST;
	hello.host_id = (char *)(uintptr_t) "A";
	hello.role = FT__ROLE__ROLE_PRIMARY;
	hello.version = (char *)(uintptr_t) "0";
	hello.runs = true;
	hello.generation = generation;
	frame_make(f, FT_MSG_HELLO, 1, 0, &hello.base, 0);
	frame_generation(f, generation);
}

/* What was right in an earlier session, said again: by its own frames, and word by word under the
 * generation of today. */
static void yesterdays_history(void **state)
{
	Ft__Setup setup = FT__SETUP__INIT;
	Ft__Disk disk = FT__DISK__INIT, *disks[1] = {&disk};
	static struct frame said[4];
	uint8_t all[sizeof said];
	uint64_t generation;
	Ctl__Reply *reply;
	size_t n = 0;

	(void)state;
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	ask_ok(&a, "cancel", NULL);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 5);
	reply = status_of(&a);
	generation = reply->status->generation;
	ctl__reply__free_unpacked(reply, NULL);
	ask_ok(&a, "cancel", NULL);
	wait_state(&b, "standby", START_MS);
	assert_true(generation > 1);
	hello_of(&said[0], generation - 1);
	spoilt(said[0].raw, said[0].len, "this side knows");
	/* To go on with a session that is over. */
	hello_of(&said[0], generation);
	disk.id = (char *)(uintptr_t) "root";
	disk.image = (char *)(uintptr_t) "x";
	disk.bytes = 8u << 20;
	setup.vmm = (char *)(uintptr_t) "pocket";
	setup.uuid = (char *)(uintptr_t) "x";
	setup.session = 5;
	setup.nics = 1;
	setup.ram_bytes = 32u << 20;
	setup.disks = disks;
	setup.n_disks = 1;
	setup.resume = true;
	frame_make(&said[1], FT_MSG_SETUP, 2, 0, &setup.base, 0);
	frame_generation(&said[1], generation);
	memcpy(all, said[0].raw, said[0].len);
	memcpy(all + said[0].len, said[1].raw, said[1].len);
	spoilt(all, said[0].len + said[1].len, "SETUP: resume");
	/* A new session, and in it a frame of the one before. */
	setup.resume = false;
	frame_make(&said[1], FT_MSG_SETUP, 2, 0, &setup.base, 0);
	frame_generation(&said[1], generation);
	frame_make(&said[2], FT_MSG_PAGES, 3, 0, NULL, 300);
	frame_generation(&said[2], generation - 1);
	for (unsigned i = 0; i < 3; i++) {
		memcpy(all + n, said[i].raw, said[i].len);
		n += said[i].len;
	}
	spoilt(all, n, "PAGES: generation");
	wait_state(&b, "standby", START_MS);
}

static uint32_t random_next(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

static void noise(const char *path, unsigned rounds)
{
	uint32_t seed = SEED;
	uint8_t bytes[4096];

	for (unsigned i = 0; i < rounds; i++) {
		int fd = connect_unix(path);
		size_t n = random_next(&seed) % sizeof bytes;

		for (size_t k = 0; k < n; k++)
			bytes[k] = (uint8_t)random_next(&seed);
		put(fd, bytes, n);
		shutdown(fd, SHUT_WR);
		wait_closed(fd);
	}
}

static void garbage(void **state)
{
	(void)state;
	noise(at("b.sock"), 50);
	noise(at("A/%s.sock", GUEST), 50);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	noise(at("b.sock"), 50);
	noise(at("A/%s.nbd0", GUEST), 50);
	noise(at("A/%s.sock", GUEST), 50);
	noise(at("B/%s.sock", GUEST), 50);
	kv_work(&client, 20);
	assert_state(&a, "protected");
	assert_int_equal(host_lines(&a, "standby lost"), 0);
}

/* So many faults, and then the pair is the one it was before. */
static void spoil(struct proxy *wire, enum proxy_fault fault, enum proxy_side from, bool large,
		  unsigned times, struct host *primary)
{
	struct host *standby = primary == &a ? &b : &a;
	unsigned back = host_lines(primary, LINK_IS_BACK);
	uint64_t until = now_ms() + START_MS;

	proxy_fault(wire, fault, from, large, times);
	kv_work(&client, 5);
	proxy_wait(wire, START_MS);
	kv_work(&client, 5);
	while (host_lines(primary, LINK_IS_BACK) == back)
		breathe(until, LINK_IS_BACK);
	assert_state(primary, "protected");
	assert_state(standby, "standby");
	ask_ok(primary, "verify", NULL);
}

/* Of each kind, in what this primary sends and in what it is answered. */
static void spoil_all(struct proxy *wire, enum proxy_side of_primary, struct host *primary)
{
	static const enum proxy_fault faults[] = {PROXY_FLIP, PROXY_REPEAT, PROXY_LOSE, PROXY_CUT};

	for (unsigned i = 0; i < 4; i++) {
		spoil(wire, faults[i], of_primary, true, 1, primary);
		spoil(wire, faults[i], of_primary == PROXY_CLIENT ? PROXY_SERVER : PROXY_CLIENT,
		      false, 1, primary);
	}
	/* The next connection ends in its first words, when there are no heartbeats again yet. */
	for (unsigned i = 0; i < 5; i++)
		spoil(wire, PROXY_CUT, of_primary, true, 2, primary);
}

/* A wire that spoils what passes, between two that are protected: the link ends, comes back, and
 * nothing was lost, whoever made the connection and whatever was spoilt. */
static void bad_wire(void **state)
{
	struct proxy *wire = proxy_start(at("wire.sock"), at("b.sock"));

	(void)state;
	ask_ok(&a, "migrate", unix_uri("wire.sock"));
	spoil_all(wire, PROXY_CLIENT, &a);
	/* Now the standby dials, and the primary does not know the way. */
	ask_ok(&a, "failover", NULL);
	wait_state(&b, "protected", PROTECT_MS);
	spoil_all(wire, PROXY_SERVER, &b);
	ask_ok(&b, "failover", NULL);
	wait_state(&a, "protected", PROTECT_MS);
	ask_ok(&a, "cancel", NULL);
	proxy_stop(wire);
}

/* Control: more than may be said, and clients that say nothing, more than there is room for. */
static void operators(void **state)
{
	uint8_t length[CTL_HEADER_BYTES];
	int idle[CTL_CLIENTS_MAX + 8], fd;

	(void)state;
	fd = connect_unix(at("A/%s.sock", GUEST));
	ctl_put_length(length, CTL_REQUEST_MAX + 1);
	put(fd, length, sizeof length);
	wait_closed(fd);
	fd = connect_unix(at("A/%s.sock", GUEST));
	ctl_put_length(length, 5);
	put(fd, length, sizeof length);
	put(fd, "\xff\xff\xff\xff\xff", 5);
	wait_closed(fd);
	for (unsigned i = 0; i < CTL_CLIENTS_MAX + 8; i++)
		idle[i] = connect_unix(at("A/%s.sock", GUEST));
	kv_work(&client, 5);
	for (unsigned i = 0; i < CTL_CLIENTS_MAX + 8; i++)
		close(idle[i]);
	assert_state(&a, "solo");
}

/* Strangers that connect and say nothing take the places of those who do not know anybody; an
 * honest primary comes in after them. */
static void silent_strangers(void **state)
{
	uint64_t until = now_ms() + PROTECT_MS;
	char message[512];
	int idle[12];

	(void)state;
	for (unsigned i = 0; i < 12; i++)
		idle[i] = connect_unix(at("b.sock"));
	while (ask(&a, "migrate", unix_uri("b.sock"), message))
		breathe(until, message);
	for (unsigned i = 0; i < 12; i++)
		close(idle[i]);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(frames),
		TEST(frames_while_protected),
		TEST(conversations),
		TEST(garbage),
		TEST(bad_wire),
		TEST(operators),
		TEST(yesterdays_history),
		TEST(silent_strangers),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}

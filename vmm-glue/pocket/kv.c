// SPDX-License-Identifier: Apache-2.0
// The key-value server as a guest program. A PUT takes four steps (take the request in, write its
// record, flush, commit and answer), so a checkpoint can fall between any two. Everything is in
// guest RAM:
//
//   struct vars at MACHINE_VARS_AT, the request in work included
//   clients     32 sets of 8, a client lives in the set of its hash; the one that was quiet longest
//   gives way keys        open addressing, at most 3/4 full, PROBES_MAX long; half of the memory
//   behind the clients
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "vmm-glue/pocket/kv.h"
#include "vmm-glue/pocket/machine.h"

#define VARS_MAGIC  0x31535241565f564bull /* "KV_VARS1" */
#define CLIENT_SETS 32u
#define CLIENT_WAYS 8u
#define CLIENTS	    (CLIENT_SETS * CLIENT_WAYS)
#define PROBES_MAX  128u // so that a table made to be slow is not

enum halt_reason { HALT_VARS = 1, HALT_REQUEST, HALT_KEYS };

struct vars {
	uint64_t magic;
	uint64_t number, chain; // operations executed, hash over them
	uint64_t puts, keys;	// records written, keys in the table
	uint32_t request_len;
	uint8_t peer[POCKET_FRAME_ADDR], zero[2];
	char request[KV_REQUEST_MAX + 2];
};

struct client {
	uint64_t id, seq, number; // 0: free; last operation: its seq and number
	uint32_t answer_len;
	char answer[KV_ANSWER_MAX];
	uint8_t zero[512 - 28 - KV_ANSWER_MAX];
} __attribute__((packed, aligned(8)));

struct key {
	uint16_t key_len, value_len; // key_len 0: free
	char key[KV_KEY_MAX + 1], value[KV_VALUE_MAX + 1];
	uint8_t zero[28];
};

_Static_assert(sizeof(struct vars) <= VMM_PAGE_BYTES, "one page");
_Static_assert(sizeof(struct client) == 512, "eight to a page");
_Static_assert(sizeof(struct key) == 320, "no padding");
_Static_assert(KV_ANSWER_MAX + POCKET_FRAME_ADDR <= POCKET_FRAME_MAX, "an answer is a frame");

static struct vars *vars_of(const struct machine *m)
{
	return (struct vars *)(m->ram + MACHINE_VARS_AT);
}

static struct client *clients_of(const struct machine *m)
{
	return (struct client *)(m->ram + MACHINE_HEAP_AT);
}

static struct key *keys_of(const struct machine *m)
{
	return (struct key *)(m->ram + MACHINE_HEAP_AT + CLIENTS * sizeof(struct client));
}

static uint64_t keys_max(uint64_t ram_bytes)
{
	return (ram_bytes - MACHINE_HEAP_AT - CLIENTS * sizeof(struct client)) / 2 /
	       sizeof(struct key);
}

// How many of them may be used.
static uint64_t keys_limit(const struct machine *m)
{
	return keys_max(m->s.ram_bytes) / 4 * 3;
}

static uint64_t kv_heap(uint64_t ram_bytes)
{
	return CLIENTS * sizeof(struct client) + keys_max(ram_bytes) * sizeof(struct key);
}

// The client's slot, or the slot that it may have.
static struct client *client_find(const struct machine *m, uint64_t id)
{
	struct client *set = clients_of(m) +
			     (XXH3_64bits(&id, sizeof id) % CLIENT_SETS) * CLIENT_WAYS,
		      *victim = set;

	for (unsigned i = 0; i < CLIENT_WAYS; i++) {
		if (set[i].id == id)
			return &set[i];
		if (set[i].number < victim->number)
			victim = &set[i];
	}
	return victim;
}

// The key's slot, or the free one that it would take; NULL if there is none near enough.
static struct key *key_find(const struct machine *m, const char *name, size_t len)
{
	uint64_t max = keys_max(m->s.ram_bytes), at = XXH3_64bits(name, len) % max;
	struct key *keys = keys_of(m);

	for (uint64_t i = 0; i < PROBES_MAX; i++, at = (at + 1) % max)
		if (!keys[at].key_len ||
		    (keys[at].key_len == len && !memcmp(keys[at].key, name, len)))
			return &keys[at];
	return NULL;
}

// ---- answers

static void reply(struct machine *m, const char *text, size_t len)
{
	uint8_t *frame = machine_at(m, MACHINE_TX_AT, POCKET_FRAME_ADDR + len);

	memcpy(frame, vars_of(m)->peer, POCKET_FRAME_ADDR);
	memcpy(frame + POCKET_FRAME_ADDR, text, len);
	machine_store(m, MACHINE_NIC_TX_ADDR, MACHINE_TX_AT, 8);
	machine_store(m, MACHINE_NIC_TX_LEN, POCKET_FRAME_ADDR + len, 8);
}

static void reply_error(struct machine *m, const struct kv_request *req, const char *why)
{
	char text[KV_ANSWER_MAX];
	int len = snprintf(text, sizeof text, "ERR %llu %llu %s\n", (unsigned long long)req->client,
			   (unsigned long long)req->seq, why);

	reply(m, text, (size_t)len);
}

static int answer_write(char *out, const struct vars *v, const struct kv_request *req,
			const struct key *key)
{
	const char *status = req->put ? "OK" : key->key_len ? "VALUE" : "NONE";
	int value_len = !req->put && key->key_len
				? (key->value_len <= KV_VALUE_MAX ? key->value_len : KV_VALUE_MAX)
				: 0;

	return snprintf(out, KV_ANSWER_MAX, "%s %llu %llu %llu %016llx%s%.*s\n", status,
			(unsigned long long)req->client, (unsigned long long)req->seq,
			(unsigned long long)v->number, (unsigned long long)v->chain,
			value_len ? " " : "", value_len, value_len ? key->value : "");
}

// ---- one request, step by step

static bool take_in(struct machine *m)
{
	const uint8_t *slot =
		m->ram + MACHINE_RX_AT + (m->s.nic.rx_out % MACHINE_RX_SLOTS) * MACHINE_RX_BYTES;
	struct vars *v = vars_of(m);
	uint32_t len;
	bool fits;

	memcpy(&len, slot, sizeof len);
	fits = len >= POCKET_FRAME_ADDR && len - POCKET_FRAME_ADDR <= KV_REQUEST_MAX;
	v->request_len = fits ? len - POCKET_FRAME_ADDR : 0;
	memcpy(v->peer, slot + sizeof len, sizeof v->peer);
	memcpy(v->request, slot + sizeof len + POCKET_FRAME_ADDR, v->request_len);
	machine_store(m, MACHINE_NIC_RX_OUT, m->s.nic.rx_out + 1, 8);
	return fits || len > POCKET_FRAME_ADDR;
}

static void begin(struct machine *m)
{
	struct vars *v = vars_of(m);
	struct kv_request req;
	struct client *client;
	struct key *key;

	if (!take_in(m))
		return;
	if (!kv_request_parse(v->request, v->request_len, &req)) {
		reply_error(m, &(struct kv_request){0}, "syntax");
		return;
	}
	client = client_find(m, req.client);
	if (client->id == req.client && req.seq == client->seq) {
		reply(m, client->answer,
		      client->answer_len <= KV_ANSWER_MAX ? client->answer_len : KV_ANSWER_MAX);
		return;
	}
	if (client->id == req.client && req.seq != client->seq + 1) {
		reply_error(m, &req, "order");
		return;
	}
	key = key_find(m, req.key, req.key_len);
	if (!key || (req.put && !key->key_len && v->keys >= keys_limit(m))) {
		reply_error(m, &req, "full");
		return;
	}
	m->s.cpu.pc = req.put && m->s.disks_n ? PC_JOURNAL : PC_COMMIT;
}

// The request that was taken in. What parsed then must parse now, unless the RAM is not what it
// was.
static bool current(struct machine *m, struct kv_request *req)
{
	const struct vars *v = vars_of(m);

	if (v->request_len <= KV_REQUEST_MAX && kv_request_parse(v->request, v->request_len, req))
		return true;
	machine_halt(m, HALT_REQUEST);
	return false;
}

static unsigned journal_disk(const struct machine *m)
{
	return (unsigned)(vars_of(m)->puts % m->s.disks_n);
}

static bool disk_do(struct machine *m, enum machine_disk_cmd cmd)
{
	unsigned disk = journal_disk(m);
	struct kv_request req;

	machine_store(m, MACHINE_DISK(disk) + MACHINE_DISK_CMD, cmd, 8);
	if (!machine_disk_status(m, disk))
		return true;
	m->s.cpu.pc = PC_IDLE;
	if (current(m, &req))
		reply_error(m, &req, "io");
	return false;
}

static void journal(struct machine *m)
{
	struct vars *v = vars_of(m);
	struct kv_record *rec = machine_at(m, MACHINE_DISK_AT, sizeof *rec);
	unsigned disk = journal_disk(m);
	uint64_t records = m->s.disks[disk].bytes / KV_RECORD_BYTES;
	uint64_t at = v->puts / m->s.disks_n % (records ? records : 1) * KV_RECORD_BYTES;
	struct kv_request req;

	if (!current(m, &req))
		return;
	*rec = (struct kv_record){
		.magic = KV_RECORD_MAGIC,
		.number = v->number + 1,
		.chain = kv_chain(v->chain, v->request, req.len),
		.client = req.client,
		.seq = req.seq,
		.key_len = (uint16_t)req.key_len,
		.value_len = (uint16_t)req.value_len,
	};
	memcpy(rec->key, req.key, req.key_len);
	memcpy(rec->value, req.value, req.value_len);
	rec->sum = XXH3_64bits(rec, offsetof(struct kv_record, sum));
	machine_store(m, MACHINE_DISK(disk) + MACHINE_DISK_OFFSET, at, 8);
	machine_store(m, MACHINE_DISK(disk) + MACHINE_DISK_ADDR, MACHINE_DISK_AT, 8);
	machine_store(m, MACHINE_DISK(disk) + MACHINE_DISK_LEN, sizeof *rec, 8);
	if (disk_do(m, MACHINE_DISK_WRITE))
		m->s.cpu.pc = PC_FLUSH;
}

static void table_put(struct vars *v, struct key *key, const struct kv_request *req)
{
	if (!key->key_len)
		v->keys++;
	*key = (struct key){.key_len = (uint16_t)req->key_len,
			    .value_len = (uint16_t)req->value_len};
	memcpy(key->key, req->key, req->key_len);
	memcpy(key->value, req->value, req->value_len);
	v->puts++;
}

static void commit(struct machine *m)
{
	struct vars *v = vars_of(m);
	struct kv_request req;
	struct client *client;
	struct key *key;

	if (!current(m, &req))
		return;
	key = key_find(m, req.key, req.key_len);
	if (!key) {
		machine_halt(m, HALT_KEYS);
		return;
	}
	if (req.put)
		table_put(v, key, &req);
	v->number++;
	v->chain = kv_chain(v->chain, v->request, req.len);
	client = client_find(m, req.client);
	*client = (struct client){.id = req.client, .seq = req.seq, .number = v->number};
	client->answer_len = (uint32_t)answer_write(client->answer, v, &req, key);
	m->s.cpu.pc = PC_IDLE;
	reply(m, client->answer, client->answer_len);
	if (req.put)
		machine_store(m, POCKET_MMIO_COUNTER, v->number, 8);
}

// ---- the program

static void kv_boot(struct machine *m)
{
	struct vars *v = vars_of(m);

	v->magic = VARS_MAGIC;
	v->chain = KV_CHAIN_START;
	machine_print(m, "kv: ready, room for %llu keys\n", (unsigned long long)keys_limit(m));
}

static bool kv_idle(struct machine *m)
{
	bool frame = m->s.nic.rx_in != m->s.nic.rx_out;

	// Frames and the dirtier take turns, so that neither starves the other.
	if ((!frame || !m->s.cpu.reg[REG_TURN]) && dirtier_step(m)) {
		m->s.cpu.reg[REG_TURN] = 1;
		return true;
	}
	m->s.cpu.reg[REG_TURN] = 0;
	if (frame)
		begin(m);
	return frame;
}

static bool kv_step(struct machine *m)
{
	if (vars_of(m)->magic != VARS_MAGIC) {
		machine_halt(m, HALT_VARS);
		return true;
	}
	switch (m->s.cpu.pc) {
	case PC_JOURNAL:
		if (m->s.disks_n)
			journal(m);
		else
			machine_halt(m, HALT_VARS);
		return true;
	case PC_FLUSH:
		if (!m->s.disks_n)
			machine_halt(m, HALT_VARS);
		else if (disk_do(m, MACHINE_DISK_FLUSH))
			m->s.cpu.pc = PC_COMMIT;
		return true;
	case PC_COMMIT:
		commit(m);
		return true;
	default:
		return kv_idle(m);
	}
}

static void kv_tick(struct machine *m)
{
	uint64_t number = vars_of(m)->number;

	if (number != m->s.cpu.reg[REG_REPORTED])
		machine_print(m, "kv: %llu operations\n", (unsigned long long)number);
	m->s.cpu.reg[REG_REPORTED] = number;
}

static int verify_clients(const struct machine *m, struct ft_err *err)
{
	const struct client *clients = clients_of(m);

	for (unsigned i = 0; i < CLIENTS; i++) {
		if (clients[i].number > vars_of(m)->number ||
		    clients[i].answer_len >= KV_ANSWER_MAX)
			return ft_err_set(err, EBADMSG, "pocket: kv: client slot %u", i);
		if (clients[i].id && client_find(m, clients[i].id) != &clients[i])
			return ft_err_set(
				err, EBADMSG,
				"pocket: kv: client slot %u is not where it is looked for", i);
	}
	return 0;
}

static int verify_keys(const struct machine *m, struct ft_err *err)
{
	const struct key *keys = keys_of(m);
	uint64_t used = 0, max = keys_max(m->s.ram_bytes);

	for (uint64_t i = 0; i < max; i++) {
		if (!keys[i].key_len)
			continue;
		used++;
		if (keys[i].key_len > KV_KEY_MAX || !keys[i].value_len ||
		    keys[i].value_len > KV_VALUE_MAX ||
		    key_find(m, keys[i].key, keys[i].key_len) != &keys[i])
			return ft_err_set(err, EBADMSG, "pocket: kv: key slot %llu",
					  (unsigned long long)i);
	}
	if (used != vars_of(m)->keys)
		return ft_err_set(err, EBADMSG, "pocket: kv: %llu keys counted, %llu there",
				  (unsigned long long)vars_of(m)->keys, (unsigned long long)used);
	return 0;
}

static int kv_verify(const struct machine *m, struct ft_err *err)
{
	const struct vars *v = vars_of(m);
	struct kv_request req;
	int rc;

	if (v->magic != VARS_MAGIC)
		return ft_err_set(err, EBADMSG, "pocket: kv: variables are not there");
	if (v->request_len > KV_REQUEST_MAX)
		return ft_err_set(err, EBADMSG, "pocket: kv: request is too long");
	if (m->s.cpu.pc != PC_IDLE && !kv_request_parse(v->request, v->request_len, &req))
		return ft_err_set(err, EBADMSG, "pocket: kv: request in work does not parse");
	rc = verify_clients(m, err);
	return rc ? rc : verify_keys(m, err);
}

const struct machine_program machine_kv = {
	.boot = kv_boot,
	.step = kv_step,
	.tick = kv_tick,
	.wake = dirtier_wake,
	.verify = kv_verify,
	.heap_bytes = kv_heap,
};

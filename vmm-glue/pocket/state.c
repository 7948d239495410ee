// SPDX-License-Identifier: Apache-2.0
// The machine's state as bytes:
//
//   8 bytes magic "POCKETST", u32 version, u32 length of the body, u64 XXH3-64 of the body, body;
//   all little endian.
//
// The body is the fields of struct machine_state in the order of visit(), u64 each or plain bytes.
// One list of fields serves both directions, so saving and loading cannot drift apart. The checksum
// is verified before anything is read.
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "vmm-glue/pocket/machine.h"

#define VERSION	     1u
#define HEADER_BYTES 24u

static const char magic[8] = {'P', 'O', 'C', 'K', 'E', 'T', 'S', 'T'};

_Static_assert(sizeof(struct machine_state) + HEADER_BYTES < MACHINE_SAVED_MAX,
	       "no field grows when it is saved");
_Static_assert(MACHINE_SAVED_MAX <= VMM_STATE_BYTES_MAX, "fits a checkpoint");

struct visitor {
	uint8_t *at, *end;
	bool saving, bad;
};

static void bytes(struct visitor *v, void *field, size_t len)
{
	if (v->bad || (size_t)(v->end - v->at) < len) {
		v->bad = true;
		return;
	}
	if (v->saving)
		memcpy(v->at, field, len);
	else
		memcpy(field, v->at, len);
	v->at += len;
}

static void number(struct visitor *v, uint64_t *field)
{
	uint64_t wire = htole64(*field);

	bytes(v, &wire, sizeof wire);
	*field = le64toh(wire);
}

static void visit_disk(struct visitor *v, struct machine_state *s, unsigned d)
{
	number(v, &s->disks[d].bytes);
	number(v, &s->disks[d].offset);
	number(v, &s->disks[d].addr);
	number(v, &s->disks[d].len);
	number(v, &s->disks[d].status);
}

static void visit(struct visitor *v, struct machine_state *s)
{
	number(v, &s->program);
	number(v, &s->ram_bytes);
	bytes(v, s->uuid, sizeof s->uuid);
	number(v, &s->cpu.pc);
	number(v, &s->cpu.time_ns);
	number(v, &s->cpu.steps);
	for (unsigned i = 0; i < REG_MAX; i++)
		number(v, &s->cpu.reg[i]);
	number(v, &s->timer.period_ns);
	number(v, &s->timer.next_ns);
	number(v, &s->timer.ticks);
	number(v, &s->nic.tx_addr);
	number(v, &s->nic.rx_in);
	number(v, &s->nic.rx_out);
	number(v, &s->nic.rx_dropped);
	number(v, &s->nic.tx_frames);
	number(v, &s->disks_n);
	if (s->disks_n > VMM_DISKS_MAX)
		v->bad = true;
	for (unsigned i = 0; !v->bad && i < s->disks_n; i++)
		visit_disk(v, s, i);
	number(v, &s->console.len);
	number(v, &s->console.bytes_out);
	bytes(v, s->console.line, sizeof s->console.line);
	number(v, &s->stalled.kind);
	number(v, &s->stalled.addr);
	number(v, &s->stalled.value);
	number(v, &s->stalled.width);
}

size_t machine_save(const struct machine *m, uint8_t *out)
{
	struct machine_state s = m->s; // a visitor may write, even if one that saves does not
	struct visitor v = {
		.at = out + HEADER_BYTES, .end = out + MACHINE_SAVED_MAX, .saving = true};
	uint32_t version = htole32(VERSION), len;
	uint64_t sum;

	visit(&v, &s);
	len = htole32((uint32_t)(v.at - out - HEADER_BYTES));
	sum = htole64(XXH3_64bits(out + HEADER_BYTES, (size_t)(v.at - out) - HEADER_BYTES));
	memcpy(out, magic, sizeof magic);
	memcpy(out + 8, &version, 4);
	memcpy(out + 12, &len, 4);
	memcpy(out + 16, &sum, 8);
	return (size_t)(v.at - out);
}

static int check_header(const uint8_t *in, size_t len, struct ft_err *err)
{
	uint32_t version, body;
	uint64_t sum;

	if (len < HEADER_BYTES || len > MACHINE_SAVED_MAX)
		return ft_err_set(err, EPROTO, "pocket state: %zu bytes is no state", len);
	memcpy(&version, in + 8, 4);
	memcpy(&body, in + 12, 4);
	memcpy(&sum, in + 16, 8);
	if (memcmp(in, magic, sizeof magic) != 0)
		return ft_err_set(err, EPROTO, "pocket state: no magic");
	if (le32toh(version) != VERSION)
		return ft_err_set(err, EPROTO, "pocket state: version %u, this is %u",
				  le32toh(version), VERSION);
	if (le32toh(body) != len - HEADER_BYTES)
		return ft_err_set(err, EPROTO, "pocket state: length does not match");
	if (le64toh(sum) != XXH3_64bits(in + HEADER_BYTES, len - HEADER_BYTES))
		return ft_err_set(err, EPROTO, "pocket state: checksum does not match");
	return 0;
}

static bool valid_width(uint64_t width)
{
	return width == 1 || width == 2 || width == 4 || width == 8;
}

// What every later step relies on, for a checksum only says that nobody garbled it on the way.
static int check_fields(const struct machine_state *s, struct ft_err *err)
{
	uint64_t pages = s->ram_bytes / VMM_PAGE_BYTES, first = s->cpu.reg[REG_SET_FIRST];

	if (s->cpu.pc >= PC_MAX)
		return ft_err_set(err, EPROTO, "pocket state: cpu: pc %llu",
				  (unsigned long long)s->cpu.pc);
	if (s->nic.rx_in - s->nic.rx_out > MACHINE_RX_SLOTS)
		return ft_err_set(err, EPROTO, "pocket state: nic: receive ring");
	if (!s->timer.period_ns && s->timer.next_ns != MACHINE_NEVER)
		return ft_err_set(err, EPROTO, "pocket state: timer: armed without a period");
	if (s->stalled.kind && (!valid_width(s->stalled.width) ||
				(s->stalled.kind != TAP_PIO && s->stalled.kind != TAP_MMIO)))
		return ft_err_set(err, EPROTO, "pocket state: doorbell");
	if (s->console.len >= MACHINE_LINE_MAX)
		return ft_err_set(err, EPROTO, "pocket state: console: line");
	if (first > pages || s->cpu.reg[REG_SET_PAGES] > pages - first ||
	    first < MACHINE_HEAP_AT / VMM_PAGE_BYTES)
		return ft_err_set(err, EPROTO, "pocket state: cpu: working set");
	return 0;
}

static int check_same(const struct machine_state *was, const struct machine_state *s,
		      struct ft_err *err)
{
	if (s->program != was->program)
		return ft_err_set(err, EINVAL,
				  "pocket state: program: not the one configured here");
	if (s->ram_bytes != was->ram_bytes)
		return ft_err_set(err, EINVAL, "pocket state: memory: %llu bytes, here %llu",
				  (unsigned long long)s->ram_bytes,
				  (unsigned long long)was->ram_bytes);
	if (memcmp(s->uuid, was->uuid, sizeof s->uuid) != 0)
		return ft_err_set(err, EINVAL, "pocket state: uuid: of another guest");
	if (s->disks_n != was->disks_n)
		return ft_err_set(err, EINVAL, "pocket state: disks: %llu, here %llu",
				  (unsigned long long)s->disks_n, (unsigned long long)was->disks_n);
	for (unsigned i = 0; i < s->disks_n; i++)
		if (s->disks[i].bytes != was->disks[i].bytes)
			return ft_err_set(err, EINVAL,
					  "pocket state: disk %u: other size than here", i);
	return 0;
}

int machine_load(struct machine *m, const uint8_t *in, size_t len, struct ft_err *err)
{
	uint8_t copy[MACHINE_SAVED_MAX];
	struct machine_state s = {0};
	struct visitor v;
	int rc = check_header(in, len, err);

	if (rc)
		return rc;
	memcpy(copy, in, len);
	v = (struct visitor){.at = copy + HEADER_BYTES, .end = copy + len};
	visit(&v, &s);
	if (v.bad || v.at != v.end)
		return ft_err_set(err, EPROTO, "pocket state: fields do not fit its length");
	rc = check_same(&m->s, &s, err);
	if (!rc)
		rc = check_fields(&s, err);
	if (!rc)
		m->s = s;
	return rc;
}

int machine_verify(const struct machine *m, struct ft_err *err)
{
	const struct machine_program *program =
		m->s.program == POCKET_KV ? &machine_kv : &machine_dirty;
	int rc = check_fields(&m->s, err);

	if (rc)
		return rc;
	if (m->s.cpu.pc == PC_HALT)
		return ft_err_set(err, EBADMSG, "pocket: the guest has halted (%llu)",
				  (unsigned long long)m->s.cpu.reg[REG_HALT]);
	return m->s.cpu.pc == PC_BOOT ? 0 : program->verify(m, err);
}

// SPDX-License-Identifier: Apache-2.0
/* proto/PROTOCOL.md against the code: messages, bodies, states, phases, record kinds, bounds and
 * deadlines, each with its number. Somebody writes a second standby from that file, so it may not
 * fall behind. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "eventtap/block/bitmaps_follow.h"
#include "eventtap/tap.h"
#include "ft/arbiter.h"
#include "ft/codec.h"
#include "ft/engine.h"
#include "ft/lease.h"
#include "ft/msg.h"
#include "ft/policy.h"
#include "ft/state.h"
#include "transport/frame.h"
#include "transport/link.h"
#include "transport/listener.h"
#include "vmm-glue/vmm.h"

static char *doc;
static const char *section; /* rows are looked for from here on */

static char *read_file(const char *name)
{
	const char *root = getenv("FT_SOURCE_DIR");
	char path[4096], *text;
	FILE *f;
	long len;

	snprintf(path, sizeof path, "%s/%s", root ? root : ".", name);
	f = fopen(path, "re");
	if (!f)
		fail_msg("%s: cannot open", path);
	fseek(f, 0, SEEK_END);
	len = ftell(f);
	rewind(f);
	text = calloc(1, (size_t)len + 1);
	assert_int_equal(fread(text, 1, (size_t)len, f), len);
	fclose(f);
	return text;
}

/* A line of the document that begins so. */
static const char *find_row(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static const char *find_row(const char *fmt, ...)
{
	char row[256];
	const char *at;
	va_list ap;

	row[0] = '\n';
	va_start(ap, fmt);
	vsnprintf(row + 1, sizeof row - 1, fmt, ap);
	va_end(ap);
	at = strstr(section, row);
	if (!at)
		fail_msg("PROTOCOL.md has no line '%s...'", row + 1);
	return at + strlen(row);
}

static void test_messages(void **state)
{
	char last[64];

	(void)state;
	for (unsigned type = FT_MSG_HELLO; type < FT_MSG_TYPE_MAX; type++) {
		find_row("| %u | %s | ", type, ft_msg_name(type));
		snprintf(last, sizeof last, "\n### %s\n", ft_msg_name(type));
		if (!strstr(doc, last))
			fail_msg("PROTOCOL.md has no section '%s'", ft_msg_name(type));
	}
	snprintf(last, sizeof last, "\n| %u | ", FT_MSG_TYPE_MAX);
	assert_null(strstr(strstr(doc, "\n| 17 | SUMS |") + 1, last));
}

static const char *type_name(const ProtobufCFieldDescriptor *field)
{
	switch (field->type) {
	case PROTOBUF_C_TYPE_STRING:
		return "string";
	case PROTOBUF_C_TYPE_BOOL:
		return "bool";
	case PROTOBUF_C_TYPE_UINT32:
		return "uint32";
	case PROTOBUF_C_TYPE_UINT64:
		return "uint64";
	case PROTOBUF_C_TYPE_BYTES:
		return "bytes";
	case PROTOBUF_C_TYPE_ENUM:
		return ((const ProtobufCEnumDescriptor *)field->descriptor)->short_name;
	case PROTOBUF_C_TYPE_MESSAGE:
		return ((const ProtobufCMessageDescriptor *)field->descriptor)->short_name;
	default:
		fail_msg("%s: a type that PROTOCOL.md has no word for", field->name);
		return "";
	}
}

static void test_bodies(void **state)
{
	static const ProtobufCMessageDescriptor *const bodies[] = {
		&ft__hello__descriptor,	 &ft__refuse__descriptor,      &ft__setup__descriptor,
		&ft__disk__descriptor,	 &ft__ready__descriptor,       &ft__disk_chunk__descriptor,
		&ft__end__descriptor,	 &ft__digest__descriptor,      &ft__beat__descriptor,
		&ft__sums__descriptor,	 &ft__missing__descriptor,     &ft__stays__descriptor,
		&ft__bitmap__descriptor, &ft__bitmap_data__descriptor,
	};
	const size_t bodies_n = sizeof bodies / sizeof *bodies;
	char *proto = read_file("proto/ft.proto");
	size_t declared = 0;

	(void)state;
	for (const char *at = proto; (at = strstr(at, "\nmessage ")); at++)
		declared++;
	assert_int_equal(declared, bodies_n);
	free(proto);
	for (size_t i = 0; i < bodies_n; i++)
		for (unsigned f = 0; f < bodies[i]->n_fields; f++) {
			const ProtobufCFieldDescriptor *field = &bodies[i]->fields[f];

			find_row("| `%s.%s` | %" PRIu32 " | %s%s |", bodies[i]->short_name,
				 field->name, field->id,
				 field->label == PROTOBUF_C_LABEL_REPEATED ? "repeated " : "",
				 type_name(field));
		}
}

/* The row of a state lists its successors, no more and no less. */
static void test_states(void **state)
{
	(void)state;
	section = strstr(doc, "\n## The agent's states\n");
	assert_non_null(section);
	for (int from = 0; from < FT_STATE_MAX; from++) {
		const char *row = find_row("| %s | ", ft_state_name((enum ft_state)from));
		unsigned listed = 0, valid = 0;
		char cell[128], *name, *save = NULL;

		if (*row == '|')
			row = " |"; /* an empty cell */
		assert_true(strcspn(row, "|") < sizeof cell);
		snprintf(cell, sizeof cell, "%.*s", (int)strcspn(row, "|"), row);
		for (name = strtok_r(cell, ", ", &save); name; name = strtok_r(NULL, ", ", &save)) {
			int to = ft_state_parse(name);

			if (to < 0)
				fail_msg("%s -> '%s': no such state",
					 ft_state_name((enum ft_state)from), name);
			if (!ft_state_valid((enum ft_state)from, (enum ft_state)to))
				fail_msg("%s -> %s: not a transition",
					 ft_state_name((enum ft_state)from), name);
			listed++;
		}
		for (int to = 0; to < FT_STATE_MAX; to++)
			valid += to != from &&
				 ft_state_valid((enum ft_state)from, (enum ft_state)to);
		if (listed != valid)
			fail_msg("%s: %u transitions in PROTOCOL.md, %u in the code",
				 ft_state_name((enum ft_state)from), listed, valid);
	}
}

/* Every PRIMARY_* of the enum has a row in the table of phases. */
static void test_phases(void **state)
{
	char *header = read_file("ft/engine_internal.h"),
	     *at = strstr(header, "enum primary_phase {"), *end;
	unsigned n = 0;

	(void)state;
	assert_non_null(at);
	end = strchr(at, '}');
	assert_non_null(end);
	*end = 0;
	while ((at = strstr(at, "PRIMARY_"))) {
		size_t len = strspn(at, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_");

		find_row("| %.*s | ", (int)len, at);
		at += len;
		n++;
	}
	assert_int_equal(n, 10);
	free(header);
}

static void test_page_records(void **state)
{
	char text[64];

	(void)state;
	find_row("| %d | zero | 0 |", FT_PAGE_ZERO);
	find_row("| %d | delta | 12 to %d |", FT_PAGE_DELTA, FT_PAGE_BYTES - 1);
	find_row("| %d | lz4 | 1 to %d |", FT_PAGE_LZ4, FT_PAGE_BYTES - 1);
	find_row("| %d | raw | %d |", FT_PAGE_RAW, FT_PAGE_BYTES);
	find_row("| %d | plain | %d |", FT_PAGE_PLAIN, FT_PAGE_BYTES);
	assert_int_equal(FT_PAGE_KIND_MAX, FT_PAGE_PLAIN + 1);
	snprintf(text, sizeof text, "header of %d bytes and its data", FT_PAGE_RECORD_HEADER);
	assert_non_null(strstr(doc, text));
}

static void with_commas(unsigned value, char out[16])
{
	if (value >= 1000000)
		snprintf(out, 16, "%u,%03u,%03u", value / 1000000, value / 1000 % 1000,
			 value % 1000);
	else if (value >= 1000)
		snprintf(out, 16, "%u,%03u", value / 1000, value % 1000);
	else
		snprintf(out, 16, "%u", value);
}

static void test_event_records(void **state)
{
	static const char *const names[TAP_KIND_MAX] = {
		[TAP_NET] = "TAP_NET",
		[TAP_CONSOLE] = "TAP_CONSOLE",
		[TAP_DISK_WRITE] = "TAP_DISK_WRITE",
		[TAP_DISK_ZERO] = "TAP_DISK_ZERO",
		[TAP_DISK_TRIM] = "TAP_DISK_TRIM",
		[TAP_DISK_FLUSH] = "TAP_DISK_FLUSH",
		[TAP_PIO] = "TAP_PIO",
		[TAP_MMIO] = "TAP_MMIO",
		[TAP_DISK_BITMAP] = "TAP_DISK_BITMAP",
	};
	char most[16], text[64];

	(void)state;
	for (int kind = TAP_NET; kind < TAP_KIND_MAX; kind++)
		find_row("| %d | %s | ", kind, names[kind]);
	with_commas(TAP_NET_FRAME_MAX, most);
	find_row("| %d | TAP_NET | 0 | 1 to %s |", TAP_NET, most);
	with_commas(TAP_RECORD_DATA_MAX, most);
	find_row("| %d | TAP_CONSOLE | 0 | 1 to %s |", TAP_CONSOLE, most);
	find_row("| %d | TAP_DISK_WRITE | byte offset | 1 to %s |", TAP_DISK_WRITE, most);
	snprintf(text, sizeof text, "header of %d bytes and its data", TAP_RECORD_HEADER);
	assert_non_null(strstr(doc, text));
}

static void test_frame(void **state)
{
	char most[16], text[64];

	(void)state;
	find_row("| 8 | 2 | protocol version | %d |", FRAME_VERSION);
	find_row("| 10 | 2 | header length | %d |", FRAME_HEADER);
	with_commas(FT_BODY_MAX, most);
	find_row("| 56 | 4 | body length | at most %s |", most);
	with_commas(FT_PAYLOAD_MAX, most);
	find_row("| 60 | 4 | payload length | at most %s |", most);
	snprintf(text, sizeof text, "The hash of zero bytes is `%016" PRIx64 "`.",
		 frame_hash("", 0));
	assert_non_null(strstr(doc, text));
}

/* Bounds that a header tells. */
static void test_bounds(void **state)
{
	static const struct {
		const char *name;
		uint64_t value;
	} bounds[] = {
		{"FRAME_HEADER", FRAME_HEADER},
		{"FRAME_VERSION", FRAME_VERSION},
		{"FT_BODY_MAX", FT_BODY_MAX},
		{"FT_PAYLOAD_MAX", FT_PAYLOAD_MAX},
		{"LINK_OUTPUT_BYTES", LINK_OUTPUT_BYTES},
		{"FT_MSG_BODY_SMALL", FT_MSG_BODY_SMALL},
		{"FT_SUM_BYTES", FT_SUM_BYTES},
		{"FT_SUMS_MAX", FT_SUMS_MAX},
		{"FT_COUNTER_MAX", FT_COUNTER_MAX},
		{"FT_HOST_ID_MAX", FT_HOST_ID_MAX},
		{"FT_PAGE_BYTES", FT_PAGE_BYTES},
		{"FT_PAGE_RECORD_HEADER", FT_PAGE_RECORD_HEADER},
		{"FT_PAGE_RECORD_MAX", FT_PAGE_RECORD_MAX},
		{"TAP_RECORD_HEADER", TAP_RECORD_HEADER},
		{"TAP_RECORD_DATA_MAX", TAP_RECORD_DATA_MAX},
		{"TAP_NET_FRAME_MAX", TAP_NET_FRAME_MAX},
		{"VMM_STATE_BYTES_MAX", VMM_STATE_BYTES_MAX},
		{"VMM_DISKS_MAX", VMM_DISKS_MAX},
		{"BITMAPS_PIECE", BITMAPS_PIECE},
		{"BITMAPS_MAX", BITMAPS_MAX},
		{"FT_DIRTY_BITS_MAX", FT_DIRTY_BITS_MAX},
		{"LISTENER_HANDSHAKE_MS", LISTENER_HANDSHAKE_MS},
		{"LISTENER_PENDING_MAX", LISTENER_PENDING_MAX},
		{"FT_ARBITER_DEADLINE_MS", FT_ARBITER_DEADLINE_MS},
		{"FT_ROUNDS_MAX", FT_ROUNDS_MAX},
		{"FT_WRITE_MAX_MS", FT_WRITE_MAX_MS},
		{"FT_LEASE_DRIFT_PPM", FT_LEASE_DRIFT_PPM},
		{"FT_LEASE_MAX_MS", FT_LEASE_MAX_MS},
	};

	(void)state;
	for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++)
		find_row("| `%s` | %" PRIu64 " |", bounds[i].name, bounds[i].value);
}

/* Deadlines that are a file's own business: read where they are defined. */
static void test_deadlines(void **state)
{
	static const char *const defined[][2] = {
		{"ft/engine_internal.h", "ENGINE_STRANGERS"},
		{"ft/engine_internal.h", "STRANGER_HELLO_MAX_MS"},
		{"ft/engine_internal.h", "FT_SETUP_MAX_MS"},
		{"ft/engine_internal.h", "FT_ACK_MAX_MS"},
		{"ft/engine_internal.h", "FT_TRIAL_ACK_MAX_MS"},
		{"ft/engine_internal.h", "FT_HANDOVER_MAX_MS"},
		{"ft/engine_internal.h", "FT_LEAVE_MAX_MS"},
		{"ft/engine_internal.h", "FT_HOLD_DRAIN_MAX_MS"},
		{"ft/engine_internal.h", "FT_RETRY_MS"},
		{"ft/engine_internal.h", "FT_PASS_SETTLE_MS"},
		{"ft/engine_internal.h", "FT_CHECKPOINT_TRIES"},
		{"ft/protection_end.c", "FT_REDIAL_MS"},
		{"ft/takeover.c", "TAKEOVER_RETRY_MS"},
		{"ft/engine_internal.h", "FT_RELEASE_RETRY_MS"},
		{"tools/agent/peer.c", "DIAL_MAX_MS"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof defined / sizeof *defined; i++) {
		char *text = read_file(defined[i][0]), what[64], *at;

		snprintf(what, sizeof what, "#define %s", defined[i][1]);
		at = strstr(text, what);
		if (!at)
			fail_msg("%s has no '%s'", defined[i][0], what);
		find_row("| `%s` | %lu |", defined[i][1], strtoul(at + strlen(what), NULL, 10));
		free(text);
	}
}

static int from_the_start(void **state)
{
	(void)state;
	section = doc;
	return 0;
}

static int load(void **state)
{
	(void)state;
	doc = read_file("proto/PROTOCOL.md");
	return 0;
}

static int unload(void **state)
{
	(void)state;
	free(doc);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_messages, from_the_start),
		cmocka_unit_test_setup(test_bodies, from_the_start),
		cmocka_unit_test_setup(test_states, from_the_start),
		cmocka_unit_test_setup(test_phases, from_the_start),
		cmocka_unit_test_setup(test_page_records, from_the_start),
		cmocka_unit_test_setup(test_event_records, from_the_start),
		cmocka_unit_test_setup(test_frame, from_the_start),
		cmocka_unit_test_setup(test_bounds, from_the_start),
		cmocka_unit_test_setup(test_deadlines, from_the_start),
	};

	return cmocka_run_group_tests(tests, load, unload);
}

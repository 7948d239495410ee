// SPDX-License-Identifier: Apache-2.0
// The NBD handshake: the client haggles with options until GO (or EXPORT_NAME) opens the one export
// that there is. An option whose data is wrong is refused and haggling goes on; bytes that are no
// option at all end the connection.
#include "eventtap/block/nbd_conn.h"

#include <errno.h>
#include <stdio.h>

#define OPTIONS_MAX	  64	      /* a patient client uses a dozen */
#define OPTION_BYTES_MAX  (8u << 10)  /* a name is at most 4096 bytes; refused as too big above */
#define OPTION_BYTES_SKIP (64u << 10) /* dropped above */

struct option {
	uint32_t number;
	uint32_t len;
	uint8_t data[OPTION_BYTES_MAX];
};

// A cursor over an option's data; every taker fails once the data are used up.
struct reader {
	const uint8_t *at;
	size_t left;
};

static const uint8_t *take(struct reader *in, size_t len)
{
	if (len > in->left)
		return NULL;
	const uint8_t *at = in->at;
	in->at += len;
	in->left -= len;
	return at;
}

static bool take16(struct reader *in, uint16_t *value)
{
	const uint8_t *at = take(in, 2);
	if (at)
		*value = nbd_get16(at);
	return at;
}

// A length and that many bytes.
static bool take_string(struct reader *in, const uint8_t **text, uint32_t *len)
{
	const uint8_t *at = take(in, 4);
	if (!at)
		return false;
	*len = nbd_get32(at);
	*text = take(in, *len);
	return *text;
}

static bool equals(const uint8_t *text, size_t len, const char *want)
{
	return len == strlen(want) && memcmp(text, want, len) == 0;
}

static bool is_our_export(const struct nbd_conn *conn, const uint8_t *name, size_t len)
{
	return len == 0 || equals(name, len, conn->export->name);
}

static int read_handshake(struct nbd_conn *conn, void *buf, size_t len)
{
	uint64_t now = nbd_now_ns();
	if (now >= conn->deadline_ns)
		return -ETIMEDOUT;
	return nbd_conn_read(conn, buf, len, (int)((conn->deadline_ns - now) / 1000000) + 1);
}

static int reply(struct nbd_conn *conn, uint32_t option, uint32_t type, const void *data,
		 size_t len)
{
	uint8_t header[20], *at = header;
	at = nbd_put64(at, NBD_OPT_REPLY_MAGIC);
	at = nbd_put32(at, option);
	at = nbd_put32(at, type);
	nbd_put32(at, (uint32_t)len);
	struct iovec iov[2] = {{header, sizeof(header)}, {(void *)data, len}};
	return nbd_conn_write(conn, iov, 2);
}

static int answer(struct nbd_conn *conn, const struct option *opt, uint32_t type)
{
	return reply(conn, opt->number, type, NULL, 0);
}

// Sends the information and returns 0, with *refused set when the option is to be refused instead.
static int option_info(struct nbd_conn *conn, const struct option *opt, uint32_t *refused)
{
	struct reader in = {opt->data, opt->len};
	const uint8_t *name;
	uint32_t name_len;
	uint16_t infos, info;
	bool want_name = false;
	if (!take_string(&in, &name, &name_len) || !take16(&in, &infos) ||
	    in.left != infos * (size_t)2) {
		*refused = NBD_REP_ERR_INVALID;
		return 0;
	}
	if (!is_our_export(conn, name, name_len)) {
		*refused = NBD_REP_ERR_UNKNOWN;
		return 0;
	}
	while (take16(&in, &info))
		if (info == NBD_INFO_NAME)
			want_name = true;

	uint8_t body[2 + NBD_NAME_MAX], *at;
	at = nbd_put16(body, NBD_INFO_EXPORT);
	at = nbd_put64(at, conn->export->bytes);
	at = nbd_put16(at, nbd_conn_flags(conn));
	int ret = reply(conn, opt->number, NBD_REP_INFO, body, (size_t)(at - body));
	if (ret < 0)
		return ret;
	at = nbd_put16(body, NBD_INFO_BLOCK_SIZE);
	at = nbd_put32(at, 1);
	at = nbd_put32(at, 4096);
	at = nbd_put32(at, NBD_REQUEST_MAX);
	ret = reply(conn, opt->number, NBD_REP_INFO, body, (size_t)(at - body));
	if (ret < 0 || !want_name)
		return ret;
	size_t len = strlen(conn->export->name);
	at = nbd_put16(body, NBD_INFO_NAME);
	memcpy(at, conn->export->name, len);
	return reply(conn, opt->number, NBD_REP_INFO, body, 2 + len);
}

static int option_list(struct nbd_conn *conn, const struct option *opt)
{
	if (opt->len != 0)
		return answer(conn, opt, NBD_REP_ERR_INVALID);
	uint8_t body[4 + NBD_NAME_MAX];
	size_t len = strlen(conn->export->name);
	memcpy(nbd_put32(body, (uint32_t)len), conn->export->name, len);
	int ret = reply(conn, opt->number, NBD_REP_SERVER, body, 4 + len);
	return ret < 0 ? ret : answer(conn, opt, NBD_REP_ACK);
}

// ---- contexts ----

static bool starts(const uint8_t *text, size_t len, const char *name)
{
	return len <= strlen(name) && memcmp(text, name, len) == 0;
}

// Whether a query means this context: by its name, or (LIST) by a namespace, "base:", or that and
// the beginning of a name up to a colon, "qemu:dirty-bitmap:".
static bool means(const uint8_t *text, size_t len, bool set, const char *name)
{
	return equals(text, len, name) ||
	       (!set && len > 0 && text[len - 1] == ':' && starts(text, len, name));
}

struct chosen {
	unsigned n;
	char names[NBD_CONTEXTS_MAX][NBD_CONTEXT_MAX];
};

static void choose(struct chosen *chosen, const char *name)
{
	for (unsigned i = 0; i < chosen->n; i++)
		if (strcmp(chosen->names[i], name) == 0)
			return;
	if (chosen->n < NBD_CONTEXTS_MAX)
		snprintf(chosen->names[chosen->n++], NBD_CONTEXT_MAX, "%s", name);
}

// text NULL: every context is meant.
static void choose_meant(const struct nbd_conn *conn, struct chosen *chosen, const uint8_t *text,
			 size_t len, bool set)
{
	const struct nbd_export *export = conn->export;
	char name[NBD_CONTEXT_MAX];
	if (!text || means(text, len, set, NBD_CONTEXT_ALLOCATION))
		choose(chosen, NBD_CONTEXT_ALLOCATION);
	for (unsigned i = 0; export->ops->context && export->ops->context(export->ctx, i, name);
	     i++)
		if (!text || means(text, len, set, name))
			choose(chosen, name);
}

static int reply_contexts(struct nbd_conn *conn, const struct option *opt,
			  const struct chosen *chosen, bool set)
{
	for (unsigned i = 0; i < chosen->n; i++) {
		uint8_t body[4 + NBD_CONTEXT_MAX];
		size_t len = strlen(chosen->names[i]);
		memcpy(nbd_put32(body, set ? i : 0), chosen->names[i], len);
		int ret = reply(conn, opt->number, NBD_REP_META_CONTEXT, body, 4 + len);
		if (ret < 0)
			return ret;
	}
	return answer(conn, opt, NBD_REP_ACK);
}

static bool is_refused(const struct nbd_conn *conn, const uint8_t *text, size_t len,
		       char why[NBD_REFUSAL_MAX])
{
	const struct nbd_export *export = conn->export;
	char name[NBD_CONTEXT_MAX] = "";
	if (!export->ops->context_refused || len >= sizeof(name))
		return false;
	memcpy(name, text, len);
	return export->ops->context_refused(export->ctx, name, why);
}

// LIST: which contexts there are. SET: replaces the choice, if the whole option is well-formed.
static int option_meta_context(struct nbd_conn *conn, const struct option *opt)
{
	bool set = opt->number == NBD_OPT_SET_META_CONTEXT;
	struct reader in = {opt->data, opt->len};
	struct chosen chosen = {0};
	const uint8_t *text, *at;
	char why[NBD_REFUSAL_MAX] = "";
	uint32_t len, queries;
	bool refused = false;
	if (set) {
		conn->contexts_n = 0;
		if (!conn->structured)
			return answer(conn, opt, NBD_REP_ERR_INVALID);
	}
	if (!take_string(&in, &text, &len) || !(at = take(&in, 4)))
		return answer(conn, opt, NBD_REP_ERR_INVALID);
	queries = nbd_get32(at);
	bool known = is_our_export(conn, text, len);
	if (!set && queries == 0)
		choose_meant(conn, &chosen, NULL, 0, set);
	for (uint32_t i = 0; i < queries; i++) {
		if (!take_string(&in, &text, &len))
			return answer(conn, opt, NBD_REP_ERR_INVALID);
		choose_meant(conn, &chosen, text, len, set);
		refused = refused || (set && is_refused(conn, text, len, why));
	}
	if (in.left != 0)
		return answer(conn, opt, NBD_REP_ERR_INVALID);
	if (!known)
		return answer(conn, opt, NBD_REP_ERR_UNKNOWN);
	if (refused)
		return reply(conn, opt->number, NBD_REP_ERR_POLICY, why, strlen(why));
	if (set) {
		conn->contexts_n = chosen.n;
		memcpy(conn->contexts, chosen.names, sizeof(conn->contexts));
	}
	return reply_contexts(conn, opt, &chosen, set);
}

// The oldest way in: there is no reply for an error.
static int option_export_name(struct nbd_conn *conn, const struct option *opt)
{
	if (!is_our_export(conn, opt->data, opt->len))
		return -ENOENT;
	uint8_t body[8 + 2 + 124] = {0};
	nbd_put16(nbd_put64(body, conn->export->bytes), nbd_conn_flags(conn));
	struct iovec iov = {body, conn->no_zeroes ? 10 : sizeof(body)};
	return nbd_conn_write(conn, &iov, 1);
}

// 0: read. 1: refused already. -errno: drop.
static int read_option(struct nbd_conn *conn, struct option *opt)
{
	uint8_t header[16];
	int ret = read_handshake(conn, header, sizeof(header));
	if (ret < 0)
		return ret;
	opt->number = nbd_get32(header + 8);
	opt->len = nbd_get32(header + 12);
	if (nbd_get64(header) != NBD_OPT_MAGIC || opt->len > OPTION_BYTES_SKIP)
		return -EPROTO;
	if (opt->len <= OPTION_BYTES_MAX)
		return read_handshake(conn, opt->data, opt->len);
	for (uint32_t left = opt->len; left > 0;) {
		uint32_t part = left < OPTION_BYTES_MAX ? left : OPTION_BYTES_MAX;
		ret = read_handshake(conn, opt->data, part);
		if (ret < 0)
			return ret;
		left -= part;
	}
	if (opt->number == NBD_OPT_EXPORT_NAME)
		return -ENOENT;
	ret = answer(conn, opt, NBD_REP_ERR_TOO_BIG);
	return ret < 0 ? ret : 1;
}

// *go: the handshake is over.
static int do_option(struct nbd_conn *conn, const struct option *opt, bool *go)
{
	uint32_t refused = 0;
	int ret;
	switch (opt->number) {
	case NBD_OPT_EXPORT_NAME:
		*go = true;
		return option_export_name(conn, opt);
	case NBD_OPT_ABORT:
		ret = answer(conn, opt, NBD_REP_ACK);
		return ret < 0 ? ret : 1;
	case NBD_OPT_LIST:
		return option_list(conn, opt);
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		ret = option_info(conn, opt, &refused);
		if (ret < 0)
			return ret;
		*go = !refused && opt->number == NBD_OPT_GO;
		return answer(conn, opt, refused ? refused : NBD_REP_ACK);
	case NBD_OPT_STRUCTURED_REPLY:
		if (opt->len != 0)
			return answer(conn, opt, NBD_REP_ERR_INVALID);
		conn->structured = true;
		return answer(conn, opt, NBD_REP_ACK);
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		return option_meta_context(conn, opt);
	default:
		return answer(conn, opt, NBD_REP_ERR_UNSUP);
	}
}

int nbd_handshake(struct nbd_conn *conn)
{
	conn->deadline_ns = nbd_now_ns() + NBD_HANDSHAKE_MS * UINT64_C(1000000);
	uint8_t hello[18], client[4];
	nbd_put16(nbd_put64(nbd_put64(hello, NBD_MAGIC), NBD_OPT_MAGIC),
		  NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	struct iovec iov = {hello, sizeof(hello)};
	int ret = nbd_conn_write(conn, &iov, 1);
	if (ret == 0)
		ret = read_handshake(conn, client, sizeof(client));
	if (ret < 0)
		return ret;
	uint32_t flags = nbd_get32(client);
	if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
		return -EPROTO;
	conn->no_zeroes = flags & NBD_FLAG_NO_ZEROES;

	for (int i = 0; i < OPTIONS_MAX; i++) {
		struct option opt;
		bool go = false;
		ret = read_option(conn, &opt);
		if (ret == 0)
			ret = do_option(conn, &opt, &go);
		else if (ret == 1)
			ret = 0;
		if (ret != 0 || go)
			return ret;
	}
	return -EPROTO;
}

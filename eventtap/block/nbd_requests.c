// SPDX-License-Identifier: Apache-2.0
// NBD transmission: a request is read, judged, done and answered before the next is read, so
// replies come in order and a connection never has more than one request's memory. A refused WRITE
// still has its payload on the wire: it is read and forgotten, so that the connection stays usable;
// only a payload larger than any legal one ends it.
#include "eventtap/block/nbd_conn.h"

#include <errno.h>

#define EXTENTS_MAX 512 /* in one BLOCK_STATUS reply; the client asks on from there */

struct request {
	uint16_t flags;
	uint16_t command;
	uint64_t cookie;
	uint64_t offset;
	uint32_t len;
};

static uint32_t nbd_errno(int code)
{
	switch (code) {
	case 0:
		return 0;
	case EPERM:
	case EACCES:
	case EROFS:
		return 1;
	case ENOMEM:
		return 12;
	case EINVAL:
		return 22;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return 28;
	case EOVERFLOW:
		return 75;
	case EOPNOTSUPP: // == ENOTSUP
		return 95;
	case ESHUTDOWN:
		return 108;
	default:
		return 5; // EIO
	}
}

static int simple_reply(struct nbd_conn *conn, const struct request *req, int ret,
			const uint8_t *data, size_t len)
{
	uint8_t header[16];
	nbd_put64(nbd_put32(nbd_put32(header, NBD_SIMPLE_REPLY_MAGIC), nbd_errno(-ret)),
		  req->cookie);
	struct iovec iov[2] = {{header, sizeof(header)}, {(void *)data, len}};
	return nbd_conn_write(conn, iov, 2);
}

// One chunk: head (type's own fields) and data. done: it is the last one, or all of the reply.
static int reply_chunk(struct nbd_conn *conn, const struct request *req, bool done, unsigned type,
		       const uint8_t *head, size_t head_len, const uint8_t *data, size_t len)
{
	uint8_t header[NBD_STRUCTURED_REPLY_BYTES], *at = header;
	at = nbd_put32(at, NBD_STRUCTURED_REPLY_MAGIC);
	at = nbd_put16(at, done ? NBD_REPLY_FLAG_DONE : 0);
	at = nbd_put16(at, (uint16_t)type);
	at = nbd_put64(at, req->cookie);
	nbd_put32(at, (uint32_t)(head_len + len));
	struct iovec iov[3] = {
		{header, sizeof(header)}, {(void *)head, head_len}, {(void *)data, len}};
	return nbd_conn_write(conn, iov, 3);
}

static int structured_reply(struct nbd_conn *conn, const struct request *req, unsigned type,
			    const uint8_t *head, size_t head_len, const uint8_t *data, size_t len)
{
	return reply_chunk(conn, req, true, type, head, head_len, data, len);
}

static int reply_error(struct nbd_conn *conn, const struct request *req, int ret)
{
	if (!conn->structured)
		return simple_reply(conn, req, ret, NULL, 0);
	uint8_t head[6];
	nbd_put16(nbd_put32(head, nbd_errno(-ret)), 0);
	return structured_reply(conn, req, NBD_REPLY_TYPE_ERROR, head, sizeof(head), NULL, 0);
}

static int do_read(struct nbd_conn *conn, const struct request *req)
{
	const struct nbd_export *export = conn->export;
	uint8_t *buf = nbd_conn_buffer(conn, req->len);
	int ret = buf || req->len == 0 ? 0 : -ENOMEM;
	if (ret == 0 && req->len > 0)
		ret = export->ops->pread(export->ctx, buf, req->len, req->offset);
	if (ret < 0)
		return reply_error(conn, req, ret);
	if (!conn->structured)
		return simple_reply(conn, req, 0, buf, req->len);
	if (req->len == 0)
		return structured_reply(conn, req, NBD_REPLY_TYPE_NONE, NULL, 0, NULL, 0);
	uint8_t head[8];
	nbd_put64(head, req->offset);
	return structured_reply(conn, req, NBD_REPLY_TYPE_OFFSET_DATA, head, sizeof(head), buf,
				req->len);
}

static int do_write(struct nbd_conn *conn, const struct request *req)
{
	const struct nbd_export *export = conn->export;
	if (req->len == 0)
		return simple_reply(conn, req, 0, NULL, 0);
	uint8_t *buf = nbd_conn_buffer(conn, req->len);
	if (!buf) {
		int ret = nbd_conn_skip(conn, req->len);
		return ret < 0 ? ret : simple_reply(conn, req, -ENOMEM, NULL, 0);
	}
	int ret = nbd_conn_read(conn, buf, req->len, NBD_STALL_MS);
	if (ret < 0)
		return ret;
	ret = export->ops->pwrite(export->ctx, buf, req->len, req->offset,
				  req->flags & NBD_CMD_FLAG_FUA);
	return simple_reply(conn, req, ret, NULL, 0);
}

static int do_zero(struct nbd_conn *conn, const struct request *req)
{
	const struct nbd_export *export = conn->export;
	unsigned flags = 0;
	if (req->flags & NBD_CMD_FLAG_FUA)
		flags |= NBD_ZERO_FUA;
	if (req->flags & NBD_CMD_FLAG_NO_HOLE)
		flags |= NBD_ZERO_NO_HOLE;
	if (req->flags & NBD_CMD_FLAG_FAST_ZERO)
		flags |= NBD_ZERO_FAST;
	int ret = req->len ? export->ops->zero(export->ctx, req->offset, req->len, flags) : 0;
	return simple_reply(conn, req, ret, NULL, 0);
}

static int state_at(const struct nbd_conn *conn, unsigned context, uint64_t offset, uint32_t left,
		    uint32_t *len, uint32_t *state)
{
	const struct nbd_export *export = conn->export;
	const char *name = conn->contexts[context];
	if (strcmp(name, NBD_CONTEXT_ALLOCATION) == 0)
		return export->ops->extent(export->ctx, offset, left, len, state);
	return export->ops->context_extent(export->ctx, name, offset, left, len, state);
}

// *over: an error was the end of the reply.
static int context_status(struct nbd_conn *conn, const struct request *req, unsigned context,
			  bool *over)
{
	uint8_t head[4], list[EXTENTS_MAX * 8];
	size_t n = 0, max = req->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENTS_MAX;
	uint64_t offset = req->offset;
	uint32_t left = req->len, last_len = 0, last_state = 0;
	while (left > 0) {
		uint32_t len, state;
		int ret = state_at(conn, context, offset, left, &len, &state);
		*over = ret < 0;
		if (*over)
			return reply_error(conn, req, ret);
		if (n > 0 && state == last_state) {
			last_len += len;
		} else {
			if (n == max)
				break;
			last_len = len;
			last_state = state;
			n++;
		}
		nbd_put32(nbd_put32(list + (n - 1) * 8, last_len), last_state);
		offset += len;
		left -= len;
	}
	nbd_put32(head, context);
	return reply_chunk(conn, req, context + 1 == conn->contexts_n, NBD_REPLY_TYPE_BLOCK_STATUS,
			   head, sizeof(head), list, n * 8);
}

static int do_block_status(struct nbd_conn *conn, const struct request *req)
{
	bool over = false;
	int ret = 0;
	for (unsigned i = 0; i < conn->contexts_n && ret == 0 && !over; i++)
		ret = context_status(conn, req, i, &over);
	return ret;
}

// Which flags a command knows. FUA is legal with every command.
static unsigned flags_known(const struct nbd_conn *conn, uint16_t command)
{
	switch (command) {
	case NBD_CMD_READ:
		return NBD_CMD_FLAG_FUA | (conn->structured ? NBD_CMD_FLAG_DF : 0);
	case NBD_CMD_WRITE_ZEROES:
		return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
	case NBD_CMD_BLOCK_STATUS:
		return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
	default:
		return NBD_CMD_FLAG_FUA;
	}
}

// 0, or the error that the client gets instead.
static int judge(const struct nbd_conn *conn, const struct request *req)
{
	uint64_t bytes = conn->export->bytes;
	if (req->flags & ~flags_known(conn, req->command))
		return -EINVAL;
	bool inside = req->len <= bytes && req->offset <= bytes - req->len;
	bool changes = req->command == NBD_CMD_WRITE || req->command == NBD_CMD_TRIM ||
		       req->command == NBD_CMD_WRITE_ZEROES;
	if (changes && conn->export->read_only)
		return -EPERM;
	switch (req->command) {
	case NBD_CMD_READ:
		return inside && req->len <= NBD_REQUEST_MAX ? 0 : -EINVAL;
	case NBD_CMD_WRITE:
	case NBD_CMD_WRITE_ZEROES:
		return inside ? 0 : -ENOSPC;
	case NBD_CMD_FLUSH:
		return req->offset == 0 && req->len == 0 ? 0 : -EINVAL;
	case NBD_CMD_TRIM:
	case NBD_CMD_CACHE:
		return inside ? 0 : -EINVAL;
	case NBD_CMD_BLOCK_STATUS:
		return inside && conn->contexts_n > 0 && req->len > 0 ? 0 : -EINVAL;
	default:
		return -EINVAL;
	}
}

static int refuse(struct nbd_conn *conn, const struct request *req, int why)
{
	if (req->command == NBD_CMD_WRITE) {
		int ret = nbd_conn_skip(conn, req->len);
		if (ret < 0)
			return ret;
	}
	return reply_error(conn, req, why);
}

static int do_request(struct nbd_conn *conn, const struct request *req)
{
	const struct nbd_export *export = conn->export;
	int ret = judge(conn, req);
	if (ret < 0)
		return refuse(conn, req, ret);
	switch (req->command) {
	case NBD_CMD_READ:
		return do_read(conn, req);
	case NBD_CMD_WRITE:
		return do_write(conn, req);
	case NBD_CMD_FLUSH:
		return simple_reply(conn, req, export->ops->flush(export->ctx), NULL, 0);
	case NBD_CMD_TRIM:
		if (req->len > 0)
			ret = export->ops->trim(export->ctx, req->offset, req->len,
						req->flags & NBD_CMD_FLAG_FUA);
		return simple_reply(conn, req, ret, NULL, 0);
	case NBD_CMD_WRITE_ZEROES:
		return do_zero(conn, req);
	case NBD_CMD_BLOCK_STATUS:
		return do_block_status(conn, req);
	default: // NBD_CMD_CACHE is advice, and the page cache needs none
		return simple_reply(conn, req, 0, NULL, 0);
	}
}

int nbd_requests(struct nbd_conn *conn)
{
	for (;;) {
		uint8_t raw[NBD_REQUEST_BYTES];
		int ret = nbd_conn_read(conn, raw, sizeof(raw), NBD_NO_DEADLINE);
		if (ret < 0)
			return ret;
		struct request req = {
			.flags = nbd_get16(raw + 4),
			.command = nbd_get16(raw + 6),
			.cookie = nbd_get64(raw + 8),
			.offset = nbd_get64(raw + 16),
			.len = nbd_get32(raw + 24),
		};
		if (nbd_get32(raw) != NBD_REQUEST_MAGIC)
			return -EPROTO;
		if (req.command == NBD_CMD_DISC)
			return 0;
		if (req.command == NBD_CMD_WRITE && req.len > NBD_REQUEST_MAX)
			return -EMSGSIZE;
		ret = do_request(conn, &req);
		if (ret < 0)
			return ret;
		nbd_conn_buffer_trim(conn);
	}
}

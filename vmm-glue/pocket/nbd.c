// SPDX-License-Identifier: Apache-2.0
// The server is our own tap as a rule, but nothing here relies on that: every number it sends is
// checked, and no length it sends is allocated.
#include "vmm-glue/pocket/nbd.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm-glue/pocket/sock.h"

#define NBD_MAGIC	   0x4e42444d41474943ull
#define NBD_OPTION_MAGIC   0x49484156454f5054ull
#define NBD_OPTION_REPLY   0x3e889045565a9ull
#define NBD_REQUEST_MAGIC  0x25609513u
#define NBD_SIMPLE_REPLY   0x67446698u
#define NBD_FIXED_NEWSTYLE 1u
#define NBD_NO_ZEROES	   2u
#define NBD_OPT_GO	   7u
#define NBD_REP_ACK	   1u
#define NBD_REP_INFO	   3u
#define NBD_INFO_EXPORT	   0u
#define NBD_FLAG_READ_ONLY 2u
#define NBD_FLAG_FLUSH	   4u
#define INFOS_MAX	   16u	 // replies to one option
#define INFO_BYTES_MAX	   4096u // of one such reply; text is thrown away

enum { CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH };

struct pocket_nbd {
	int fd;
	uint16_t flags;
	uint64_t cookie;
	bool broken;
};

static void put16(uint8_t *p, uint16_t v)
{
	v = htobe16(v);
	memcpy(p, &v, sizeof v);
}

static void put32(uint8_t *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, sizeof v);
}

static void put64(uint8_t *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, sizeof v);
}

static uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof v);
	return be16toh(v);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof v);
	return be32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof v);
	return be64toh(v);
}

// ---- handshake

static int greet(int fd, uint64_t deadline)
{
	uint8_t in[18], out[4 + 16 + 6];
	uint16_t flags;
	int rc = psock_read_all(fd, in, sizeof in, deadline);

	if (rc)
		return rc;
	flags = get16(in + 16);
	if (get64(in) != NBD_MAGIC || get64(in + 8) != NBD_OPTION_MAGIC ||
	    !(flags & NBD_FIXED_NEWSTYLE))
		return -EPROTO;
	put32(out, flags & (NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES));
	put64(out + 4, NBD_OPTION_MAGIC);
	put32(out + 12, NBD_OPT_GO);
	put32(out + 16, 6);
	put32(out + 20, 0); // export name: empty
	put16(out + 24, 0); // no further information wanted
	return psock_write_all(fd, out, sizeof out, deadline);
}

// Replies to NBD_OPT_GO: information, then an acknowledgement. 0 only if the export's size was
// among them.
static int go(struct pocket_nbd *n, uint64_t *bytes, uint64_t deadline)
{
	uint8_t head[20], data[INFO_BYTES_MAX];
	bool known = false;

	for (unsigned i = 0; i < INFOS_MAX; i++) {
		uint32_t type, len;
		int rc = psock_read_all(n->fd, head, sizeof head, deadline);

		if (rc)
			return rc;
		type = get32(head + 12);
		len = get32(head + 16);
		if (get64(head) != NBD_OPTION_REPLY || get32(head + 8) != NBD_OPT_GO ||
		    len > sizeof data)
			return -EPROTO;
		rc = psock_read_all(n->fd, data, len, deadline);
		if (rc)
			return rc;
		if (type == NBD_REP_ACK)
			return known ? 0 : -EPROTO;
		if (type != NBD_REP_INFO)
			return type & 0x80000000u ? -ENOENT : -EPROTO;
		if (len == 12 && get16(data) == NBD_INFO_EXPORT) {
			*bytes = get64(data + 2);
			n->flags = get16(data + 10);
			known = true;
		}
	}
	return -EPROTO;
}

int pocket_nbd_open(const char *path, struct pocket_nbd **out, uint64_t *bytes, struct ft_err *err)
{
	uint64_t deadline = psock_deadline(POCKET_NBD_CONNECT_MS);
	struct pocket_nbd *n = calloc(1, sizeof *n);
	int rc;

	if (!n)
		return ft_err_set(err, ENOMEM, "nbd: %s: out of memory", path);
	n->fd = psock_connect(path, err);
	if (n->fd < 0) {
		rc = n->fd;
		free(n);
		return rc;
	}
	rc = greet(n->fd, deadline);
	if (!rc)
		rc = go(n, bytes, deadline);
	if (!rc && (n->flags & NBD_FLAG_READ_ONLY))
		rc = -EROFS;
	if (rc) {
		close(n->fd);
		free(n);
		return ft_err_set(err, -rc, "nbd: %s: handshake: %s", path, strerror(-rc));
	}
	*out = n;
	return 0;
}

// ---- requests

static int errno_of(uint32_t wire)
{
	// The protocol's numbers are Linux's (EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW,
	// ENOTSUP, ESHUTDOWN); no other is passed on.
	switch (wire) {
	case 0:
	case EPERM:
	case ENOMEM:
	case EINVAL:
	case ENOSPC:
	case EOVERFLOW:
	case ENOTSUP:
	case ESHUTDOWN:
		return -(int)wire;
	default:
		return -EIO;
	}
}

static int request(struct pocket_nbd *n, uint16_t cmd, uint64_t offset, const uint8_t *out,
		   uint8_t *in, size_t len)
{
	uint64_t deadline = psock_deadline(POCKET_NBD_REQUEST_MS);
	uint8_t head[28], reply[16];
	int rc;

	if (n->broken)
		return -EIO;
	put32(head, NBD_REQUEST_MAGIC);
	put16(head + 4, 0);
	put16(head + 6, cmd);
	put64(head + 8, ++n->cookie);
	put64(head + 16, offset);
	put32(head + 24, (uint32_t)len);
	rc = psock_write_all(n->fd, head, sizeof head, deadline);
	if (!rc && out)
		rc = psock_write_all(n->fd, out, len, deadline);
	if (!rc)
		rc = psock_read_all(n->fd, reply, sizeof reply, deadline);
	if (!rc && (get32(reply) != NBD_SIMPLE_REPLY || get64(reply + 8) != n->cookie))
		rc = -EPROTO;
	if (!rc && get32(reply + 4))
		return errno_of(get32(reply + 4));
	if (!rc && in)
		rc = psock_read_all(n->fd, in, len, deadline);
	n->broken = rc != 0;
	return rc ? -EIO : 0;
}

int pocket_nbd_read(struct pocket_nbd *n, uint64_t offset, uint8_t *data, size_t len)
{
	return request(n, CMD_READ, offset, NULL, data, len);
}

int pocket_nbd_write(struct pocket_nbd *n, uint64_t offset, const uint8_t *data, size_t len)
{
	return request(n, CMD_WRITE, offset, data, NULL, len);
}

int pocket_nbd_flush(struct pocket_nbd *n)
{
	return n->flags & NBD_FLAG_FLUSH ? request(n, CMD_FLUSH, 0, NULL, NULL, 0) : 0;
}

void pocket_nbd_abort(struct pocket_nbd *n)
{
	shutdown(n->fd, SHUT_RDWR);
}

void pocket_nbd_close(struct pocket_nbd *n)
{
	uint8_t head[28] = {0};

	if (!n)
		return;
	if (!n->broken) {
		put32(head, NBD_REQUEST_MAGIC);
		put16(head + 6, CMD_DISC);
		(void)psock_write_all(n->fd, head, sizeof head,
				      psock_deadline(0)); // a courtesy; the close says the same
	}
	close(n->fd);
	free(n);
}

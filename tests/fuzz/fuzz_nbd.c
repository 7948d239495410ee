// SPDX-License-Identifier: Apache-2.0
// A hostile NBD client on one end of a socket pair, one connection of our server on the other. The
// first byte says how: bit 0 shakes hands properly first; bits 1 and 2 with structured replies and
// block status; bit 3 makes the magic of every request right, and of every option where the
// handshake is the fuzzer's. A thread reads what the server answers, or the server would wait for
// it.
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "eventtap/block/nbd_conn.h"
#include "ft/log.h"

#define DISK_BYTES (256u << 10)
#define BLOCK	   4096u
#define NAME	   "disk"
#define INPUT_MAX                                                                                  \
	(64u << 10) /* fits the socket's buffer with the handshake, so that nobody waits */

static uint8_t disk[DISK_BYTES];
static bool held[DISK_BYTES / BLOCK];

static void inside(uint64_t offset, uint64_t len)
{
	assert(len > 0 && offset < DISK_BYTES && len <= DISK_BYTES - offset);
}

static void touch(uint64_t offset, uint64_t len, bool to)
{
	for (uint64_t i = offset / BLOCK; i <= (offset + len - 1) / BLOCK; i++)
		held[i] = to;
}

static int disk_pread(void *ctx, uint8_t *buf, uint32_t len, uint64_t offset)
{
	(void)ctx;
	inside(offset, len);
	memcpy(buf, disk + offset, len);
	return offset == 512 ? -EIO : 0;
}

static int disk_pwrite(void *ctx, const uint8_t *buf, uint32_t len, uint64_t offset, bool fua)
{
	(void)ctx;
	(void)fua;
	inside(offset, len);
	memcpy(disk + offset, buf, len);
	touch(offset, len, true);
	return offset == 512 ? -ENOSPC : 0;
}

static int disk_zero(void *ctx, uint64_t offset, uint32_t len, unsigned flags)
{
	(void)ctx;
	assert(!(flags & ~(NBD_ZERO_FUA | NBD_ZERO_NO_HOLE | NBD_ZERO_FAST)));
	inside(offset, len);
	memset(disk + offset, 0, len);
	return flags & NBD_ZERO_FAST ? -ENOTSUP : 0;
}

static int disk_trim(void *ctx, uint64_t offset, uint32_t len, bool fua)
{
	(void)ctx;
	(void)fua;
	inside(offset, len);
	touch(offset, len, false);
	return 0;
}

static int disk_flush(void *ctx)
{
	(void)ctx;
	return 0;
}

static int disk_extent(void *ctx, uint64_t offset, uint32_t len, uint32_t *extent, uint32_t *state)
{
	uint32_t left = BLOCK - (uint32_t)(offset % BLOCK);

	(void)ctx;
	inside(offset, len);
	*extent = left < len ? left : len;
	*state = held[offset / BLOCK] ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
	return 0;
}

static bool disk_context(void *ctx, unsigned i, char name[NBD_CONTEXT_MAX])
{
	(void)ctx;
	snprintf(name, NBD_CONTEXT_MAX, "qemu:dirty-bitmap:%c", 'a' + (int)i);
	return i < 2;
}

static int disk_context_extent(void *ctx, const char *name, uint64_t offset, uint32_t len,
			       uint32_t *extent, uint32_t *state)
{
	(void)ctx;
	assert(len && offset + len <= DISK_BYTES && !strncmp(name, "qemu:dirty-bitmap:", 18));
	*extent = len > 100 ? 100 : len;
	*state = offset / 100 % 2;
	return name[18] == 'a' ? 0 : -ENOENT;
}

static const struct nbd_backend_ops disk_ops = {
	.pread = disk_pread,
	.pwrite = disk_pwrite,
	.zero = disk_zero,
	.trim = disk_trim,
	.flush = disk_flush,
	.extent = disk_extent,
	.context = disk_context,
	.context_extent = disk_context_extent,
};

static void *read_all(void *arg)
{
	char waste[4096];

	while (read(*(int *)arg, waste, sizeof waste) > 0)
		;
	return NULL;
}

static size_t put_option(uint8_t *out, uint32_t option, const void *data, uint32_t len)
{
	memcpy(nbd_put32(nbd_put32(nbd_put64(out, NBD_OPT_MAGIC), option), len), data, len);
	return 16 + len;
}

static size_t put_handshake(uint8_t *out, bool structured, bool status)
{
	static const uint8_t go[] = {0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 1, 0, 3};
	static const uint8_t meta[] = "\0\0\0\4disk\0\0\0\2\0\0\0\17base:allocation"
				      "\0\0\0\23qemu:dirty-bitmap:a";
	size_t n = (size_t)(nbd_put32(out, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES) - out);

	if (structured)
		n += put_option(out + n, NBD_OPT_STRUCTURED_REPLY, "", 0);
	if (structured && status)
		n += put_option(out + n, NBD_OPT_SET_META_CONTEXT, meta, sizeof meta - 1);
	return n + put_option(out + n, NBD_OPT_GO, go, sizeof go);
}

/* Lengths stay the fuzzer's choice, within what is there, so that the next request is found. */
static void seal_requests(uint8_t *data, size_t len)
{
	while (len >= NBD_REQUEST_BYTES) {
		uint32_t n = nbd_get32(data + 24) % (2 * DISK_BYTES), skip = NBD_REQUEST_BYTES;

		nbd_put32(data, NBD_REQUEST_MAGIC);
		nbd_put16(data + 4, nbd_get16(data + 4) & 31);
		nbd_put16(data + 6, nbd_get16(data + 6) % 9);
		if (nbd_get16(data + 6) == NBD_CMD_WRITE) {
			n %= 1024;
			skip += n;
		}
		nbd_put64(data + 16, nbd_get64(data + 16) % (DISK_BYTES + BLOCK));
		nbd_put32(data + 24, n);
		if (skip > len)
			return;
		data += skip;
		len -= skip;
	}
}

static void seal_options(uint8_t *data, size_t len)
{
	if (len < 4)
		return;
	nbd_put32(data, nbd_get32(data) & 3);
	for (data += 4, len -= 4; len >= 16;) {
		uint32_t n = nbd_get32(data + 12) % 64;

		nbd_put64(data, NBD_OPT_MAGIC);
		nbd_put32(data + 8, nbd_get32(data + 8) % 12);
		nbd_put32(data + 12, n);
		if (16 + n > len)
			return;
		data += 16 + n;
		len -= 16 + n;
	}
}

static void write_all(int fd, const uint8_t *data, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		assert(n > 0);
		data += n;
		len -= (size_t)n;
	}
}

static void serve(const uint8_t *data, size_t len)
{
	static const struct nbd_export export = {
		.ops = &disk_ops, .bytes = DISK_BYTES, .name = NAME};
	struct nbd_conn conn = {.export = &export};
	int pair[2], ret;
	pthread_t reader;

	ret = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
	assert(ret == 0);
	write_all(pair[1], data, len);
	shutdown(pair[1], SHUT_WR);
	ret = pthread_create(&reader, NULL, read_all, &pair[1]);
	assert(ret == 0);
	conn.fd = pair[0];
	if (nbd_handshake(&conn) == 0)
		(void)nbd_requests(&conn);
	assert(conn.buffer_bytes <= NBD_REQUEST_MAX);
	free(conn.buffer);
	close(pair[0]);
	pthread_join(reader, NULL);
	close(pair[1]);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	ft_log_level_set(FT_LOG_ERROR);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static uint8_t input[INPUT_MAX + 256];
	size_t n = 0;
	uint8_t how;

	if (len < 1 || len > INPUT_MAX)
		return 0;
	how = data[0];
	if (how & 1)
		n = put_handshake(input, how & 2, how & 4);
	memcpy(input + n, data + 1, len - 1);
	if (how & 8 && how & 1)
		seal_requests(input + n, len - 1);
	else if (how & 8)
		seal_options(input, len - 1);
	memset(disk, 0, sizeof disk);
	memset(held, 0, sizeof held);
	serve(input, n + len - 1);
	return 0;
}

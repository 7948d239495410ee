/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers of the NBD protocol that the server speaks. Source: the protocol document of the NBD
 * project, doc/proto.md (https://github.com/NetworkBlockDevice/nbd). Everything on the wire is big
 * endian. */
#ifndef EVENTTAP_BLOCK_NBD_PROTO_H
#define EVENTTAP_BLOCK_NBD_PROTO_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define NBD_MAGIC		   UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPT_MAGIC		   UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPT_REPLY_MAGIC	   UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC	   UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC	   UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)

#define NBD_FLAG_FIXED_NEWSTYLE 1u
#define NBD_FLAG_NO_ZEROES	2u

enum nbd_option {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ACK	     1u
#define NBD_REP_SERVER	     2u
#define NBD_REP_INFO	     3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERR_UNSUP    (0x80000000u | 1)
#define NBD_REP_ERR_POLICY   (0x80000000u | 2)
#define NBD_REP_ERR_INVALID  (0x80000000u | 3)
#define NBD_REP_ERR_UNKNOWN  (0x80000000u | 6)
#define NBD_REP_ERR_TOO_BIG  (0x80000000u | 9)

#define NBD_INFO_EXPORT	    0u
#define NBD_INFO_NAME	    1u
#define NBD_INFO_BLOCK_SIZE 3u

/* Transmission flags of an export. */
#define NBD_FLAG_HAS_FLAGS	   (1u << 0)
#define NBD_FLAG_READ_ONLY	   (1u << 1)
#define NBD_FLAG_SEND_FLUSH	   (1u << 2)
#define NBD_FLAG_SEND_FUA	   (1u << 3)
#define NBD_FLAG_SEND_TRIM	   (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define NBD_FLAG_SEND_DF	   (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN	   (1u << 8)
#define NBD_FLAG_SEND_CACHE	   (1u << 10)
#define NBD_FLAG_SEND_FAST_ZERO	   (1u << 11)

enum nbd_command {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA       (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE   (1u << 1)
#define NBD_CMD_FLAG_DF	       (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE   (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO (1u << 4)

#define NBD_REPLY_FLAG_DONE	    1u
#define NBD_REPLY_TYPE_NONE	    0u
#define NBD_REPLY_TYPE_OFFSET_DATA  1u
#define NBD_REPLY_TYPE_BLOCK_STATUS 5u
#define NBD_REPLY_TYPE_ERROR	    ((1u << 15) | 1)

#define NBD_REQUEST_BYTES	   28
#define NBD_STRUCTURED_REPLY_BYTES 20
#define NBD_CONTEXT_ALLOCATION	   "base:allocation"

static inline uint8_t *nbd_put16(uint8_t *at, uint16_t value)
{
	value = htobe16(value);
	return (uint8_t *)memcpy(at, &value, 2) + 2;
}

static inline uint8_t *nbd_put32(uint8_t *at, uint32_t value)
{
	value = htobe32(value);
	return (uint8_t *)memcpy(at, &value, 4) + 4;
}

static inline uint8_t *nbd_put64(uint8_t *at, uint64_t value)
{
	value = htobe64(value);
	return (uint8_t *)memcpy(at, &value, 8) + 8;
}

static inline uint16_t nbd_get16(const uint8_t *at)
{
	uint16_t value;
	memcpy(&value, at, 2);
	return be16toh(value);
}

static inline uint32_t nbd_get32(const uint8_t *at)
{
	uint32_t value;
	memcpy(&value, at, 4);
	return be32toh(value);
}

static inline uint64_t nbd_get64(const uint8_t *at)
{
	uint64_t value;
	memcpy(&value, at, 8);
	return be64toh(value);
}

#endif

// SPDX-License-Identifier: Apache-2.0
// What two hosts compare to know that they have the same bitmap.
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "eventtap/block/bitmaps_internal.h"
#include "ft/log.h"

#define PIECE 4096

void bitmaps_spoil(struct ft_dirty_bitmap *map, const char *why)
{
	map->inconsistent = map->changed = true;
	map->enabled = false;
	ft_error("bitmap %s: inconsistent: %s; remove it", map->name, why);
}

static EVP_MD_CTX *begin(void)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	if (ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL))
		return ctx;
	EVP_MD_CTX_free(ctx);
	return NULL;
}

static int end(EVP_MD_CTX *ctx, bool good, uint8_t out[BITMAPS_SHA256])
{
	good = good && EVP_DigestFinal_ex(ctx, out, NULL);
	EVP_MD_CTX_free(ctx);
	return good ? 0 : -ENOMEM;
}

int bitmaps_map_sha256(const struct ft_dirty_bitmap *map, uint8_t out[BITMAPS_SHA256])
{
	EVP_MD_CTX *ctx = begin();
	uint8_t piece[PIECE];
	uint64_t bytes = ft_dirty_map_bytes(map);
	bool good = ctx;
	for (uint64_t at = 0; good && at < bytes; at += PIECE) {
		size_t len = bytes - at < PIECE ? (size_t)(bytes - at) : PIECE;
		ft_dirty_get_all(map, at, piece, len);
		good = EVP_DigestUpdate(ctx, piece, len);
	}
	return end(ctx, good, out);
}

static bool find(struct bitmaps *s, const char *name, struct bitmap_info *info)
{
	for (unsigned i = 0; bitmaps_info(s, i, info); i++)
		if (strcmp(info->name, name) == 0)
			return true;
	return false;
}

int bitmaps_sha256(struct bitmaps *s, const char *name, uint8_t out[BITMAPS_SHA256])
{
	struct bitmap_info info;
	uint8_t piece[PIECE];
	if (!find(s, name, &info))
		return -ENOENT;
	EVP_MD_CTX *ctx = begin();
	bool good = ctx;
	int ret = 0;
	for (uint64_t at = 0; good && ret == 0 && at < info.map_bytes; at += PIECE) {
		size_t len = info.map_bytes - at < PIECE ? (size_t)(info.map_bytes - at) : PIECE;
		ret = bitmaps_read(s, name, at, piece, len);
		good = ret == 0 && EVP_DigestUpdate(ctx, piece, len);
	}
	int ended = end(ctx, good, out);
	return ret < 0 ? ret : ended;
}

// SPDX-License-Identifier: Apache-2.0
// The file of a disk's bitmaps. It is read whole and checked before anything is made of it.
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "eventtap/block/bitmaps_internal.h"
#include "ft/log.h"
#include "ft/file_io.h"

#define MAGIC	   "KFTBMAP1"
#define MAGIC_LEN  8
#define HEAD_BYTES 24
#define ITEM_BYTES 16
#define SUM_BYTES  8
#define IN_USE	   1u

static uint8_t *put32(uint8_t *at, uint32_t value)
{
	value = htole32(value);
	return (uint8_t *)memcpy(at, &value, sizeof(value)) + sizeof(value);
}

static uint8_t *put64(uint8_t *at, uint64_t value)
{
	value = htole64(value);
	return (uint8_t *)memcpy(at, &value, sizeof(value)) + sizeof(value);
}

static uint32_t get32(const uint8_t *at)
{
	uint32_t value;
	memcpy(&value, at, sizeof(value));
	return le32toh(value);
}

static uint64_t get64(const uint8_t *at)
{
	uint64_t value;
	memcpy(&value, at, sizeof(value));
	return le64toh(value);
}

// ---- out ----

// One that has not arrived is of no use to whoever reads this.
static uint64_t map_bytes(const struct bitmaps_entry *entry)
{
	const struct ft_dirty_bitmap *map = entry->map;
	return !bitmaps_arrives(entry) &&
			       (map->bits.count || (map->successor && map->successor->bits.count))
		       ? ft_dirty_map_bytes(map)
		       : 0;
}

// With the marks of its successor.
static uint8_t *put_item(uint8_t *at, const struct bitmaps_entry *entry)
{
	const struct ft_dirty_bitmap *map = entry->map;
	uint64_t bytes = map_bytes(entry);
	size_t name = strlen(map->name);
	*at++ = (uint8_t)name;
	*at++ = bitmaps_arrives(entry) ? BITMAPS_INCONSISTENT : bitmaps_flags(map);
	*at++ = 0;
	*at++ = 0;
	at = put64(put32(at, map->granularity), bytes);
	memcpy(at, map->name, name);
	at += name;
	for (uint64_t i = 0; i < bytes / 8; i++)
		at = put64(at, map->bits.words[i] |
				       (map->successor ? map->successor->bits.words[i] : 0));
	return at;
}

static uint8_t *format_locked(const struct bitmaps *s, bool in_use, size_t *len)
{
	*len = HEAD_BYTES + SUM_BYTES;
	for (unsigned i = 0; i < s->n; i++)
		*len += ITEM_BYTES + strlen(s->list[i].map->name) + map_bytes(&s->list[i]);
	uint8_t *data = malloc(*len), *at = data;
	if (!data)
		return NULL;
	memcpy(at, MAGIC, MAGIC_LEN);
	at = put64(at + MAGIC_LEN, s->bytes);
	at = put32(put32(at, s->n), in_use ? IN_USE : 0);
	for (unsigned i = 0; i < s->n; i++)
		at = put_item(at, &s->list[i]);
	at = put64(at, XXH3_64bits(data, (size_t)(at - data)));
	assert((size_t)(at - data) == *len && *len <= BITMAPS_FILE_MAX);
	return data;
}

static int replace_file(const char *path, const uint8_t *data, size_t len)
{
	char temporary[PATH_MAX + sizeof(".tmp")];
	snprintf(temporary, sizeof(temporary), "%s.tmp", path);
	(void)unlink(temporary);
	int fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	int ret = file_write(fd, data, len, 0);
	if (ret == 0 && fsync(fd) < 0)
		ret = -errno;
	close(fd);
	if (ret == 0 && rename(temporary, path) < 0)
		ret = -errno;
	if (ret < 0)
		(void)unlink(temporary);
	return ret < 0 ? ret : file_sync_folder(path);
}

int bitmaps_save(struct bitmaps *s, bool in_use, struct ft_err *err)
{
	size_t len = 0;
	pthread_mutex_lock(&s->lock);
	uint8_t *data = s->n ? format_locked(s, in_use, &len) : NULL;
	bool none = s->n == 0;
	pthread_mutex_unlock(&s->lock);
	int ret = none || data ? 0 : -ENOMEM;
	if (none && unlink(s->path) < 0 && errno != ENOENT)
		ret = -errno;
	else if (data)
		ret = replace_file(s->path, data, len);
	free(data);
	return ret < 0 ? ft_err_set(err, -ret, "bitmaps %s: %s", s->path, strerror(-ret)) : 0;
}

// ---- in ----

// The item at *at; *at moves on.
static int parse_item_locked(struct bitmaps *s, const uint8_t **at, size_t *left)
{
	char name[FT_DIRTY_NAME_MAX] = "";
	if (*left < ITEM_BYTES)
		return -EBADMSG;
	size_t name_len = (*at)[0];
	uint8_t flags = (*at)[1];
	uint32_t granularity = get32(*at + 4);
	uint64_t bytes = get64(*at + 8);
	if (flags & ~(BITMAPS_ENABLED | BITMAPS_INCONSISTENT) || (*at)[2] || (*at)[3] ||
	    name_len >= sizeof(name) || *left - ITEM_BYTES < name_len ||
	    *left - ITEM_BYTES - name_len < bytes)
		return -EBADMSG;
	memcpy(name, *at + ITEM_BYTES, name_len);
	struct ft_dirty_bitmap *map;
	if (strlen(name) != name_len)
		return -EBADMSG;
	int ret = bitmaps_make_locked(s, name, granularity, &map, NULL);
	if (ret < 0)
		return ret == -ENOMEM ? ret : -EBADMSG;
	if (bytes && (bytes != ft_dirty_map_bytes(map) ||
		      ft_dirty_put(map, 0, *at + ITEM_BYTES + name_len, bytes) < 0))
		return -EBADMSG;
	map->enabled = flags & BITMAPS_ENABLED;
	map->inconsistent = flags & BITMAPS_INCONSISTENT;
	*at += ITEM_BYTES + name_len + bytes;
	*left -= ITEM_BYTES + name_len + bytes;
	return 0;
}

static int parse_locked(struct bitmaps *s, const uint8_t *data, size_t len, bool *in_use)
{
	if (len < HEAD_BYTES + SUM_BYTES || memcmp(data, MAGIC, MAGIC_LEN) != 0 ||
	    get64(data + len - SUM_BYTES) != XXH3_64bits(data, len - SUM_BYTES))
		return -EBADMSG;
	if (get64(data + 8) != s->bytes)
		return -EFBIG;
	uint32_t count = get32(data + 16), flags = get32(data + 20);
	const uint8_t *at = data + HEAD_BYTES;
	size_t left = len - HEAD_BYTES - SUM_BYTES;
	if (count > BITMAPS_MAX || flags & ~IN_USE)
		return -EBADMSG;
	*in_use = flags & IN_USE;
	int ret = 0;
	for (uint32_t i = 0; i < count && ret == 0; i++)
		ret = parse_item_locked(s, &at, &left);
	return ret == 0 && left != 0 ? -EBADMSG : ret;
}

int bitmaps_parse(struct bitmaps *s, const uint8_t *data, size_t len, bool *in_use)
{
	pthread_mutex_lock(&s->lock);
	assert(s->n == 0);
	int ret = parse_locked(s, data, len, in_use);
	if (ret < 0)
		bitmaps_drop_locked(s);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

static int read_file(const char *path, uint8_t **data, size_t *len)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), ret = 0;
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || st.st_size > BITMAPS_FILE_MAX)
		ret = -EBADMSG;
	*len = ret == 0 ? (size_t)st.st_size : 0;
	*data = ret == 0 ? malloc(*len + 1) : NULL;
	if (ret == 0 && !*data)
		ret = -ENOMEM;
	for (size_t done = 0; ret == 0 && done < *len;) {
		ssize_t n = pread(fd, *data + done, *len - done, (off_t)done);
		if (n <= 0)
			ret = n < 0 ? -errno : -EBADMSG;
		else
			done += (size_t)n;
	}
	close(fd);
	if (ret < 0) {
		free(*data);
		*data = NULL;
	}
	return ret;
}

void bitmaps_load(struct bitmaps *s, bool known)
{
	uint8_t *data = NULL;
	size_t len = 0;
	bool in_use = false;
	int ret = read_file(s->path, &data, &len);
	if (ret == 0)
		ret = bitmaps_parse(s, data, len, &in_use);
	free(data);
	if (ret < 0 && ret != -ENOENT)
		ft_error("bitmaps %s: %s: they are gone", s->path, strerror(-ret));
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->n; i++) {
		struct ft_dirty_bitmap *map = s->list[i].map;
		if ((known && !in_use) || !map->enabled || map->inconsistent)
			continue;
		map->inconsistent = true;
		map->enabled = false;
		ft_warn("bitmap %s: inconsistent: %s; remove it", map->name,
			in_use ? "it was in use when its host or agent went down"
			       : "the disk may have been written without it");
	}
	pthread_mutex_unlock(&s->lock);
}

bool bitmaps_exist(const char *image)
{
	char path[PATH_MAX];
	int n = snprintf(path, sizeof(path), "%s" BITMAPS_SUFFIX, image);
	return n < (int)sizeof(path) && access(path, F_OK) == 0;
}

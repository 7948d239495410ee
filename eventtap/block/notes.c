// SPDX-License-Identifier: Apache-2.0
// A crash at any moment leaves a map that has too much, never too little: bits are set in the file
// before their blocks are written, and a replacement has only bits that were there. What is torn or
// was interrupted in its making does not bear a valid header.
#include "eventtap/block/notes.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "eventtap/block/boot.h"
#include "ft/log.h"

#define MAGIC	   "KFTCHNG2"
#define MAP_AT	   4096
#define CHUNK	   4096 /* of the map, at a time */
#define WORD_BYTES 8

struct header {
	uint8_t magic[8];
	uint64_t bytes, session;
	uint8_t boot[16];
	uint64_t image, map_sum, sum;
};
_Static_assert(sizeof(struct header) == 64, "no holes");

static uint64_t words_of(const struct notes *c)
{
	return (c->bits.bits + 63) / 64;
}

// Which file it is. A map says nothing of a file that was put in the place of its image.
static uint64_t identity(const char *image)
{
	struct {
		uint64_t dev, ino, born_s, born_ns;
	} id = {0};
	struct statx born;
	struct stat st;

	if (stat(image, &st) == 0) {
		id.dev = st.st_dev;
		id.ino = st.st_ino;
	}
	// A number may be given again; not every filesystem knows when.
	if (statx(AT_FDCWD, image, 0, STATX_BTIME, &born) == 0 && born.stx_mask & STATX_BTIME) {
		id.born_s = (uint64_t)born.stx_btime.tv_sec;
		id.born_ns = born.stx_btime.tv_nsec;
	}
	return XXH3_64bits(&id, sizeof(id));
}

static void set_path(struct notes *c, const char *image)
{
	int n = snprintf(c->path, sizeof(c->path), "%s" NOTES_SUFFIX, image);
	if (n >= (int)sizeof(c->path))
		c->path[0] = '\0';
}

// A file that can be neither removed nor made invalid would be believed one day: it stays open, and
// whoever would have noted something tries again.
static int end_locked(struct notes *c)
{
	static const struct header none;
	c->session = 0;
	if (c->fd < 0)
		return 0;
	if (unlink(c->path) < 0 && errno != ENOENT) {
		int ret = -errno;
		if (pwrite(c->fd, &none, sizeof(none), 0) != sizeof(none))
			return ret;
	}
	close(c->fd);
	c->fd = -1;
	return 0;
}

static int failed_locked(struct notes *c, const char *what, int code)
{
	ft_warn("%s: %s: %s: what changes on this disk is not known from now on", c->path, what,
		strerror(code));
	return end_locked(c);
}

// Words [first, end) as they are in the file.
static void put_words(const struct notes *c, uint64_t first, uint64_t end, uint64_t *out)
{
	for (uint64_t i = first; i < end; i++)
		out[i - first] = htole64(c->bits.words[i]);
}

static int write_words(const struct notes *c, uint64_t first, uint64_t end)
{
	uint64_t words[CHUNK / WORD_BYTES];
	for (uint64_t at = first, next; at < end; at = next) {
		next = at + CHUNK / WORD_BYTES < end ? at + CHUNK / WORD_BYTES : end;
		size_t len = (next - at) * WORD_BYTES;
		put_words(c, at, next, words);
		ssize_t n = pwrite(c->fd, words, len, (off_t)(MAP_AT + at * WORD_BYTES));
		if (n != (ssize_t)len)
			return n < 0 ? -errno : -ENOSPC;
	}
	return 0;
}

static uint64_t map_sum(const struct notes *c)
{
	uint64_t words[CHUNK / WORD_BYTES], sum = 0;
	for (uint64_t at = 0, next; at < words_of(c); at = next) {
		next = at + CHUNK / WORD_BYTES < words_of(c) ? at + CHUNK / WORD_BYTES
							     : words_of(c);
		put_words(c, at, next, words);
		sum = XXH3_64bits_withSeed(words, (next - at) * WORD_BYTES, sum);
	}
	return sum;
}

static int write_header(const struct notes *c, bool sealed)
{
	struct header h = {.magic = MAGIC};
	_Static_assert(sizeof(MAGIC) == sizeof(h.magic) + 1, "without its end");
	h.bytes = htole64(c->bytes);
	h.session = htole64(c->session);
	h.image = htole64(c->image);
	if (sealed)
		h.map_sum = htole64(map_sum(c));
	else
		boot_identity(h.boot);
	h.sum = htole64(XXH3_64bits(&h, offsetof(struct header, sum)));
	ssize_t n = pwrite(c->fd, &h, sizeof(h), 0);
	return n == sizeof(h) ? 0 : n < 0 ? -errno : -ENOSPC;
}

static bool read_map(struct notes *c)
{
	uint64_t words[CHUNK / WORD_BYTES];
	for (uint64_t at = 0, next; at < words_of(c); at = next) {
		next = at + CHUNK / WORD_BYTES < words_of(c) ? at + CHUNK / WORD_BYTES
							     : words_of(c);
		size_t len = (next - at) * WORD_BYTES;
		if (pread(c->fd, words, len, (off_t)(MAP_AT + at * WORD_BYTES)) != (ssize_t)len)
			return false;
		for (uint64_t i = at; i < next; i++)
			for (uint64_t word = le64toh(words[i - at]); word; word &= word - 1) {
				uint64_t bit = i * 64 + (unsigned)__builtin_ctzll(word);
				if (bit >= c->bits.bits)
					return false;
				ft_bitmap_set(&c->bits, bit);
			}
	}
	return true;
}

// True: c->session and c->bits are what the file says, and it may be believed.
static bool load(struct notes *c)
{
	static const uint8_t sealed[16];
	struct header h;
	uint8_t boot[16];
	if (pread(c->fd, &h, sizeof(h), 0) != sizeof(h) ||
	    memcmp(h.magic, MAGIC, sizeof(h.magic)) != 0 || le64toh(h.bytes) != c->bytes ||
	    le64toh(h.sum) != XXH3_64bits(&h, offsetof(struct header, sum)) || !h.session)
		return false;
	if (le64toh(h.image) != c->image) {
		ft_info("%s: is of another file than the image: everything will be compared",
			c->path);
		return false;
	}
	boot_identity(boot);
	bool is_sealed = memcmp(h.boot, sealed, sizeof(sealed)) == 0;
	if (!is_sealed && memcmp(h.boot, boot, sizeof(boot)) != 0) {
		ft_info("%s: in use when its host went down: everything will be compared", c->path);
		return false;
	}
	if (!read_map(c) || (is_sealed && le64toh(h.map_sum) != map_sum(c)))
		return false;
	c->session = le64toh(h.session);
	return true;
}

int notes_open(struct notes *c, const char *image, uint64_t bytes, bool known)
{
	*c = (struct notes){.bytes = bytes, .image = identity(image), .fd = -1};
	pthread_mutex_init(&c->lock, NULL);
	if (ft_bitmap_init(&c->bits, (bytes + NOTES_BLOCK_BYTES - 1) / NOTES_BLOCK_BYTES) < 0)
		return -ENOMEM;
	set_path(c, image);
	if (!known) {
		notes_forget(image);
		return 0;
	}
	c->fd = open(c->path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (c->fd < 0)
		return 0;
	int ret = load(c) ? write_header(c, false) : -EBADMSG;
	// Durable, or a power cut might bring back the seal.
	if (ret == 0 && fsync(c->fd) == 0)
		return 0;
	ft_bitmap_clear_all(&c->bits);
	(void)end_locked(c);
	return 0;
}

// The old file goes first: whatever becomes of the new one, it is not taken for that.
static int make_locked(struct notes *c)
{
	(void)unlink(c->path);
	c->fd = open(c->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (c->fd < 0)
		return -errno;
	if (ftruncate(c->fd, (off_t)(MAP_AT + words_of(c) * WORD_BYTES)) < 0)
		return -errno;
	int ret = c->bits.count ? write_words(c, 0, words_of(c)) : 0;
	return ret == 0 ? write_header(c, false) : ret;
}

void notes_begin(struct notes *c, uint64_t session, const struct ft_bitmap *but)
{
	assert(session);
	pthread_mutex_lock(&c->lock);
	int ret = end_locked(c);
	ft_bitmap_clear_all(&c->bits);
	if (but)
		ft_bitmap_merge(&c->bits, but);
	if (ret == 0) {
		c->session = session;
		ret = make_locked(c);
	}
	if (ret < 0)
		(void)failed_locked(c, "create", -ret);
	pthread_mutex_unlock(&c->lock);
}

int notes_mark(struct notes *c, uint64_t offset, uint64_t len)
{
	if (len == 0)
		return 0;
	uint64_t first = offset / NOTES_BLOCK_BYTES;
	uint64_t end = (offset + len - 1) / NOTES_BLOCK_BYTES + 1;
	pthread_mutex_lock(&c->lock);
	uint64_t before = c->bits.count;
	int ret = 0;
	if (c->session) {
		ft_bitmap_set_range(&c->bits, first, end - first);
		if (c->bits.count > before)
			ret = write_words(c, first / 64, (end - 1) / 64 + 1);
		if (ret < 0)
			ret = failed_locked(c, "write", -ret);
	} else if (c->fd >= 0) {
		ret = end_locked(c);
	}
	pthread_mutex_unlock(&c->lock);
	return ret;
}

void notes_replace(struct notes *c, const struct ft_bitmap *bits)
{
	assert(bits->bits == c->bits.bits);
	pthread_mutex_lock(&c->lock);
	if (c->session) {
		uint64_t first = 0, end = 0;
		for (uint64_t i = 0; i < words_of(c); i++) {
			if (c->bits.words[i] == bits->words[i])
				continue;
			first = end ? first : i;
			end = i + 1;
		}
		ft_bitmap_clear_all(&c->bits);
		ft_bitmap_merge(&c->bits, bits);
		int ret = write_words(c, first, end);
		if (ret < 0)
			(void)failed_locked(c, "write", -ret);
	}
	pthread_mutex_unlock(&c->lock);
}

int notes_end(struct notes *c)
{
	pthread_mutex_lock(&c->lock);
	int ret = end_locked(c);
	pthread_mutex_unlock(&c->lock);
	return ret;
}

void notes_seal(struct notes *c)
{
	pthread_mutex_lock(&c->lock);
	if (c->session) {
		int ret = fsync(c->fd) < 0 ? -errno : write_header(c, true);
		if (ret == 0 && fsync(c->fd) < 0)
			ret = -errno;
		if (ret < 0)
			(void)failed_locked(c, "sync", -ret);
	}
	pthread_mutex_unlock(&c->lock);
}

uint64_t notes_session(struct notes *c)
{
	pthread_mutex_lock(&c->lock);
	uint64_t session = c->session;
	pthread_mutex_unlock(&c->lock);
	return session;
}

static uint64_t next_clear(const struct ft_bitmap *b, uint64_t from)
{
	while (from < b->bits && ft_bitmap_test(b, from))
		from++;
	return from;
}

bool notes_at(struct notes *c, uint64_t offset, uint64_t *len)
{
	uint64_t block = offset / NOTES_BLOCK_BYTES;
	pthread_mutex_lock(&c->lock);
	bool set = ft_bitmap_test(&c->bits, block);
	uint64_t end = set ? next_clear(&c->bits, block) : ft_bitmap_next(&c->bits, block);
	pthread_mutex_unlock(&c->lock);
	uint64_t alike = end * NOTES_BLOCK_BYTES - offset;
	*len = alike < *len ? alike : *len;
	return set;
}

void notes_close(struct notes *c)
{
	if (!c->session && end_locked(c) < 0)
		ft_error("%s: cannot be removed: remove it before this host is a standby again",
			 c->path);
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->session = 0;
	if (c->bits.words)
		pthread_mutex_destroy(&c->lock);
	ft_bitmap_free(&c->bits);
}

// A seal, if it has one, must not come back with a power cut.
void notes_forget(const char *image)
{
	static const struct header none;
	struct notes c = {.fd = -1};
	set_path(&c, image);
	int fd = open(c.path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return;
	bool done = pwrite(fd, &none, sizeof(none), 0) == sizeof(none) && fsync(fd) == 0;
	close(fd);
	if (unlink(c.path) < 0 || !done)
		ft_error("%s: cannot be removed: remove it before this host is a standby again",
			 c.path);
}

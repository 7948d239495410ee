// SPDX-License-Identifier: Apache-2.0
/* Names: which file has one now, and which would have it if all power went; and the calls that go
 * by a name. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eventtap/block/journal.h"
#include "tests/sim/files_internal.h"
#include "tests/sim/world.h"
#include "vmm-glue/snapshot/update.h"

#define PREFIX	  "/sim/"
#define NAMES_MAX 64 /* at one time */

static struct world *world;
static struct name names[NAMES_MAX];

void names_init(struct world *w)
{
	world = w;
	memset(names, 0, sizeof names);
}

void names_free(void)
{
	for (unsigned i = 0; i < NAMES_MAX; i++) {
		inode_set(&names[i].now, NULL);
		inode_set(&names[i].durable, NULL);
	}
	world = NULL;
}

/* ---- look-up ---- */

bool names_is_ours(const char *path)
{
	return world && !strncmp(path, PREFIX, strlen(PREFIX));
}

struct node *names_resolve(const char *path, char out[PATH_BYTES])
{
	struct node *n;

	if (!names_is_ours(path))
		return NULL;
	assert(path[5] >= 'A' && path[5] < 'A' + SIM_NODES);
	n = &world->nodes[path[5] - 'A'];
	if (!strncmp(path + 6, "/shared", 7))
		snprintf(out, PATH_BYTES, "%s", path + 6);
	else
		snprintf(out, PATH_BYTES, "%s", path);
	return n;
}

struct name *names_find(const char *path)
{
	for (unsigned i = 0; i < NAMES_MAX; i++)
		if ((names[i].now || names[i].durable) && !strcmp(names[i].path, path))
			return &names[i];
	return NULL;
}

struct name *names_make(const char *path)
{
	struct name *n = names_find(path);

	for (unsigned i = 0; !n && i < NAMES_MAX; i++)
		if (!names[i].now && !names[i].durable)
			n = &names[i];
	if (!n)
		abort();
	snprintf(n->path, sizeof n->path, "%s", path);
	return n;
}

const struct name *names_at(unsigned i)
{
	return i < NAMES_MAX ? &names[i] : NULL;
}

/* ---- what is durable ---- */

/* What it is now gets to the disk, or is lost. */
static void settle(struct name *n, bool reached)
{
	if (reached)
		inode_set(&n->durable, n->now);
	else
		inode_set(&n->now, n->durable);
	n->other = NULL;
}

static bool in_folder(const char *path, const char *folder)
{
	size_t n = strlen(folder);

	return !strncmp(path, folder, n) && path[n] == '/' && !strchr(path + n + 1, '/');
}

void names_sync(const char *folder)
{
	for (unsigned i = 0; i < NAMES_MAX; i++)
		if ((names[i].now || names[i].durable) && in_folder(names[i].path, folder))
			settle(&names[i], true);
}

void names_power_lost(struct node *n)
{
	for (unsigned i = 0; i < NAMES_MAX; i++) {
		struct name *name = &names[i];
		char own[8];

		if (!name->now && !name->durable)
			continue;
		snprintf(own, sizeof own, PREFIX "%c/", 'A' + (int)n->id);
		if (!strncmp(name->path, own, strlen(own)) && name->now != name->durable) {
			struct name *other = name->other;
			bool reached = world_chance(world, 50);

			if (other && other->other == name)
				settle(other, reached);
			settle(name, reached);
		}
		if (name->now)
			inode_lose(name->now, world, n->id);
	}
}

/* ---- calls ---- */

int __real_stat(const char *path, struct stat *st);
int __wrap_stat(const char *path, struct stat *st);
int __wrap_stat(const char *path, struct stat *st)
{
	char known[PATH_BYTES];
	struct name *name;

	if (!names_resolve(path, known))
		return __real_stat(path, st);
	name = names_find(known);
	if (!name || !name->now)
		return call_fail(ENOENT);
	file_stat(st, name->now);
	return 0;
}

int __real_access(const char *path, int mode);
int __wrap_access(const char *path, int mode);
int __wrap_access(const char *path, int mode)
{
	char known[PATH_BYTES];
	struct name *name;

	if (!names_resolve(path, known))
		return __real_access(path, mode);
	name = names_find(known);
	return name && name->now ? 0 : call_fail(ENOENT);
}

int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path)
{
	char known[PATH_BYTES];
	struct node *n = names_resolve(path, known);
	struct name *name;
	bool dies;

	if (!n)
		return __real_unlink(path);
	name = names_find(known);
	if (!name || !name->now)
		return call_fail(ENOENT);
	if (call_step(n, &dies) && !dies)
		return call_fail(EIO);
	if (world->mutant != MUTANT_JOURNAL_KEPT || !strstr(known, JOURNAL_SUFFIX))
		inode_set(&name->now, NULL);
	return dies ? call_fail(EIO) : 0;
}

/* The next one in the row, if there is one. */
static void skip_link(char path[PATH_BYTES])
{
	char next[PATH_BYTES], *number = strrchr(path, '/') + 1;
	int folder = (int)(number - path);
	struct name *name;

	snprintf(next, sizeof next, "%.*s%020llu.changes", folder, path,
		 strtoull(number, NULL, 10) + 1);
	name = names_find(next);
	if (name && name->now)
		memcpy(path, next, sizeof next);
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
	char a[PATH_BYTES], b[PATH_BYTES];
	struct node *n = names_resolve(from, a);
	struct name *source, *target;
	bool dies;
	int rc;

	if (!n)
		return __real_rename(from, to);
	(void)names_resolve(to, b);
	if (world->mutant == MUTANT_LINK_SKIPPED && strstr(b, "/base" UPDATE_SUFFIX))
		skip_link(a);
	source = names_find(a);
	if (!source || !source->now)
		return call_fail(ENOENT);
	rc = call_step(n, &dies);
	if (rc && (!dies || world_chance(world, 50)))
		return call_fail(rc);
	target = names_make(b);
	inode_set(&target->now, source->now);
	inode_set(&source->now, NULL);
	target->other = source;
	source->other = target;
	return rc ? call_fail(rc) : 0;
}

// SPDX-License-Identifier: Apache-2.0
// What a stranger's snapshot says of its disks. Whatever is accepted names files of its own folder
// only, each disk and each file once, and says the same when it is described again.
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/snapshot/companions.h"

static void check(const struct companions *c)
{
	for (unsigned i = 0; i < c->n; i++) {
		const struct companion *d = &c->disks[i];

		assert(d->bytes > 0 && d->fd == -1);
		assert(*d->id && memchr(d->id, 0, sizeof d->id));
		assert(*d->file && *d->file != '.' && memchr(d->file, 0, sizeof d->file));
		assert(!strchr(d->file, '/'));
		assert(companions_find(c, d->id) == d);
		for (unsigned k = 0; k < i; k++)
			assert(strcmp(c->disks[k].file, d->file) != 0);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct companions c, again;
	struct ft_err err = {0};
	char *text;

	if (len > COMPANIONS_TEXT_MAX)
		return 0;
	if (companions_parse((const char *)data, len, &c, &err)) {
		assert(err.code == EBADMSG && err.text[0]);
		return 0;
	}
	assert(c.n <= VMM_DISKS_MAX);
	check(&c);
	text = companions_describe(&c);
	assert(text && !companions_parse(text, strlen(text), &again, &err));
	assert(again.n == c.n && !memcmp(again.disks, c.disks, c.n * sizeof *c.disks));
	free(text);
	return 0;
}

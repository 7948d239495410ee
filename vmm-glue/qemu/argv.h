/* SPDX-License-Identifier: Apache-2.0 */
/* A command line under construction. Running out of memory or room is remembered and found once, by
 * argv_check(). */
#ifndef VMM_GLUE_QEMU_ARGV_H
#define VMM_GLUE_QEMU_ARGV_H

#include <stdbool.h>
#include <stddef.h>
#include <jansson.h>

#include "ft/err.h"

#define ARGV_MAX 256

struct argv {
	char *v[ARGV_MAX + 1]; /* NULL-terminated */
	unsigned n;
	bool failed;
};

void argv_add(struct argv *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Two arguments: an option and its value. */
void argv_opt(struct argv *a, const char *option, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* An option whose value is a JSON object as json_pack() makes it: needs no escaping. */
void argv_json(struct argv *a, const char *option, const char *fmt, ...);
int argv_check(const struct argv *a, struct ft_err *err);
void argv_free(struct argv *a);

/* For options without a JSON form: a comma in a value is written twice. False: out does not hold
 * it. */
bool argv_escape(char *out, size_t room, const char *value);

#endif

// SPDX-License-Identifier: Apache-2.0
// See argv.h: errors collect, so that a command line reads as a list and not as a ladder.
#include "vmm-glue/qemu/argv.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add(struct argv *a, char *text)
{
	if (!text || a->n == ARGV_MAX) {
		a->failed = true;
		free(text);
		return;
	}
	a->v[a->n++] = text;
	a->v[a->n] = NULL;
}

static void vadd(struct argv *a, const char *fmt, va_list ap)
{
	char *text = NULL;

	add(a, vasprintf(&text, fmt, ap) < 0 ? NULL : text);
}

void argv_add(struct argv *a, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vadd(a, fmt, ap);
	va_end(ap);
}

void argv_opt(struct argv *a, const char *option, const char *fmt, ...)
{
	va_list ap;

	add(a, strdup(option));
	va_start(ap, fmt);
	vadd(a, fmt, ap);
	va_end(ap);
}

void argv_json(struct argv *a, const char *option, const char *fmt, ...)
{
	json_error_t why;
	json_t *object;
	va_list ap;

	va_start(ap, fmt);
	object = json_vpack_ex(&why, 0, fmt, ap);
	va_end(ap);
	add(a, strdup(option));
	add(a, object ? json_dumps(object, JSON_COMPACT) : NULL);
	json_decref(object);
}

int argv_check(const struct argv *a, struct ft_err *err)
{
	return a->failed ? ft_err_set(err, EINVAL,
				      "qemu: command line: too long, or text that is not UTF-8")
			 : 0;
}

void argv_free(struct argv *a)
{
	for (unsigned i = 0; i < a->n; i++)
		free(a->v[i]);
	*a = (struct argv){0};
}

bool argv_escape(char *out, size_t room, const char *value)
{
	while (*value) {
		size_t need = *value == ',' ? 2 : 1;

		if (room <= need)
			return false;
		if (need == 2)
			*out++ = ',';
		*out++ = *value++;
		room -= need;
	}
	*out = '\0';
	return true;
}

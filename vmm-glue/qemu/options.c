// SPDX-License-Identifier: Apache-2.0
// QEMU's two notations for the value of an option, read into one flat object (QEMU: util/keyval.c;
// qapi keys of nested objects joined with dots, as -blockdev file.driver=... does).
#include "vmm-glue/qemu/options.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEPTH_MAX 8

int options_read(pid_t pid, struct argv *argv, struct ft_err *err)
{
	char path[32], *text = malloc(OPTIONS_BYTES_MAX);
	size_t len = 0;
	ssize_t n = 0;
	int fd;

	*argv = (struct argv){0};
	snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && text && len < OPTIONS_BYTES_MAX &&
	       (n = read(fd, text + len, OPTIONS_BYTES_MAX - len)) > 0)
		len += (size_t)n;
	if (fd >= 0)
		close(fd);
	for (size_t at = 0; at < len && len < OPTIONS_BYTES_MAX && text[len - 1] == '\0';
	     at += strlen(text + at) + 1)
		argv_add(argv, "%s", text + at);
	free(text);
	if (argv->n > 0 && !argv->failed)
		return 0;
	argv_free(argv);
	return ft_err_set(err, EIO, "qemu: %s: unreadable, empty or too long", path);
}

static bool flatten(json_t *out, const char *prefix, json_t *object, unsigned depth)
{
	const char *key;
	json_t *value;

	json_object_foreach(object, key, value)
	{
		char name[128];

		if (snprintf(name, sizeof name, "%s%s%s", prefix, *prefix ? "." : "", key) >=
		    (int)sizeof name)
			return false;
		if (!json_is_object(value)) {
			if (json_object_set(out, name, value) < 0)
				return false;
		} else if (depth == DEPTH_MAX || !flatten(out, name, value, depth + 1)) {
			return false;
		}
	}
	return true;
}

/* The text up to the next single comma, ",," being one that belongs to it; moves *at behind it. */
static bool parse_value(char *out, size_t room, const char **at)
{
	size_t n = 0;

	for (; **at; (*at)++) {
		if (**at == ',' && *++*at != ',')
			break;
		if (n == room - 1)
			return false;
		out[n++] = **at;
	}
	out[n] = '\0';
	return true;
}

/*
 * One "key=value", or a key alone, starting at *at; moves *at behind it. A comma ends a key,
 * doubled or not: what QEMU takes for two options must not be one to us.
 */
static bool parse_part(json_t *out, const char **at, const char *first)
{
	char key[128], value[4096];
	size_t n = strcspn(*at, "=,");
	bool has_value = (*at)[n] == '=';

	if (has_value || !first) {
		if (n == 0 || n >= sizeof key)
			return false;
		memcpy(key, *at, n);
		key[n] = '\0';
		*at += n + ((*at)[n] != '\0');
		first = key;
	} else if (n == 0 && **at == ',' && (*at)[1] != ',') {
		return false;
	} else {
		has_value = true;
	}
	if (!has_value)
		return json_object_set_new(out, first, json_string("on")) == 0;
	return parse_value(value, sizeof value, at) &&
	       json_object_set_new(out, first, json_string(value)) == 0;
}

json_t *options_parse(const char *value, const char *first)
{
	json_t *out = json_object(), *in;
	bool ok = out != NULL;

	if (ok && *value == '{') {
		in = json_loads(value, JSON_REJECT_DUPLICATES, NULL);
		ok = json_is_object(in) && flatten(out, "", in, 0);
		json_decref(in);
	} else {
		while (ok && *value) {
			ok = parse_part(out, &value, first);
			first = NULL;
		}
	}
	if (ok)
		return out;
	json_decref(out);
	return NULL;
}

const char *options_get(const json_t *options, const char *key)
{
	const json_t *value = json_object_get(options, key);

	if (json_is_boolean(value))
		return json_is_true(value) ? "on" : "off";
	return json_string_value(value);
}

static bool print_part(char *out, size_t room, const char *key, const char *value, bool bare)
{
	char escaped[8192];
	size_t used = strlen(out);

	if (!argv_escape(escaped, sizeof escaped, value))
		return false;
	return (size_t)snprintf(out + used, room - used, "%s%s%s%s", used ? "," : "",
				bare ? "" : key, bare ? "" : "=", escaped) < room - used;
}

bool options_print(const json_t *options, const char *first, char *out, size_t room)
{
	const char *key = NULL, *value;
	json_t *item;
	char number[32];

	*out = '\0';
	if (first && (value = options_get(options, first)) &&
	    !print_part(out, room, first, value, true))
		return false;
	json_object_foreach((json_t *)options, key, item)
	{
		if (first && !strcmp(key, first))
			continue;
		value = options_get(options, key);
		if (!value && json_is_integer(item)) {
			snprintf(number, sizeof number, "%lld",
				 (long long)json_integer_value(item));
			value = number;
		}
		if (!value || !print_part(out, room, key, value, false))
			return false;
	}
	return true;
}

// SPDX-License-Identifier: Apache-2.0
/* To people: errors on stderr, text that was checked. To programs: one JSON object on stdout,
 * errors included. */
#include "tools/ftctl/ftctl.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const char *clean(char *out, size_t room, const char *text)
{
	size_t n = 0;

	for (; *text && n + 1 < room; text++)
		out[n++] = (unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text;
	out[n] = 0;
	return out;
}

json_t *json_text(const char *text)
{
	json_t *json = json_string(text);
	char *ascii;

	if (json)
		return json;
	ascii = strdup(text);
	for (char *p = ascii; p && *p; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	json = json_string(ascii ? ascii : "");
	free(ascii);
	return json;
}

int print_json(json_t *object)
{
	int ret = object ? json_dumpf(object, stdout, JSON_PRESERVE_ORDER) : -1;

	json_decref(object);
	if (ret || putchar('\n') == EOF || fflush(stdout)) {
		fputs("ftctl: cannot write the answer\n", stderr);
		return FTCTL_FAILED;
	}
	return FTCTL_OK;
}

static void print_error(const struct ftctl *ctl, const char *word, const char *message)
{
	char line[2048];

	if (ctl->json)
		print_json(json_pack("{s:{s:o, s:o}}", "error", "code", json_text(word), "message",
				     json_text(message)));
	else
		fprintf(stderr, "ftctl: %s\n", clean(line, sizeof line, message));
}

int fail(const struct ftctl *ctl, const char *word, const char *fmt, ...)
{
	char message[2048];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(message, sizeof message, fmt, ap);
	va_end(ap);
	print_error(ctl, word, message);
	return !strcmp(word, CTL_ERR_USAGE) ? FTCTL_USAGE : FTCTL_FAILED;
}

int fail_usage(const struct ftctl *ctl, const struct command *command, const char *fmt, ...)
{
	char message[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(message, sizeof message, fmt, ap);
	va_end(ap);
	print_error(ctl, CTL_ERR_USAGE, message);
	if (!ctl->json && command)
		fprintf(stderr, "usage: ftctl %s%s%s\n", command->name,
			*command->synopsis ? " " : "", command->synopsis);
	else if (!ctl->json)
		fputs("try: ftctl --help\n", stderr);
	return FTCTL_USAGE;
}

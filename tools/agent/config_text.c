// SPDX-License-Identifier: Apache-2.0
/* Reads a guest file for libconfuse. Three faults of its scanner (3.3) are kept away from the
 * operator here:
 *   - a comment counts as a line of its own, so every error after it would name a wrong line:
 * comments are blanked out;
 *   - a section that is never closed is accepted at the end of the file: braces are counted;
 *   - a string that is never closed leaves the scanner inside a string for the next file: refused
 * before it is scanned. */
#include "tools/agent/config_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BRACES_MAX 4 /* a section, a list in it; more is a mistake that libconfuse will name */

struct scan {
	char *at;
	int line;
	int open[BRACES_MAX]; /* lines of the braces that are open */
	unsigned depth;
};

static void blank_line(struct scan *s)
{
	for (; *s->at && *s->at != '\n'; s->at++)
		*s->at = ' ';
}

/* False: it has no end. */
static bool blank_block(struct scan *s)
{
	const char *end = strstr(s->at + 2, "*/");

	if (!end)
		return false;
	for (end += 2; s->at < end; s->at++) {
		if (*s->at == '\n')
			s->line++;
		else
			*s->at = ' ';
	}
	return true;
}

/* False: it has no end. */
static bool skip_string(struct scan *s)
{
	char quote = *s->at++;

	for (; *s->at && *s->at != quote; s->at++) {
		if (*s->at == '\\' && s->at[1])
			s->at++;
		if (*s->at == '\n')
			s->line++;
	}
	if (!*s->at)
		return false;
	s->at++;
	return true;
}

static void count_brace(struct scan *s)
{
	if (*s->at == '{') {
		if (s->depth < BRACES_MAX)
			s->open[s->depth] = s->line;
		s->depth++;
	} else if (s->depth) {
		s->depth--;
	}
	s->at++;
}

static int blank_comments(const char *file, char *text, struct ft_err *err)
{
	struct scan s = {.at = text, .line = 1};

	while (*s.at) {
		int line = s.line;

		if (*s.at == '#' || (s.at[0] == '/' && s.at[1] == '/')) {
			blank_line(&s);
		} else if (s.at[0] == '/' && s.at[1] == '*') {
			if (!blank_block(&s))
				return ft_err_set(err, EINVAL, "%s:%d: comment is never closed",
						  file, line);
		} else if (*s.at == '"' || *s.at == '\'') {
			if (!skip_string(&s))
				return ft_err_set(err, EINVAL, "%s:%d: string is never closed",
						  file, line);
		} else if (*s.at == '{' || *s.at == '}') {
			count_brace(&s);
		} else if (*s.at == '\n') {
			s.line++;
			s.at++;
		} else if (strchr(" \t\r=(),+", *s.at)) {
			s.at++;
		} else {
			/* A bare word; slashes inside it (a path, a URL) begin no comment. */
			s.at += strcspn(s.at, " \t\r\n=(),+{}\"'#");
		}
	}
	if (s.depth && s.depth <= BRACES_MAX)
		return ft_err_set(err, EINVAL, "%s:%d: brace is never closed", file,
				  s.open[s.depth - 1]);
	return 0;
}

static int read_all(int fd, const char *file, char *text, size_t *len, struct ft_err *err)
{
	ssize_t n;

	for (*len = 0; *len <= CONFIG_FILE_MAX; *len += (size_t)n) {
		n = read(fd, text + *len, CONFIG_FILE_MAX + 1 - *len);
		if (n < 0)
			return ft_err_set(err, errno, "%s: cannot read: %s", file, strerror(errno));
		if (!n)
			return 0;
	}
	return ft_err_set(err, EFBIG, "%s: larger than %u bytes", file, CONFIG_FILE_MAX);
}

int config_text_read(const char *file, char **text, struct ft_err *err)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC), ret;
	size_t len = 0;
	char *buf;

	if (fd < 0)
		return ft_err_set(err, errno, "%s: cannot open: %s", file, strerror(errno));
	buf = malloc(CONFIG_FILE_MAX + 2);
	if (!buf) {
		close(fd);
		return ft_err_set(err, ENOMEM, "%s: out of memory", file);
	}
	ret = read_all(fd, file, buf, &len, err);
	close(fd);
	buf[len] = 0;
	if (!ret && strlen(buf) != len)
		ret = ft_err_set(err, EINVAL, "%s: not a text file", file);
	if (!ret)
		ret = blank_comments(file, buf, err);
	if (ret)
		free(buf);
	else
		*text = buf;
	return ret;
}

// SPDX-License-Identifier: Apache-2.0
#include "ft/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static _Atomic int level_max = FT_LOG_INFO;

static void (*replacement)(enum ft_log_level level, const char *line);

void ft_log_sink_set(void (*sink)(enum ft_log_level level, const char *line))
{
	replacement = sink;
}

void ft_log_level_set(enum ft_log_level level)
{
	level_max = (int)level;
}

int ft_log_level_parse(const char *text)
{
	for (int i = 0; i < 4; i++)
		if (!strcmp(text, level_names[i]))
			return i;
	return -1;
}

void ft_log(enum ft_log_level level, const char *fmt, ...)
{
	int saved = errno;
	char line[1024];
	struct timespec ts;
	struct tm tm;
	va_list ap;
	int n;

	if ((int)level > level_max)
		return;
	if (replacement) {
		va_start(ap, fmt);
		vsnprintf(line, sizeof line, fmt, ap);
		va_end(ap);
		replacement(level, line);
		errno = saved;
		return;
	}
	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	n = snprintf(line, sizeof line, "%02d:%02d:%02d.%06ld %s: ", tm.tm_hour, tm.tm_min,
		     tm.tm_sec, ts.tv_nsec / 1000, level_names[level]);
	va_start(ap, fmt);
	errno = saved;
	n += vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof line - 2)
		n = (int)sizeof line - 2;
	line[n++] = '\n';
	/* One write, so that lines of several threads and processes do not mix. */
	(void)!write(STDERR_FILENO, line, (size_t)n);
	errno = saved;
}

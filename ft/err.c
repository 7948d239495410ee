// SPDX-License-Identifier: Apache-2.0
#include "ft/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int ft_err_set(struct ft_err *err, int code, const char *fmt, ...)
{
	if (err) {
		va_list ap;

		err->code = code;
		va_start(ap, fmt);
		vsnprintf(err->text, sizeof err->text, fmt, ap);
		va_end(ap);
	}
	return -code;
}

int ft_err_context(struct ft_err *err, const char *fmt, ...)
{
	char text[FT_ERR_TEXT_MAX];
	va_list ap;
	int n;

	if (!err)
		return -1;
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < sizeof text - 2) {
		/* The context is what a cut text must still say, so the old text gives way. */
		snprintf(text + n, sizeof text - (size_t)n, ": %.*s",
			 (int)(sizeof text - 3 - (size_t)n), err->text);
		memcpy(err->text, text, sizeof text);
	}
	return -err->code;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Errors: a function returns 0 or -errno, and explains itself once in a struct ft_err as "context:
 * what: why". The callee sets the text; callers add context in front; whoever handles the error
 * logs it. Never both report and return. */
#ifndef FT_ERR_H
#define FT_ERR_H

#define FT_ERR_TEXT_MAX 512

struct ft_err {
	int code;		    /* positive errno, 0 = no error */
	char text[FT_ERR_TEXT_MAX]; /* "" = no error */
};

/* Sets *err (which may be NULL) and returns -code, so that `return ft_err_set(err, EINVAL, ...)`
 * reads well. Any thread. */
int ft_err_set(struct ft_err *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts "CONTEXT: " in front of the text of *err. Returns -err->code. */
int ft_err_context(struct ft_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif

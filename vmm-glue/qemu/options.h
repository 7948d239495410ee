/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of a QEMU that we did not start: its arguments, and the values of its options
 * ("file=a,,b,format=raw" or JSON). */
#ifndef VMM_GLUE_QEMU_OPTIONS_H
#define VMM_GLUE_QEMU_OPTIONS_H

#include <stddef.h>
#include <sys/types.h>
#include <jansson.h>

#include "ft/err.h"
#include "vmm-glue/qemu/argv.h"

#define OPTIONS_BYTES_MAX (64u << 10) /* one command line; and one option's value */

/* /proc/PID/cmdline. */
int options_read(pid_t pid, struct argv *argv, struct ft_err *err);

/* A value as an object of strings (JSON values keep their types; {"a": {"b": 1}} becomes "a.b").
 * first: the key of a first part without
 * '=' ("tap" in "tap,id=n0"), NULL: such a part is a switch, and reads "on". NULL: malformed. */
json_t *options_parse(const char *value, const char *first);
/* Back to text, key=value with commas escaped; `first`'s key is left out. false: does not fit. */
bool options_print(const json_t *options, const char *first, char *out, size_t room);
/* String of a key; booleans read "on" and "off"; NULL when absent. */
const char *options_get(const json_t *options, const char *key);

#endif

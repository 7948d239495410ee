/* SPDX-License-Identifier: Apache-2.0 */
/* One pass over a peer's command line; two come out: the QEMU that waits, and its trial. */
#ifndef VMM_GLUE_QEMU_COMMAND_LINE_H
#define VMM_GLUE_QEMU_COMMAND_LINE_H

#include "vmm-glue/qemu/argv.h"
#include "vmm-glue/qemu/qemu.h"

struct command_line {
	const struct qemu_arm_rules *rules;
	struct argv run, trial;
	uint64_t memory_bytes;
	unsigned nics_n, serials_n;
};

/* c->rules is given. run and trial, and memory_bytes, are made of argv, which is NULL-terminated;
 * both are argv_free()'d by the caller, also after an error. -EPERM: what is not on the list, by
 * name. Touches nothing but the files that argv names. */
int command_line_translate(struct command_line *c, const char *const *argv, struct ft_err *err);

/* Handler of one option on the allow-list. -EPERM for what it does not allow. */
typedef int option_handler(struct command_line *c, const char *option, const char *value,
			   struct ft_err *err);

option_handler option_device, option_drive, option_blockdev, option_netdev, option_chardev,
	option_serial, option_object;

/* Both. */
void command_line_emit(struct command_line *c, const char *option, const char *value);
/* Letters, digits and "_.,=+:-": nothing that could name a file, a command or a host. */
int command_line_plain(const char *option, const char *value, struct ft_err *err);
/* A path of the primary's as one of ours: replaced, and below an allowed directory also when links
 * are followed. */
int command_line_path(struct command_line *c, const char *option, const char *path,
		      char out[VMM_PATH_MAX], struct ft_err *err);
/* `replace` for a whole word. */
const char *command_line_replace(const struct command_line *c, const char *word);

#endif

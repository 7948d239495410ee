/* SPDX-License-Identifier: Apache-2.0 */
/* What the config_*.c share; nobody else includes this.
 *
 *   config_text.c   file -> text that libconfuse counts the lines of correctly
 *   config.c        text and --set -> values, by the table of keys
 *   config_keys.c   the table, and what each type of value looks like
 *   config_check.c  what no single value can tell: combinations, and values made from others */
#ifndef TOOLS_AGENT_CONFIG_PARTS_H
#define TOOLS_AGENT_CONFIG_PARTS_H

#include <stddef.h>

#include "tools/agent/config.h"

#define CONFIG_KEYS_MAX	 72
#define CONFIG_ITEMS_MAX 8 /* disks, and NICs */
_Static_assert(VMM_DISKS_MAX == CONFIG_ITEMS_MAX && VMM_NICS_MAX == CONFIG_ITEMS_MAX,
	       "one bound for both");

struct config_word {
	const char *name;
	int value;
};

struct config_key {
	const char
		*section; /* "" = top level; "disk", "nic": one of several, told apart by a title */
	const char *name;
	/* Reads `text` into `to`; the error says what is wrong, not where. dir: folder of the guest
	 * file. */
	int (*parse)(const struct config_key *key, const char *dir, const char *text, void *to,
		     struct ft_err *err);
	size_t offset; /* of the value, in struct ft_config, config_disk or config_nic */
	size_t room;   /* strings: bytes with the NUL */
	uint64_t min, max;
	const struct config_word *words; /* ends with a NULL name */
	bool list;    /* the value is a struct config_list; parse is for one entry */
	bool machine; /* describes a machine: contradicts qemu.attach, and its absence makes a file
			 of a peer's guest */
};

extern const struct config_key config_keys[];
extern const unsigned config_keys_n;

/* NULL if there is none. */
const struct config_key *config_key_find(const char *section, const char *name);

/* Where each value came from. */
#define CONFIG_DEFAULT 0    /* nowhere */
#define CONFIG_BY_SET  (-1) /* --set; lines of the file are positive */
struct config_origins {
	const char *file;
	int line[CONFIG_KEYS_MAX][CONFIG_ITEMS_MAX];
};

/* Puts "FILE:LINE: SECTION.TITLE.KEY: " or "--set KEY: " in front of *err, as far as it is known.
 */
int config_blame(const struct config_origins *origins, int line, const char *section,
		 const char *title, const char *name, struct ft_err *err);

/* Completes and checks *config. */
int config_check(struct ft_config *config, const struct config_origins *origins,
		 struct ft_err *err);

/* The whole file, NUL-terminated, with comments blanked out; the caller frees *text. */
int config_text_read(const char *file, char **text, struct ft_err *err);

#endif

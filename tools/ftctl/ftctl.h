/* SPDX-License-Identifier: Apache-2.0 */
/* What ftctl's commands share: how a command looks, how it asks an agent, how it speaks to people
 * and to programs.
 *
 *   ftctl.c     options of the program, the table of commands, help
 *   ask.c       one request to one agent; the list of guests
 *   out.c       errors and JSON
 *   status.c    status, wait, and the JSON of a status        table.c  the table of status and top
 *   migrate.c   migrate: protect a guest, or move it
 *   protect.c   checkpoint, failover, failback, cancel, verify, stop
 *   snapshot.c  snapshot, with its bar
 *   history.c   history                                     bitmap.c   bitmap
 *   top.c, pki.c, drill.c
 *
 * A command prints its result and returns an exit code. With --json it prints exactly one object,
 * errors included. */
#ifndef TOOLS_FTCTL_FTCTL_H
#define TOOLS_FTCTL_FTCTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "ft/err.h"
#include "tools/ctl/ctl.h"

enum ftctl_exit { FTCTL_OK = 0, FTCTL_FAILED = 1, FTCTL_USAGE = 2, FTCTL_TIMEOUT = 4 };

struct ftctl {
	const char *run_dir;
	bool json;
};

struct command {
	const char *name;
	const char *synopsis; /* arguments */
	const char *summary;  /* one line */
	const char *help;     /* paragraphs; lines of at most 80 columns */
	int (*run)(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
	int answer_ms; /* longest time until the agent answers */
};

/* The commands; argv[0] is the command's name. */
int run_status(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_wait(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_migrate(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_plain(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_checkpoint(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_snapshot(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_bitmap(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_backup(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_history(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_verify(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_pki(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_drill(const struct ftctl *ctl, const struct command *command, int argc, char **argv);
int run_top(const struct ftctl *ctl, const struct command *command, int argc, char **argv);

/* ---- out.c ---- */

/* Prints an error and returns its exit code. word: CTL_ERR_*. */
int fail(const struct ftctl *ctl, const char *word, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The command line is wrong: says so, with the command's synopsis, and returns FTCTL_USAGE. */
int fail_usage(const struct ftctl *ctl, const struct command *command, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Prints the object on one line and frees it. */
int print_json(json_t *object);
/* A string for JSON; what is not UTF-8 is replaced. */
json_t *json_text(const char *text);
/* Control characters replaced: a reason may quote what a guest's QEMU said. Returns out. */
const char *clean(char *out, size_t room, const char *text);

/* ---- ask.c ---- */

/* Asks and reports: 0 and a reply that is no error, which the caller frees with free_reply(), or
 * the exit code. */
int ask(const struct ftctl *ctl, const char *name, const Ctl__Request *request, int answer_ms,
	Ctl__Reply **reply);
/* The second half of ask(), for what ctl_ask() gave. */
int take_answer(const struct ftctl *ctl, const char *name, int ret, const struct ft_err *err,
		Ctl__Reply **reply);
void free_reply(Ctl__Reply *reply);

#define GUESTS_MAX 256
struct guest {
	char name[CTL_NAME_MAX];
	Ctl__Reply *reply; /* with a status, or NULL: then err says why */
	struct ft_err err;
	const char *word; /* of err */
};
struct guests {
	unsigned n;
	struct guest *guest; /* by name */
};
/* Every guest that has an agent in the run directory, or had one that was killed. Reports; 0 or the
 * exit code. */
int guests_ask(const struct ftctl *ctl, int answer_ms, struct guests *guests);
void guests_free(struct guests *guests);

/* protect.c: a command that changes something, and where the guest is then. */
int ask_and_tell(const struct ftctl *ctl, const struct command *command, const char *name,
		 Ctl__Request *request);

/* ---- status.c, table.c ---- */

json_t *status_json(const Ctl__Status *status);
json_t *guests_json(const struct guests *guests);
void guests_table(const struct ftctl *ctl, const struct guests *guests, FILE *to);
void status_details(const Ctl__Status *status, FILE *to);

#endif

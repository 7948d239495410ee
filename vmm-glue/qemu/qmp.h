/* SPDX-License-Identifier: Apache-2.0 */
/* QMP, QEMU's monitor: one JSON object a line over a unix socket (QEMU: docs/interop/qmp-spec.rst).
 * One connection, one command at a time, each with a deadline; events are handed to a callback
 * whenever they are met. What QEMU says is bounded before it is parsed. */
#ifndef VMM_GLUE_QEMU_QMP_H
#define VMM_GLUE_QEMU_QMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>

#include "ft/err.h"

#define QMP_LINE_MAX                                                                               \
	(2u << 20)	 /* query-named-block-nodes of a guest with many disks: some 100 KiB */
#define QMP_CALL_MS 5000 /* deadline of one command unless it says otherwise */

struct qmp {
	int fd;
	bool closed; /* by QEMU, or unusable since a line was out of bounds */
	uint64_t next_id;
	int pass_fd; /* goes with the next command, -1 none */
	unsigned major, minor;
	char *in;		/* QMP_LINE_MAX bytes, in_len of them received and not consumed */
	size_t in_len, in_seen; /* in_seen: the first bytes that are known to hold no line end */
	void (*event)(void *ctx, const char *name, const json_t *event);
	void *ctx;
};

/* Waits for the greeting, at most within_ms (a monitor that serves another client never greets),
 * and negotiates. watch_fd: a pidfd of the QEMU; when it becomes readable the wait ends with
 * -ESRCH. -1: none. */
int qmp_connect(struct qmp *q, const char *path, int watch_fd, unsigned within_ms,
		struct ft_err *err);
void qmp_close(struct qmp *q);

/* Runs one command. fmt and what follows describe its arguments as json_pack() does ("{s:s, s:i}"),
 * NULL: none. *ret (may be NULL) is a new reference to what it returned. -EIO: QEMU refused, and
 * err has its words; -ETIMEDOUT; -EPIPE: no connection. */
int qmp_call(struct qmp *q, json_t **ret, struct ft_err *err, const char *command, const char *fmt,
	     ...);
/* The same with a deadline of its own and ready arguments (stolen; may be NULL). */
int qmp_call_args(struct qmp *q, json_t **ret, struct ft_err *err, unsigned within_ms,
		  const char *command, json_t *args);
/* A command of the human monitor; *text is allocated. */
int qmp_human(struct qmp *q, char **text, struct ft_err *err, const char *line);
/* The descriptor travels with the next command (SCM_RIGHTS). It stays the caller's. */
void qmp_pass_fd(struct qmp *q, int fd);

/* Parts of a command, for checkpoint.c, which sends all of a command but its last byte ahead of
 * time. */
int qmp_send(struct qmp *q, const char *bytes, size_t len, struct ft_err *err);
/* Takes what the socket has, without blocking and without parsing. True: this event is among it. */
bool qmp_peek_event(struct qmp *q, const char *name);
/* Takes what the socket has, without blocking and without parsing. True: there is a whole line that
 * is no event, or the connection is gone. */
bool qmp_peek_reply(struct qmp *q);
/* Waits for the reply to the command with this id. */
int qmp_reply(struct qmp *q, uint64_t id, const char *command, json_t **ret, unsigned within_ms,
	      struct ft_err *err);

/* Delivers the events that have arrived. -EPIPE when the connection is gone. */
int qmp_poll(struct qmp *q);
/* Delivers what QEMU wrote before it closed, for a write may find that out first. The connection is
 * closed afterwards as it was before. */
void qmp_last_words(struct qmp *q);

#endif

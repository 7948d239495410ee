/* SPDX-License-Identifier: Apache-2.0 */
/* One device state save at a time, through a pipe that decides how long QEMU is held (see save.c).
 */
#ifndef VMM_GLUE_QEMU_SAVE_H
#define VMM_GLUE_QEMU_SAVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "ft/err.h"
#include "vmm-glue/qemu/qmp.h"
#include "vmm-glue/vmm.h"

struct save {
	int pipe;		 /* our end, -1: none yet */
	int fdset;		 /* QEMU's number for its end */
	int syscall_fd;		 /* /proc/PID/syscall of QEMU's main thread */
	ino_t inode;		 /* of the pipe */
	unsigned long writer_fd; /* QEMU's descriptor of it, once seen; ULONG_MAX: not yet */
	size_t capacity;	 /* of the pipe */
	size_t expected;	 /* length of the last state, 0: not known */
	size_t early;		 /* pieces to read before QEMU is held, if it does not narrow */
	char command[160];	 /* all of it; its last byte fires it */
	size_t command_len;
	uint64_t id;
	bool primed; /* QEMU has all but that byte */
	bool fired;  /* and that, and has not answered */
	const struct vmm_hold_hooks
		*hooks; /* whose waiting() is called while QEMU takes its time; may be NULL */
	/* of the save that runs */
	uint8_t *state;
	size_t room, len;
	size_t write_start,
		write_len; /* the write(2) that QEMU is in: its place in the state, its length */
	bool begun;	   /* the first byte was seen */
	bool last;	   /* ... is the last one: everything is serialised */
	bool narrows;	   /* the pieces before the last are read as they come */
	uint64_t begin_ns, end_ns; /* first and last byte taken */
};

void save_init(struct save *s);
/* Makes the pipe and gives QEMU its end. 0 if that was done already. */
int save_setup(struct save *s, struct qmp *q, pid_t pid, struct ft_err *err);
/* Sends all of the command but its last byte. Until it is fired the monitor takes nothing else. */
int save_prime(struct save *s, struct qmp *q, struct ft_err *err);
/* Fires it. */
int save_fire(struct save *s, struct qmp *q, uint8_t *state, size_t room, struct ft_err *err);
/* Waits until QEMU says that the vCPUs are stopped; the first byte says so too. */
int save_wait_stopped(struct save *s, struct qmp *q, unsigned within_ms, struct ft_err *err);
/* Waits for the first byte: then the disks are drained too. */
int save_wait_begun(struct save *s, struct qmp *q, unsigned within_ms, struct ft_err *err);
/* Lets QEMU serialise on if it waits for us, but never past its last write. To be called soon after
 * save_wait_begun(), and now and then. */
int save_step(struct save *s, pid_t pid, struct ft_err *err);
/* Steps until everything is serialised and QEMU is blocked in its last write. */
int save_to_last(struct save *s, struct qmp *q, pid_t pid, unsigned within_ms, struct ft_err *err);
/* Takes the rest; QEMU lets the guest run. -EAGAIN: the state was longer than it looked, so it is
 * void. */
int save_end(struct save *s, struct qmp *q, unsigned within_ms, struct ft_err *err);
/* Instead of save_end() after any error: the pipe breaks, and QEMU gives up and lets the guest run.
 */
void save_abandon(struct save *s, struct qmp *q, unsigned within_ms);
/* Completes a primed command and throws the state away, holding nobody. */
int save_discard(struct save *s, struct qmp *q, struct ft_err *err);
void save_free(struct save *s);

#endif

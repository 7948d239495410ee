/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper: a tiny process of its own that watches one agent and does four things (design, "two
 * rules that are easy to break"):
 *   - the agent froze while it holds the guest (a hold that is past its deadline), or while the
 *     guest may have to wait for it: SIGKILL the agent; the pipe and the userfaultfd close, QEMU
 *     goes on;
 *   - the agent froze with a deadline of its own choosing running, as it sets before it writes to a
 *     disk that another host may take: likewise, unless the disk is merely slow;
 *   - the agent died while the guest is protected: SIGKILL that QEMU, for the standby will have it;
 *   - the agent died while the guest is solo: nothing; a new agent attaches again.
 * It ends with the agent. It is forked before the agent has threads or descriptors that matter,
 * keeps only a pidfd of the agent, its /proc/PID/stat, one of the QEMU, a socket to the agent, a
 * page of shared memory and standard error (one line when it kills somebody), allocates nothing and
 * calls only async-signal-safe functions. It has a session of its own and no signal but SIGKILL
 * reaches it. */
#ifndef VMM_GLUE_KEEPER_H
#define VMM_GLUE_KEEPER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ft/err.h"

struct keeper;

/* Start-up, single-threaded. hold_max_ms: a hold longer than this is a frozen agent. */
int keeper_start(unsigned hold_max_ms, struct keeper **out, struct ft_err *err);
/* Which process is the guest's QEMU (0: none). The caller knows it to be alive: its own child, not
 * yet reaped, or verified with a pidfd afterwards. From then on the keeper holds a pidfd, and a
 * reused pid is never touched. Returns when the keeper has it (<= 100 ms). -EPERM: it could not
 * kill that process; -ETIMEDOUT: it does not answer; -ESRCH or -EPIPE: one of the two is gone. One
 * thread at a time. */
int keeper_watch(struct keeper *k, pid_t vmm_pid, struct ft_err *err);
/* protected: if the agent dies now, the guest must not go on here. Takes effect before it returns.
 * Any thread. */
void keeper_set_protected(struct keeper *k, bool is_protected);
/* Around the time in which the guest is held. Lock-free, no system call but clock_gettime. */
void keeper_hold_begin(struct keeper *k);
void keeper_hold_end(struct keeper *k);
/* The guest may have to wait for this agent at any moment, as for a page (snapshot/frozen.h): to be
 * said again at least every hold_max_ms, or the agent is frozen. / It need not any more. Any
 * thread, beside a hold. */
void keeper_serving(struct keeper *k);
void keeper_serving_end(struct keeper *k);
/* The agent is through with something at that time of CLOCK_BOOTTIME, or is killed as soon as its
 * main thread is not in an uninterruptible system call; 0: it is through. The keeper looks every
 * KEEPER_LOOK_MS: what is nearer may be seen that much late. Lock-free. One thread. */
#define KEEPER_LOOK_MS 200
void keeper_deadline(struct keeper *k, uint64_t at_ns);
/* false: somebody killed the keeper. The agent goes on, but a guest should not stay protected
 * without one. Any thread. */
bool keeper_alive(const struct keeper *k);
/* Orderly end: the keeper does nothing more and is reaped. Accepts NULL. */
void keeper_stop(struct keeper *k);

#endif

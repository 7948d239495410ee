/* SPDX-License-Identifier: Apache-2.0 */
/* The states of one agent's guest, one table of the transitions that are allowed, one setter. */
#ifndef FT_STATE_H
#define FT_STATE_H

#include <stdbool.h>
#include <stdint.h>

#define FT_REASON_MAX 256

enum ft_state {
	FT_STARTING,  /* nothing is decided yet */
	FT_SOLO,      /* the guest runs here, unprotected */
	FT_SYNCING,   /* runs here; rounds of dirty pages go to the standby */
	FT_PROTECTED, /* runs here; outputs wait for checkpoints */
	FT_STANDBY,   /* waits, armed, at the committed epoch (or for its first one) */
	FT_TAKEOVER,  /* was standby; is making the committed epoch run */
	FT_FENCED,    /* lost the generation: guest paused or dead, nothing leaves ever again */
	FT_STOPPED,   /* ended by request */
	FT_FAILED,    /* cannot go on; the reason says why */
	FT_STATE_MAX
};

/* The name that operators see; "protected". Static. */
const char *ft_state_name(enum ft_state state);
/* -1 for no such name. */
int ft_state_parse(const char *name);
/* Staying is always valid. */
bool ft_state_valid(enum ft_state from, enum ft_state to);

struct ft_state_var {
	enum ft_state now;
	uint64_t since_ns;	    /* clock of the caller */
	char reason[FT_REASON_MAX]; /* of the last change */
	void (*changed)(void *ctx, enum ft_state from, enum ft_state to,
			const char *reason); /* may be NULL */
	void *ctx;
};

/* Asserts ft_state_valid(); same state again only replaces the reason (since_ns stays, changed() is
 * not called). Logs one line. */
void ft_state_set(struct ft_state_var *var, enum ft_state to, uint64_t now_ns, const char *reason,
		  ...) __attribute__((format(printf, 4, 5)));

#endif

// SPDX-License-Identifier: Apache-2.0
/* The table is one function, successors(): an exhaustive switch, so that a new state does not
 * compile until somebody has decided where it may go. */
#include "ft/state.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

#define TO(state) (1u << (state))

const char *ft_state_name(enum ft_state state)
{
	switch (state) {
	case FT_STARTING:
		return "starting";
	case FT_SOLO:
		return "solo";
	case FT_SYNCING:
		return "syncing";
	case FT_PROTECTED:
		return "protected";
	case FT_STANDBY:
		return "standby";
	case FT_TAKEOVER:
		return "takeover";
	case FT_FENCED:
		return "fenced";
	case FT_STOPPED:
		return "stopped";
	case FT_FAILED:
		return "failed";
	case FT_STATE_MAX:
		break;
	}
	assert(!"a state has a name");
	return "";
}

int ft_state_parse(const char *name)
{
	for (int state = 0; state < FT_STATE_MAX; state++)
		if (!strcmp(name, ft_state_name((enum ft_state)state)))
			return state;
	return -1;
}

/* Every state but the last two may also end: by request, or because it cannot go on. */
#define TO_END (TO(FT_STOPPED) | TO(FT_FAILED))

static unsigned successors(enum ft_state from)
{
	switch (from) {
	case FT_STARTING:
		/* An agent that comes back to a guest may find that its generation went to the
		 * other host meanwhile. */
		return TO(FT_SOLO) | TO(FT_STANDBY) | TO(FT_FENCED) | TO_END;
	case FT_SOLO:
		return TO(FT_SYNCING) | TO(FT_FENCED) | TO_END;
	case FT_SYNCING:
		/* A migration hands the guest over from here and stops. */
		return TO(FT_PROTECTED) | TO(FT_SOLO) | TO(FT_FENCED) | TO_END;
	case FT_PROTECTED:
		/* To solo by a grant or by agreement, never back to syncing: outputs that are held
		 * wait for one or the other. To standby: planned switch. */
		return TO(FT_SOLO) | TO(FT_STANDBY) | TO(FT_FENCED) | TO_END;
	case FT_STANDBY:
		/* Only a grant makes a guest run, so never to solo directly. Fenced: the primary
		 * won the swap. */
		return TO(FT_TAKEOVER) | TO(FT_FENCED) | TO_END;
	case FT_TAKEOVER:
		/* Begins with the grant: there is no way back to waiting. */
		return TO(FT_SOLO) | TO(FT_FENCED) | TO_END;
	case FT_FENCED:
		/* This history is over. It may serve the host that won, from nothing. */
		return TO(FT_STANDBY) | TO_END;
	case FT_FAILED:
		return TO(FT_STOPPED);
	case FT_STOPPED:
	case FT_STATE_MAX:
		break;
	}
	return 0;
}

bool ft_state_valid(enum ft_state from, enum ft_state to)
{
	return from == to || (successors(from) & TO(to));
}

void ft_state_set(struct ft_state_var *var, enum ft_state to, uint64_t now_ns, const char *reason,
		  ...)
{
	enum ft_state from = var->now;
	char text[FT_REASON_MAX];
	va_list ap;

	assert(to < FT_STATE_MAX);
	assert(ft_state_valid(from, to));
	/* By way of a buffer: the old reason may be among the arguments. */
	va_start(ap, reason);
	vsnprintf(text, sizeof text, reason, ap);
	va_end(ap);
	memcpy(var->reason, text, sizeof text);
	if (from == to) {
		ft_info("still %s: %s", ft_state_name(to), var->reason);
		return;
	}
	var->now = to;
	var->since_ns = now_ns;
	ft_info("%s -> %s: %s", ft_state_name(from), ft_state_name(to), var->reason);
	if (var->changed)
		var->changed(var->ctx, from, to, var->reason);
}

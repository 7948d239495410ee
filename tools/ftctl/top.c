// SPDX-License-Identifier: Apache-2.0
/* The table of all guests, again and again. Not on a terminal, or with --json: once. */
#include "tools/ftctl/ftctl.h"

#include <poll.h>
#include <unistd.h>

#define REFRESH_MS 1000

int run_top(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	bool live = isatty(STDOUT_FILENO) && !ctl->json;
	struct guests guests;
	int ret;

	(void)argv;
	if (argc != 1)
		return fail_usage(ctl, command, "top takes no arguments");
	do {
		ret = guests_ask(ctl, command->answer_ms, &guests);
		if (ret)
			return ret;
		if (ctl->json) {
			ret = print_json(guests_json(&guests));
		} else {
			if (live)
				fputs("\033[H\033[2J", stdout); /* cursor home, clear */
			guests_table(ctl, &guests, stdout);
			ret = fflush(stdout) ? FTCTL_FAILED : FTCTL_OK;
		}
		guests_free(&guests);
		if (live)
			poll(NULL, 0, REFRESH_MS);
	} while (live && !ret);
	return ret;
}

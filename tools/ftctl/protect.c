// SPDX-License-Identifier: Apache-2.0
/* Commands that change what an agent does with its guest. The agent decides; these carry the wish
 * and tell the outcome. */
#include "tools/ftctl/ftctl.h"

#include <inttypes.h>
#include <string.h>

/* After a command that changes something: where the guest is now. */
static int print_outcome(const struct ftctl *ctl, const char *name, Ctl__Reply *reply)
{
	const Ctl__Status *s = reply->status;
	char state[64], reason[512];
	int ret = FTCTL_OK;

	if (ctl->json)
		ret = print_json(s ? status_json(s) : json_pack("{s:s}", "name", name));
	else if (s)
		printf("%s: %s: %s\n", name, clean(state, sizeof state, s->state),
		       clean(reason, sizeof reason, s->reason));
	else
		printf("%s: done\n", name);
	free_reply(reply);
	return ret;
}

int ask_and_tell(const struct ftctl *ctl, const struct command *command, const char *name,
		 Ctl__Request *request)
{
	Ctl__Reply *reply;
	int ret;

	request->command = (char *)command->name;
	ret = ask(ctl, name, request, command->answer_ms, &reply);
	return ret ? ret : print_outcome(ctl, name, reply);
}

int run_plain(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	Ctl__Request request = CTL__REQUEST__INIT;

	if (argc != 2)
		return fail_usage(ctl, command, "%s takes a name", argv[0]);
	return ask_and_tell(ctl, command, argv[1], &request);
}

/* checkpoint and verify: no change of state, one figure. */
static int ask_figure(const struct ftctl *ctl, const struct command *command, int argc, char **argv,
		      int (*print)(const struct ftctl *ctl, const char *name,
				   const Ctl__Reply *reply))
{
	Ctl__Request request = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	int ret;

	if (argc != 2)
		return fail_usage(ctl, command, "%s takes a name", argv[0]);
	request.command = argv[0];
	ret = ask(ctl, argv[1], &request, command->answer_ms, &reply);
	if (ret)
		return ret;
	ret = print(ctl, argv[1], reply);
	free_reply(reply);
	return ret;
}

static int print_epoch(const struct ftctl *ctl, const char *name, const Ctl__Reply *reply)
{
	if (ctl->json)
		return print_json(
			json_pack("{s:s, s:I}", "name", name, "epoch", (json_int_t)reply->epoch));
	printf("%s: epoch %" PRIu64 " is committed\n", name, reply->epoch);
	return FTCTL_OK;
}

int run_checkpoint(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	return ask_figure(ctl, command, argc, argv, print_epoch);
}

static int print_digest(const struct ftctl *ctl, const char *name, const Ctl__Reply *reply)
{
	char digest[20];

	snprintf(digest, sizeof digest, "%016" PRIx64, reply->digest);
	if (ctl->json)
		return print_json(json_pack("{s:s, s:b, s:s}", "name", name, "equal", true,
					    "digest", digest));
	printf("%s: equal, digest %s\n", name, digest);
	return FTCTL_OK;
}

int run_verify(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	return ask_figure(ctl, command, argc, argv, print_digest);
}

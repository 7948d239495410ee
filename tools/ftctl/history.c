// SPDX-License-Identifier: Apache-2.0
#include "tools/ftctl/ftctl.h"

#include <inttypes.h>
#include <time.h>

#define MIB(bytes) ((double)(bytes) / (1 << 20))

/* As ft-agent --restore history: takes it. */
static const char *time_text(uint64_t ms, char out[32])
{
	time_t t = (time_t)(ms / 1000);
	struct tm tm;

	if (!gmtime_r(&t, &tm) || !strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm))
		out[0] = '\0';
	return out;
}

static int print_points(const struct ftctl *ctl, const char *name, const Ctl__Reply *reply)
{
	json_t *list = json_array();
	char text[32];

	for (size_t i = 0; i < reply->n_points; i++) {
		const Ctl__Point *p = reply->points[i];

		if (ctl->json)
			json_array_append_new(
				list,
				json_pack("{s:I, s:I, s:s, s:I, s:I}", "generation",
					  (json_int_t)p->generation, "epoch", (json_int_t)p->epoch,
					  "time", time_text(p->time_ms, text), "time_ms",
					  (json_int_t)p->time_ms, "bytes", (json_int_t)p->bytes));
		else
			printf("%12" PRIu64 "  %s  %9.1f MiB\n", p->epoch,
			       time_text(p->time_ms, text), MIB(p->bytes));
	}
	if (ctl->json)
		return print_json(json_pack("{s:s, s:o}", "name", name, "checkpoints", list));
	json_decref(list);
	if (!reply->n_points)
		printf("%s: no checkpoint is kept yet\n", name);
	return FTCTL_OK;
}

int run_history(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	Ctl__Request request = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	int ret;

	if (argc != 2)
		return fail_usage(ctl, command, "history takes a name");
	request.command = argv[0];
	ret = ask(ctl, argv[1], &request, command->answer_ms, &reply);
	if (ret)
		return ret;
	ret = print_points(ctl, argv[1], reply);
	free_reply(reply);
	return ret;
}

// SPDX-License-Identifier: Apache-2.0
/* bitmap: named dirty bitmaps of a guest's disks; backup: a view of one moment for backup clients.
 */
#include "tools/ftctl/ftctl.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Bytes, with K or M at the end. False: no such number. */
static bool parse_granularity(const char *text, uint32_t *bytes)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);
	unsigned shift = *end == 'K' || *end == 'k' ? 10 : *end == 'M' || *end == 'm' ? 20 : 0;

	if (end == text || *text < '0' || *text > '9' || (*end && (!shift || end[1])) ||
	    value == 0 || value > UINT32_MAX >> shift)
		return false;
	*bytes = (uint32_t)(value << shift);
	return true;
}

static const char *state_of(const Ctl__Bitmap *b)
{
	if (b->inconsistent)
		return "inconsistent";
	if (b->arriving)
		return "arriving";
	if (b->busy)
		return "busy";
	return b->enabled ? "enabled" : "disabled";
}

static json_t *bitmaps_json(const Ctl__Reply *reply)
{
	json_t *list = json_array();

	for (size_t i = 0; i < reply->n_bitmaps; i++) {
		const Ctl__Bitmap *b = reply->bitmaps[i];

		json_array_append_new(list, json_pack("{s:o, s:I, s:b, s:b, s:b, s:b, s:I}", "name",
						      json_text(b->name), "granularity",
						      (json_int_t)b->granularity, "enabled",
						      (int)b->enabled, "inconsistent",
						      (int)b->inconsistent, "busy", (int)b->busy,
						      "arriving", (int)b->arriving, "dirty_bytes",
						      (json_int_t)b->dirty_bytes));
	}
	return list;
}

static int print_answer(const struct ftctl *ctl, const Ctl__Request *r, const char *name,
			const Ctl__Reply *reply)
{
	char line[512];

	if (ctl->json) {
		json_t *o =
			json_pack("{s:s, s:s, s:o, s:o}", "name", name, "disk", r->disk, "bitmaps",
				  bitmaps_json(reply), "export",
				  *reply->export_uri ? json_text(reply->export_uri) : json_null());

		if (*reply->sha256)
			json_object_set_new(o, "sha256", json_text(reply->sha256));
		return print_json(o);
	}
	if (*reply->sha256) {
		printf("%s\n", clean(line, sizeof line, reply->sha256));
		return FTCTL_OK;
	}
	if (!reply->n_bitmaps && strcmp(r->command, "backup"))
		printf("disk %s has no bitmaps\n", r->disk);
	for (size_t i = 0; i < reply->n_bitmaps; i++) {
		const Ctl__Bitmap *b = reply->bitmaps[i];

		printf("%-24s %-12s granularity %-8u %" PRIu64 " bytes dirty\n",
		       clean(line, sizeof line, b->name), state_of(b), b->granularity,
		       b->dirty_bytes);
	}
	if (*reply->export_uri)
		printf("export: %s\n", clean(line, sizeof line, reply->export_uri));
	return FTCTL_OK;
}

static int ask_and_print(const struct ftctl *ctl, const struct command *command,
			 const Ctl__Request *r, const char *name)
{
	Ctl__Reply *reply;
	int ret = ask(ctl, name, r, command->answer_ms, &reply);

	if (ret)
		return ret;
	ret = print_answer(ctl, r, name, reply);
	free_reply(reply);
	return ret;
}

int run_backup(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	bool begin = argc > 1 && !strcmp(argv[1], "begin");

	if (argc != 4 && !(begin && argc == 5))
		return fail_usage(ctl, command, "backup takes an action, a name, a disk%s",
				  begin ? " and perhaps a bitmap" : "");
	r.command = argv[0];
	r.action = argv[1];
	r.disk = argv[3];
	if (argc == 5)
		r.bitmap = argv[4];
	return ask_and_print(ctl, command, &r, argv[2]);
}

int run_bitmap(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	static const struct option options[] = {{"granularity", required_argument, NULL, 'g'}, {0}};
	Ctl__Request r = CTL__REQUEST__INIT;
	bool list;
	int opt;

	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (opt == ':' || (opt == 'g' && !parse_granularity(optarg, &r.granularity)))
			return fail_usage(ctl, command,
					  "--granularity needs a number of bytes, 512 to 1M");
		if (opt != 'g')
			return fail_usage(ctl, command, "bitmap: unknown option %s",
					  argv[optind - 1]);
	}
	list = optind < argc && !strcmp(argv[optind], "list");
	if (argc - optind != (list ? 3 : 4))
		return fail_usage(ctl, command, "bitmap takes an action, a name, a disk%s",
				  list ? "" : " and a bitmap");
	if (r.granularity && strcmp(argv[optind], "add"))
		return fail_usage(ctl, command, "--granularity is only for add");
	r.command = argv[0];
	r.action = argv[optind];
	r.disk = argv[optind + 2];
	if (!list)
		r.bitmap = argv[optind + 3];
	return ask_and_print(ctl, command, &r, argv[optind + 1]);
}

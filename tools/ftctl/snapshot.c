// SPDX-License-Identifier: Apache-2.0
/* snapshot: the agent works as long as this command waits for its answer, so an interrupt here ends
 * it there. Meanwhile a second connection asks how far it is, for the bar; without a terminal there
 * is none. */
#include "tools/ftctl/ftctl.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/uri.h"

#define BAR_WIDTH  40
#define BAR_MS	   200
#define STATUS_MS  2000
#define JOBS_MAX   16
#define MIB(bytes) ((double)(bytes) / (1 << 20))

/* The bar's thread. */
struct bar {
	const struct ftctl *ctl;
	const char *name;
	int stop; /* eventfd */
	bool drawn;
};

static void draw(struct bar *bar, const Ctl__Snapshot *s)
{
	uint64_t total = s->bytes_total + s->disk_bytes_total;
	double part = total ? (double)(s->bytes_done + s->disk_bytes_done) / (double)total : 0;
	int full = (int)(part * BAR_WIDTH);

	fprintf(stderr, "\r%s [%.*s%*s] %3.0f %%  %.0f MiB written ", bar->name, full,
		"########################################", BAR_WIDTH - full, "", part * 100,
		MIB(s->bytes_written + s->disk_bytes_written));
	fflush(stderr);
	bar->drawn = true;
}

static void *show(void *ctx)
{
	struct bar *bar = ctx;
	struct pollfd p = {.fd = bar->stop, .events = POLLIN};
	Ctl__Request request = CTL__REQUEST__INIT;

	request.command = (char *)"status";
	while (poll(&p, 1, BAR_MS) == 0) {
		Ctl__Reply *reply;
		struct ft_err err;

		if (ctl_ask(bar->ctl->run_dir, bar->name, &request, STATUS_MS, &reply, &err))
			continue;
		if (reply->status && reply->status->snapshot && !reply->status->snapshot->restoring)
			draw(bar, reply->status->snapshot);
		free_reply(reply);
	}
	if (bar->drawn)
		fprintf(stderr, "\r\033[K");
	return NULL;
}

static int ask_with_bar(const struct ftctl *ctl, const struct command *command, const char *name,
			const Ctl__Request *request, Ctl__Reply **reply)
{
	struct bar bar = {.ctl = ctl, .name = name, .stop = -1};
	pthread_t thread;
	bool shown = false;
	struct ft_err err;
	int ret;

	if (!ctl->json && isatty(STDERR_FILENO)) {
		bar.stop = eventfd(0, EFD_CLOEXEC);
		shown = bar.stop >= 0 && !pthread_create(&thread, NULL, show, &bar);
	}
	ret = ctl_ask(ctl->run_dir, name, request, command->answer_ms, reply, &err);
	if (shown) {
		eventfd_write(bar.stop, 1);
		pthread_join(thread, NULL);
	}
	if (bar.stop >= 0)
		close(bar.stop);
	return take_answer(ctl, name, ret, &err, reply);
}

/* "100M": bytes, 0: not a number of bytes. */
static uint64_t parse_bytes(const char *text)
{
	static const char units[] = "KMG";
	unsigned long long n;
	const char *unit;
	unsigned shift = 0;
	char *end;

	errno = 0;
	n = strtoull(text, &end, 10);
	unit = *end ? strchr(units, *end) : NULL;
	if (unit) {
		shift = 10 * (unsigned)(unit - units + 1);
		end++;
	}
	return *text < '0' || *text > '9' || *end || errno || n > UINT64_MAX >> shift
		       ? 0
		       : (uint64_t)n << shift;
}

static int parse_options(const struct ftctl *ctl, const struct command *command, int argc,
			 char **argv, Ctl__Request *request)
{
	static const struct option longs[] = {
		{"direct", no_argument, NULL, 'd'},
		{"incremental", no_argument, NULL, 'i'},
		{"jobs", required_argument, NULL, 'j'},
		{"max-bandwidth", required_argument, NULL, 'b'},
		{"no-disks", no_argument, NULL, 'n'},
		{"verify", no_argument, NULL, 'v'},
		{0},
	};
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":", longs, NULL)) != -1) {
		switch (opt) {
		case 'd':
			request->direct = true;
			break;
		case 'i':
			request->incremental = true;
			break;
		case 'j':
			request->jobs = (uint32_t)parse_bytes(optarg);
			if (!request->jobs || request->jobs > JOBS_MAX)
				return fail_usage(ctl, command, "--jobs %s: 1 to %d", optarg,
						  JOBS_MAX);
			break;
		case 'b':
			request->bytes_per_s = parse_bytes(optarg);
			if (!request->bytes_per_s)
				return fail_usage(ctl, command,
						  "--max-bandwidth %s: bytes a second, as 100M",
						  optarg);
			break;
		case 'n':
			request->no_disks = true;
			break;
		case 'v':
			request->verify = true;
			break;
		default:
			return fail_usage(ctl, command, "snapshot: %s: %s", argv[optind - 1],
					  opt == ':' ? "needs a value" : "unknown option");
		}
	}
	return argc - optind == 2 ? FTCTL_OK
				  : fail_usage(ctl, command, "snapshot takes a name and file:PATH");
}

/* The agent has another working directory. */
static int make_absolute(const struct ftctl *ctl, const struct command *command, const char *text,
			 char out[URI_TEXT_MAX + 1])
{
	struct ft_err err = {0};
	char here[PATH_MAX];
	struct uri uri;

	if (uri_parse(text, &uri, &err))
		return fail_usage(ctl, command, "%s", err.text);
	if (uri.scheme != URI_FILE)
		return fail_usage(ctl, command, "snapshot %s: not file:PATH", text);
	if (uri.path[0] == '/')
		snprintf(out, URI_TEXT_MAX + 1, "%s", text);
	else if (!getcwd(here, sizeof here) ||
		 snprintf(out, URI_TEXT_MAX + 1, "file:%s/%s", here, uri.path) > URI_TEXT_MAX)
		return fail_usage(ctl, command, "snapshot %.64s: path too long", text);
	return FTCTL_OK;
}

static void print_disks(const Ctl__Request *request, const Ctl__Snapshot *s)
{
	if (s->disks)
		printf(", %.0f MiB of %.0f MiB of %u disk%s%s", MIB(s->disk_bytes_written),
		       MIB(s->disk_bytes_total), s->disks, s->disks > 1 ? "s" : "",
		       s->disks_compared ? " (compared whole: it was not known what was written)"
					 : "");
	else if (request->no_disks)
		printf(", no disks");
}

static int print_snapshot(const struct ftctl *ctl, const char *name, const Ctl__Request *request,
			  const Ctl__Reply *reply)
{
	static const Ctl__Snapshot none = CTL__SNAPSHOT__INIT;
	const Ctl__Snapshot *s = reply->snapshot ? reply->snapshot : &none;
	char digest[20], path[URI_TEXT_MAX + 1];

	snprintf(digest, sizeof digest, "%016" PRIx64, reply->digest);
	if (ctl->json)
		return print_json(json_pack(
			"{s:s, s:o, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}",
			"name", name, "path", json_text(s->path), "incremental", s->incremental,
			"bytes", (json_int_t)s->bytes_total, "bytes_written",
			(json_int_t)s->bytes_written, "disks", (json_int_t)s->disks, "disk_bytes",
			(json_int_t)s->disk_bytes_total, "disk_bytes_written",
			(json_int_t)s->disk_bytes_written, "disk_faults",
			(json_int_t)s->disk_faults, "disks_compared", (json_int_t)s->disks_compared,
			"pause_us", (json_int_t)s->pause_us, "faults", (json_int_t)s->faults,
			"fault_us_max", (json_int_t)s->fault_us_max, "digest",
			request->verify ? json_string(digest) : json_null()));
	printf("%s: %s: %s%.0f MiB of %.0f MiB of memory", name, clean(path, sizeof path, s->path),
	       s->incremental ? "updated, " : "", MIB(s->bytes_written), MIB(s->bytes_total));
	print_disks(request, s);
	printf(", pause %.1f ms%s%s\n", (double)s->pause_us / 1000,
	       request->verify ? ", verified, digest " : "", request->verify ? digest : "");
	return FTCTL_OK;
}

int run_snapshot(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	Ctl__Request request = CTL__REQUEST__INIT;
	char uri[URI_TEXT_MAX + 1];
	Ctl__Reply *reply;
	int ret = parse_options(ctl, command, argc, argv, &request);

	if (!ret)
		ret = make_absolute(ctl, command, argv[optind + 1], uri);
	if (ret)
		return ret;
	request.command = (char *)"snapshot";
	request.uri = uri;
	ret = ask_with_bar(ctl, command, argv[optind], &request, &reply);
	if (ret)
		return ret;
	ret = print_snapshot(ctl, argv[optind], &request, reply);
	free_reply(reply);
	return ret;
}

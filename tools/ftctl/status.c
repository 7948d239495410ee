// SPDX-License-Identifier: Apache-2.0
/* status and wait. The JSON of a status is an interface: keys are added, never renamed. */
#include "tools/ftctl/ftctl.h"

#include <getopt.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define AGENT_RETRY_MS 50
#define ANSWER_SLACK_MS                                                                            \
	5000 /* an agent that waits tells of the timeout itself; it has this long                  \
	      */

/* JSON's integers are signed here. */
static json_int_t count(uint64_t n)
{
	return n > INT64_MAX ? INT64_MAX : (json_int_t)n;
}

static json_t *figures_json(const Ctl__Figures *f)
{
	static const Ctl__Figures none = CTL__FIGURES__INIT;

	f = f ? f : &none;
	return json_pack("{s:I, s:I, s:I, s:I}", "last", count(f->last), "p50", count(f->p50),
			 "p99", count(f->p99), "max", count(f->max));
}

static json_t *text_or_null(const char *text)
{
	return *text ? json_text(text) : json_null();
}

static json_t *time_json(uint64_t since_ms)
{
	time_t s = (time_t)(since_ms / 1000);
	char text[64], whole[64];
	struct tm tm;

	if (!since_ms || !gmtime_r(&s, &tm))
		return json_null();
	strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(whole, sizeof whole, "%.40s.%03uZ", text, (unsigned)(since_ms % 1000));
	return json_string(whole);
}

static json_t *disks_json(const Ctl__Status *s)
{
	json_t *disks = json_array();

	for (size_t i = 0; i < s->n_disks; i++)
		json_array_append_new(disks,
				      json_pack("{s:o, s:o, s:o, s:I}", "name",
						json_text(s->disks[i]->name), "mode",
						json_text(s->disks[i]->mode), "state",
						json_text(s->disks[i]->state), "bytes_behind",
						count(s->disks[i]->bytes_behind)));
	return disks;
}

static json_t *snapshot_json(const Ctl__Snapshot *s)
{
	return json_pack("{s:o, s:s, s:I, s:I, s:I, s:I, s:I}", "path", json_text(s->path), "doing",
			 s->restoring ? "restoring" : "saving", "bytes", count(s->bytes_total),
			 "bytes_done", count(s->bytes_done), "disk_bytes",
			 count(s->disk_bytes_total), "disk_bytes_done", count(s->disk_bytes_done),
			 "faults", count(s->faults));
}

static json_t *migration_json(const Ctl__Migration *m)
{
	json_t *o = json_object();

	json_object_set_new(o, "mode", json_text(m->mode));
	json_object_set_new(o, "rounds", json_integer(count(m->rounds)));
	json_object_set_new(o, "remaining", json_integer(count(m->remaining)));
	json_object_set_new(o, "downtime_us", json_integer(count(m->downtime_us)));
	json_object_set_new(o, "throttle", json_integer(m->throttle));
	if (m->bytes_total) {
		json_object_set_new(o, "bytes", json_integer(count(m->bytes_total)));
		json_object_set_new(o, "bytes_done", json_integer(count(m->bytes_done)));
		json_object_set_new(o, "faults", json_integer(count(m->faults)));
		json_object_set_new(o, "link_lost", json_boolean(m->cut));
	}
	if (m->fault_us) {
		json_t *histogram = json_array();

		for (size_t i = 0; i < m->n_fault_histogram; i++)
			json_array_append_new(histogram,
					      json_integer(count(m->fault_histogram[i])));
		json_object_set_new(o, "fault_us", figures_json(m->fault_us));
		json_object_set_new(o, "fault_histogram", histogram);
		json_object_set_new(o, "bytes_per_s",
				    json_real(isfinite(m->bytes_per_s) ? m->bytes_per_s : 0));
		json_object_set_new(o, "faults_per_s",
				    json_real(isfinite(m->faults_per_s) ? m->faults_per_s : 0));
	}
	return o;
}

json_t *status_json(const Ctl__Status *s)
{
	static const Ctl__Arbiter no_arbiter = CTL__ARBITER__INIT;
	static const Ctl__Vmm no_vmm = CTL__VMM__INIT;
	const Ctl__Arbiter *arbiter = s->arbiter ? s->arbiter : &no_arbiter;
	const Ctl__Vmm *vmm = s->vmm ? s->vmm : &no_vmm;
	json_t *o = json_object();

	json_object_set_new(o, "name", json_text(s->name));
	json_object_set_new(o, "uuid", json_text(s->uuid));
	json_object_set_new(o, "state", json_text(s->state));
	json_object_set_new(o, "reason", json_text(s->reason));
	json_object_set_new(o, "since", time_json(s->since_ms));
	json_object_set_new(o, "role", json_text(s->role));
	json_object_set_new(o, "peer", text_or_null(s->peer));
	json_object_set_new(o, "epoch",
			    json_pack("{s:I, s:I}", "open", count(s->epoch_open), "committed",
				      count(s->epoch_committed)));
	json_object_set_new(o, "pause_us", figures_json(s->pause_us));
	json_object_set_new(o, "commit_us", figures_json(s->commit_us));
	json_object_set_new(o, "dirty_pages", figures_json(s->dirty_pages));
	json_object_set_new(
		o, "bytes",
		json_pack("{s:I, s:I}", "raw", count(s->bytes_raw), "sent", count(s->bytes_sent)));
	json_object_set_new(o, "checkpoints", json_integer(count(s->checkpoints)));
	json_object_set_new(o, "checkpoints_failed", json_integer(count(s->checkpoints_failed)));
	json_object_set_new(o, "held",
			    json_pack("{s:I, s:I}", "outputs", count(s->held_outputs), "bytes",
				      count(s->held_bytes)));
	json_object_set_new(o, "overhead",
			    isfinite(s->overhead) ? json_real(s->overhead) : json_real(0));
	json_object_set_new(o, "generation", json_integer(count(s->generation)));
	json_object_set_new(o, "arbiter",
			    json_pack("{s:o, s:o, s:o}", "type", json_text(arbiter->type), "state",
				      json_text(arbiter->state), "holder",
				      text_or_null(arbiter->holder)));
	json_object_set_new(o, "vmm",
			    json_pack("{s:o, s:I, s:o, s:I, s:I}", "kind", json_text(vmm->kind),
				      "pid", (json_int_t)vmm->pid, "status", json_text(vmm->status),
				      "stopped_us", count(vmm->stopped_us), "resumed_us",
				      count(vmm->resumed_us)));
	json_object_set_new(o, "disks", disks_json(s));
	json_object_set_new(o, "deciding", json_boolean(s->deciding));
	json_object_set_new(o, "rounds", json_integer(count(s->rounds)));
	json_object_set_new(o, "resync",
			    json_pack("{s:I, s:I, s:I}", "alike", count(s->disk_alike), "noted",
				      count(s->disk_known), "copied", count(s->disk_copied)));
	json_object_set_new(o, "home", text_or_null(s->home));
	json_object_set_new(o, "mode", text_or_null(s->mode));
	if (s->migration)
		json_object_set_new(o, "migration", migration_json(s->migration));
	if (s->snapshot)
		json_object_set_new(o, "snapshot", snapshot_json(s->snapshot));
	json_object_set_new(o, "last_error", text_or_null(s->last_error));
	return o;
}

json_t *guests_json(const struct guests *guests)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < guests->n; i++) {
		const struct guest *g = &guests->guest[i];

		json_array_append_new(list, g->reply
						    ? status_json(g->reply->status)
						    : json_pack("{s:s, s:{s:s, s:o}}", "name",
								g->name, "error", "code", g->word,
								"message", json_text(g->err.text)));
	}
	return json_pack("{s:o}", "guests", list);
}

static int status_all(const struct ftctl *ctl, const struct command *command)
{
	struct guests guests;
	int ret = guests_ask(ctl, command->answer_ms, &guests);

	if (ret)
		return ret;
	if (ctl->json)
		ret = print_json(guests_json(&guests));
	else
		guests_table(ctl, &guests, stdout);
	guests_free(&guests);
	return ret;
}

int run_status(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	Ctl__Request request = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	int ret;

	if (argc > 2)
		return fail_usage(ctl, command, "status takes one name at most");
	if (argc == 1)
		return status_all(ctl, command);
	request.command = argv[0];
	ret = ask(ctl, argv[1], &request, command->answer_ms, &reply);
	if (ret)
		return ret;
	if (!reply->status)
		ret = fail(ctl, CTL_ERR_PROTOCOL, "guest %s: its agent's answer has no status",
			   argv[1]);
	else if (ctl->json)
		ret = print_json(status_json(reply->status));
	else
		status_details(reply->status, stdout);
	free_reply(reply);
	return ret;
}

/* Seconds, with a fraction if need be. False: not a time. */
static bool parse_seconds(const char *text, uint64_t *ms)
{
	char *end;
	double s = strtod(text, &end);

	if (end == text || *end || !(s >= 0 && s <= 86400))
		return false;
	/* 0 would mean for ever to the agent: look once instead. */
	*ms = s < 0.001 ? 1 : (uint64_t)(s * 1000);
	return true;
}

static bool agent_listens(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool yes = fd >= 0 && !connect(fd, (const struct sockaddr *)addr, sizeof *addr);

	if (fd >= 0)
		close(fd);
	return yes;
}

/* With a timeout, an agent that is still starting is waited for as well: scripts start one and wait
 * in the next line. What is left of the time is in *timeout_ms. */
static void await_agent(const struct ftctl *ctl, const char *name, uint64_t *timeout_ms)
{
	struct sockaddr_un addr;

	if (ctl_socket_path(ctl->run_dir, name, &addr, NULL))
		return; /* ask() says what is wrong with the name */
	while (*timeout_ms > AGENT_RETRY_MS && !agent_listens(&addr)) {
		poll(NULL, 0, AGENT_RETRY_MS);
		*timeout_ms -= AGENT_RETRY_MS;
	}
}

int run_wait(const struct ftctl *ctl, const struct command *command, int argc, char **argv)
{
	static const struct option options[] = {{"timeout", required_argument, NULL, 't'}, {0}};
	Ctl__Request request = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	int ret, opt;

	while ((opt = getopt_long(argc, argv, ":t:", options, NULL)) != -1) {
		if (opt == ':')
			return fail_usage(ctl, command, "--timeout needs a number of seconds");
		if (opt != 't')
			return fail_usage(ctl, command, "wait: unknown option %s",
					  argv[optind - 1]);
		if (!parse_seconds(optarg, &request.timeout_ms))
			return fail_usage(ctl, command,
					  "--timeout: '%s' is not a number of seconds up to a day",
					  optarg);
	}
	if (argc - optind != 2)
		return fail_usage(ctl, command, "wait takes a name and a state");
	request.command = argv[0];
	request.state = argv[optind + 1];
	await_agent(ctl, argv[optind], &request.timeout_ms);
	ret = ask(ctl, argv[optind], &request,
		  request.timeout_ms ? (int)request.timeout_ms + ANSWER_SLACK_MS
				     : command->answer_ms,
		  &reply);
	if (ret)
		return ret;
	free_reply(reply);
	if (ctl->json)
		return print_json(
			json_pack("{s:s, s:s}", "name", argv[optind], "state", request.state));
	printf("%s: %s\n", argv[optind], request.state);
	return FTCTL_OK;
}

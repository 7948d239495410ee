// SPDX-License-Identifier: Apache-2.0
/* Requests to agents. A guest is listed by its NAME.lock, not its NAME.sock: other sockets live in
 * the run directory too, and an agent that was killed leaves the lock's file, so that its guest is
 * shown as not running rather than not at all. */
#include "tools/ftctl/ftctl.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void free_reply(Ctl__Reply *reply)
{
	if (reply)
		ctl__reply__free_unpacked(reply, NULL);
}

int ask(const struct ftctl *ctl, const char *name, const Ctl__Request *request, int answer_ms,
	Ctl__Reply **reply)
{
	struct ft_err err;
	int ret = ctl_ask(ctl->run_dir, name, request, answer_ms, reply, &err);

	return take_answer(ctl, name, ret, &err, reply);
}

int take_answer(const struct ftctl *ctl, const char *name, int ret, const struct ft_err *err,
		Ctl__Reply **reply)
{
	int code;

	if (ret)
		return fail(ctl, ctl_error_word(-ret), "%s", err->text);
	if (!*(*reply)->error)
		return FTCTL_OK;
	code = fail(ctl, (*reply)->error, "guest %s: %s", name, (*reply)->message);
	if (!strcmp((*reply)->error, CTL_ERR_TIMEOUT))
		code = FTCTL_TIMEOUT;
	free_reply(*reply);
	*reply = NULL;
	return code;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct guest *)a)->name, ((const struct guest *)b)->name);
}

static void find_guests(DIR *dir, struct guests *guests)
{
	struct dirent *entry;

	while (guests->n < GUESTS_MAX && (entry = readdir(dir))) {
		size_t len = strlen(entry->d_name);
		struct guest *guest = &guests->guest[guests->n];

		if (len > 5 && len - 5 < sizeof guest->name &&
		    !strcmp(entry->d_name + len - 5, ".lock")) {
			memcpy(guest->name, entry->d_name, len - 5);
			guest->name[len - 5] = 0;
			guests->n += ctl_name_ok(guest->name);
		}
	}
	qsort(guests->guest, guests->n, sizeof *guests->guest, by_name);
}

static void ask_status(const struct ftctl *ctl, int answer_ms, struct guest *guest)
{
	Ctl__Request request = CTL__REQUEST__INIT;
	int ret;

	request.command = (char *)"status";
	ret = ctl_ask(ctl->run_dir, guest->name, &request, answer_ms, &guest->reply, &guest->err);
	if (!ret && guest->reply->status)
		return;
	if (ret) {
		guest->word = ctl_error_word(-ret);
		return;
	}
	guest->word = CTL_ERR_PROTOCOL;
	ft_err_set(&guest->err, EPROTO, "guest %s: no status: %.200s", guest->name,
		   guest->reply->message);
	free_reply(guest->reply);
	guest->reply = NULL;
}

int guests_ask(const struct ftctl *ctl, int answer_ms, struct guests *guests)
{
	DIR *dir = opendir(ctl->run_dir);

	*guests = (struct guests){.guest = calloc(GUESTS_MAX, sizeof *guests->guest)};
	if (!dir && errno != ENOENT) {
		guests_free(guests);
		return fail(ctl, CTL_ERR_FAILED, "%s: %s", ctl->run_dir, strerror(errno));
	}
	if (dir && guests->guest)
		find_guests(dir, guests);
	if (dir)
		closedir(dir);
	if (!guests->guest)
		return fail(ctl, CTL_ERR_FAILED, "out of memory");
	for (unsigned i = 0; i < guests->n; i++)
		ask_status(ctl, answer_ms, &guests->guest[i]);
	return FTCTL_OK;
}

void guests_free(struct guests *guests)
{
	for (unsigned i = 0; i < guests->n; i++)
		free_reply(guests->guest[i].reply);
	free(guests->guest);
	*guests = (struct guests){0};
}

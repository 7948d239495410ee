// SPDX-License-Identifier: Apache-2.0
// A QEMU that answers what it likes: the monitor's framing, and everything that is read out of
// replies when we take control of a guest. Each line of the input is one answer; a line that begins
// with '{' gets the id of the command in front of its members, all others go out as they are,
// events and garbage that come before the next answer. After the last line QEMU hangs up.
//
// It answers on a thread, for replies that come before their command are dropped as late ones.
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "ft/log.h"
#include "vmm-glue/qemu/internal.h"

#define COMMAND_MAX    4096
#define LINE_MAX_BYTES 8192

static char folder[] = "/tmp/fuzz-qmp-XXXXXX", path[64];
static int listener;

struct lines {
	const char *at, *end;
};

static void clean_up(void)
{
	unlink(path);
	rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	(void)argc;
	(void)argv;
	ft_log_level_set(FT_LOG_ERROR);
	assert(mkdtemp(folder));
	snprintf(path, sizeof path, "%s/qmp", folder);
	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", path);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert(listener >= 0 && !bind(listener, (struct sockaddr *)&addr, sizeof addr));
	assert(!listen(listener, 1));
	atexit(clean_up);
	return 0;
}

static void put(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

/* What the client takes for the answer: it would wait for another one until its deadline. */
static bool is_answer(const char *line, size_t len, unsigned long id)
{
	json_t *object = json_loadb(line, len, 0, NULL);
	bool yes = json_is_object(object) && !json_is_string(json_object_get(object, "event")) &&
		   json_integer_value(json_object_get(object, "id")) == (json_int_t)id;

	json_decref(object);
	return yes;
}

/* Lines up to and with the next answer. False: there is none, and it hangs up. */
static bool answer(int fd, struct lines *in, unsigned long id)
{
	char line[LINE_MAX_BYTES];

	while (in->at < in->end) {
		const char *nl = memchr(in->at, '\n', (size_t)(in->end - in->at));
		const char *end = nl ? nl : in->end;
		bool object = *in->at == '{';
		int n = object ? snprintf(line, sizeof line, "{\"id\": %lu, ", id) : 0;
		size_t rest = (size_t)(end - in->at) - object, room = sizeof line - (size_t)n - 2;

		rest = rest < room ? rest : room;
		memcpy(line + n, in->at + object, rest);
		memcpy(line + n + rest, "\r\n", 2);
		in->at = nl ? nl + 1 : in->end;
		put(fd, line, (size_t)n + rest + 2);
		if (is_answer(line, (size_t)n + rest, id))
			return true;
	}
	return false;
}

static void *monitor(void *arg)
{
	static const char greeting[] =
		"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, \"minor\": 2}}}}\r\n";
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	struct lines *in = arg;
	char text[COMMAND_MAX];
	unsigned long id = 1;
	bool on = true;
	ssize_t n;

	assert(fd >= 0);
	put(fd, greeting, sizeof greeting - 1);
	/* Commands come whole, one at a time. */
	while (on && (n = recv(fd, text, sizeof text, 0)) > 0) {
		static const char good[] = "{\"id\": 1, \"return\": {}}\r\n";

		if (id == 1)
			put(fd, good, sizeof good - 1);
		else
			on = answer(fd, in, id);
		id++;
	}
	close(fd);
	return NULL;
}

static void check(const struct qemu *vm)
{
	assert(vm->disks_n <= VMM_DISKS_MAX && vm->nics_n <= VMM_NICS_MAX);
	for (unsigned i = 0; i < vm->disks_n; i++)
		assert(memchr(vm->disks[i].id, 0, VMM_NAME_MAX) &&
		       memchr(vm->disks[i].image, 0, VMM_PATH_MAX));
	for (unsigned i = 0; i < vm->nics_n; i++)
		assert(memchr(vm->nics[i].id, 0, VMM_NAME_MAX));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct lines in = {(const char *)data, (const char *)data + len};
	struct ft_err err = {0};
	struct qemu *vm = NULL;
	pthread_t thread;

	if (pthread_create(&thread, NULL, monitor, &in))
		abort();
	if (qemu_new("fuzz", folder, NULL, &vm, &err) ||
	    qmp_connect(&vm->qmp, path, -1, QMP_CALL_MS, &err) ||
	    process_open(&vm->process, getpid(), &err))
		abort();
	(void)qemu_adopt(vm, &err);
	(void)qemu_check(&vm->vmm, &err);
	(void)qmp_poll(&vm->qmp);
	check(vm);
	qemu_free(&vm->vmm);
	pthread_join(thread, NULL);
	return 0;
}

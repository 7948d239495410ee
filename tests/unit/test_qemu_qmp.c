// SPDX-License-Identifier: Apache-2.0
// The monitor's client against a monitor that misbehaves: a thread that plays a script, "what comes
// in" -> "what goes out".
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm-glue/qemu/qmp.h"

#define GREETING                                                                                   \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 1, \"minor\": 2, \"major\": 7}}, "         \
	"\"capabilities\": []}}\r\n"
#define OK(id) "{\"return\": {}, \"id\": " #id "}\r\n"

/* One step: after a whole line from the client (none before the first), send this. NULL ends and
 * closes. */
struct script {
	const char *say[8];
	int listener;
	int got_fd;
	char path[108];
	char heard[1024];
	pthread_t thread;
};

static void hear(struct script *s, int fd)
{
	char control[64] = {0}, c;
	struct iovec iov = {&c, 1};

	*s->heard = '\0';
	for (size_t n = 0; n < sizeof s->heard - 1;) {
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = control,
				     .msg_controllen = sizeof control};

		if (recvmsg(fd, &msg, MSG_CMSG_CLOEXEC) <= 0)
			return;
		if (CMSG_FIRSTHDR(&msg))
			memcpy(&s->got_fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
		s->heard[n++] = c;
		s->heard[n] = '\0';
		/* Commands are compact objects; each ends with the brace that closes it. */
		unsigned depth = 0;
		for (size_t i = 0; i < n; i++)
			depth += s->heard[i] == '{' ? 1u : s->heard[i] == '}' ? -1u : 0u;
		if (depth == 0)
			return;
	}
}

static void *play(void *ctx)
{
	struct script *s = ctx;
	int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);

	for (unsigned i = 0; s->say[i]; i++) {
		if (i)
			hear(s, fd);
		for (const char *at = s->say[i]; *at;) {
			ssize_t n = send(fd, at, strlen(at), MSG_NOSIGNAL);

			if (n <= 0)
				break;
			at += n;
		}
	}
	hear(s, fd); /* until the client goes, or says more */
	close(fd);
	return NULL;
}

static int connect_to(struct qmp *q, struct script *s, unsigned within_ms, struct ft_err *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	snprintf(s->path, sizeof s->path, "/tmp/ft-qmp-%d", getpid());
	strcpy(addr.sun_path, s->path);
	unlink(s->path);
	s->got_fd = -1;
	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(s->listener, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(s->listener, 1), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, play, s), 0);
	return qmp_connect(q, s->path, -1, within_ms, err);
}

static void end(struct qmp *q, struct script *s)
{
	qmp_close(q);
	pthread_join(s->thread, NULL);
	close(s->listener);
	unlink(s->path);
}

static void a_silent_monitor(void **state)
{
	struct script s = {.say = {""}};
	struct ft_err why = {0};
	struct qmp q;

	(void)state;
	assert_int_equal(connect_to(&q, &s, 50, &why), -ETIMEDOUT);
	assert_non_null(strstr(why.text, "serves another client"));
	end(&q, &s);
}

static void something_else(void **state)
{
	struct script s = {.say = {"SSH-2.0-OpenSSH\r\n[1]\r\n{\"hello\": 1}\r\n"}};
	struct ft_err why = {0};
	struct qmp q;

	(void)state;
	assert_int_equal(connect_to(&q, &s, 1000, &why), -EPROTO);
	end(&q, &s);
}

static void nobody(void **state)
{
	struct ft_err why = {0};
	struct qmp q;

	(void)state;
	assert_int_equal(qmp_connect(&q, "/tmp/ft-qmp-nobody", -1, 1000, &why), -ENOENT);
}

static unsigned events;

static void on_event(void *ctx, const char *name, const json_t *event)
{
	(void)ctx, (void)event;
	assert_string_equal(name, "STOP");
	events++;
}

#define STOP "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\"}\r\n"

static void replies_and_events(void **state)
{
	struct script s = {.say = {GREETING, OK(1),
				   STOP OK(77) STOP
				   "{\"return\": {\"status\": \"running\"}, \"id\": 2}\r\n" STOP,
				   "{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": "
				   "\"no such thing\"}}\r\n",
				   OK(4)}};
	struct ft_err why = {0};
	json_t *ret = NULL;
	struct stat a, b;
	struct qmp q;
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	(void)state;
	assert_int_equal(connect_to(&q, &s, 1000, &why), 0);
	assert_int_equal(q.major, 7);
	assert_int_equal(q.minor, 2);
	q.event = on_event;
	events = 0;
	assert_int_equal(qmp_call(&q, &ret, &why, "query-status", NULL), 0);
	assert_string_equal(json_string_value(json_object_get(ret, "status")), "running");
	json_decref(ret);
	/* Events before the reply, and what came with it, are delivered; another command's reply is
	 * not taken for ours. */
	assert_true(events >= 2);
	assert_int_equal(qmp_call(&q, NULL, &why, "blockdev-del", "{s:s}", "node-name", "x"), -EIO);
	assert_string_equal(why.text, "qmp: blockdev-del: no such thing");
	assert_int_equal(events, 3);
	qmp_pass_fd(&q, fd);
	assert_int_equal(qmp_call(&q, NULL, &why, "add-fd", NULL), 0);
	assert_true(s.got_fd >= 0);
	assert_int_equal(fstat(s.got_fd, &a), 0);
	assert_int_equal(fstat(fd, &b), 0);
	assert_int_equal(a.st_rdev, b.st_rdev);
	assert_int_equal(qmp_call(&q, NULL, &why, "bad-\xff-name", NULL), -ENOMEM);
	close(s.got_fd);
	close(fd);
	end(&q, &s);
}

static void a_line_without_end(void **state)
{
	char *line = malloc(QMP_LINE_MAX + 2);
	struct script s = {.say = {GREETING, OK(1), line}};
	struct ft_err why = {0};
	struct qmp q;

	(void)state;
	memset(line, '1', QMP_LINE_MAX + 1);
	line[QMP_LINE_MAX + 1] = '\0';
	assert_int_equal(connect_to(&q, &s, 1000, &why), 0);
	assert_int_equal(qmp_call(&q, NULL, &why, "query-status", NULL), -EPIPE);
	assert_int_equal(qmp_call(&q, NULL, &why, "query-status", NULL), -EPIPE);
	end(&q, &s);
	free(line);
}

static void no_reply(void **state)
{
	struct script s = {.say = {GREETING, OK(1), ""}};
	struct ft_err why = {0};
	struct qmp q;

	(void)state;
	assert_int_equal(connect_to(&q, &s, 1000, &why), 0);
	assert_int_equal(qmp_call_args(&q, NULL, &why, 30, "query-status", NULL), -ETIMEDOUT);
	assert_non_null(strstr(why.text, "query-status"));
	end(&q, &s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_silent_monitor),
		cmocka_unit_test(something_else),
		cmocka_unit_test(nobody),
		cmocka_unit_test(replies_and_events),
		cmocka_unit_test(a_line_without_end),
		cmocka_unit_test(no_reply),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

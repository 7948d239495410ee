// SPDX-License-Identifier: Apache-2.0
// An update of the metadata file beside an image survives a crash anywhere: the updating process is
// killed before and after each of its system calls, and the temporary file is cut at every byte.
// What is found then is the old record or the new one, whole, and the next update works.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include <cmocka.h>

#include "eventtap/block/metadata.h"

#define CALLS_MAX 400 /* of one update; it has some twenty */

static char dir[64], image[96], meta[128], temporary[160];
static struct ft_err err;

static const struct metadata_record before = {.uuid = "00112233-4455-6677-8899-aabbccddeeff",
					      .generation = 3,
					      .epoch = 17,
					      .state = STORE_UP_TO_DATE};
static const struct metadata_record after = {.uuid = "00112233-4455-6677-8899-aabbccddeeff",
					     .generation = 123456789012345,
					     .epoch = 18,
					     .state = STORE_INCONSISTENT};

static int setup(void **state)
{
	(void)state;
	strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/kemari-meta-XXXXXX"
						  : "/tmp/kemari-meta-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(image, sizeof(image), "%s/disk.img", dir);
	snprintf(meta, sizeof(meta), "%s%s", image, METADATA_SUFFIX);
	snprintf(temporary, sizeof(temporary), "%s.tmp", meta);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(meta);
	unlink(temporary);
	return rmdir(dir);
}

static int update(const struct metadata_record *record)
{
	struct metadata m;
	int ret = metadata_open(image, &m, &err);
	if (ret < 0)
		return ret;
	ret = metadata_write(&m, record, &err);
	metadata_close(&m);
	return ret;
}

static bool equal(const struct metadata_record *a, const struct metadata_record *b)
{
	return strcmp(a->uuid, b->uuid) == 0 && a->generation == b->generation &&
	       a->epoch == b->epoch && a->state == b->state;
}

// Whole, and which one; then another update goes through, whatever lies about.
static bool look(void)
{
	struct metadata_record found;
	if (metadata_read(image, &found, &err) < 0)
		fail_msg("%s", err.text);
	bool is_new = equal(&found, &after);
	assert_true(is_new || equal(&found, &before));
	assert_int_equal(update(&before), 0);
	assert_int_equal(metadata_read(image, &found, &err), 0);
	assert_true(equal(&found, &before));
	assert_int_equal(access(temporary, F_OK), -1);
	return is_new;
}

// Runs an update and kills it after `calls` system calls have begun or ended. False: it was done
// before.
static bool update_and_die(unsigned calls)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(update(&after) < 0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSTOPPED(status));
	for (unsigned i = 0; i < calls; i++) {
		assert_int_equal(ptrace(PTRACE_SYSCALL, child, NULL, NULL), 0);
		assert_int_equal(waitpid(child, &status, 0), child);
		if (WIFEXITED(status)) {
			assert_int_equal(WEXITSTATUS(status), 0);
			return false;
		}
		assert_true(WIFSTOPPED(status));
	}
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
	return true;
}

static void test_killed_anywhere(void **state)
{
	(void)state;
	bool was_new = false;
	unsigned calls = 0;
	assert_int_equal(update(&before), 0);
	while (update_and_die(calls)) {
		bool is_new = look();
		assert_true(is_new || !was_new); // once it counts, it counts
		was_new = is_new;
		assert_true(++calls < CALLS_MAX);
	}
	assert_true(was_new && calls > 20);
	assert_true(look());
}

// The first one of all: there was nothing, so what is not there yet keeps nobody from anything.
static void test_killed_at_first(void **state)
{
	(void)state;
	for (unsigned calls = 0;; calls++) {
		struct metadata_record found;
		unlink(meta);
		bool died = update_and_die(calls);
		int ret = metadata_read(image, &found, &err);
		assert_true(ret == 0 || ret == -ENOENT);
		if (ret < 0 || found.state == STORE_UP_TO_DATE)
			assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), 0);
		else
			assert_true(equal(&found, &after));
		if (!died)
			break;
		assert_true(calls < CALLS_MAX);
	}
	assert_int_equal(update(&after), 0);
}

static size_t slurp(const char *path, char text[METADATA_BYTES_MAX])
{
	int fd = open(path, O_RDONLY);
	assert_true(fd >= 0);
	ssize_t n = read(fd, text, METADATA_BYTES_MAX);
	close(fd);
	assert_true(n > 0);
	return (size_t)n;
}

static void spill(const char *path, const char *text, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_int_equal(write(fd, text, len), len);
	close(fd);
}

static void test_cut_anywhere(void **state)
{
	(void)state;
	char text[METADATA_BYTES_MAX];
	struct metadata_record found;
	assert_int_equal(update(&after), 0);
	size_t len = slurp(meta, text);
	for (size_t cut = 0; cut <= len; cut++) {
		assert_int_equal(update(&before), 0);
		spill(temporary, text, cut);
		assert_false(look());
	}
	// Under its own name a cut file is refused, not believed: a filesystem that renames before
	// it writes.
	for (size_t cut = 1; cut < len; cut++) {
		spill(meta, text, cut);
		assert_int_equal(metadata_read(image, &found, &err), -EBADMSG);
		assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -EBADMSG);
	}
	// Nor is one with any bit changed.
	for (size_t bit = 0; bit < len * 8; bit++) {
		text[bit / 8] ^= (char)(1 << bit % 8);
		spill(meta, text, len);
		text[bit / 8] ^= (char)(1 << bit % 8);
		assert_int_equal(metadata_read(image, &found, &err), -EBADMSG);
	}
	unlink(meta);
}

// A later version's file is not taken for damage that one may remove.
static void test_version(void **state)
{
	(void)state;
	struct metadata_record found;
	char later[128] = "kemari-disk 2\nanything\n";
	size_t len = strlen(later);
	len += (size_t)snprintf(later + len, sizeof(later) - len, "sum %016llx\n",
				(unsigned long long)XXH3_64bits(later, len));
	spill(meta, later, len);
	assert_int_equal(metadata_read(image, &found, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "later version"));
	assert_int_equal(store_check_startable(image, STORE_RIGHT_GRANTED, &err), -ENOTSUP);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_killed_anywhere, setup, teardown),
		cmocka_unit_test_setup_teardown(test_killed_at_first, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cut_anywhere, setup, teardown),
		cmocka_unit_test_setup_teardown(test_version, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}

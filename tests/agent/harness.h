/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the whole agent share: a place of their own (network namespace, folder), two
 * hosts in it, their agents as real processes, operators' requests to them, and clients of the
 * guests.
 *
 * Every wait has a deadline; what fails, fails the test with what was seen. Whatever was started
 * ends with place_close(), also when a test failed: orphans (a guest's QEMU, a keeper) are
 * inherited by the test program and killed by their number. */
#ifndef TESTS_AGENT_HARNESS_H
#define TESTS_AGENT_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "ft/err.h"
#include "tests/fixture/clock.h"
#include "tools/ctl/ctl.h"

#define GUEST	   "g"	 /* its name, in all tests */
#define START_MS   20000 /* an agent under a sanitizer on a busy machine; QEMU too */
#define PROTECT_MS 60000
#define BOOT_MS	   120000
#define GOES_ON_MS 20000

struct host {
	const char *id;
	char run[128], log[128];
	pid_t agent; /* 0: none */
};

/* ---- the place ---- */

extern char place[64]; /* a folder; short, for sockets are in it */

/* Exits 77 if this machine cannot give a namespace. */
void place_open(void);
/* Ends all that was started and removes the folder; returns failures: what a sanitizer had to
 * report. */
int place_close(void);
/* Ends all that was started: what one test leaves must not trouble the next. cmocka teardown. */
int place_clear(void **state);
/* A path in it. Static buffers, used in turn. */
const char *at(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void write_file(const char *path, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* All of it, "" when there is none. Static buffer. */
const char *file_text(const char *path);
void make_image(const char *path, uint64_t bytes);
/* For waits of the form: while (!done) { check; breathe(deadline, what); }. Fails the test after
 * the deadline. */
void breathe(uint64_t deadline_ms, const char *what);
/* Direct children of the test program that are alive, orphans that it inherited included. */
unsigned children(void);
/* Waits until there are no more than n. */
void wait_children(unsigned n, unsigned within_ms);
unsigned descriptors(pid_t pid);
unsigned long rss_kib(pid_t pid);
bool process_alive(pid_t pid);
void wait_dead(pid_t pid, unsigned within_ms);

/* ---- agents ---- */

struct host host_make(const char *id);
/* The program, with --foreground, this host's id and run directory. Further arguments up to NULL.
 */
void host_start(struct host *h, const char *conf, ...) __attribute__((sentinel));
/* The same, waits for its end (or kills it, which fails the test), and returns its exit code. */
int host_try(struct host *h, const char *conf, ...) __attribute__((sentinel));
void host_signal(struct host *h, int number);
void host_kill(struct host *h); /* SIGKILL, reaped */
/* Waits for its end. The exit code, or 128 + signal. */
int host_reap(struct host *h, unsigned within_ms);
/* By an operator; asserts exit code 0. */
void host_stop(struct host *h);

/* Both, the standby first, if they have an agent: it must not take over. */
void hosts_stop(struct host *a, struct host *b);

/* What it wrote since it was started last. */
bool host_said(const struct host *h, const char *text);
void host_wait_said(const struct host *h, const char *text, unsigned within_ms);
unsigned host_lines(const struct host *h, const char *text);
/* Asserts that its only line of level error, or its only line, has `text`. */
void host_one_error(const struct host *h, const char *text);

/* ---- rights ---- */

#include <linux/capability.h>
#define RIGHT(capability) (1ull << (capability))

/* A number of a thread's status in /proc. */
unsigned long long status_number(pid_t pid, pid_t tid, const char *name, int base);
/* The child of an agent that has this name; 0: none. */
pid_t child_of(pid_t agent, const char *name);
/* Exactly these capabilities, on all its threads, and no way to others. */
void assert_rights(pid_t pid, unsigned long long capabilities);
/* Its system calls are filtered, on all threads (not in builds with a sanitizer). */
void assert_filtered(pid_t pid);

/* ---- operators ---- */

/* 0, or -1 with the agent's message. */
int ask(struct host *h, const char *command, const char *argument, char message[512]);
void ask_ok(struct host *h, const char *command, const char *argument);
/* Asserts that it is refused with that text in the message. */
void ask_refused(struct host *h, const char *command, const char *argument, const char *text);
/* Asks and does not wait for the answer. */
void ask_async(struct host *h, const char *command, const char *argument);
void ask_any_async(struct host *h, const Ctl__Request *r);
/* Any request; free the answer, which may be an error, with ctl__reply__free_unpacked(). */
Ctl__Reply *ask_any(struct host *h, const Ctl__Request *r);
/* A snapshot to a file of the place, verified, without disks. Returns its digest. bytes_per_s: 0 no
 * limit. */
uint64_t snapshot(struct host *h, const char *file, uint64_t bytes_per_s);
/* The same, which updates a file that is there. */
uint64_t snapshot_update(struct host *h, const char *file);
/* Of the last one of these. */
uint64_t snapshot_pause_us(void);
/* "file:" and a path in the place. */
const char *file_uri(const char *name);
/* The same with its disks. */
uint64_t snapshot_with_disks(struct host *h, const char *file, uint64_t bytes_per_s);
/* What updates a file, or makes it, with its disks. */
Ctl__Request snapshot_update_request(const char *file);
/* Updates it; returns how many disks were compared whole. */
unsigned snapshot_update_with_disks(struct host *h, const char *file);
/* Begins one and returns the connection: closing it interrupts the snapshot. Waits until it has
 * saved something. */
int snapshot_begin_slow(struct host *h, const char *file, uint64_t bytes_per_s);
/* The same with its disks, verified. */
int snapshot_begin_slow_with_disks(struct host *h, const char *file, uint64_t bytes_per_s);
/* Its end, which is to be a good one. Closes the connection. Returns how many blocks of its disks
 * the guest wrote before they were saved. */
uint64_t snapshot_wait(struct host *h, int fd);
void wait_state(struct host *h, const char *state, unsigned within_ms);
/* Free with ctl__reply__free_unpacked(). */
Ctl__Reply *status_of(struct host *h);
void assert_state(struct host *h, const char *state);
pid_t vmm_pid(struct host *h);
uint64_t committed(struct host *h);

/* Until it knows that the line of its migration was cut. */
void wait_migration_cut(struct host *h);

/* ---- guests ---- */

/* A client of the kv program on a pocket machine at 127.0.0.1:port: counts and hashes along, so
 * that a lost, doubled or invented operation is found at the next answer (kv.h). */
struct kv_client {
	int fd;
	uint64_t seq, number, chain, longest_ms;
};
#define KV_PORT 7700
void kv_open(struct kv_client *c);
void kv_close(struct kv_client *c);
/* PUT and GET of n keys, each answer checked; repeats unanswered requests for up to GOES_ON_MS
 * each. */
void kv_work(struct kv_client *c, unsigned n);
/* The client that stood still at a moment goes on, n times, with whoever was restored from it. */
void kv_go_on(const struct kv_client *then, unsigned n);
/* PUTs until one is answered with an error of the disk, which is no operation: the same one is
 * asked again by the next kv_work(). At most n, or the test fails. */
void kv_until_error(struct kv_client *c, unsigned n);

/* A pair of pocket machines: a.conf serves both, B listens at b.sock. ft: more keys of that
 * section, the defaults with a takeover_ms for busy machines are there; extra: more lines. */
void pocket_conf(const char *path, const char *ft, const char *extra);
/* "kemari:unix:" and a path in the place. */
/* Its disk, noise at both ends and a hole between. */
void pocket_image(const char *path);
const char *unix_uri(const char *name);
void pocket_pair(struct host *a, struct host *b, const char *ft, const char *extra);

/* A pocket machine of so much memory, without a disk, whose program writes it: the guest of
 * snapshots. _start: and lets it write for a second. */
void pocket_writer_conf(const char *path, const char *memory);
void pocket_writer_start(struct host *h, const char *conf);

/* ---- QEMU guests ---- */

/* Exits 77 unless there are QEMU, kernel and initrd. */
void need_qemu(void);
/* append: more words for the guest's command line, e.g. "ft.dirty=..." */
/* br0 with 10.9.0.1/24, and a tap interface tapb on it. */
void bridge(void);
/* Guest A with a disk, a console and `append` on its command line; it logs to A.console. extra:
 * more lines, the NICs among them. */
void qemu_conf(const char *path, const char *append, const char *ft, const char *extra);
void qemu_start(struct host *h, const char *conf);
/* The other host of g.conf: with its own image and console, it waits at uri. set: one more setting,
 * "KEY=VALUE"; NULL: none. */
void qemu_standby(struct host *h, const char *uri, const char *set);
/* The guest writes n blocks of noise from block `first` of its disk on, and syncs them. */
void guest_noise(const struct host *h, unsigned block_bytes, unsigned first, unsigned n);
/* A TCP connection to the guest's echo server, and n exchanges over it. */
int guest_connect(void);
void guest_echo(int fd, unsigned n);
/* Types a line into the guest's shell. */
void guest_type(const struct host *h, const char *line);
/* Last "tick N" on the console that this host's agent logs; -1: none. */
int last_tick(const struct host *h);
/* A tick later than `after`; returns it. */
int wait_tick(const struct host *h, int after, unsigned within_ms);
/* The guest at h counts on. */
void ticks_on(const struct host *h);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* ft-bench: what a checkpoint costs, each figure beside the floor that was measured in the same
 * run.
 *
 *   main.c      options, the list of groups, the supervisor that leaves nothing behind
 *   report.c    table, JSON, summary          samples.c  medians, clock, idle time
 *   net.c       network namespaces            guest.c    the Linux guest and its console
 *   direct.h    guests that this process drives through vmm.h
 *   host.h      one ft-agent and its files        tls.h      bare TLS connections
 *   pair.h      two hosts, two ft-agents, a client
 *
 * One file per group of figures: harvest pause growth ship commit wire progress echo takeover taps
 * snapshot migrate postcopy (mover.h: our side and QEMU's).
 * A figure and its floor are measured in turn, so that what else the machine does hits both. */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

#define BENCH_PATH_MAX 192

struct bench {
	bool quick;
	char dir[64];		     /* for everything that a run leaves; removed at its end */
	char bin[BENCH_PATH_MAX];    /* where ft-agent is */
	char kernel[BENCH_PATH_MAX]; /* "": there is no guest */
	char initrd[BENCH_PATH_MAX];
	struct direct *pc, *q35, *ten; /* direct.c: made at first use */
	struct pair *pair;	       /* pair.c: likewise */
	unsigned pairs;		       /* made so far */
	struct mover *mover;	       /* mover.h */
	struct rival *rival;
	bool movers_ready;
	double load_ms;	  /* QEMU's own time to load a state and resume, 0: not measured */
	double answer_ms; /* and to its guest's first answer, with no agent about */
};

/* A group's answer when the machine lacks something; the reason is in err. */
#define BENCH_SKIPPED 1

/* Measures and reports its figures. 0, BENCH_SKIPPED, or -errno: could not measure. */
typedef int bench_group_fn(struct bench *b, struct ft_err *err);
bench_group_fn bench_harvest, bench_pause, bench_growth, bench_ship, bench_commit, bench_wire,
	bench_progress, bench_echo, bench_takeover, bench_silence, bench_taps, bench_snapshot,
	bench_migrate, bench_postcopy, bench_preempt, bench_fault, bench_mapped_ram, bench_restore;

/* ---- samples.c ---- */

struct samples {
	double *v;
	size_t n, room;
};
void samples_add(struct samples *s, double value);
/* q of 0: the smallest, 0.5: the median. */
double samples_quantile(const struct samples *s, double q);
static inline double samples_median(const struct samples *s)
{
	return samples_quantile(s, 0.5);
}
void samples_free(struct samples *s);

uint64_t bench_now_ns(void);
static inline double bench_ms_since(uint64_t start_ns)
{
	return (double)(bench_now_ns() - start_ns) / 1e6;
}
/* Lets guests run: what is measured is how they fare meanwhile. */
void bench_idle_ms(unsigned ms);

/* ---- report.c ---- */

enum bench_reach {
	BENCH_AT_MOST,	/* figure / floor <= reach */
	BENCH_AT_LEAST, /* figure / floor >= reach */
	BENCH_PLUS	/* figure <= floor + reach */
};
struct bench_figure {
	const char *name, *unit; /* static strings */
	double value, floor;
	enum bench_reach kind;
	double reach;
	char note[160]; /* what was measured, how often */
};
void bench_report(const struct bench_figure *figure);
/* Medians of both, and their least values in the note. */
void bench_report_samples(const char *name, const char *unit, const struct samples *value,
			  const struct samples *floor, enum bench_reach kind, double reach,
			  const char *what);
void bench_report_skipped(const char *name, const char *why);
void bench_report_failed(const char *name, const char *why);
extern bool bench_report_quiet; /* no table: JSON comes at the end */
/* JSON if asked for, and the summary. Exit code: 0, 1 a figure misses its reach, 2 something could
 * not be measured. */
int bench_report_end(bool json, double seconds);

/* ---- net.c ---- */

/* A new network namespace as a descriptor; it lives as long as that or a process in it. -errno. */
int net_new(struct ft_err *err);
/* This thread goes there; returns where it was, which net_leave() goes back to and closes. */
int net_enter(int ns);
void net_leave(int before);
/* Runs a shell command there. */
int net_run(int ns, struct ft_err *err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* A cable between two interfaces. */
int net_cable(int ns_a, const char *a, int ns_b, const char *b, struct ft_err *err);

/* UDP or TCP to the guest, from the given namespace, with a deadline on every transfer. -errno. */
int net_udp(int ns, unsigned port, struct ft_err *err);
int net_tcp(int ns, unsigned port, struct ft_err *err);
/* Round trips of 8 bytes, `gap_us` apart, in milliseconds. */
int net_ping(int fd, unsigned n, unsigned gap_us, struct samples *rtt, struct ft_err *err);
/* Sends a numbered UDP datagram every millisecond, starting now, until one of them is answered.
 * Returns milliseconds from `since_ns` to that answer. */
int net_first_answer(int fd, uint64_t since_ns, unsigned within_ms, double *ms, struct ft_err *err);

#define GUEST_ADDRESS  "10.9.0.2"
#define CLIENT_ADDRESS "10.9.0.1/24"
#define GUEST_TCP_ECHO 7
#define GUEST_UDP_ECHO 9
#define GUEST_HTTP     80
#define GUEST_SPIN     99

/* ---- migrate.c ---- */

/* The guests that move boot; groups wait for them. */
int bench_movers_begin(struct bench *b, struct ft_err *err);
void bench_movers_end(struct bench *b);

/* ---- guest.c ---- */

#define GUEST_MEMORY  (256u << 20)
#define GUEST_PAGES   (GUEST_MEMORY / 4096)
#define GUEST_DISK    (128u << 20)
#define GUEST_APPEND  "console=ttyS0 quiet panic=1 tsc=unstable ft.quiet"
#define GUEST_BOOT_MS 60000

/* BENCH_SKIPPED and why when there is no guest, no QEMU or no ip. */
int guest_available(struct bench *b, struct ft_err *err);
/* A command for the guest's shell that ends `payload WHAT`. */
#define GUEST_END(what)                                                                            \
	"for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in 'payload " what             \
	" '*) kill ${p#/proc/};; esac; done 2>/dev/null"
int guest_make_disk(const char *path, struct ft_err *err);
/* Waits until the guest says GUEST-READY in its console's log. */
int guest_wait_ready(const char *console_log, struct ft_err *err);

#endif

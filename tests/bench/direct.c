// SPDX-License-Identifier: Apache-2.0
// Guests that this process drives through vmm.h, without agents: what the VMM glue costs by itself.
#include "direct.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmm-glue/qemu/internal.h"

struct capture {
	struct vmm_capture capture;
	struct ft_bitmap pending;
};

/* ---- start ---- */

static int make_network(struct direct *d, struct ft_err *err)
{
	d->ns = net_new(err);
	if (d->ns < 0)
		return d->ns;
	return net_run(d->ns, err,
		       "ip link set lo up && ip link add br0 type bridge forward_delay 0 && "
		       "ip addr add " CLIENT_ADDRESS
		       " dev br0 && ip link set br0 up && for t in tapp "
		       "taps; do ip tuntap add $t mode tap && ip link set $t master br0 && "
		       "ip link set $t up; done");
}

static void fill(struct bench *b, const char *name, struct qemu_config *c)
{
	static char paths[4][4][BENCH_PATH_MAX];
	static unsigned next;
	char(*path)[BENCH_PATH_MAX] = paths[next++ % 4];

	snprintf(path[0], sizeof path[0], "%s/%s.console", b->dir, name);
	snprintf(path[1], sizeof path[1], "%s/%s.tty", b->dir, name);
	snprintf(path[2], sizeof path[2], "%s/%s.img", b->dir, name);
	*c = (struct qemu_config){.name = name,
				  .run_dir = b->dir,
				  .memory_bytes = GUEST_MEMORY,
				  .cpus = 1,
				  .kernel = b->kernel,
				  .initrd = b->initrd,
				  .append = GUEST_APPEND,
				  .console = path[1],
				  .console_log = path[0]};
	c->disks_n = c->nics_n = 1;
	c->disks[0].id = "root";
	c->disks[0].image = path[2];
	c->nics[0].id = "net0";
	c->nics[0].mac = "52:54:00:00:00:02";
	c->nics[0].ifname = "tapp";
}

/* The same devices as everybody's q35 guest has them: modern, behind -drive and -netdev. */
static void fill_q35(struct bench *b, struct qemu_config *c)
{
	static char drive[BENCH_PATH_MAX + 64];
	static const char *const args[] = {
		"-drive",  drive,
		"-device", "virtio-blk-pci,drive=d0",
		"-netdev", "tap,id=n0,ifname=tapp,script=no,downscript=no,vhost=off",
		"-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:02,romfile=",
		NULL};

	fill(b, "q35", c);
	snprintf(drive, sizeof drive, "if=none,id=d0,format=raw,file=%s", c->disks[0].image);
	c->machine = "q35";
	c->disks_n = c->nics_n = 0;
	c->args = args;
}

static int start(struct bench *b, struct direct *d, const struct qemu_config *c, struct ft_err *err)
{
	int before, rc = guest_available(b, err);

	if (rc)
		return rc;
	rc = make_network(d, err);
	if (!rc)
		rc = guest_make_disk(c->disks[0].image, err);
	if (rc)
		return rc;
	snprintf(d->console_log, sizeof d->console_log, "%s", c->console_log);
	before = net_enter(d->ns);
	rc = qemu_start(c, &d->vmm, err);
	net_leave(before);
	return rc;
}

const char *direct_qemu10(void)
{
	static const char path[] = FT_SOURCE_DIR "/.cache/qemu10/qemu";

	return access(path, X_OK) ? "" : path;
}

static void fill_ten(struct bench *b, struct qemu_config *c)
{
	fill(b, "ten", c);
	c->binary = direct_qemu10();
	c->machine = "pc-i440fx-7.2";
}

static struct direct **place_of(struct bench *b, enum direct_kind kind)
{
	struct direct **const all[] = {
		[DIRECT_PC] = &b->pc, [DIRECT_Q35] = &b->q35, [DIRECT_TEN] = &b->ten};

	return all[kind];
}

static int begin(struct bench *b, struct direct *d, enum direct_kind kind, struct ft_err *err)
{
	struct qemu_config c;

	if (kind == DIRECT_TEN && !*direct_qemu10()) {
		ft_err_set(err, ENOENT, "no QEMU 10: tests/guest/qemu10 unpacks it");
		return BENCH_SKIPPED;
	}
	if (kind == DIRECT_Q35)
		fill_q35(b, &c);
	else if (kind == DIRECT_TEN)
		fill_ten(b, &c);
	else
		fill(b, "pc", &c);
	return start(b, d, &c, err);
}

void direct_begin(struct bench *b, enum direct_kind kind)
{
	struct direct **d = place_of(b, kind);

	if (*d)
		return;
	*d = calloc(1, sizeof **d);
	assert(*d);
	(*d)->skipped = begin(b, *d, kind, &(*d)->broken) == BENCH_SKIPPED;
}

static int direct_ready(struct bench *b, enum direct_kind kind, struct ft_err *err)
{
	struct direct *d;
	int rc;

	direct_begin(b, kind);
	d = *place_of(b, kind);
	if (d->broken.code) {
		*err = d->broken;
		return d->skipped ? BENCH_SKIPPED : -err->code;
	}
	if (d->ready)
		return 0;
	rc = guest_wait_ready(d->console_log, err);
	if (!rc)
		rc = vmm_check(d->vmm, err);
	if (!rc)
		rc = vmm_track_start(d->vmm, err);
	d->ready = !rc;
	if (rc)
		d->broken = *err;
	return rc;
}

int direct_pc(struct bench *b, struct ft_err *err)
{
	return direct_ready(b, DIRECT_PC, err);
}

int direct_q35(struct bench *b, struct ft_err *err)
{
	return direct_ready(b, DIRECT_Q35, err);
}

int direct_ten(struct bench *b, struct ft_err *err)
{
	return direct_ready(b, DIRECT_TEN, err);
}

void direct_end(struct direct *d)
{
	if (!d)
		return;
	if (d->vmm) {
		vmm_quit(d->vmm, false, 0);
		vmm_free(d->vmm);
	}
	if (d->ns > 0)
		close(d->ns);
	free(d);
}

void direct_idle(struct direct *d, unsigned ms)
{
	bench_idle_ms(ms);
	vmm_poll(d->vmm);
}

/* ---- checkpoints ---- */

int capture_new(uint64_t pages, struct capture **out, struct ft_err *err)
{
	struct capture *c = calloc(1, sizeof *c);

	*out = c;
	if (!c || ft_bitmap_init(&c->pending, pages))
		return ft_err_set(err, ENOMEM, "no memory");
	c->capture.pages_max = pages;
	c->capture.pages = malloc(pages * VMM_PAGE_BYTES);
	c->capture.pfns = malloc(pages * sizeof *c->capture.pfns);
	c->capture.state = malloc(VMM_STATE_BYTES_MAX);
	if (!c->capture.pages || !c->capture.pfns || !c->capture.state)
		return ft_err_set(err, ENOMEM, "no memory");
	/* Touched now, not in the first pause. */
	memset(c->capture.pages, 1, pages * VMM_PAGE_BYTES);
	memset(c->capture.pfns, 1, pages * sizeof *c->capture.pfns);
	memset(c->capture.state, 1, VMM_STATE_BYTES_MAX);
	return 0;
}

void capture_free(struct capture *c)
{
	if (!c)
		return;
	free(c->capture.pages);
	free(c->capture.pfns);
	free(c->capture.state);
	ft_bitmap_free(&c->pending);
	free(c);
}

struct vmm_capture *capture_of(struct capture *c)
{
	return &c->capture;
}

static void stopped(void *ctx)
{
	(void)ctx;
}

static int take(struct capture *c, struct vmm *vmm, bool keep_stopped, struct ft_err *err)
{
	struct vmm_hold_hooks hooks = {.stopped = stopped};

	return vmm_checkpoint(vmm, &c->pending, &c->capture, &hooks, keep_stopped, err);
}

int capture_take(struct capture *c, struct vmm *vmm, double *pause_ms, size_t *pages,
		 struct ft_err *err)
{
	int rc = take(c, vmm, false, err);

	if (rc)
		return rc;
	*pause_ms = (double)c->capture.pause_ns / 1e6;
	if (pages)
		*pages += c->capture.pages_n;
	ft_bitmap_clear_all(&c->pending);
	return 0;
}

/* ---- dirty pages ---- */

#define DIRTY_BATCH 512

int direct_dirty_stopped(struct vmm *vmm, const uint64_t *pfns, size_t n, struct ft_err *err)
{
	const struct ram *ram = &qemu_of(vmm)->ram;
	uint8_t bytes[DIRTY_BATCH];
	struct iovec remote[DIRTY_BATCH];

	for (size_t i = 0; i < n; i += DIRTY_BATCH) {
		size_t k = n - i < DIRTY_BATCH ? n - i : DIRTY_BATCH;

		for (size_t j = 0; j < k; j++) {
			bytes[j] = ram->map[pfns[i + j] * VMM_PAGE_BYTES];
			remote[j] = (struct iovec){
				(void *)(uintptr_t)(ram->hva + pfns[i + j] * VMM_PAGE_BYTES), 1};
		}
		if (process_vm_writev(ram->pid, &(struct iovec){bytes, k}, 1, remote, k, 0) !=
		    (ssize_t)k)
			return ft_err_set(err, errno, "writing the guest's RAM: %s",
					  strerror(errno));
	}
	return 0;
}

int direct_dirty(struct vmm *vmm, const uint64_t *pfns, size_t n, struct ft_err *err)
{
	int rc = vmm_stop(vmm, err);

	if (!rc)
		rc = direct_dirty_stopped(vmm, pfns, n, err);
	return rc ? rc : vmm_cont(vmm, err);
}

void scatter(uint64_t *pfns, size_t n, uint64_t first, uint64_t of)
{
	size_t got = 0;

	/* Each page with the probability that is left for it: ascending, and the same in every run.
	 */
	for (uint64_t i = 0; i < of && got < n; i++)
		if ((uint64_t)random() % (of - i) < n - got)
			pfns[got++] = first + i;
}

/* ---- QEMU's own time to load and resume ---- */

#define LOAD_ANSWER_MS 20000

/* The guest's RAM and state of one moment, into a standby that runs until it has answered once; the
 * guest stands still meanwhile. */
static int load_once(struct bench *b, struct capture *c, struct samples *load,
		     struct samples *answer, struct ft_err *err)
{
	struct direct *d = b->pc;
	struct qemu_config config;
	struct vmm *standby = NULL;
	uint64_t start_ns = 0;
	double ms = 0;
	int before = net_enter(d->ns), rc, fd = net_udp(d->ns, GUEST_UDP_ECHO, err);

	fill(b, "load", &config);
	config.nics[0].ifname = "taps";
	rc = guest_make_disk(config.disks[0].image, err);
	if (!rc)
		rc = qemu_arm(&config, &standby, err);
	net_leave(before);
	if (!rc)
		rc = take(c, d->vmm, true, err);
	if (!rc) {
		memcpy(vmm_image(standby), qemu_of(d->vmm)->ram.map, GUEST_MEMORY);
		ft_bitmap_clear_all(&c->pending);
		start_ns = bench_now_ns();
		rc = vmm_resume(standby, c->capture.state, c->capture.state_len, err);
	}
	samples_add(load, bench_ms_since(start_ns));
	if (!rc)
		rc = net_first_answer(fd, start_ns, LOAD_ANSWER_MS, &ms, err);
	samples_add(answer, ms);
	if (standby) {
		vmm_quit(standby, false, 0);
		vmm_free(standby);
	}
	close(fd);
	return rc ? rc : vmm_cont(d->vmm, err);
}

int direct_load(struct bench *b, struct ft_err *err)
{
	struct samples load = {0}, answer = {0};
	struct capture *c = NULL;
	int rc = b->load_ms > 0 ? 0 : direct_pc(b, err);

	if (rc || b->load_ms > 0)
		return rc;
	rc = capture_new(GUEST_PAGES, &c, err);
	for (unsigned i = 0; i < (b->quick ? 3 : 7) && !rc; i++)
		rc = load_once(b, c, &load, &answer, err);
	if (!rc) {
		b->load_ms = samples_median(&load);
		b->answer_ms = samples_median(&answer);
	}
	capture_free(c);
	samples_free(&load);
	samples_free(&answer);
	return rc;
}

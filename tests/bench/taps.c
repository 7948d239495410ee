// SPDX-License-Identifier: Apache-2.0
// The guest's network with its taps in, letting everything through, and without; in turn.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "direct.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/net/net_tap.h"
#include "vmm-glue/vmm.h"

#define PINGS	   300
#define FILE_BYTES (32u << 20) /* /big */
#define HELD_BYTES (16u << 20)

struct taps {
	struct tap *net, *disk;
	struct vmm_tap_points points;
};

static int taps_open(struct bench *b, struct direct *d, struct taps *t, struct ft_err *err)
{
	struct net_tap_config net = {.id = "net0",
				     .out_path = t->points.nics[0].out,
				     .host_fd = vmm_nic_fd(d->vmm, 0, err),
				     .held_bytes_max = HELD_BYTES};
	struct disk_tap_config disk = {.id = "root",
				       .socket = t->points.disks[0].nbd,
				       .format_raw = true,
				       .log_bytes_max = DISK_TAP_LOG_BYTES,
				       .spill_dir = b->dir};
	struct vmm_info info;
	int rc;

	if (net.host_fd < 0)
		return net.host_fd;
	vmm_info(d->vmm, &info);
	disk.image = info.disks[0].image;
	snprintf(t->points.nics[0].out, VMM_PATH_MAX, "%s/out", b->dir);
	snprintf(t->points.disks[0].nbd, VMM_PATH_MAX, "%s/nbd", b->dir);
	rc = net_tap_open(&net, &t->net, err);
	if (!rc)
		rc = disk_tap_open(&disk, &t->disk, err);
	return rc ? rc : vmm_taps_in(d->vmm, &t->points, err);
}

static int taps_close(struct direct *d, struct taps *t, struct ft_err *err)
{
	int rc = 0;

	if (t->net)
		net_tap_settle(t->net, 1000);
	if (t->net && t->disk)
		rc = vmm_taps_out(d->vmm, 0, err);
	if (t->net)
		t->net->ops->free(t->net);
	if (t->disk)
		t->disk->ops->free(t->disk);
	*t = (struct taps){0};
	return rc;
}

static int download(struct direct *d, struct samples *mib_s, struct ft_err *err)
{
	static const char get[] = "GET /big HTTP/1.0\r\n\r\n";
	static char buf[1 << 20];
	size_t got = 0;
	ssize_t n = 1;
	uint64_t start;
	int fd = net_tcp(d->ns, GUEST_HTTP, err);

	if (fd < 0)
		return fd;
	start = bench_now_ns();
	if (send(fd, get, sizeof get - 1, MSG_NOSIGNAL) != sizeof get - 1)
		n = 0;
	while (n > 0) {
		n = recv(fd, buf, sizeof buf, 0);
		got += n > 0 ? (size_t)n : 0;
	}
	samples_add(mib_s, (double)got / (1 << 20) / (bench_ms_since(start) / 1e3));
	close(fd);
	return got >= FILE_BYTES ? 0 : ft_err_set(err, EIO, "/big: %zu bytes of the guest's", got);
}

struct side {
	struct samples rtt, mib_s;
};

static int measure_side(struct direct *d, struct side *s, unsigned downloads, struct ft_err *err)
{
	int fd = net_udp(d->ns, GUEST_UDP_ECHO, err), rc = fd < 0 ? fd : 0;

	if (!rc)
		rc = net_ping(fd, PINGS, 0, &s->rtt, err);
	for (unsigned i = 0; i < downloads && !rc; i++)
		rc = download(d, &s->mib_s, err);
	if (fd >= 0)
		close(fd);
	return rc;
}

int bench_taps(struct bench *b, struct ft_err *err)
{
	struct side with = {0}, without = {0};
	struct taps taps = {0};
	int rc = direct_pc(b, err);

	if (rc)
		return rc;
	for (unsigned i = 0; i < (b->quick ? 2 : 8) && !rc; i++) {
		rc = measure_side(b->pc, &without, 2, err);
		if (!rc)
			rc = taps_open(b, b->pc, &taps, err);
		if (!rc)
			rc = measure_side(b->pc, &with, 2, err);
		if (taps_close(b->pc, &taps, rc ? NULL : err) && !rc)
			rc = -err->code;
	}
	if (!rc) {
		bench_report_samples("taps-throughput", "MiB/s", &with.mib_s, &without.mib_s,
				     BENCH_AT_LEAST, 0.85, "32 MiB from the guest");
		bench_report_samples("taps-rtt", "ms", &with.rtt, &without.rtt, BENCH_PLUS, 0.25,
				     "UDP echo");
	}
	samples_free(&with.rtt);
	samples_free(&with.mib_s);
	samples_free(&without.rtt);
	samples_free(&without.mib_s);
	return rc;
}

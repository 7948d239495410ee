// SPDX-License-Identifier: Apache-2.0
/* A guest that somebody else started, without a thought of us: q35, modern virtio, plain -m memory,
 * -drive. The primary attaches to it, and a standby starts its QEMU from the primary's command
 * line. */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tools/drill/ledger.h"
#include "tools/drill/scene.h"

#define TAP    "tap0"
#define NETDEV "tap,id=n0,ifname=" TAP ",script=no,downscript=no"
#define WORD   (2 * HOST_PATH_MAX)

/* attach: where it runs already. How a peer's command line becomes one for here stands in both
 * files: after a planned switch who attached is the standby. */
static void machine_of_peer(const struct drill *d, unsigned which, FILE *f, const char *attach)
{
	fprintf(f, "qemu { replace = {\"%s/%s\", \"%s/%s\"}\n", d->dir, host_name(!which), d->dir,
		host_name(which));
	fprintf(f, "       directories = {\"%s/%s\", \"%s\"}\n", d->dir, host_name(which),
		d->guest_dir);
	if (attach)
		fprintf(f, "       attach = \"%s/%s/%s\"\n", d->dir, host_name(which), attach);
	fprintf(f, "}\n");
}

void attach_primary_file(const struct drill *d, unsigned which, FILE *f)
{
	machine_of_peer(d, which, f, "qmp");
}

void attach_standby_file(const struct drill *d, unsigned which, FILE *f)
{
	machine_of_peer(d, which, f, NULL);
}

int attach_host(struct host *h, struct ft_err *err)
{
	return host_ip(h,
		       "tuntap add dev " TAP " mode tap\nlink set " TAP " master " FIELD_BRIDGE
		       "\nlink set " TAP " up\n",
		       err);
}

static int make_image(const char *path, struct ft_err *err)
{
	FILE *f = fopen(path, "we");
	bool bad = !f || ftruncate(fileno(f), LEDGER_DISK_BYTES);
	int rc = bad ? ft_err_set(err, errno, "%s: %s", path, strerror(errno)) : 0;

	if (f)
		fclose(f);
	return rc;
}

static bool monitor_listens(struct drill *d, void *ctx)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool there;

	(void)ctx;
	snprintf(to.sun_path, sizeof to.sun_path, "%.80s/%s/qmp", d->dir, host_name(d->primary));
	there = fd >= 0 && !connect(fd, (struct sockaddr *)&to, sizeof to);
	if (fd >= 0)
		close(fd);
	return there;
}

int attach_start_theirs(struct drill *d, struct ft_err *err)
{
	struct host *h = &d->hosts[d->primary];
	char image[WORD], kernel[WORD], initrd[WORD], append[WORD], drive[WORD + 64],
		serial[WORD + 64], qmp[WORD + 64];
	const char *const argv[] = {"/usr/bin/env",
				    "qemu-system-x86_64",
				    "-machine",
				    "q35",
				    "-cpu",
				    "max",
				    "-m",
				    "256",
				    "-nodefaults",
				    "-display",
				    "none",
				    "-vga",
				    "none",
				    "-kernel",
				    kernel,
				    "-initrd",
				    initrd,
				    "-append",
				    append,
				    "-drive",
				    drive,
				    "-device",
				    "virtio-blk-pci,drive=d0",
				    "-netdev",
				    NETDEV,
				    "-device",
				    "virtio-net-pci,netdev=n0,mac=52:54:00:0d:0d:01",
				    "-chardev",
				    serial,
				    "-serial",
				    "chardev:ser",
				    "-qmp",
				    qmp,
				    NULL};
	int rc;

	snprintf(image, sizeof image, "%s/%s/root.img", d->dir, h->id);
	snprintf(kernel, sizeof kernel, "%s/vmlinuz", d->guest_dir);
	snprintf(initrd, sizeof initrd, "%s/initrd.gz", d->guest_dir);
	snprintf(append, sizeof append,
		 "console=ttyS0 quiet panic=1 tsc=unstable ft.quiet ft.ip=" FIELD_GUEST_IP
		 "/24 ft.serve=%u:/dev/vda",
		 d->guest_port);
	snprintf(drive, sizeof drive, "file=%s,format=raw,if=none,id=d0", image);
	snprintf(serial, sizeof serial, "socket,id=ser,path=%s/%s/tty,server=on,wait=off", d->dir,
		 h->id);
	snprintf(qmp, sizeof qmp, "unix:%s/%s/qmp,server=on,wait=off", d->dir, h->id);
	rc = make_image(image, err);
	if (!rc)
		rc = host_run(h, argv, err);
	return rc ? rc
		  : drill_wait(d, monitor_listens, NULL, DRILL_BOOT_MS, "the monitor of QEMU", err);
}

int attach_let_go(struct drill *d, struct ft_err *err)
{
	int rc = ask_agent(d, d->primary, "cancel", NULL, DRILL_STOP_MS, NULL, err);

	if (!rc)
		rc = wait_state(d, d->primary, "solo", DRILL_STOP_MS, err);
	if (!rc)
		rc = wait_answers(d, answers(d), DRILL_ANSWERS, DRILL_TAKEOVER_MS, err);
	return rc;
}

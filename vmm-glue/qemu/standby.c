// SPDX-License-Identifier: Apache-2.0
// A QEMU that waits for its guest. It is armed: the incoming migration already runs, on a
// socketpair, and waits for the first byte; its main loop goes on answering the monitor. RAM is
// written by us meanwhile. A failover is then one write of the state.
//
// xen-save-devices-state leaves out what a migration stream has around the devices: the
// configuration section with the machine's name in front (07, be32 length, name) and the
// description behind (06, be32 length, JSON, which may be empty). QEMU: migration/savevm.c.
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmm-glue/qemu/clock.h"
#include "vmm-glue/qemu/internal.h"
#include "vmm-glue/ram_file.h"

#define RESUME_MS      5000
#define LOOK_MS	       250
#define STREAM_HEADER  8 /* "QEVM", be32 3 */
#define SECTION_CONFIG 7
#define SECTION_VMDESC 6

uint8_t *qemu_image(struct vmm *vmm)
{
	assert(qemu_of(vmm)->armed);
	return qemu_of(vmm)->ram.map;
}

int qemu_image_write(struct vmm *vmm, uint64_t pfn, struct iovec *iov, unsigned n,
		     struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r = 0;

	/* hugetlbfs knows no write(2), and all of it was reserved when it was mapped. */
	for (unsigned i = 0; vm->huge_pages && i < n; i++)
		memcpy(vm->ram.map + (pfn + i) * VMM_PAGE_BYTES, iov[i].iov_base, VMM_PAGE_BYTES);
	if (!vm->huge_pages)
		r = ram_file_write(vm->image_fd, pfn * VMM_PAGE_BYTES, iov, n);
	return r ? ft_err_set(err, -r, "qemu: image: %s", strerror(-r)) : 0;
}

int qemu_image_empty(struct vmm *vmm, uint64_t pfn, uint64_t n, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r = 0;

	/* A hole would give up what is reserved. */
	if (vm->huge_pages)
		memset(vm->ram.map + pfn * VMM_PAGE_BYTES, 0, n * VMM_PAGE_BYTES);
	else
		r = ram_file_empty(vm->image_fd, pfn * VMM_PAGE_BYTES, n * VMM_PAGE_BYTES);
	return r ? ft_err_set(err, -r, "qemu: image: %s", strerror(-r)) : 0;
}

int qemu_incoming(struct qmp *q, int *ours, struct ft_err *err)
{
	int ends[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return ft_err_set(err, errno, "qemu: socketpair: %s", strerror(errno));
	qmp_pass_fd(q, ends[1]);
	r = qmp_call(q, NULL, err, "getfd", "{s:s}", "fdname", QEMU_OURS "incoming");
	if (r == 0)
		r = qmp_call(q, NULL, err, "migrate-incoming", "{s:s}", "uri",
			     "fd:" QEMU_OURS "incoming");
	close(ends[1]);
	if (r < 0)
		close(ends[0]);
	else
		*ours = ends[0];
	return r;
}

static int write_all(int fd, struct iovec *iov, int n, uint64_t deadline_ns, struct ft_err *err)
{
	while (n) {
		struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n};
		struct pollfd p = {.fd = fd, .events = POLLOUT};
		ssize_t put = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (put < 0 && errno != EAGAIN && errno != EINTR)
			return ft_err_set(err, errno, "qemu: state: %s", strerror(errno));
		if (put < 0 && poll(&p, 1, qemu_ms_left(deadline_ns)) == 0)
			return ft_err_set(err, ETIMEDOUT, "qemu: state: QEMU does not read it");
		while (put > 0) {
			size_t step = (size_t)put < iov->iov_len ? (size_t)put : iov->iov_len;

			iov->iov_base = (uint8_t *)iov->iov_base + step;
			iov->iov_len -= step;
			put -= (ssize_t)step;
			if (iov->iov_len == 0) {
				iov++;
				n--;
			}
		}
	}
	return 0;
}

int qemu_write_state(int fd, const char *machine, const uint8_t *state, size_t len,
		     unsigned within_ms, struct ft_err *err)
{
	static const uint8_t header[STREAM_HEADER] = {'Q', 'E', 'V', 'M', 0, 0, 0, 3};
	static const uint8_t tail[] = {SECTION_VMDESC, 0, 0, 0, 2, '{', '}'};
	uint32_t name_len = htonl((uint32_t)strlen(machine));
	uint8_t config[5] = {SECTION_CONFIG};
	struct iovec iov[] = {{(void *)state, STREAM_HEADER},
			      {config, sizeof config},
			      {(void *)machine, strlen(machine)},
			      {(void *)(state + STREAM_HEADER), len - STREAM_HEADER},
			      {(void *)tail, sizeof tail}};
	int r;

	if (len <= STREAM_HEADER || memcmp(state, header, STREAM_HEADER))
		return ft_err_set(err, EPROTO, "qemu: state: not a device state of QEMU");
	memcpy(config + 1, &name_len, sizeof name_len);
	r = write_all(fd, iov, sizeof iov / sizeof *iov, qemu_deadline_ns(within_ms), err);
	if (r == 0)
		shutdown(fd, SHUT_WR);
	return r;
}

/* A state that was saved while the guest was stopped, as a file of somebody else may be. */
static int run_if_paused(struct qemu *vm, struct ft_err *err)
{
	qemu_refresh_status(vm);
	return strcmp(vm->status, "paused") ? 0 : vm->vmm.ops->cont(&vm->vmm, err);
}

static int wait_resume(struct qemu *vm, unsigned before, struct ft_err *err)
{
	uint64_t deadline_ns = qemu_deadline_ns(RESUME_MS);
	char words[256];
	int r = 0;

	while (vm->resumes == before && r == 0) {
		struct pollfd p[2] = {{.fd = vm->qmp.fd, .events = POLLIN},
				      {.fd = vm->process.pidfd, .events = POLLIN}};

		if (poll(p, 2, LOOK_MS) == 0) {
			if (qemu_ms_left(deadline_ns) == 0)
				return ft_err_set(
					err, ETIMEDOUT,
					"qemu: resume: the guest does not run after %u ms",
					RESUME_MS);
			r = run_if_paused(vm, err);
			continue;
		}
		if (qmp_poll(&vm->qmp) < 0 && process_ended(&vm->process, RESUME_MS)) {
			process_last_words(vm->log, words, sizeof words);
			return ft_err_set(err, EIO, "qemu: resume: %s", words);
		}
	}
	return r;
}

int qemu_resume(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	unsigned before = vm->resumes;
	int r = qemu_ready(vm, err);

	assert(vm->armed);
	if (r == 0)
		r = qemu_write_state(vm->incoming, vm->machine, state, len, RESUME_MS, err);
	/* A QEMU that refuses the state stops reading: what it says is the better message. */
	if (r == 0 || r == -EPIPE || r == -ECONNRESET)
		r = wait_resume(vm, before, err);
	if (r < 0)
		return r;
	vm->armed = false;
	close(vm->incoming);
	close(vm->image_fd);
	vm->incoming = vm->image_fd = -1;
	qemu_trial_drop(vm);
	argv_free(&vm->trial_argv);
	return 0;
}

int qemu_arm_argv(struct qemu *vm, const struct argv *argv, struct argv *trial_argv,
		  uint64_t memory_bytes, struct ft_err *err)
{
	char qmp_path[VMM_PATH_MAX + 80];
	void *map;
	int r;

	vm->armed = true;
	vm->trial_argv = *trial_argv; /* ours now */
	*trial_argv = (struct argv){0};
	snprintf(qmp_path, sizeof qmp_path, "%s/%s.qmp", vm->run_dir, vm->name);
	vm->image_fd = qemu_memfd(vm->name, memory_bytes, vm->huge_pages, err);
	if (vm->image_fd < 0)
		return vm->image_fd;
	map = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm->image_fd, 0);
	if (map == MAP_FAILED)
		return ft_err_set(err, errno, "qemu: mapping the image: %s%s", strerror(errno),
				  vm->huge_pages ? " (are there free huge pages enough?)" : "");
	vm->ram.map = map;
	vm->ram.bytes = memory_bytes;
	vm->ram.fd = fcntl(vm->image_fd, F_DUPFD_CLOEXEC, 3);
	r = qemu_launch(&vm->process, &vm->qmp, argv, &vm->image_fd, 1, qmp_path, vm->log, err);
	if (r == 0)
		r = qemu_adopt(vm, err);
	if (r == 0 && vm->ram.bytes != memory_bytes)
		r = ft_err_set(err, EINVAL, "qemu: the guest has other memory than its backend");
	if (r == 0)
		r = qemu_incoming(&vm->qmp, &vm->incoming, err);
	if (r < 0) {
		process_kill(&vm->process);
		process_ended(&vm->process, QEMU_START_MS);
	}
	return r;
}

int qemu_arm(const struct qemu_config *config, struct vmm **out, struct ft_err *err)
{
	struct argv argv = {0}, trial = {0};
	struct qemu *vm = NULL;
	int r = qemu_new(config->name, config->run_dir, config->keeper, &vm, err);

	if (r < 0)
		return r;
	vm->huge_pages = config->huge_pages;
	r = qemu_config_argv(config, QEMU_WAIT, &argv, err);
	if (r == 0)
		r = qemu_config_argv(config, QEMU_TRIAL, &trial, err);
	if (r == 0)
		r = qemu_arm_argv(vm, &argv, &trial, config->memory_bytes, err);
	argv_free(&argv);
	argv_free(&trial);
	if (r < 0) {
		qemu_free(&vm->vmm);
		return r;
	}
	*out = &vm->vmm;
	return 0;
}

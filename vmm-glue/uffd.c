// SPDX-License-Identifier: Apache-2.0
// Thin: each function is one ioctl with its errors in words.
#include "vmm-glue/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm-glue/uffd_abi.h"

// Protecting holds the address space's lock, and whoever maps memory in that process waits for it:
// let go of it now and then.
#define PROTECT_STEP_BYTES (64ull << 20)
#define PAGE_BYTES	   4096ull
#define FAULTS_MAX	   32

int uffd_own(int flags, struct ft_err *err)
{
	int all = flags | O_CLOEXEC | O_NONBLOCK;
	int fd = (int)syscall(SYS_userfaultfd, all);

	/* Without the capability there is still the device, for those who may open it. */
	if (fd < 0 && errno == EPERM) {
		int device = open(UFFD_DEVICE, O_RDWR | O_CLOEXEC);

		errno = EPERM;
		if (device >= 0) {
			fd = ioctl(device, USERFAULTFD_IOC_NEW, all);
			close(device);
		}
	}
	if (fd < 0)
		return ft_err_set(err, errno, "userfaultfd: %s", strerror(errno));
	return fd;
}

int uffd_api(int uffd, uint64_t features, struct ft_err *err)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};

	if (ioctl(uffd, UFFDIO_API, &api))
		return ft_err_set(err, errno, "userfaultfd: features %#" PRIx64 ": %s", features,
				  errno == EINVAL ? "not all of them are in this kernel"
						  : strerror(errno));
	return 0;
}

int uffd_register_wp(int uffd, uint64_t start, uint64_t bytes, struct ft_err *err)
{
	struct uffdio_register reg = {.range = {start, bytes}, .mode = UFFDIO_REGISTER_MODE_WP};

	if (!ioctl(uffd, UFFDIO_REGISTER, &reg))
		return 0;
	return ft_err_set(err, errno, "userfaultfd: register %#" PRIx64 " + %" PRIu64 " bytes: %s",
			  start, bytes,
			  errno == EBUSY ? "another userfaultfd has it already"
			  : errno == EINVAL
				  ? "not mapped throughout, or not memory that can be protected"
				  : strerror(errno));
}

int uffd_protect(int uffd, uint64_t start, uint64_t bytes, struct ft_err *err)
{
	for (uint64_t done = 0; done < bytes;) {
		uint64_t step =
			bytes - done < PROTECT_STEP_BYTES ? bytes - done : PROTECT_STEP_BYTES;
		struct uffdio_writeprotect wp = {.range = {start + done, step},
						 .mode = UFFDIO_WRITEPROTECT_MODE_WP};

		if (!ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
			done += step;
		else if (errno != EAGAIN) // the process is changing its mappings just now
			return ft_err_set(err, errno,
					  "userfaultfd: protect %#" PRIx64 " + %" PRIu64
					  " bytes: %s",
					  start + done, step, strerror(errno));
	}
	return 0;
}

int uffd_release(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_writeprotect wp = {.range = {start, bytes}};

	while (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		if (errno != EAGAIN)
			return -errno;
	return 0;
}

int uffd_faults(int uffd, uint64_t *addresses, size_t n)
{
	struct uffd_msg messages[FAULTS_MAX];
	int found = 0;
	ssize_t got;

	got = read(uffd, messages, sizeof *messages * (n < FAULTS_MAX ? n : FAULTS_MAX));
	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (size_t i = 0; i < (size_t)got / sizeof *messages; i++)
		if (messages[i].event == UFFD_EVENT_PAGEFAULT)
			addresses[found++] = messages[i].arg.pagefault.address & ~(PAGE_BYTES - 1);
	return found;
}

int uffd_register_missing(int uffd, uint64_t start, uint64_t bytes, struct ft_err *err)
{
	struct uffdio_register reg = {.range = {start, bytes},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};

	if (!ioctl(uffd, UFFDIO_REGISTER, &reg))
		return 0;
	return ft_err_set(err, errno, "userfaultfd: register %#" PRIx64 " + %" PRIu64 " bytes: %s",
			  start, bytes, strerror(errno));
}

int uffd_register_unseen(int uffd, uint64_t start, uint64_t bytes, struct ft_err *err)
{
	struct uffdio_register reg = {.range = {start, bytes},
				      .mode = UFFDIO_REGISTER_MODE_MISSING |
					      UFFDIO_REGISTER_MODE_MINOR};

	if (!ioctl(uffd, UFFDIO_REGISTER, &reg))
		return 0;
	return ft_err_set(err, errno, "userfaultfd: register %#" PRIx64 " + %" PRIu64 " bytes: %s",
			  start, bytes, strerror(errno));
}

int uffd_show(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_continue show = {.range = {start, bytes}};

	while (ioctl(uffd, UFFDIO_CONTINUE, &show)) {
		if (errno == EEXIST) {
			uffd_wake(uffd, start, bytes);
			return 0;
		}
		if (errno != EAGAIN)
			return -errno;
	}
	return 0;
}

/* One attempt. Bytes that are there now, from the start on, or -errno. */
static int64_t fill_some(int uffd, uint64_t start, const void *from, uint64_t bytes, bool wake)
{
	struct uffdio_copy copy = {.dst = start,
				   .src = (uintptr_t)from,
				   .len = bytes,
				   .mode = wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE};
	struct uffdio_zeropage zero = {.range = {start, bytes},
				       .mode = wake ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE};
	int ret = from ? ioctl(uffd, UFFDIO_COPY, &copy) : ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
	int64_t done = from ? copy.copy : zero.zeropage;

	if (!ret)
		return (int64_t)bytes;
	if (done > 0) /* stopped on the way */
		return done;
	if (errno == EAGAIN)
		return 0;
	if (errno != EEXIST)
		return -errno;
	/* Who came too late to be woken by whoever put the page there must be. */
	uffd_wake(uffd, start, PAGE_BYTES);
	return (int64_t)PAGE_BYTES;
}

static int fill(int uffd, uint64_t start, const void *from, uint64_t bytes, bool wake)
{
	for (uint64_t done = 0; done < bytes;) {
		int64_t step =
			fill_some(uffd, start + done, from ? (const uint8_t *)from + done : NULL,
				  bytes - done, wake);

		if (step < 0)
			return (int)step;
		done += (uint64_t)step;
	}
	return 0;
}

int uffd_fill(int uffd, uint64_t start, const void *from, uint64_t bytes)
{
	return fill(uffd, start, from, bytes, true);
}

int uffd_fill_quietly(int uffd, uint64_t start, const void *from, uint64_t bytes)
{
	return fill(uffd, start, from, bytes, false);
}

void uffd_wake(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = {start, bytes};

	(void)ioctl(uffd, UFFDIO_WAKE, &range);
}

void uffd_unregister(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = {start, bytes};

	(void)ioctl(uffd, UFFDIO_UNREGISTER, &range);
}

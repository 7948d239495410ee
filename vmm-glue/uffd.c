// SPDX-License-Identifier: Apache-2.0
// Thin: each function is one ioctl with its errors in words.
#include "vmm-glue/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm-glue/uffd_abi.h"

// Protecting holds the address space's lock, and whoever maps memory in that process waits for it:
// let go of it now and then.
#define PROTECT_STEP_BYTES (64ull << 20)

int uffd_own(int flags, struct ft_err *err)
{
	int fd = (int)syscall(SYS_userfaultfd, flags | O_CLOEXEC | O_NONBLOCK);

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

void uffd_unregister(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = {start, bytes};

	(void)ioctl(uffd, UFFDIO_UNREGISTER, &range);
}

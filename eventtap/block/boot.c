// SPDX-License-Identifier: Apache-2.0
#include "eventtap/block/boot.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

void boot_identity(uint8_t id[BOOT_ID_BYTES])
{
	char text[64] = "";
	unsigned n = 0;
	memset(id, 0, BOOT_ID_BYTES);
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	ssize_t len = read(fd, text, sizeof(text) - 1);
	close(fd);
	for (ssize_t i = 0; i + 1 < len && n < BOOT_ID_BYTES; i++) {
		unsigned value;
		if (text[i] == '-' || sscanf(text + i, "%2x", &value) != 1)
			continue;
		id[n++] = (uint8_t)value;
		i++;
	}
}

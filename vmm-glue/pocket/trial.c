// SPDX-License-Identifier: Apache-2.0
// A throw-away machine that is connected to nothing: does this state run on this RAM?
#include <string.h>

#include "vmm-glue/pocket/machine.h"

#define TRIAL_STEPS 64u // enough to finish any request

static void null_net(void *ctx, const uint8_t *frame, size_t len)
{
	(void)ctx, (void)frame, (void)len;
}

static int null_read(void *ctx, unsigned disk, uint64_t offset, uint8_t *data, size_t len)
{
	(void)ctx, (void)disk, (void)offset;
	memset(data, 0, len);
	return 0;
}

static int null_write(void *ctx, unsigned disk, uint64_t offset, const uint8_t *data, size_t len)
{
	(void)ctx, (void)disk, (void)offset, (void)data, (void)len;
	return 0;
}

static int null_flush(void *ctx, unsigned disk)
{
	(void)ctx, (void)disk;
	return 0;
}

static int null_doorbell(void *ctx, enum tap_kind kind, uint64_t addr, uint64_t value,
			 unsigned width)
{
	(void)ctx, (void)kind, (void)addr, (void)value, (void)width;
	return 0;
}

static const struct pocket_world null_world = {
	.net_send = null_net,
	.console_write = null_net,
	.disk_read = null_read,
	.disk_write = null_write,
	.disk_flush = null_flush,
	.doorbell = null_doorbell,
};

int machine_trial(const struct pocket_config *config, uint8_t *ram, const uint8_t *state,
		  size_t len, struct ft_err *err)
{
	struct machine m;
	int rc = machine_init(&m, config, ram, &null_world, err);

	if (!rc)
		rc = machine_load(&m, state, len, err);
	if (!rc)
		rc = machine_verify(&m, err);
	for (unsigned i = 0; !rc && i < TRIAL_STEPS && machine_step(&m); i++)
		;
	return rc ? rc : machine_verify(&m, err);
}

// SPDX-License-Identifier: Apache-2.0
// Making a pocket machine, and what can be done to one beyond struct vmm_ops.
#include "vmm-glue/pocket/pocket.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm-glue/pocket/host.h"

static int map_ram(struct pocket *p, struct ft_err *err)
{
	p->memfd = memfd_create("pocket-ram", MFD_CLOEXEC);
	if (p->memfd < 0)
		return ft_err_set(err, errno, "pocket: memfd: %s", strerror(errno));
	if (!ftruncate(p->memfd, (off_t)p->config.memory_bytes))
		p->ram = mmap(NULL, p->config.memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
			      p->memfd, 0);
	else
		p->ram = MAP_FAILED;
	if (p->ram != MAP_FAILED)
		return 0;
	ft_err_set(err, errno, "pocket: memory of %llu bytes: %s",
		   (unsigned long long)p->config.memory_bytes, strerror(errno));
	close(p->memfd);
	return -err->code;
}

static int check_config(const struct pocket_config *config, struct ft_err *err)
{
	struct machine m;

	if (config->disks_n > VMM_DISKS_MAX)
		return ft_err_set(err, EINVAL, "pocket: %u disks, %u are possible", config->disks_n,
				  VMM_DISKS_MAX);
	return machine_init(&m, config, NULL, NULL, err);
}

static void on_halted(void *ctx)
{
	pocket_set_lost(ctx, "the guest halted");
}

static int make(const struct pocket_config *config, struct pocket **out, struct ft_err *err)
{
	struct ft_err local;
	struct pocket *p;
	int rc;

	err = err ? err : &local;
	rc = check_config(config, err);
	if (rc)
		return rc;
	p = calloc(1, sizeof *p);
	if (!p)
		return ft_err_set(err, ENOMEM, "pocket: out of memory");
	p->vmm.ops = &pocket_ops;
	p->config = *config;
	rc = config->world ? 0 : pocket_io_size_disks(&p->config, err);
	if (rc)
		goto free_p;
	rc = map_ram(p, err);
	if (rc)
		goto free_p;
	p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->event_fd < 0) {
		rc = ft_err_set(err, errno, "pocket: eventfd: %s", strerror(errno));
		goto unmap;
	}
	pocket_io_init(&p->io, &p->config);
	p->runner = (struct runner){.machine = &p->machine,
				    .io = &p->io,
				    .halted = on_halted,
				    .ctx = p,
				    .manual = config->manual};
	rc = runner_init(&p->runner, err);
	if (rc)
		goto close_event;
	rc = machine_init(&p->machine, &p->config, p->ram,
			  config->world ? config->world : &p->io.world, err);
	assert(!rc);
	*out = p;
	return 0;

close_event:
	close(p->event_fd);
unmap:
	munmap(p->ram, p->config.memory_bytes);
	close(p->memfd);
free_p:
	assert(rc);
	free(p);
	return rc;
}

int pocket_start(const struct pocket_config *config, struct vmm **out, struct ft_err *err)
{
	struct pocket *p = NULL;
	int rc = make(config, &p, err);

	if (rc)
		return rc;
	assert(p);
	p->phase = PHASE_LIVE;
	if (!config->world)
		rc = pocket_io_open(&p->io, false, err);
	if (!rc && config->stopped)
		rc = pocket_pause(p, err);
	p->stopped = config->stopped;
	if (!rc)
		rc = runner_start(&p->runner, err);
	if (rc) {
		p->vmm.ops->free(&p->vmm);
		return rc;
	}
	*out = &p->vmm;
	return 0;
}

int pocket_arm(const struct pocket_config *config, struct vmm **out, struct ft_err *err)
{
	struct pocket *p = NULL;
	int rc = make(config, &p, err);

	if (rc)
		return rc;
	assert(p);
	p->phase = PHASE_ARMED;
	*out = &p->vmm;
	return 0;
}

int pocket_program_parse(const char *name)
{
	if (!strcmp(name, "kv"))
		return POCKET_KV;
	return strcmp(name, "dirty") ? -EINVAL : POCKET_DIRTY;
}

// ---- beyond vmm_ops

bool pocket_step(struct vmm *vmm, uint64_t now_ns, uint64_t *wake_ns)
{
	struct pocket *p = pocket_of(vmm);

	if (p->phase != PHASE_LIVE) {
		if (wake_ns)
			*wake_ns = UINT64_MAX;
		return false;
	}
	return runner_step(&p->runner, now_ns, wake_ns);
}

void pocket_receive(struct vmm *vmm, const uint8_t *frame, size_t len)
{
	struct pocket *p = pocket_of(vmm);

	assert(p->config.manual);
	if (p->phase == PHASE_LIVE && !p->stopped)
		machine_receive(&p->machine, frame, len);
}

uint16_t pocket_port(struct vmm *vmm)
{
	return pocket_io_port(&pocket_of(vmm)->io);
}

int pocket_dirty_rate(struct vmm *vmm, uint64_t pages_per_s, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	int rc = pocket_pause(p, err);

	if (rc)
		return rc;
	dirtier_rate(&p->machine, pages_per_s);
	pocket_unpause(p);
	return 0;
}

uint64_t pocket_dirtied(struct vmm *vmm)
{
	struct pocket *p = pocket_of(vmm);
	uint64_t dirtied;

	if (pocket_pause(p, NULL))
		return 0;
	dirtied = p->machine.s.cpu.reg[REG_DIRTIED];
	pocket_unpause(p);
	return dirtied;
}

size_t pocket_state(struct vmm *vmm, uint8_t *out)
{
	struct pocket *p = pocket_of(vmm);

	assert(p->stopped || p->config.manual || p->phase != PHASE_LIVE);
	return machine_save(&p->machine, out);
}

void pocket_fault_next(struct vmm *vmm, enum pocket_fault fault)
{
	pocket_of(vmm)->fault = fault;
}

void pocket_crash(struct vmm *vmm)
{
	struct pocket *p = pocket_of(vmm);

	pocket_end(p);
	pocket_set_lost(p, "the machine crashed");
}

// SPDX-License-Identifier: Apache-2.0
/* The guest's taps. Disk and NIC taps exist only while they are needed; the console tap lives as
 * long as the VM, because the agent is the console's server, and joins the chain with the others.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/console/console_tap.h"
#include "eventtap/net/net_tap.h"
#include "ft/lease.h"
#include "ft/log.h"
#include "tools/agent/agent.h"

#define NIC_HELD_BYTES                                                                             \
	(16u << 20) /* of frames waiting for their checkpoint; beyond, frames are dropped as       \
		       networks do */
#define DISK_LOG_BYTES_MAX (32u << 20)
#define CONSOLE_HELD_BYTES (1u << 20)

void taps_wake(struct agent *a)
{
	uint64_t one = 1;

	(void)!write(a->wait_fd, &one, sizeof one);
}

static void on_output(void *ctx)
{
	struct agent *a = ctx;

	if (!atomic_exchange(&a->output, true))
		taps_wake(a);
}

static void on_pressure(void *ctx)
{
	struct agent *a = ctx;

	if (!atomic_exchange(&a->pressure, true))
		taps_wake(a);
}

struct tap_notify taps_notify(struct agent *a)
{
	return (struct tap_notify){.output = on_output, .pressure = on_pressure, .ctx = a};
}

enum store_mode taps_disk_mode(struct agent *a, const char *id)
{
	for (unsigned i = 0; i < a->config.disks_n; i++)
		if (!strcmp(a->config.disks[i].id, id))
			return a->config.disks[i].mode;
	return STORE_REPLICATED;
}

/* The lease is looked at again behind the keeper's deadline: who freezes before that finds the
 * lease over when it wakes up, who freezes later does not wake up (ft/lease.h). */
static bool gate_enter(void *ctx)
{
	struct agent *a = ctx;
	uint64_t now = agent_now_ns(), left_ns = ft_engine_may_write_ns(a->engine);

	a->lease_until_ns = 0;
	if (left_ns == UINT64_MAX || !left_ns)
		return left_ns;
	a->lease_until_ns = now + left_ns;
	keeper_deadline(a->keeper, a->lease_until_ns + FT_WRITE_FREEZE_MS * 1000000ull);
	if (ft_engine_may_write_ns(a->engine))
		return true;
	keeper_deadline(a->keeper, 0);
	return false;
}

static void gate_leave(void *ctx)
{
	struct agent *a = ctx;
	uint64_t now = agent_now_ns(), limit = a->lease_until_ns + FT_WRITE_MAX_MS * 1000000ull;

	keeper_deadline(a->keeper, 0);
	if (a->lease_until_ns && now > limit)
		ft_error("%s: a write to a shared disk came back %llu ms after its lease was over: "
			 "if the standby has taken the disk over meanwhile, it may be damaged",
			 a->config.name, (unsigned long long)(now - a->lease_until_ns) / 1000000);
}

_Static_assert(FT_WRITE_FREEZE_MS >= KEEPER_LOOK_MS, "or the keeper would look too late");

/* known: the VM has not run without a tap since this host had the disk. */
static int make_disk(struct agent *a, unsigned i, bool known, struct ft_err *err)
{
	struct disk_tap_config config = {
		.id = a->vm_info.disks[i].id,
		.device = (uint8_t)i,
		.image = a->vm_info.disks[i].image,
		.shared = taps_disk_mode(a, a->vm_info.disks[i].id) == STORE_SHARED,
		.gate = {.enter = gate_enter, .leave = gate_leave, .ctx = a},
		.uuid = a->config.uuid,
		.socket = a->points.disks[i].nbd,
		.log_bytes_max = a->config.ft.staging_bytes / 4 < DISK_LOG_BYTES_MAX
					 ? a->config.ft.staging_bytes / 4
					 : DISK_LOG_BYTES_MAX,
		.spill_dir = a->run_dir,
		/* The VM has it open as raw already; a guest may write what it likes into it. */
		.format_raw = true,
	};
	int rc;

	agent_path(a, a->points.disks[i].nbd,
		   (const char[]){'.', 'n', 'b', 'd', (char)('0' + i), 0});
	config.known = known;
	rc = disk_tap_open(&config, &a->disk_taps[i], err);
	if (rc)
		return ft_err_context(err, "disk %s", config.id);
	a->disk_taps[i]->notify = taps_notify(a);
	tap_chain_add(ft_engine_chain(a->engine), a->disk_taps[i]);
	if (taps_serve_backups(a, i, err))
		ft_warn("%s: disk %s: %s", a->config.name, config.id, err->text);
	return 0;
}

static void end_disk(struct agent *a, unsigned i)
{
	follow_tap_ends(a, i);
	if (a->disk_taps[i])
		a->disk_taps[i]->ops->free(a->disk_taps[i]);
	a->disk_taps[i] = NULL;
	a->points.disks[i].nbd[0] = 0;
}

static int make_nic(struct agent *a, unsigned i, struct ft_err *err)
{
	struct net_tap_config config = {
		.id = a->vm_info.nics[i].id,
		.device = (uint8_t)i,
		.out_path = a->points.nics[i].out,
		.in_path = a->points.nics[i].in,
		.held_bytes_max = NIC_HELD_BYTES,
	};
	struct ft_err why;
	int rc;

	agent_path(a, a->points.nics[i].out,
		   (const char[]){'.', 'o', 'u', 't', (char)('0' + i), 0});
	config.host_fd = vmm_nic_fd(a->vmm, i, &why);
	if (config.host_fd < 0) {
		ft_debug("%s: nic %s: frames go back through the VMM: %s", a->config.name,
			 config.id, why.text);
		agent_path(a, a->points.nics[i].in,
			   (const char[]){'.', 'i', 'n', (char)('0' + i), 0});
	}
	rc = net_tap_open(&config, &a->nic_taps[i], err);
	if (rc) {
		if (config.host_fd >= 0)
			close(config.host_fd);
		return ft_err_context(err, "nic %s", config.id);
	}
	a->nic_taps[i]->notify = taps_notify(a);
	tap_chain_add(ft_engine_chain(a->engine), a->nic_taps[i]);
	return 0;
}

int taps_make_disks(struct agent *a, struct ft_err *err)
{
	int rc = 0;

	a->taps_made = true;
	vmm_info(a->vmm, &a->vm_info);
	for (unsigned i = 0; !rc && i < a->vm_info.disks_n; i++)
		rc = a->disk_taps[i] ? 0 : make_disk(a, i, false, err);
	if (rc)
		taps_part(a);
	return rc;
}

int taps_make(struct agent *a, bool disks, struct ft_err *err)
{
	int rc = 0;

	if (a->taps_made)
		return 0;
	if (disks)
		rc = taps_make_disks(a, err);
	if (rc)
		return rc;
	a->taps_made = true;
	vmm_info(a->vmm, &a->vm_info);
	for (unsigned i = 0; !rc && i < a->vm_info.nics_n; i++)
		rc = make_nic(a, i, err);
	if (!rc && a->console_tap)
		tap_chain_add(ft_engine_chain(a->engine), a->console_tap);
	if (!rc && a->pio_tap)
		tap_chain_add(ft_engine_chain(a->engine), a->pio_tap);
	if (rc)
		taps_part(a);
	return rc;
}

int taps_complete(const struct agent *a, struct ft_err *err)
{
	for (unsigned i = 0; i < a->vm_info.disks_n; i++)
		if (!a->disk_taps[i])
			return ft_err_set(err, EIO,
					  "disk %s: has no tap: what the guest writes would not "
					  "reach the standby",
					  a->vm_info.disks[i].id);
	for (unsigned i = 0; i < a->vm_info.nics_n; i++)
		if (!a->nic_taps[i])
			return ft_err_set(err, EIO,
					  "nic %s: has no tap: what the guest sends would not wait "
					  "for a checkpoint",
					  a->vm_info.nics[i].id);
	return 0;
}

static bool is_tracked(const struct agent *a, const char *id)
{
	for (unsigned i = 0; i < a->config.disks_n; i++)
		if (!strcmp(a->config.disks[i].id, id))
			return a->config.disks[i].track;
	return false;
}

bool taps_disk_in_use(const struct agent *a, unsigned i)
{
	return bitmaps_count(disk_tap_bitmaps(a->disk_taps[i])) > 0 ||
	       disk_tap_backup_on(a->disk_taps[i]);
}

static bool has_bitmaps(const struct agent *a, unsigned i)
{
	return a->disk_taps[i] ? taps_disk_in_use(a, i) : bitmaps_exist(a->vm_info.disks[i].image);
}

unsigned taps_disks_stay(struct agent *a)
{
	unsigned stay = 0;

	for (unsigned i = 0; i < a->vm_info.disks_n; i++)
		if (a->snapshot.disks_noted || is_tracked(a, a->vm_info.disks[i].id) ||
		    has_bitmaps(a, i))
			stay |= 1u << i;
	return stay;
}

void taps_backup_path(const struct agent *a, unsigned i, char out[VMM_PATH_MAX])
{
	agent_path(a, out, (const char[]){'.', 'b', 'a', 'c', 'k', 'u', 'p', (char)('0' + i), 0});
}

int taps_serve_backups(struct agent *a, unsigned i, struct ft_err *err)
{
	char path[VMM_PATH_MAX];

	if (!bitmaps_count(disk_tap_bitmaps(a->disk_taps[i])))
		return 0;
	taps_backup_path(a, i, path);
	return disk_tap_backups(a->disk_taps[i], path, err);
}

static void drop_disk(struct agent *a, unsigned i)
{
	tap_chain_remove(ft_engine_chain(a->engine), a->disk_taps[i]);
	end_disk(a, i);
	a->disks_stay &= ~(1u << i);
}

int taps_disk_in(struct agent *a, unsigned i, bool known, struct ft_err *err)
{
	struct vmm_tap_points points = {0};
	int rc = make_disk(a, i, known, err);

	if (rc)
		return rc;
	memcpy(&points.disks[i], &a->points.disks[i], sizeof points.disks[i]);
	rc = vmm_taps_in(a->vmm, &points, err);
	if (!rc) {
		a->disks_stay |= 1u << i;
		return 0;
	}
	disk_tap_leave(a->disk_taps[i]);
	drop_disk(a, i);
	return rc;
}

int taps_disk_out(struct agent *a, unsigned i, struct ft_err *err)
{
	int rc = vmm_taps_out(a->vmm, a->disks_stay & ~(1u << i), err);

	if (rc)
		return rc;
	disk_tap_leave(a->disk_taps[i]);
	drop_disk(a, i);
	return 0;
}

void taps_in_solo(struct agent *a, bool known)
{
	unsigned stay = taps_disks_stay(a);

	a->disks_stay = 0;
	for (unsigned i = 0; i < a->vm_info.disks_n; i++) {
		struct ft_err err = {0};
		int rc = stay & 1u << i ? taps_disk_in(a, i, known, &err) : 0;

		if (rc)
			ft_error("%s: what changes on its disk is not noted: %s", a->config.name,
				 err.text);
		if (!a->disk_taps[i])
			disk_tap_forget(a->vm_info.disks[i].image);
	}
}

/* goes_on: the VM, with its disks as they are. */
static void part(struct agent *a, bool goes_on)
{
	a->snapshot.taps_ours = false;
	snapshot_stop_writing(a, "the guest's disks have lost their taps");
	/* Those that outlive protection leave the chain; the others end. */
	ft_engine_chain(a->engine)->first = NULL;
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++) {
		if (!a->disk_taps[i])
			continue;
		a->disk_taps[i]->next = NULL;
		if (a->disks_stay & 1u << i) {
			tap_chain_add(ft_engine_chain(a->engine), a->disk_taps[i]);
			continue;
		}
		if (goes_on)
			disk_tap_leave(a->disk_taps[i]);
		end_disk(a, i);
	}
	for (unsigned i = 0; i < VMM_NICS_MAX; i++) {
		if (a->nic_taps[i])
			a->nic_taps[i]->ops->free(a->nic_taps[i]);
		a->nic_taps[i] = NULL;
	}
	if (a->console_tap)
		a->console_tap->next = NULL;
	if (a->pio_tap)
		a->pio_tap->next = NULL;
	/* Nobody must find the old sockets' paths: a VM that is armed next has no disk taps. */
	memset(a->points.nics, 0, sizeof a->points.nics);
	a->taps_made = false;
}

void taps_free(struct agent *a)
{
	a->disks_stay = 0;
	part(a, false);
}

void taps_part(struct agent *a)
{
	part(a, true);
}

void taps_leave(struct agent *a)
{
	struct ft_err err = {0};

	if (!a->disks_stay)
		return;
	a->disks_stay = 0;
	if (vmm_taps_out(a->vmm, 0, &err))
		ft_error("%s: %s", a->config.name, err.text);
	taps_part(a);
}

void taps_settle(struct agent *a)
{
	for (unsigned i = 0; i < VMM_NICS_MAX; i++)
		if (a->nic_taps[i])
			net_tap_settle(a->nic_taps[i], TAPS_SETTLE_MS);
}

static void on_waiting(evutil_socket_t fd, short what, void *ctx)
{
	struct agent *a = ctx;
	uint64_t n;

	(void)what;
	(void)!read(fd, &n, sizeof n);
	if (atomic_exchange(&a->pressure, false))
		ft_engine_pressure(a->engine);
	if (atomic_exchange(&a->output, false))
		ft_engine_output(a->engine);
	if (atomic_exchange(&a->journaled, false))
		durable_news(a);
}

int taps_listen(struct agent *a, struct ft_err *err)
{
	a->wait_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (a->wait_fd < 0)
		return ft_err_set(err, errno, "eventfd: %s", strerror(errno));
	a->waiting = event_new(a->base, a->wait_fd, EV_READ | EV_PERSIST, on_waiting, a);
	if (!a->waiting || event_add(a->waiting, NULL))
		return ft_err_set(err, ENOMEM, "event loop: out of memory");
	return 0;
}

/* ---- the console ---- */

void taps_console_path(const struct agent *a, char out[VMM_PATH_MAX])
{
	agent_path(a, out, ".con");
}

int taps_console_open(struct agent *a, struct ft_err *err)
{
	const char *log = a->config.console.log, *socket = a->config.console.socket;
	char path[VMM_PATH_MAX];
	struct console_tap_config config = {
		.id = "console",
		.vmm_path = path,
		.log_path = log[0] ? log : NULL,
		.socket_path = socket[0] ? socket : NULL,
		.held_bytes_max = CONSOLE_HELD_BYTES,
	};
	int rc;

	if (a->console_tap || a->config.source != CONFIG_LAUNCH ||
	    (!config.log_path && !config.socket_path))
		return 0;
	taps_console_path(a, path);
	rc = console_tap_open(&config, &a->console_tap, err);
	if (!rc)
		a->console_tap->notify = taps_notify(a);
	return rc;
}

void taps_console_free(struct agent *a)
{
	if (!a->console_tap)
		return;
	ft_engine_chain(a->engine)->first = NULL;
	a->console_tap->ops->free(a->console_tap);
	a->console_tap = NULL;
}

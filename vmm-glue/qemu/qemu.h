/* SPDX-License-Identifier: Apache-2.0 */
/* An unmodified QEMU (7.2 or later) as a struct vmm. Three ways to one:
 *
 *   qemu_start()   plain QEMU, its RAM in a memfd; runs the guest
 *   qemu_attach()  a QEMU that runs already: somebody else's, or the one that an agent before us
 * had started qemu_arm()     a QEMU that waits for a checkpoint, and runs the guest after
 * vmm->ops->resume() qemu_arm_command_line()  the same from the command line of the primary's QEMU
 * (that of an attached guest)
 *
 * Each returns an object whose ops are those of vmm.h; what an op is not meant for (trial of a
 * running VM ...) is an assertion. Objects are used by one thread. QEMU runs in a session of its
 * own and outlives the agent.
 *
 * Files in the run directory: NAME.qmp (monitor), NAME.qemu.log (its standard error), NAME.taps
 * (while disk taps are in: how to take them out; JSON). */
#ifndef VMM_GLUE_QEMU_H
#define VMM_GLUE_QEMU_H

#include "vmm-glue/keeper.h"
#include "vmm-glue/vmm.h"

enum qemu_accel { QEMU_ACCEL_AUTO, QEMU_ACCEL_TCG, QEMU_ACCEL_KVM };

/* Plain data; copied, nothing has to outlive the call. Both hosts of a pair give the same but for
 * paths and interface names. */
struct qemu_config {
	const char *name; /* up to 31 letters, digits, - and _ */
	const char *run_dir;
	const char *binary;    /* NULL: qemu-system-x86_64 */
	const char *machine;   /* NULL: pc. pc and q35 types get legacy virtio-pci devices, microvm
				  gets virtio-mmio */
	enum qemu_accel accel; /* auto: KVM where /dev/kvm really makes a VM, else TCG */
	const char *cpu;       /* NULL: max */
	uint64_t memory_bytes;
	bool huge_pages; /* RAM in pages of 2 MiB; memory_bytes is a multiple */
	unsigned cpus;
	const char *kernel, *initrd, *append; /* NULL: the firmware boots from disk */
	const char *uuid;		      /* NULL: none */
	unsigned disks_n, nics_n;
	struct {
		const char *id, *image;
		uint64_t bytes;
	} disks[VMM_DISKS_MAX]; /* raw; bytes 0: the image's size */
	struct {
		const char *id, *mac, *ifname;
	} nics[VMM_NICS_MAX]; /* taps that exist; ids of both are node and netdev ids */
	const char *console;  /* path of the unix socket of the first serial port, NULL: no serial
				 port */
	const char *console_log; /* QEMU appends what the guest writes there, NULL: nowhere */
	bool stopped;		 /* qemu_start(): until ops->cont() */
	const char *const *args; /* more arguments, NULL-terminated; may be NULL */
	struct keeper *keeper;	 /* told which QEMU to watch, and when it is held; may be NULL */
};

/* Starts a guest. Errors carry QEMU's own last words. <= 10 s */
int qemu_start(const struct qemu_config *config, struct vmm **out, struct ft_err *err);

/* Takes over the control of a running QEMU by its monitor's unix socket. What a dead agent left in
 * it (filters, descriptors, a half command) is removed; a disk that still hangs on an agent's NBD
 * server goes back to its image, which needs `name` and `run_dir` to be that agent's. -ENOTSUP:
 * before 7.2, or not a process on this host that we may inspect. <= 10 s */
int qemu_attach(const char *qmp_path, const char *name, const char *run_dir, struct keeper *keeper,
		struct vmm **out, struct ft_err *err);

/* Starts a QEMU that waits for a checkpoint of the same guest. ops->image() is its RAM. */
int qemu_arm(const struct qemu_config *config, struct vmm **out, struct ft_err *err);

/* The command line of a VM's QEMU, NULL-terminated, allocated (qemu_command_line_free()): what
 * qemu_arm_command_line() on the other host needs of an attached guest. */
int qemu_command_line(struct vmm *vmm, char ***argv, struct ft_err *err);
void qemu_command_line_free(char **argv);

/* How to arm from a peer's command line, which is not trusted. */
struct qemu_arm_rules {
	const char *name, *run_dir; /* of this host's QEMU: its monitor, console and log go there */
	const char *binary;	    /* NULL: qemu-system-x86_64, never the peer's */
	const char *const *replace; /* OLD, NEW, OLD, NEW, ..., NULL: whole paths or leading
				       folders, and tap interface names */
	const char *const *directories; /* files may only be named below these, after replacement;
					   NULL-terminated */
	uint64_t memory_bytes_max;	/* the guest may have this much, 0: no limit */
	bool huge_pages;		/* as in qemu_config */
	struct keeper *keeper;
};
/* argv: NULL-terminated. -EPERM: an option that is not on the allow-list, by name. */
int qemu_arm_command_line(const char *const *argv, const struct qemu_arm_rules *rules,
			  struct vmm **out, struct ft_err *err);

/* Starts the throw-away QEMU of the next ops->trial() ahead (armed VMs only), so that the trial
 * itself takes about 30 ms. */
int qemu_trial_prepare(struct vmm *vmm, struct ft_err *err);

/* "pc-i440fx-7.2": the versioned machine type. Both hosts of a pair must have the same. */
const char *qemu_machine(struct vmm *vmm);

#endif

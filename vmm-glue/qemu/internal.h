/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this folder share: the object, and who implements which op.
 *
 *   launch.c   command lines from a configuration; start            inspect.c   what a running QEMU
 * has: RAM, disks, NICs attach.c   take over a running one, clean up after the dead     check.c
 * what makes protection impossible checkpoint.c  save.c   one command, one checkpoint standby.c
 * trial.c   arm, resume; trial load taps.c     nic_taps.c  disk_taps.c command_line.c  arm from a
 * peer's command line vm.c       the rest: the ops table, status, events, quit */
#ifndef VMM_GLUE_QEMU_INTERNAL_H
#define VMM_GLUE_QEMU_INTERNAL_H

#include <stdbool.h>

#include "vmm-glue/qemu/argv.h"
#include "vmm-glue/qemu/qemu.h"
#include "vmm-glue/qemu/qmp.h"
#include "vmm-glue/qemu/ram.h"
#include "vmm-glue/qemu/save.h"
#include "vmm-glue/qemu/spawn.h"
#include "vmm-glue/tracker.h"

#define QEMU_START_MS 10000
#define QEMU_NODE_MAX 32 /* QEMU: node names have at most 31 characters */
#define QEMU_OURS                                                                                  \
	"kemari-" /* every object that we put into a QEMU is named so, and nothing else            \
		   */

struct qemu_disk {
	char id[VMM_NAME_MAX]; /* drive id, or else the node's name */
	char image[VMM_PATH_MAX];
	uint64_t bytes;
	char node[QEMU_NODE_MAX]; /* format node below the guest's device; "#..." when QEMU made the
				     name up */
	char format[16];	  /* driver of that node: "raw" */
	char protocol[QEMU_NODE_MAX]; /* node below that */
	char driver[16];	      /* its driver: "file", "host_device" */
	bool read_only, direct, no_flush, unmap;
	char aio[12], detect_zeroes[8]; /* "": QEMU's default */
	bool tapped;
	char nbd[VMM_PATH_MAX]; /* tapped: the socket of the server it hangs on */
};

struct qemu_nic {
	char id[VMM_NAME_MAX]; /* of the netdev */
	char type[16];	       /* "tap" */
	bool virtio;	       /* the device is a virtio-net */
	char ifname[16];       /* tap: the interface, "": given as the descriptor fd */
	int fd;
	bool tapped, returns; /* tapped: frames come back through QEMU */
};

#define QEMU_JOB QEMU_OURS "mirror"
enum qemu_job { QEMU_JOB_NONE, QEMU_JOB_RUNS, QEMU_JOB_READY, QEMU_JOB_DONE, QEMU_JOB_FAILED };

struct qemu {
	struct vmm vmm;
	char name[VMM_NAME_MAX], run_dir[VMM_PATH_MAX], log[VMM_PATH_MAX + 80], machine[64],
		uuid[37], version[32];
	struct keeper *keeper;
	struct process process;
	struct qmp qmp;
	struct ram ram;
	const char *status; /* static string */
	bool armed;
	int incoming;	      /* armed: our end of the socketpair, -1 */
	struct process trial; /* armed: a throw-away QEMU that is ready, pidfd -1: none */
	struct qmp trial_qmp;
	struct argv trial_argv; /* armed */
	int image_fd;		/* armed: the memfd, for trials */
	bool huge_pages;	/* armed: that is how it is made */
	bool lost, lost_told;
	bool powered_off; /* by the guest itself; stays its status whatever follows */
	char lost_why[256];
	int epoll_fd, wake_fd; /* wake: an event was met while something else was waited for */
	uint64_t stop_us, resume_us; /* QEMU's time of its last STOP and RESUME events */
	unsigned resumes;	     /* RESUME events so far */
	enum qemu_job job;	     /* the one block job of ours, by its events */
	char job_error[128];
	struct tracker *tracker;
	struct ft_bitmap late; /* pages of a second scan */
	struct save save;
	unsigned disks_n, nics_n;
	struct qemu_disk disks[VMM_DISKS_MAX];
	struct qemu_nic nics[VMM_NICS_MAX];
};

static inline struct qemu *qemu_of(struct vmm *vmm)
{
	return (struct qemu *)vmm;
}

/* vm.c: an object without a process yet; ends in qemu_free(). */
int qemu_new(const char *name, const char *run_dir, struct keeper *keeper, struct qemu **out,
	     struct ft_err *err);
void qemu_free(struct vmm *vmm);
/* Process and monitor are there: reads what it has, listens for its events, tells the keeper. */
int qemu_adopt(struct qemu *vm, struct ft_err *err);
/* Before every use of the monitor: a primed half command is completed and its state thrown away.
 * -EPIPE: the VM is lost. */
int qemu_ready(struct qemu *vm, struct ft_err *err);
void qemu_lose(struct qemu *vm, const char *why);
void qemu_refresh_status(struct qemu *vm);
void qemu_quit(struct vmm *vmm, bool orderly, unsigned within_ms);

/* inspect.c */
int qemu_inspect(struct qemu *vm, struct ft_err *err);

/* launch.c */
enum qemu_purpose { QEMU_RUN, QEMU_WAIT, QEMU_TRIAL };
bool qemu_kvm_works(void);
int qemu_name_check(const char *what, const char *name, size_t max, struct ft_err *err);
int qemu_config_argv(const struct qemu_config *c, enum qemu_purpose purpose, struct argv *argv,
		     struct ft_err *err);
/* What every QEMU of ours has, however its machine is described: RAM, monitor, no screen, and
 * waiting if it is to wait. */
void qemu_common_argv(struct argv *a, enum qemu_purpose purpose, uint64_t memory_bytes);
#define QEMU_FD_QMP SPAWN_FD_FIRST	 /* the monitor's listening socket */
#define QEMU_FD_RAM (SPAWN_FD_FIRST + 1) /* a memfd */
#define QEMU_FD_NIC (SPAWN_FD_FIRST + 2) /* trials: taps that lead nowhere */
/* Descriptor of the guest's RAM of `bytes`. -errno. */
int qemu_memfd(const char *name, uint64_t bytes, bool huge_pages, struct ft_err *err);
/* Binds qmp_path, spawns argv with that socket and fds[0..n) behind it, and connects to its
 * monitor. */
int qemu_launch(struct process *p, struct qmp *q, const struct argv *argv, const int *fds,
		unsigned fds_n, const char *qmp_path, const char *log, struct ft_err *err);

/* standby.c */
int qemu_arm_argv(struct qemu *vm, const struct argv *argv, struct argv *trial_argv,
		  uint64_t memory_bytes, struct ft_err *err);
uint8_t *qemu_image(struct vmm *vmm);
int qemu_image_write(struct vmm *vmm, uint64_t pfn, struct iovec *iov, unsigned n,
		     struct ft_err *err);
int qemu_image_empty(struct vmm *vmm, uint64_t pfn, uint64_t n, struct ft_err *err);
int qemu_resume(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err);
/* Starts the incoming migration of a QEMU with -incoming defer on a socketpair; *ours is to be
 * written to. */
int qemu_incoming(struct qmp *q, int *ours, struct ft_err *err);
/* Writes a checkpoint's state as the migration stream that QEMU expects. */
int qemu_write_state(int fd, const char *machine, const uint8_t *state, size_t len,
		     unsigned within_ms, struct ft_err *err);

/* trial.c */
int qemu_trial(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err);
void qemu_trial_drop(struct qemu *vm);

/* checkpoint.c */
int qemu_track_start(struct vmm *vmm, struct ft_err *err);
void qemu_track_stop(struct vmm *vmm);
int qemu_harvest(struct vmm *vmm, struct ft_bitmap *dirty, struct ft_err *err);
long qemu_dirty_peek(struct vmm *vmm, long max);
int qemu_checkpoint_prepare(struct vmm *vmm, struct ft_err *err);
int qemu_checkpoint(struct vmm *vmm, struct ft_bitmap *pending, struct vmm_capture *capture,
		    const struct vmm_hold_hooks *hooks, bool keep_stopped, struct ft_err *err);

int qemu_save(struct vmm *vmm, struct vmm_capture *capture, vmm_held_fn *held, void *ctx,
	      struct ft_err *err);

/* taps.c */
int qemu_taps_in(struct vmm *vmm, const struct vmm_tap_points *points, struct ft_err *err);
int qemu_taps_out(struct vmm *vmm, unsigned stay, struct ft_err *err);
/* in "": nothing comes back. */
int nic_tap_in(struct qemu *vm, struct qemu_nic *nic, const char *out, const char *in,
	       struct ft_err *err);
int nic_tap_out(struct qemu *vm, struct qemu_nic *nic, struct ft_err *err);
int qemu_nic_fd(struct vmm *vmm, unsigned i, struct ft_err *err);
int disk_tap_in(struct qemu *vm, unsigned i, const char *nbd, struct ft_err *err);
int disk_tap_out(struct qemu *vm, unsigned i, struct ft_err *err);
/* RUN/NAME.taps says how tapped disks go back; there is none while no disk is tapped. Recall: disks
 * that are found on an NBD node of ours become `tapped` again as that file says. */
int disk_taps_record(struct qemu *vm, struct ft_err *err);
int disk_taps_recall(struct qemu *vm, struct ft_err *err);

/* check.c */
int qemu_check(struct vmm *vmm, struct ft_err *err);

#endif

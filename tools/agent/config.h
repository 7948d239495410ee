/* SPDX-License-Identifier: Apache-2.0 */
/* The guest file: everything an agent knows about its guest before it starts. One file serves both
 * hosts; host-local values come by
 * `--set KEY=VALUE`. The syntax is libconfuse's; kemari-guest(5) describes the keys.
 *
 * struct ft_config is plain data with fixed bounds, complete and checked when config_load()
 * returns: no later code needs to look at a default, a relative path or a combination that cannot
 * work. */
#ifndef TOOLS_AGENT_CONFIG_H
#define TOOLS_AGENT_CONFIG_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#include "eventtap/store.h"
#include "ft/arbiter.h"
#include "ft/err.h"
#include "ft/policy.h"
#include "tools/ctl/ctl.h"
#include "transport/arbiter_etcd.h"
#include "transport/etcd_kv.h"
#include "vmm-glue/vmm.h"

#define CONFIG_FILE_MAX	  (256u << 10) /* bytes of a guest file */
#define CONFIG_PATH_MAX	  VMM_PATH_MAX
#define CONFIG_TEXT_MAX	  256  /* machine, cpu, host names, URLs, one argument */
#define CONFIG_APPEND_MAX 2048 /* Linux' COMMAND_LINE_SIZE on x86 */
#define CONFIG_LIST_MAX	  64   /* entries of a list */
#define CONFIG_UUID_MAX	  37

enum config_vmm { CONFIG_VMM_QEMU, CONFIG_VMM_POCKET };
enum config_program { CONFIG_PROGRAM_KV, CONFIG_PROGRAM_DIRTY };

/* Where the guest comes from when this agent is its primary. */
enum config_source {
	CONFIG_LAUNCH,	  /* the file describes a machine: start it */
	CONFIG_ATTACH,	  /* qemu.attach: it runs already */
	CONFIG_FROM_PEER, /* the file has neither: only a standby can use it, the primary sends the
			     command line */
};

enum config_nic_kind { CONFIG_NIC_BRIDGE, CONFIG_NIC_TAP, CONFIG_NIC_UDP };
enum config_arbiter { CONFIG_ARBITER_NONE, CONFIG_ARBITER_FILE, CONFIG_ARBITER_ETCD };

/* System calls that an agent has no use for: refused / allowed, and the kernel logs them / not
 * looked at. */
enum config_seccomp { CONFIG_SECCOMP_ON, CONFIG_SECCOMP_LOG, CONFIG_SECCOMP_OFF };

struct config_list {
	unsigned n;
	char item[CONFIG_LIST_MAX][CONFIG_TEXT_MAX];
};

struct config_disk {
	char id[VMM_NAME_MAX];
	char image[CONFIG_PATH_MAX]; /* "" only for a guest that is attached or comes from the peer
				      */
	enum store_mode mode;
	uint64_t size; /* of an image that has to be made; 0 = it must exist */
	bool track;    /* replicated: its tap stays when the guest is solo */
};

struct config_nic {
	char id[VMM_NAME_MAX];
	char mac[18]; /* "52:54:00:12:34:56", lower case; made from the guest's and the NIC's name
			 unless given */
	struct config_attach {
		enum config_nic_kind kind;
		char ifname[IFNAMSIZ];	    /* bridge, tap */
		char host[CONFIG_TEXT_MAX]; /* udp; an IPv6 address without its brackets */
		uint16_t port;		    /* udp */
	} attach;
};

/* Paths are absolute; "" = not given. */
struct ft_config {
	char name[CTL_NAME_MAX];
	char uuid[CONFIG_UUID_MAX]; /* the UUIDv5 of the name unless given, so that both hosts agree
				     */
	char home[FT_HOST_ID_MAX];  /* host id; "" = where the guest was started first */
	enum config_vmm vmm;
	enum config_source source;
	enum config_program program; /* pocket */

	uint64_t memory_bytes;
	bool huge_pages; /* RAM of a QEMU that is started here is in pages of 2 MiB */
	unsigned cpus;
	char machine[CONFIG_TEXT_MAX], cpu[CONFIG_TEXT_MAX];
	char kernel[CONFIG_PATH_MAX], initrd[CONFIG_PATH_MAX], append[CONFIG_APPEND_MAX];

	unsigned disks_n, nics_n;
	struct config_disk disks[VMM_DISKS_MAX];
	struct config_nic nics[VMM_NICS_MAX];

	struct {
		char log[CONFIG_PATH_MAX], socket[CONFIG_PATH_MAX];
	} console;
	struct {
		char binary[CONFIG_PATH_MAX]; /* without a slash: looked up in PATH */
		char attach[CONFIG_PATH_MAX];
		struct config_list args;
		struct config_list replace;	/* OLD, NEW, OLD, NEW ... */
		struct config_list directories; /* where a peer's drives may be */
	} qemu;
	struct {
		enum ft_trigger trigger;
		unsigned interval_ms, max_downtime_ms, heartbeat_ms, takeover_ms;
		unsigned lease_ms; /* of a shared disk; takeover_ms unless given */
		double max_overhead;
		bool takeover_manual;
		bool durable; /* disk writes are on the standby's disk before they are acknowledged
			       */
		uint64_t staging_bytes, delta_base_bytes;
		unsigned history;	  /* past checkpoints that the standby keeps, 0 = none */
		unsigned history_seconds; /* between two of them */
		uint64_t history_bytes;	  /* of their folder; 0 = any */
		char history_dir[CONFIG_PATH_MAX];
	} ft;
	struct {
		char ca[CONFIG_PATH_MAX], cert[CONFIG_PATH_MAX], key[CONFIG_PATH_MAX];
		struct config_list peer; /* names of which the certificate of whoever connects must
					    bear one; none = whoever the CA signed */
		bool insecure;		 /* plaintext transports are allowed */
	} tls;
	struct {
		enum config_seccomp seccomp;
	} security;
	struct {
		enum config_arbiter type;
		enum ft_survivor survivor;
		char dir[CONFIG_PATH_MAX];
		char fence[CONFIG_PATH_MAX]; /* program; "" = none */
		unsigned fence_timeout_ms;
		struct config_list endpoints; /* URLs, at most ETCD_ENDPOINTS_MAX */
		char ca[CONFIG_PATH_MAX], cert[CONFIG_PATH_MAX], key[CONFIG_PATH_MAX];
		char user[ETCD_PASSWORD_MAX - 1], password_file[CONFIG_PATH_MAX];
		char prefix[ETCD_KEY_MAX - CTL_NAME_MAX];
	} arbiter;
};

/* Reads `file`, applies `sets` ("KEY=VALUE", KEY dotted: "disk.root.image"), fills in defaults,
 * checks. A list in `sets` replaces the file's by its first mention and grows by further ones;
 * disks and NICs must be in the file. Relative paths are relative to the file's folder, those of
 * `sets` too. 0, or -errno with the first mistake in one line: "FILE:LINE: KEY: what" or "--set
 * KEY: what"; *config is void then. Start-up only: libconfuse has global state, so one thread at a
 * time. */
int config_load(const char *file, const char *const *sets, unsigned sets_n,
		struct ft_config *config, struct ft_err *err);

#endif

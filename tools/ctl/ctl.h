/* SPDX-License-Identifier: Apache-2.0 */
/* What both ends of the control socket agree on, and ftctl's end of it. Messages: proto/ctl.proto.
 */
#ifndef TOOLS_CTL_CTL_H
#define TOOLS_CTL_CTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

#include "ctl.pb-c.h"
#include "ft/err.h"

#define CTL_RUN_DIR_DEFAULT "/run/kemari-ft"
#define CTL_RUN_DIR_ENV	    "KEMARI_RUN_DIR"

#define CTL_NAME_MAX  64 /* with the NUL */
#define CTL_NAME_RULE "1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first"

/* A guest's, disk's or NIC's name: CTL_NAME_RULE. Safe as a file name and as a word on a command
 * line. */
bool ctl_name_ok(const char *name);

/* RUN_DIR/NAME.sock. -EINVAL: not a name; -ENAMETOOLONG: longer than a unix socket's path may be.
 */
int ctl_socket_path(const char *run_dir, const char *name, struct sockaddr_un *addr,
		    struct ft_err *err);

#define CTL_HEADER_BYTES 4
#define CTL_REQUEST_MAX	 (64u << 10) /* a URI and a few words */
#define CTL_REPLY_MAX	 (1u << 20)  /* a status; room for lists */

void ctl_put_length(uint8_t out[CTL_HEADER_BYTES], uint32_t length);
uint32_t ctl_get_length(const uint8_t in[CTL_HEADER_BYTES]);

/* Words of Reply.error that programs may rely on; a command may have more. */
#define CTL_ERR_USAGE	      "usage"	      /* unknown command, bad argument */
#define CTL_ERR_NOT_RUNNING   "not-running"   /* no agent for that guest */
#define CTL_ERR_NO_ANSWER     "no-answer"     /* there is one, but it does not answer */
#define CTL_ERR_PROTOCOL      "protocol"      /* it answers what nobody understands */
#define CTL_ERR_DENIED	      "denied"	      /* not by this user */
#define CTL_ERR_BUSY	      "busy"	      /* too many clients or operations */
#define CTL_ERR_STATE	      "state"	      /* impossible in the guest's state */
#define CTL_ERR_TIMEOUT	      "timeout"	      /* not reached in time (wait: exit code 4) */
#define CTL_ERR_NOT_AVAILABLE "not-available" /* not in this version */
#define CTL_ERR_MISMATCH      "mismatch"      /* verify: RAM and its copy differ */
#define CTL_ERR_FAILED	      "failed"	      /* tried, and failed */

/* One request to the agent of `name`, and its reply, which the caller frees with
 * ctl__reply__free_unpacked(reply, NULL). Blocks for at most timeout_ms (-1: as long as it takes).
 * 0 when there is a reply, be it an error. Else -errno: -ECONNREFUSED no agent, -ETIMEDOUT,
 * -EPROTO, and ctl_error_word() of it for programs. */
int ctl_ask(const char *run_dir, const char *name, const Ctl__Request *request, int timeout_ms,
	    Ctl__Reply **reply, struct ft_err *err);
const char *ctl_error_word(int code);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Grant records as files of a folder that both hosts mount: what the file arbiter
 * (transport/arbiter_file.c) does, without its deadline. Every call blocks for as long as the file
 * system does. Any thread; two hosts, or two processes, may race. */
#ifndef TRANSPORT_GRANT_FILE_H
#define TRANSPORT_GRANT_FILE_H

#include <stdint.h>

#include "ft/arbiter.h"
#include "ft/err.h"

#define GRANT_FILE_GUEST_MAX 128 /* bytes of a guest's name, its NUL included */

/* GRANTED: *now is the record, all zero when there is none. UNREACHABLE: *why says why. */
enum ft_arbiter_answer grant_file_read(const char *dir, const char *guest,
				       struct ft_grant_record *now, struct ft_err *why);
/* As ft_arbiter_ops.swap. LOST: *now is what the record says. *why is set unless GRANTED. */
enum ft_arbiter_answer grant_file_swap(const char *dir, const char *guest, uint64_t expected,
				       const struct ft_grant_record *want,
				       struct ft_grant_record *now, struct ft_err *why);

#endif

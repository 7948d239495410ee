/* SPDX-License-Identifier: Apache-2.0 */
/* When this process dies, its sockets are closed at once and not only after its memory has been
 * freed. One for a process. */
#ifndef AGENT_AFTERLIFE_H
#define AGENT_AFTERLIFE_H

#include "ft/err.h"

struct afterlife;

/* Makes the process that keeps the memory; it goes by itself when this one is dead. To be called
 * before there are threads, after rights were given up and before a system call filter. -EAGAIN,
 * -EMFILE, -ENOMEM. */
int afterlife_start(struct afterlife **out, struct ft_err *err);
/* Waits for its end. Accepts NULL. */
void afterlife_stop(struct afterlife *l);

#endif

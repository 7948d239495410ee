/* SPDX-License-Identifier: Apache-2.0 */
/* The console tap: sits between the VMM's serial socket, of which it is the only client, and
 * everybody who reads the console.
 *
 *                            +--> log file
 *      VMM --> console tap --+--> operator      what the guest prints: held by epoch
 *      VMM <------------------+-- operators     what they type: straight through, dropped while no
 * VMM is there
 *
 * A thread of the tap's own does all the writing, so that neither a slow disk nor a slow operator
 * is ever waited for by the engine. An operator whose socket is full is dropped. Nothing of the
 * guest's is: over the bound the VMM's socket is not read, and the guest's UART waits. */
#ifndef EVENTTAP_CONSOLE_CONSOLE_TAP_H
#define EVENTTAP_CONSOLE_CONSOLE_TAP_H

#include <stddef.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/err.h"

struct console_tap_config {
	const char *id;
	uint8_t device;
	const char *vmm_path;	 /* unix socket on which the VMM listens */
	const char *log_path;	 /* appended to; NULL: none */
	const char *socket_path; /* unix socket on which we listen for operators; NULL: none */
	size_t held_bytes_max;	 /* notify.pressure past half of it; at least
				    CONSOLE_TAP_HELD_BYTES_MIN */
};

#define CONSOLE_TAP_HELD_BYTES_MIN (64u << 10)
#define CONSOLE_TAP_OPERATORS_MAX  8

/* The mode is PASS. The VMM need not be there: the tap tries to connect, and again whenever the
 * connection ends. The strings are copied.
 *
 * release, replay and set_mode(PASS) hand over to the thread; stats.held_outputs becomes 0 when it
 * has written everything. */
int console_tap_open(const struct console_tap_config *config, struct tap **out, struct ft_err *err);
/* Connects now instead of soon, so that nothing printed from here on is missed. 0 if connected
 * already. Any thread. */
int console_tap_connect(struct tap *tap, struct ft_err *err);

#endif

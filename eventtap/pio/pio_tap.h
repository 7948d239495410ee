/* SPDX-License-Identifier: Apache-2.0 */
/* The port tap: writes of a machine in this process to ports and device memory whose effect is seen
 * outside. The machine emits, the sink delivers, at once (PASS) or when the epoch is released; a
 * value keeps the width that it was written with. */
#ifndef EVENTTAP_PIO_PIO_TAP_H
#define EVENTTAP_PIO_PIO_TAP_H

#include <stddef.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/err.h"

/* kind: TAP_PIO or TAP_MMIO; data: width (1, 2, 4 or 8) bytes, little endian. Called with the tap's
 * lock held, one at a time, in order, on the thread of emit, release, replay or set_mode; must not
 * block and not call the tap. */
typedef void pio_tap_deliver_fn(void *ctx, enum tap_kind kind, uint64_t addr, const uint8_t *data,
				unsigned width);

struct pio_tap_config {
	const char *id;
	uint8_t device;
	size_t held_bytes_max; /* an output takes up to 24 bytes; notify.pressure past half */
	pio_tap_deliver_fn *deliver;
	void *ctx;
};

/* The mode is PASS. */
int pio_tap_open(const struct pio_tap_config *config, struct tap **out, struct ft_err *err);
/* One write of the guest. Any thread. 0; -ENOBUFS: over the bound; nothing was taken, and because a
 * port loses nothing the machine must stall and try again after a release. */
int pio_tap_emit(struct tap *tap, enum tap_kind kind, uint64_t addr, uint64_t value,
		 unsigned width);

#endif

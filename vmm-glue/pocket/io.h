/* SPDX-License-Identifier: Apache-2.0 */
/* A pocket machine's world on a real host: UDP socket, image files, console; or, with taps in, the
 * sockets that the taps listen on. Everything here is the machine thread's, but for what says
 * otherwise; opening, closing and switching happen while that thread is parked or not there. */
#ifndef VMM_GLUE_POCKET_IO_H
#define VMM_GLUE_POCKET_IO_H

#include <poll.h>
#include <stdbool.h>

#include "vmm-glue/pocket/machine.h"
#include "vmm-glue/pocket/nbd.h"
#include "vmm-glue/pocket/pocket.h"

#define POCKET_OUT_MS                                                                              \
	5000 /* a tap that takes no frame for this long is dead, and so is the network */
#define POCKET_CONSOLE_MS 1000 /* a console client that reads nothing for this long is dropped */

/* The other ends of the taps. */
struct pocket_links {
	int out, in; /* -1: none */
	struct pocket_nbd *disks[VMM_DISKS_MAX];
};

enum pocket_poll { POLL_WAKE, POLL_UDP, POLL_IN, POLL_LISTEN, POLL_CLIENT, POLL_MAX };

struct pocket_io {
	const struct pocket_config *config;
	struct pocket_world world; /* what the machine calls */
	int udp, listener, client, log;
	int images[VMM_DISKS_MAX]; /* -1 while its disk is tapped, or armed */
	bool tapped;		   /* the NIC, or there is none; disks: those with a link */
	struct pocket_links links;
	bool out_dead, in_dead;
	uint8_t in_buf[4 + POCKET_FRAME_MAX]; /* the beginning of a frame from `in` */
	size_t in_len;
};

void pocket_io_init(struct pocket_io *io, const struct pocket_config *config);
/* Console, then NIC, then (unless tapped) disks. take_over: the NIC's address may be in use. Undoes
 * itself on error. */
int pocket_io_open(struct pocket_io *io, bool take_over, struct ft_err *err);
void pocket_io_close(struct pocket_io *io);
/* config->disks[i].bytes of 0 becomes the size of the image. */
int pocket_io_size_disks(struct pocket_config *config, struct ft_err *err);
uint16_t pocket_io_port(const struct pocket_io *io);

/* Connects to the taps that have a place; changes nothing yet. */
int pocket_links_open(struct pocket_links *links, const struct pocket_config *config,
		      const struct vmm_tap_points *points, struct ft_err *err);
void pocket_links_close(struct pocket_links *links);
/* From now on through `links` too, which io owns, and those images are closed. */
void pocket_io_tap(struct pocket_io *io, const struct pocket_links *links);
/* Back to the images, after the frames that `in` still has, but for the disks in `stay`. On error
 * (an image cannot be opened) the taps stay in. */
int pocket_io_untap(struct pocket_io *io, unsigned stay, bool with_images, struct ft_err *err);

/* Fills set[POLL_UDP...] with what is to be waited for; set[POLL_WAKE] is the caller's. */
void pocket_io_poll_set(const struct pocket_io *io, const struct machine *m,
			struct pollfd set[POLL_MAX]);
/* Takes in what is there. Never blocks; a stale `set` does no harm. */
void pocket_io_service(struct pocket_io *io, struct machine *m, const struct pollfd set[POLL_MAX]);
/* Engine's thread: makes a disk request or a frame on which the machine's thread waits fail at
 * once, and all later ones. */
void pocket_io_abort(struct pocket_io *io);

#endif

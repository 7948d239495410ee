/* SPDX-License-Identifier: Apache-2.0 */
/* Waits that are likely to be short are spent awake. To wake a thread that sleeps costs the one who
 * does it as much as a copy of 100 KiB (an interrupt to another processor; in a VM an exit), and in
 * a stream of data that is the sender, at every frame. Where waiting awake proves to be of no use,
 * on a slow link, it is tried less and less often.
 *
 *      if (awake_begin(&a))
 *              while (awake_wait(&a))
 *                      if (there is something)
 *                              return awake_end(&a, true);
 *      awake_end(&a, false);   and sleep
 *
 * One thread at a time. */
#ifndef TRANSPORT_AWAKE_H
#define TRANSPORT_AWAKE_H

#include <stdbool.h>
#include <stdint.h>

#define AWAKE_MAX_US   100 /* a wait, at most */
#define AWAKE_VAIN_MAX 8   /* so many in a row were of no use: from then on */
#define AWAKE_EVERY    64  /* only one of so many is spent awake, until one is */

/* All zeroes: begins. */
struct awake {
	uint64_t until_ns;
	unsigned vain, passed;
	bool on;
};

/* false: sleep at once. */
bool awake_begin(struct awake *a);
/* Lets a moment pass, less than a microsecond. false: that was long enough. */
bool awake_wait(struct awake *a);
/* How it ended; returns `came`. */
bool awake_end(struct awake *a, bool came);

#endif

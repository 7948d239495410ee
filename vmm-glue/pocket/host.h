/* SPDX-License-Identifier: Apache-2.0 */
/* A pocket machine as its host sees it. Engine's thread, but for pocket_set_lost(). */
#ifndef VMM_GLUE_POCKET_HOST_H
#define VMM_GLUE_POCKET_HOST_H

#include <stdatomic.h>

#include "vmm-glue/pocket/io.h"
#include "vmm-glue/pocket/machine.h"
#include "vmm-glue/pocket/pocket.h"
#include "vmm-glue/pocket/runner.h"
#include "vmm-glue/tracker.h"

enum phase { PHASE_ARMED, PHASE_LIVE, PHASE_ENDED };

struct pocket {
	struct vmm vmm;
	struct pocket_config config;
	int memfd;
	uint8_t *ram;
	struct machine machine;
	struct pocket_io io;
	struct runner runner;
	struct tracker *tracker;
	enum phase phase;
	bool stopped; // by stop() or keep_stopped
	enum pocket_fault fault;
	int event_fd;
	_Atomic(const char *) lost; // why, or NULL; set by either thread
	bool lost_told;
};

static inline struct pocket *pocket_of(struct vmm *vmm)
{
	return (struct pocket *)vmm;
}

extern const struct vmm_ops pocket_ops;

/* Between two steps; -ETIMEDOUT. / Lets it run, unless stop() wants it stopped. */
int pocket_pause(struct pocket *p, struct ft_err *err);
void pocket_unpause(struct pocket *p);
/* Ends the thread and closes everything but RAM. */
void pocket_end(struct pocket *p);
/* why: static. Any thread. */
void pocket_set_lost(struct pocket *p, const char *why);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Guests that this process drives: for the groups that measure the VMM glue by itself. */
#ifndef BENCH_DIRECT_H
#define BENCH_DIRECT_H

#include "bench.h"
#include "vmm-glue/vmm.h"

struct direct {
	struct vmm *vmm;
	int ns; /* its tap is on br0 there, which is 10.9.0.1 */
	char console_log[BENCH_PATH_MAX];
	bool ready, skipped;
	struct ft_err broken; /* why it could not be made */
};
/* Start to boot, so that all guests of a run boot at once. Errors come from what follows. */
enum direct_kind { DIRECT_PC, DIRECT_Q35, DIRECT_TEN };
void direct_begin(struct bench *b, enum direct_kind kind);
/* Make b->pc, the default machine as agents start it / b->q35, with modern virtio devices / b->ten,
 * the default machine in QEMU 10. Booted and tracked; once. BENCH_SKIPPED when there is no guest,
 * or no QEMU 10. */
int direct_pc(struct bench *b, struct ft_err *err);
int direct_q35(struct bench *b, struct ft_err *err);
int direct_ten(struct bench *b, struct ft_err *err);
/* Path of QEMU 10, "": there is none (tests/guest/qemu10 unpacks it). */
const char *direct_qemu10(void);
void direct_end(struct direct *d); /* accepts NULL */
void direct_idle(struct direct *d, unsigned ms);

/* Staging for checkpoints of a guest. */
struct capture;
int capture_new(uint64_t guest_pages, struct capture **out, struct ft_err *err);
void capture_free(struct capture *c); /* accepts NULL */
/* One vmm_checkpoint(), "committed" at once. Its pause; pages copied are added to *pages (may be
 * NULL). */
int capture_take(struct capture *c, struct vmm *vmm, double *pause_ms, size_t *pages,
		 struct ft_err *err);
struct vmm_capture *capture_of(struct capture *c);

/* Makes pages of a stopped VM dirty as its guest would: writes a byte of each again. */
int direct_dirty_stopped(struct vmm *vmm, const uint64_t *pfns, size_t n, struct ft_err *err);
/* The same, stopping it meanwhile. */
int direct_dirty(struct vmm *vmm, const uint64_t *pfns, size_t n, struct ft_err *err);
/* n different pages out of [first, first + of), scattered, in ascending order. */
void scatter(uint64_t *pfns, size_t n, uint64_t first, uint64_t of);

/* Sets b->load_ms, QEMU's own time to load the default machine's state and resume, once. */
int direct_load(struct bench *b, struct ft_err *err);

#endif

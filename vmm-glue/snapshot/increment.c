// SPDX-License-Identifier: Apache-2.0
// One worker. A page's bit is cleared before the page is read: who writes it meanwhile is found by
// the next scan, and it is read again.
#include "vmm-glue/snapshot/increment.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <xxhash.h>

#include "ft/page.h"
#include "ft/snapshot/claims.h"
#include "vmm-glue/snapshot/ram_read.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/snapshot/update.h"

#define NS_PER_S    1000000000ull
#define FEW_PAGES   512 /* a pause of about a millisecond */
#define ROUNDS_MAX  10
#define RUN_PAGES   64
#define WORKER_NICE 5

struct increment {
	/* set at begin */
	struct increment_config config;
	char path[CHANGES_PATH_MAX]; /* what is known to since.h */
	bool is_link;
	int (*added)(void *ctx, struct ft_err *err);
	struct vmm_ram ram;
	struct since *since;
	int fd; /* of the file, locked; -1: a link is written */
	struct source source;
	struct changes_out journal;
	pthread_t thread;
	/* the worker's, and between ready() and the moment's end the VM's thread's */
	struct ft_bitmap pending;
	uint8_t *staging, *buffer; /* buffer: what the file has */
	uint64_t *staged;	   /* numbers of the pages in staging, ascending */
	uint8_t *tail;
	size_t tail_len;
	uint64_t pause_ns, digest, next_write_ns;
	/* counts */
	_Atomic uint64_t left, written;
	/* under lock */
	pthread_mutex_t lock;
	pthread_cond_t change;
	enum increment_wants wants;
	bool applying; /* too late to give up */
	atomic_bool failed;
	struct ft_err err;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* The first error is the increment's. */
static void give_up_locked(struct increment *inc, const struct ft_err *err)
{
	if (!inc->failed) {
		inc->err = *err;
		inc->failed = true;
	}
	pthread_cond_broadcast(&inc->change);
}

static void give_up(struct increment *inc, const struct ft_err *err)
{
	pthread_mutex_lock(&inc->lock);
	give_up_locked(inc, err);
	pthread_mutex_unlock(&inc->lock);
}

static int give_up_for(struct increment *inc, int rc, const char *what)
{
	struct ft_err err = {0};

	ft_err_set(&err, -rc, "%s: %s", what, strerror(-rc));
	give_up(inc, &err);
	return rc;
}

// ---- pages

/* A limited rate: waits its turn, unless the increment is given up. */
static void pay(struct increment *inc, uint64_t pages)
{
	uint64_t rate = inc->config.bytes_per_s, now = now_ns();
	struct timespec ts;

	if (!rate || !pages)
		return;
	if (inc->next_write_ns < now)
		inc->next_write_ns = now;
	inc->next_write_ns +=
		(uint64_t)((unsigned __int128)pages * VMM_PAGE_BYTES * NS_PER_S / rate);
	ts = (struct timespec){.tv_sec = (time_t)(inc->next_write_ns / NS_PER_S),
			       .tv_nsec = (long)(inc->next_write_ns % NS_PER_S)};
	pthread_mutex_lock(&inc->lock);
	while (!inc->failed && pthread_cond_timedwait(&inc->change, &inc->lock, &ts) != ETIMEDOUT)
		;
	pthread_mutex_unlock(&inc->lock);
}

/* What was saved before counts, not what the file has. */
static bool differs(const struct increment *inc, uint64_t pfn, const uint8_t *page,
		    const uint8_t *in_file)
{
	if (changes_has(&inc->journal, pfn))
		return true;
	return in_file ? memcmp(page, in_file, VMM_PAGE_BYTES) != 0 : !page_is_zero(page);
}

/* Pages that are all in the file, or all zeroes there. */
static int take_alike(struct increment *inc, uint64_t pfn, size_t n, const uint8_t *pages)
{
	bool has = source_has(&inc->source, pfn);
	int rc = has ? source_read(&inc->source, pfn, n, inc->buffer) : 0;

	for (size_t at = 0, end; at < n && !rc; at = end) {
		for (end = at; end < n; end++) {
			size_t i = end * VMM_PAGE_BYTES;

			if (!differs(inc, pfn + end, pages + i, has ? inc->buffer + i : NULL))
				break;
		}
		if (end > at)
			rc = changes_put(&inc->journal, pfn + at, end - at,
					 pages + at * VMM_PAGE_BYTES);
		inc->written += end - at;
		end += end < n;
	}
	return rc;
}

/* Saves those of n pages that differ from the file's. */
static int take_run(struct increment *inc, uint64_t pfn, size_t n, const uint8_t *pages)
{
	int rc = 0;

	for (size_t at = 0, run; at < n && !rc; at += run) {
		run = source_run(&inc->source, pfn + at, n - at);
		rc = take_alike(inc, pfn + at, run, pages + at * VMM_PAGE_BYTES);
	}
	return rc;
}

static int read_run(const struct increment *inc, uint64_t pfn, size_t n, uint8_t *to)
{
	int rc = ram_read(&inc->ram, pfn, n, to);

	if (rc == 1)
		memset(to, 0, n * VMM_PAGE_BYTES);
	return rc < 0 ? rc : 0;
}

/* The next pages that are pending and neighbours, at most `max`. */
static size_t next_run(const struct ft_bitmap *pending, uint64_t *pfn, size_t max)
{
	size_t n = 1;

	*pfn = ft_bitmap_next(pending, *pfn);
	if (*pfn == pending->bits)
		return 0;
	while (n < max && *pfn + n < pending->bits && ft_bitmap_test(pending, *pfn + n))
		n++;
	return n;
}

/* Once over all pages that are pending. */
static int pass(struct increment *inc, uint8_t *pages)
{
	int rc = 0;

	for (uint64_t pfn = 0, n; !rc && !inc->failed; pfn += n) {
		uint64_t written = inc->written;

		n = next_run(&inc->pending, &pfn, RUN_PAGES);
		if (!n)
			break;
		ft_bitmap_clear_range(&inc->pending, pfn, n);
		rc = read_run(inc, pfn, n, pages);
		if (rc)
			return give_up_for(inc, rc, "the guest's RAM cannot be read");
		rc = take_run(inc, pfn, n, pages);
		if (rc)
			return give_up_for(inc, rc, inc->journal.path);
		inc->left = inc->pending.count;
		pay(inc, inc->written - written);
	}
	return inc->failed ? -ECANCELED : 0;
}

/* Until few pages are left, or they do not get fewer. */
static int rounds(struct increment *inc)
{
	uint8_t *pages = aligned_alloc(VMM_PAGE_BYTES, (size_t)RUN_PAGES * VMM_PAGE_BYTES);
	struct ft_err err = {0};
	int rc = pages ? 0 : give_up_for(inc, -ENOMEM, "a buffer");

	for (unsigned i = 0; i < ROUNDS_MAX && !rc; i++) {
		uint64_t before = inc->pending.count;

		if (i && before <= FEW_PAGES)
			break;
		rc = pass(inc, pages);
		if (!rc)
			rc = since_more(inc->since, &inc->pending, &err);
		if (rc && err.code)
			give_up(inc, &err);
		inc->left = inc->pending.count;
		if (inc->pending.count <= INCREMENT_PAUSE_PAGES && inc->pending.count > before / 2)
			break;
	}
	free(pages);
	return rc;
}

static void want(struct increment *inc, enum increment_wants what)
{
	pthread_mutex_lock(&inc->lock);
	inc->wants = what;
	pthread_mutex_unlock(&inc->lock);
	inc->config.news(inc->config.ctx);
}

/* Hands over to the VM's thread, and takes back. */
static int wait_moment(struct increment *inc)
{
	want(inc, INCREMENT_MOMENT);
	pthread_mutex_lock(&inc->lock);
	while (inc->wants == INCREMENT_MOMENT && !inc->failed)
		pthread_cond_wait(&inc->change, &inc->lock);
	pthread_mutex_unlock(&inc->lock);
	return inc->failed ? -ECANCELED : 0;
}

/* What was copied in the pause, in the order of its numbers. */
static int take_staged(struct increment *inc)
{
	const uint8_t *pages = inc->staging;
	int rc = 0;

	for (uint64_t pfn = 0, n; !rc; pfn += n, pages += n * VMM_PAGE_BYTES) {
		n = next_run(&inc->pending, &pfn, RUN_PAGES);
		if (!n)
			break;
		rc = take_run(inc, pfn, n, pages);
	}
	inc->left = 0;
	return rc ? give_up_for(inc, rc, inc->journal.path) : 0;
}

// ---- the end

/* Some pages of what the file will have: those from pfn on that come from one place. -errno. */
static int read_new(struct increment *inc, uint64_t pfn, size_t *n, uint8_t *to)
{
	uint64_t left = inc->pending.bits - pfn;
	size_t run = 1, max = left < RUN_PAGES ? (size_t)left : RUN_PAGES;
	int rc;

	if (changes_has(&inc->journal, pfn)) {
		rc = changes_get(&inc->journal, pfn, to);
	} else {
		while (run < max && !changes_has(&inc->journal, pfn + run))
			run++;
		run = source_run(&inc->source, pfn, run);
		rc = source_has(&inc->source, pfn) ? source_read(&inc->source, pfn, run, to) : 0;
		if (!rc && source_has(&inc->source, pfn))
			rc = 1;
	}
	if (rc == 0)
		memset(to, 0, run * VMM_PAGE_BYTES);
	*n = run;
	return rc < 0 ? rc : 0;
}

static int verify(struct increment *inc)
{
	XXH3_state_t *state = XXH3_createState();
	uint64_t got = 0;
	int rc = state ? 0 : -ENOMEM;

	if (!rc)
		XXH3_64bits_reset(state);
	for (uint64_t pfn = 0; pfn < inc->pending.bits && !rc;) {
		size_t n;

		rc = read_new(inc, pfn, &n, inc->buffer);
		if (!rc)
			XXH3_64bits_update(state, inc->buffer, n * VMM_PAGE_BYTES);
		pfn += n;
	}
	if (!rc)
		got = XXH3_64bits_digest(state);
	XXH3_freeState(state);
	if (rc)
		return give_up_for(inc, rc, "verify");
	if (got == inc->digest)
		return 0;
	return give_up_for(inc, -EBADMSG, "verify: the file would have another digest than RAM");
}

/* What was snapshotted anew under this name meanwhile is not to be touched. */
static int check_named(struct increment *inc, struct ft_err *err)
{
	struct stat st, named;

	if (!fstat(inc->fd, &st) && !stat(inc->path, &named) && st.st_ino == named.st_ino &&
	    st.st_dev == named.st_dev)
		return 0;
	return ft_err_set(err, ESTALE, "%s: was replaced meanwhile", inc->path);
}

/* From here on it is too late for a cancel. */
static bool begin_applying(struct increment *inc)
{
	pthread_mutex_lock(&inc->lock);
	inc->applying = !inc->failed;
	pthread_mutex_unlock(&inc->lock);
	return inc->applying;
}

static int apply(struct increment *inc, struct ft_err *err)
{
	struct changes changes;
	int rc = check_named(inc, err);

	if (!rc)
		rc = changes_open(inc->journal.path, &changes, err);
	if (rc)
		return rc;
	rc = update_apply(inc->fd, inc->path, &changes, err);
	changes_end(&changes);
	return rc;
}

/* What it was compared with may change now. */
static int add(struct increment *inc, struct ft_err *err)
{
	source_close(&inc->source);
	return inc->added(inc->config.ctx, err);
}

static void finish(struct increment *inc)
{
	struct ft_err err = {0};
	int rc = changes_seal(&inc->journal, inc->tail, inc->tail_len, &err);

	if (rc)
		give_up(inc, &err);
	else if (begin_applying(inc) && (inc->is_link ? add(inc, &err) : apply(inc, &err)))
		give_up(inc, &err);
}

/* With all signals blocked. */
static void *run(void *ctx)
{
	struct increment *inc = ctx;
	bool wanted;

	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), WORKER_NICE);
	if (!rounds(inc) && !wait_moment(inc) && !take_staged(inc) &&
	    (!inc->config.verify || !verify(inc)))
		finish(inc);
	/* A file that is changed in part needs its journal. */
	wanted = inc->is_link ? inc->applying : update_is_begun(inc->fd);
	changes_close(&inc->journal, wanted);
	want(inc, INCREMENT_END);
	return NULL;
}

// ---- the VM's thread

static int on_held(void *ctx, struct ft_err *err)
{
	struct increment *inc = ctx;
	size_t n = 0;
	int rc = since_more(inc->since, &inc->pending, err);

	if (!rc && inc->pending.count > INCREMENT_PAUSE_PAGES)
		rc = ft_err_set(err, EAGAIN,
				"the guest writes faster than the storage: %" PRIu64
				" MiB would have to be copied in its pause: take a whole snapshot",
				inc->pending.count * VMM_PAGE_BYTES >> 20);
	for (uint64_t pfn = ft_bitmap_next(&inc->pending, 0); pfn < inc->pending.bits && !rc;
	     pfn = ft_bitmap_next(&inc->pending, pfn + 1))
		inc->staged[n++] = pfn;
	if (rc)
		return rc;
	rc = ram_gather(&inc->ram, inc->staged, n, inc->staging);
	if (rc)
		ft_err_set(err, -rc, "the guest's RAM cannot be read: %s", strerror(-rc));
	return rc;
}

struct moment {
	struct increment *inc;
	struct vmm *vmm;
};

static int on_held_verify(void *ctx, struct ft_err *err)
{
	struct moment *m = ctx;
	int rc = on_held(m->inc, err);

	if (!rc && m->inc->config.verify)
		rc = vmm_ram_digest(m->vmm, &m->inc->digest, err);
	return rc;
}

static int pack_state(struct increment *inc, struct vmm *vmm, const uint8_t *state, size_t len,
		      struct ft_err *err)
{
	struct vmm_info info;

	vmm_info(vmm, &info);
	inc->tail = malloc(len + MAPPED_RAM_TAIL_MAX);
	if (!inc->tail)
		return ft_err_set(err, ENOMEM, "device state: out of memory");
	inc->tail_len = mapped_ram_pack_state(info.kind, state, len, inc->tail);
	return 0;
}

static int take_moment(struct increment *inc, struct vmm *vmm, struct ft_err *err)
{
	struct vmm_capture capture = {.state = malloc(VMM_STATE_BYTES_MAX)};
	struct moment moment = {inc, vmm};
	int rc = capture.state ? 0 : ft_err_set(err, ENOMEM, "device state: out of memory");

	if (!rc)
		rc = vmm_save(vmm, &capture, on_held_verify, &moment, err);
	if (!rc)
		rc = pack_state(inc, vmm, capture.state, capture.state_len, err);
	inc->pause_ns = capture.pause_ns;
	free(capture.state);
	return rc;
}

void increment_stamp(struct increment *inc, uint64_t generation, uint64_t epoch, uint64_t time_ms)
{
	inc->journal.head.generation = generation;
	inc->journal.head.epoch = epoch;
	inc->journal.head.time_ms = time_ms;
}

void increment_moment(struct increment *inc, struct vmm *vmm, const uint8_t *state, size_t len)
{
	struct ft_err err = {0};
	int rc;

	assert(inc->wants == INCREMENT_MOMENT);
	if (state) {
		rc = on_held_verify(&(struct moment){inc, vmm}, &err);
		if (!rc)
			rc = pack_state(inc, vmm, state, len, &err);
	} else {
		rc = take_moment(inc, vmm, &err);
	}
	if (rc)
		give_up(inc, &err);
	pthread_mutex_lock(&inc->lock);
	inc->wants = INCREMENT_NOTHING;
	pthread_cond_broadcast(&inc->change);
	pthread_mutex_unlock(&inc->lock);
}

static void init_lock(struct increment *inc)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&inc->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&inc->change, &attr);
	pthread_condattr_destroy(&attr);
}

static void increment_free(struct increment *inc)
{
	changes_close(&inc->journal, false);
	source_close(&inc->source);
	if (inc->fd >= 0)
		close(inc->fd);
	ram_drop(&inc->ram);
	ft_bitmap_free(&inc->pending);
	free(inc->staging);
	free(inc->staged);
	free(inc->buffer);
	free(inc->tail);
	pthread_cond_destroy(&inc->change);
	pthread_mutex_destroy(&inc->lock);
	free(inc);
}

/* The file is one that snapshot_begin() could have written of this guest. */
static int check_layout(const struct increment *inc, struct ft_err *err)
{
	const struct mapped_ram *m = &inc->source.layout;
	const struct mapped_ram_block *b = &m->blocks[0], *want;
	struct mapped_ram plan = {.blocks_n = 1};

	memcpy(plan.machine, inc->ram.machine, sizeof inc->ram.machine);
	memcpy(plan.blocks[0].name, inc->ram.block, sizeof inc->ram.block);
	plan.blocks[0].bytes = inc->ram.bytes;
	mapped_ram_plan(&plan);
	want = &plan.blocks[0];
	if (m->blocks_n == 1 && !strcmp(m->machine, plan.machine) && !strcmp(b->name, want->name) &&
	    b->bytes == want->bytes && b->bitmap_offset == want->bitmap_offset &&
	    b->pages_offset == want->pages_offset && m->state_offset == plan.state_offset)
		return 0;
	return ft_err_set(err, EINVAL,
			  "%s: is of another machine, or QEMU wrote it: it cannot be updated; take "
			  "a whole snapshot",
			  inc->path);
}

static int open_file(struct increment *inc, struct ft_err *err)
{
	int rc;

	inc->fd = update_open(inc->path, err);
	if (inc->fd < 0)
		return inc->fd;
	rc = source_open_fd(inc->fd, inc->path, &inc->source, err);
	return rc ? rc : check_layout(inc, err);
}

static int create_journal(struct increment *inc, struct ft_err *err)
{
	const struct mapped_ram *m = &inc->source.layout;
	struct changes_head head = {.ram_bytes = inc->ram.bytes,
				    .bitmap_offset = inc->source.ram->bitmap_offset,
				    .pages_offset = inc->source.ram->pages_offset,
				    .state_offset = m->state_offset};
	char path[CHANGES_PATH_MAX];

	while (!head.id)
		if (getrandom(&head.id, sizeof head.id, 0) != sizeof head.id)
			return ft_err_set(err, errno, "getrandom: %s", strerror(errno));
	if (!update_journal_path(inc->path, path))
		return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", inc->path);
	return changes_create(&inc->journal, path, &head, err);
}

static int open_link(struct increment *inc, const struct increment_link *link, struct ft_err *err)
{
	int rc;

	inc->source = *link->from;
	inc->source.ram = inc->source.layout.blocks + (link->from->ram - link->from->layout.blocks);
	rc = check_layout(inc, err);
	return rc ? rc : changes_create(&inc->journal, link->path, &link->head, err);
}

/* What belongs to the caller still. */
static void give_back(struct increment *inc)
{
	if (!inc->is_link)
		return;
	inc->source.fd = -1;
	inc->source.bitmap = NULL;
	inc->source.layers = NULL;
}

static void take_over(struct source *from)
{
	from->fd = -1;
	from->bitmap = NULL;
	from->layers = NULL;
}

static int open_all(struct increment *inc, struct ft_err *err)
{
	int rc;

	if (inc->is_link)
		return open_link(inc, inc->config.link, err);
	rc = open_file(inc, err);
	return rc ? rc : create_journal(inc, err);
}

static int make_room(struct increment *inc, struct ft_err *err)
{
	inc->staging =
		aligned_alloc(VMM_PAGE_BYTES, (size_t)INCREMENT_PAUSE_PAGES * VMM_PAGE_BYTES);
	inc->buffer = aligned_alloc(VMM_PAGE_BYTES, (size_t)RUN_PAGES * VMM_PAGE_BYTES);
	inc->staged = malloc(INCREMENT_PAUSE_PAGES * sizeof *inc->staged);
	if (!inc->staging || !inc->staged || !inc->buffer ||
	    ft_bitmap_init(&inc->pending, inc->ram.bytes / VMM_PAGE_BYTES))
		return ft_err_set(err, ENOMEM, "out of memory");
	return 0;
}

static int watch(struct increment *inc, struct since **since, struct ft_err *err)
{
	bool known;
	int rc = 0;

	if (*since && !since_is_of(*since, &inc->ram)) {
		since_free(*since);
		*since = NULL;
	}
	if (!*since)
		rc = since_new(&inc->ram, since, err);
	inc->since = *since;
	if (!rc)
		rc = since_begin(*since, inc->path, &inc->pending, &known, err);
	inc->left = inc->pending.count;
	return rc;
}

static int start(struct increment *inc, struct ft_err *err)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&inc->thread, NULL, run, inc);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc ? ft_err_set(err, rc, "a thread: %s", strerror(rc)) : 0;
}

static void find_ram(struct increment *inc, struct vmm *vmm)
{
	vmm_ram(vmm, &inc->ram);
	if (!inc->config.is_image)
		return;
	inc->ram.pid = 0;
	inc->ram.pidfd = -1;
	inc->ram.address = (uintptr_t)vmm_image(vmm);
}

int increment_begin(const struct increment_config *config, struct vmm *vmm, struct since **since,
		    struct increment **out, struct ft_err *err)
{
	struct increment *inc = calloc(1, sizeof *inc);
	const char *path;
	int rc;

	if (!inc)
		return ft_err_set(err, ENOMEM, "snapshot: out of memory");
	inc->config = *config;
	inc->is_link = config->link != NULL;
	path = inc->is_link ? config->link->last : config->path;
	assert(strlen(path) < sizeof inc->path);
	memcpy(inc->path, path, strlen(path) + 1);
	if (inc->is_link)
		inc->added = config->link->added;
	inc->fd = inc->source.fd = inc->journal.fd = -1;
	init_lock(inc);
	find_ram(inc, vmm);
	rc = ram_keep(&inc->ram) ? ft_err_set(err, EMFILE, "no descriptors") : 0;
	if (!rc)
		rc = open_all(inc, err);
	if (!rc)
		rc = make_room(inc, err);
	if (!rc)
		rc = watch(inc, since, err);
	if (!rc)
		rc = start(inc, err);
	if (rc) {
		give_back(inc);
		increment_free(inc);
		return ft_err_context(err, config->link ? "history" : "snapshot");
	}
	if (inc->is_link)
		take_over(config->link->from);
	*out = inc;
	return 0;
}

enum increment_wants increment_wants(struct increment *inc)
{
	enum increment_wants wants;

	pthread_mutex_lock(&inc->lock);
	/* Who was given up needs no moment. */
	wants = inc->wants == INCREMENT_MOMENT && inc->failed ? INCREMENT_NOTHING : inc->wants;
	pthread_mutex_unlock(&inc->lock);
	return wants;
}

void increment_progress(const struct increment *inc, struct snapshot_progress *p)
{
	uint64_t pages = inc->ram.bytes / VMM_PAGE_BYTES, left = inc->left;

	*p = (struct snapshot_progress){.pages = pages,
					.pages_done = pages - left,
					.pages_written = inc->written,
					.pause_us = inc->pause_ns / 1000,
					.digest = inc->digest};
}

void increment_cancel(struct increment *inc, const char *why)
{
	struct ft_err err = {0};

	ft_err_set(&err, ECANCELED, "%s", why);
	pthread_mutex_lock(&inc->lock);
	if (!inc->applying)
		give_up_locked(inc, &err);
	pthread_mutex_unlock(&inc->lock);
}

int increment_end(struct increment *inc, struct snapshot_progress *p, struct ft_err *err)
{
	int rc;

	pthread_join(inc->thread, NULL);
	increment_progress(inc, p);
	rc = -inc->err.code;
	if (!rc)
		since_saved(inc->since, inc->is_link ? inc->journal.path : inc->path);
	else if (err) {
		*err = inc->err;
		ft_err_context(err, inc->is_link ? "history" : "snapshot");
	}
	increment_free(inc);
	return rc;
}

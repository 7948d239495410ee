// SPDX-License-Identifier: Apache-2.0
/* A standby that comes back has most of the guest's disks already. Where both hosts noted every
 * change since their copies were alike, the rest is known to be so still. Elsewhere nobody is
 * believed: the standby says what it has, sum by sum, and the primary takes off its bitmap of what
 * the peer lacks whatever is the same here. That is right after any history of the two hosts, also
 * after writes that only one of them had, and after power cuts that took some of them back.
 *
 * The standby reads its disks while pages come in; a disk's blocks come after its last sum. */
#include "ft/engine_internal.h"

#include <errno.h>

#include "ft/log.h"

static int send_sums(struct ft_engine *e, uint8_t *out, struct ft_err *err)
{
	struct ft_disk_sums range = {0};
	Ft__Sums body = FT__SUMS__INIT;
	uint32_t n = 0;
	int rc = e->env->store_sums(e->env_ctx, e->standby.session, &range, out, err);

	if (rc < 0)
		return rc;
	body.last = rc == 0;
	if (!body.last) {
		body.disk = range.disk;
		body.offset = range.offset;
		body.bytes = range.bytes;
		body.block = range.block;
		body.zero = range.zero;
		body.unchanged = range.unchanged;
		n = range.zero || range.unchanged
			    ? 0
			    : (uint32_t)((range.bytes + range.block - 1) / range.block);
	}
	e->standby.comparing = !body.last;
	return engine_send(e, FT_MSG_SUMS, 0, &body.base, n ? out : NULL, n * FT_SUM_BYTES);
}

bool compare_send(struct ft_engine *e)
{
	struct ft_link *link = engine_data(e);
	struct ft_err err = {0};
	uint8_t *out = link ? link->ops->reserve(link, FT_SUMS_MAX * FT_SUM_BYTES) : NULL;
	int rc;

	if (!out)
		return false; /* later: the link says when */
	rc = send_sums(e, out, &err);
	if (rc == 0)
		return e->standby.comparing;
	/* A disk that cannot be read is no copy; the primary decides what comes of it. */
	e->standby.comparing = false;
	if (err.code)
		standby_refuse(e, &err);
	return false;
}

int compare_sums(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_primary *p = &e->primary;
	Ft__Sums *body = ft__sums__unpack(NULL, msg->body_len, msg->body);
	struct ft_disk_sums range;
	bool last;
	uint64_t alike = 0;
	int rc;

	if (!body)
		return ft_err_set(err, EPROTO, "SUMS: body does not parse");
	range = (struct ft_disk_sums){.disk = body->disk,
				      .offset = body->offset,
				      .bytes = body->bytes,
				      .block = body->block,
				      .zero = body->zero,
				      .unchanged = body->unchanged};
	last = body->last;
	ft__sums__free_unpacked(body, NULL);
	if (p->phase != PRIMARY_ROUNDS || !p->comparing)
		return 0;
	p->deadline_ns = engine_now(e) + FT_PROGRESS_MAX_MS * NS_PER_MS;
	if (last) {
		p->comparing = false;
		if (p->disk_bytes_alike)
			ft_info("%s: the standby has %llu MiB of the disks already (%llu MiB by "
				"what both hosts noted, the rest compared), %llu MiB are to be "
				"copied",
				e->config.name, (unsigned long long)(p->disk_bytes_alike >> 20),
				(unsigned long long)(p->disk_bytes_known >> 20),
				(unsigned long long)(e->env->disks_behind(e->env_ctx) >> 20));
		return 0;
	}
	if (!range.bytes || !range.block ||
	    (!range.zero && !range.unchanged &&
	     (msg->payload_len % FT_SUM_BYTES ||
	      (range.bytes - 1) / range.block + 1 != msg->payload_len / FT_SUM_BYTES)))
		return ft_err_set(err, EPROTO, "SUMS: %llu bytes in blocks of %u: %u bytes of sums",
				  (unsigned long long)range.bytes, range.block, msg->payload_len);
	rc = e->env->disk_compare(e->env_ctx, p->session, &range,
				  range.zero || range.unchanged ? NULL : msg->payload, &alike, err);
	p->disk_bytes_alike += alike;
	if (range.unchanged)
		p->disk_bytes_known += alike;
	return rc;
}

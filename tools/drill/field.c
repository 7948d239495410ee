// SPDX-License-Identifier: Apache-2.0
/* Interfaces are taken down by ioctl, for that takes microseconds, and deleted when there is time.
 */
#include "tools/drill/field.h"

#include <stdio.h>
#include <string.h>

#define REPLICATION "repl"
#define UPLINK	    "uplink"

int field_up(struct field *f, struct ft_err *err)
{
	char lines[256];
	int rc = host_up(&f->switch_, "switch", true, err);

	f->links = 0;
	if (!rc)
		rc = host_up(&f->client, "client", true, err);
	if (!rc)
		rc = host_ip(&f->switch_,
			     "link add sw0 type bridge forward_delay 0\nlink set sw0 up\n", err);
	snprintf(lines, sizeof lines,
		 "link add client type veth peer name net0 netns %d\n"
		 "link set client master sw0\nlink set client up\n",
		 (int)f->client.init);
	if (!rc)
		rc = host_ip(&f->switch_, lines, err);
	if (!rc)
		rc = host_ip(&f->client, "addr add 10.9.0.1/24 dev net0\nlink set net0 up\n", err);
	return rc;
}

void field_down(struct field *f)
{
	host_kill(&f->client);
	host_kill(&f->switch_);
}

const char *field_address(unsigned which)
{
	return which ? "10.10.0.2" : "10.10.0.1";
}

static int join_switch(struct field *f, const struct host *h, unsigned which, struct ft_err *err)
{
	char lines[256];
	int rc;

	snprintf(f->port[which], sizeof f->port[which], "port%u", f->links++);
	snprintf(lines, sizeof lines,
		 "link add %s type veth peer name " UPLINK " netns %d\n"
		 "link set %s master sw0\nlink set %s up\n",
		 f->port[which], (int)h->init, f->port[which], f->port[which]);
	rc = host_ip(&f->switch_, lines, err);
	return rc ? rc
		  : host_ip(h,
			    "link add " FIELD_BRIDGE " type bridge forward_delay 0\n"
			    "link set " UPLINK " master " FIELD_BRIDGE "\n"
			    "link set " UPLINK " up\nlink set " FIELD_BRIDGE " up\n",
			    err);
}

int field_join(struct field *f, const struct host hosts[2], unsigned which, struct ft_err *err)
{
	const struct host *h = &hosts[which], *other = &hosts[!which];
	char lines[256];
	int rc = join_switch(f, h, which, err);

	if (rc || !other->init)
		return rc;
	snprintf(lines, sizeof lines,
		 "link add " REPLICATION " type veth peer name " REPLICATION " netns %d\n",
		 (int)other->init);
	rc = host_ip(h, lines, err);
	for (unsigned i = 0; i < 2 && !rc; i++) {
		snprintf(lines, sizeof lines,
			 "addr add %s/24 dev " REPLICATION "\nlink set " REPLICATION " up\n",
			 field_address(i));
		rc = host_ip(&hosts[i], lines, err);
	}
	return rc;
}

void field_cut(const struct host *h)
{
	struct ft_err ignored;

	(void)host_link(h, REPLICATION, false, &ignored);
	(void)host_link(h, UPLINK, false, &ignored);
}

void field_leave(struct field *f, const struct host hosts[2], unsigned which)
{
	struct ft_err ignored;
	char lines[64];

	snprintf(lines, sizeof lines, "link del %s\n", f->port[which]);
	(void)host_ip(&f->switch_, lines, &ignored);
	if (hosts[!which].init)
		(void)host_ip(&hosts[!which], "link del " REPLICATION "\n", &ignored);
}

int field_replication(const struct host *h, bool up, struct ft_err *err)
{
	return host_link(h, REPLICATION, up, err);
}

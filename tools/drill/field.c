// SPDX-License-Identifier: Apache-2.0
/* Interfaces are taken down by ioctl, for that takes microseconds, and deleted when there is time.
 */
#include "tools/drill/field.h"

#include <stdio.h>
#include <string.h>

#define REPLICATION "repl"
#define UPLINK	    "uplink"
#define ARBITER	    "arb"
#define NOBODY	    "02:00:00:00:00:01" /* a MAC that no interface has */

static const char *const arbiter_links[2] = {"to-a", "to-b"};

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
	host_kill(&f->arbiter);
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

static int join_arbiter(struct field *f, const struct host *h, unsigned which, struct ft_err *err)
{
	char lines[256];
	int rc;

	snprintf(lines, sizeof lines,
		 "link add %s type veth peer name " ARBITER " netns %d\n"
		 "addr add 10.11.%u.254/24 dev %s\nlink set %s up\n",
		 arbiter_links[which], (int)h->init, which, arbiter_links[which],
		 arbiter_links[which]);
	rc = host_ip(&f->arbiter, lines, err);
	snprintf(lines, sizeof lines,
		 "addr add 10.11.%u.1/24 dev " ARBITER "\nlink set " ARBITER " up\n"
		 "route add 10.12.0.0/24 via 10.11.%u.254\n",
		 which, which);
	return rc ? rc : host_ip(h, lines, err);
}

int field_join(struct field *f, const struct host hosts[2], unsigned which, struct ft_err *err)
{
	const struct host *h = &hosts[which], *other = &hosts[!which];
	char lines[256];
	int rc = join_switch(f, h, which, err);

	if (!rc && f->arbiter.init)
		rc = join_arbiter(f, h, which, err);
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
	(void)host_link(h, ARBITER, false, &ignored);
}

void field_leave(struct field *f, const struct host hosts[2], unsigned which)
{
	struct ft_err ignored;
	char lines[64];

	snprintf(lines, sizeof lines, "link del %s\n", f->port[which]);
	(void)host_ip(&f->switch_, lines, &ignored);
	snprintf(lines, sizeof lines, "link del %s\n", arbiter_links[which]);
	if (f->arbiter.init)
		(void)host_ip(&f->arbiter, lines, &ignored);
	if (hosts[!which].init)
		(void)host_ip(&hosts[!which], "link del " REPLICATION "\n", &ignored);
}

int field_replication(const struct host *h, bool up, struct ft_err *err)
{
	return host_link(h, REPLICATION, up, err);
}

/* The other one's address gets a MAC that nobody has: frames arrive at an interface that passes
 * over them, and TCP sees silence. */
int field_mute(const struct host hosts[2], unsigned which, bool mute, struct ft_err *err)
{
	char lines[128];

	if (mute)
		snprintf(lines, sizeof lines,
			 "neigh replace %s lladdr " NOBODY " dev " REPLICATION " nud permanent\n",
			 field_address(!which));
	else
		snprintf(lines, sizeof lines, "neigh del %s dev " REPLICATION "\n",
			 field_address(!which));
	return host_ip(&hosts[which], lines, err);
}

const char *field_arbiter_address(unsigned member)
{
	static const char *const addresses[] = {"10.12.0.1", "10.12.0.2", "10.12.0.3"};

	return addresses[member];
}

int field_arbiter_up(struct field *f, struct ft_err *err)
{
	int rc = host_up(&f->arbiter, "arbiter", true, err);

	return rc ? rc
		  : host_ip(&f->arbiter,
			    "addr add 10.12.0.1/32 dev lo\naddr add 10.12.0.2/32 dev lo\n"
			    "addr add 10.12.0.3/32 dev lo\n",
			    err);
}

int field_arbiter_link(const struct field *f, unsigned which, bool up, struct ft_err *err)
{
	return host_link(&f->arbiter, arbiter_links[which], up, err);
}

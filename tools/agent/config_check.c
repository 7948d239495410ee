// SPDX-License-Identifier: Apache-2.0
/* What no single value can tell: missing values, combinations that cannot work, and values that are
 * made from the name so that both hosts agree on them without talking. */
#include "tools/agent/config_parts.h"

#include <assert.h>
#include <errno.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

/* Namespace of the UUIDv5 (RFC 9562, 5.5) of guests' names: `uuidgen --sha1 --namespace
 * 6b656d61-7269-4f54-a067-756573746964 --name NAME` says the same. */
static const uint8_t uuid_namespace[16] = {0x6b, 0x65, 0x6d, 0x61, 0x72, 0x69, 0x4f, 0x54,
					   0xa0, 0x67, 0x75, 0x65, 0x73, 0x74, 0x69, 0x64};

struct check {
	struct ft_config *config;
	const struct config_origins *origins;
	struct ft_err *err;
};

static int line_of(const struct check *c, const char *section, const char *name, unsigned item)
{
	const struct config_key *key = config_key_find(section, name);

	assert(key);
	return c->origins->line[key - config_keys][item];
}

/* Complains about a value at the place where it was given. */
static int bad(const struct check *c, const char *section, const char *name, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static int bad(const struct check *c, const char *section, const char *name, const char *fmt, ...)
{
	char what[FT_ERR_TEXT_MAX / 2];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof what, fmt, ap);
	va_end(ap);
	ft_err_set(c->err, EINVAL, "%s", what);
	return config_blame(c->origins, line_of(c, section, name, 0), section, "", name, c->err);
}

/* Complains about `name`, which is not given, at the place of `because`, which needs it. */
static int missing(const struct check *c, const char *section, const char *name,
		   const char *because)
{
	ft_err_set(c->err, EINVAL, "missing, %s%s%s needs it", section, *section ? "." : "",
		   because);
	return config_blame(c->origins, line_of(c, section, because, 0), section, "", name, c->err);
}

static const char *title_of(const struct check *c, const char *section, unsigned item)
{
	return !strcmp(section, "disk")	 ? c->config->disks[item].id
	       : !strcmp(section, "nic") ? c->config->nics[item].id
					 : "";
}

/* The file describes a machine, says where one runs, or leaves both to the peer. */
static int check_source(const struct check *c)
{
	struct ft_config *config = c->config;
	bool machine = config->vmm == CONFIG_VMM_POCKET || config->nics_n;

	if (*config->qemu.attach && config->vmm != CONFIG_VMM_QEMU)
		return bad(c, "qemu", "attach", "only for vmm = \"qemu\"");
	for (unsigned i = 0; i < config_keys_n; i++) {
		const struct config_key *key = &config_keys[i];

		for (unsigned item = 0; item < CONFIG_ITEMS_MAX && key->machine; item++) {
			int line = c->origins->line[i][item];

			if (line && *config->qemu.attach) {
				ft_err_set(c->err, EINVAL, "not together with qemu.attach");
				return config_blame(c->origins, line, key->section,
						    title_of(c, key->section, item), key->name,
						    c->err);
			}
			machine |= line != CONFIG_DEFAULT;
		}
	}
	if (*config->qemu.attach && config->nics_n) {
		ft_err_set(c->err, EINVAL, "not together with qemu.attach");
		return config_blame(c->origins, CONFIG_DEFAULT, "nic", config->nics[0].id, "",
				    c->err);
	}
	config->source = *config->qemu.attach ? CONFIG_ATTACH
			 : machine	      ? CONFIG_LAUNCH
					      : CONFIG_FROM_PEER;
	return 0;
}

static int check_devices(const struct check *c)
{
	const struct ft_config *config = c->config;

	for (unsigned i = 0; i < config->disks_n && config->source == CONFIG_LAUNCH; i++) {
		if (*config->disks[i].image)
			continue;
		ft_err_set(c->err, EINVAL, "missing");
		return config_blame(c->origins, CONFIG_DEFAULT, "disk", config->disks[i].id,
				    "image", c->err);
	}
	for (unsigned i = 0; i < config->nics_n; i++) {
		int line = line_of(c, "nic", "attach", i);
		bool udp = config->nics[i].attach.kind == CONFIG_NIC_UDP;

		if (!line)
			ft_err_set(c->err, EINVAL, "missing");
		else if (udp != (config->vmm == CONFIG_VMM_POCKET))
			ft_err_set(c->err, EINVAL, "vmm = \"%s\" cannot use %s",
				   udp ? "qemu" : "pocket", udp ? "udp" : "bridge or tap");
		else
			continue;
		return config_blame(c->origins, line, "nic", config->nics[i].id, "attach", c->err);
	}
	return 0;
}

#define QEMU_MEMORY_MIN (16u << 20)
#define HUGE_PAGE_BYTES (2u << 20)

static int check_machine(const struct check *c)
{
	const struct ft_config *config = c->config;
	const size_t socket_max = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;

	/* Less and no firmware starts. */
	if (config->vmm == CONFIG_VMM_QEMU && config->source == CONFIG_LAUNCH &&
	    config->memory_bytes < QEMU_MEMORY_MIN)
		return bad(c, "", "memory", "a QEMU guest needs at least %uM",
			   QEMU_MEMORY_MIN >> 20);
	if (config->huge_pages && config->memory_bytes % HUGE_PAGE_BYTES)
		return bad(c, "", "memory", "with hugepages it is a multiple of %uM",
			   HUGE_PAGE_BYTES >> 20);
	if (!*config->kernel && *config->initrd)
		return missing(c, "", "kernel", "initrd");
	if (!*config->kernel && *config->append)
		return missing(c, "", "kernel", "append");
	if (strlen(config->console.socket) > socket_max)
		return bad(c, "console", "socket",
			   "longer than %zu bytes, the bound of a unix socket", socket_max);
	if (strlen(config->qemu.attach) > socket_max)
		return bad(c, "qemu", "attach", "longer than %zu bytes, the bound of a unix socket",
			   socket_max);
	if (config->qemu.replace.n % 2)
		return bad(c, "qemu", "replace",
			   "an odd number of entries; they are OLD, NEW, OLD, NEW ...");
	return 0;
}

/* All of a certificate, its key and the authority, or none. */
static int check_certificate(const struct check *c, const char *section, const char *ca,
			     const char *cert, const char *key)
{
	const char *given = *cert ? "cert" : *key ? "key" : *ca ? "ca" : NULL;

	if (!given)
		return 0;
	if (!*ca)
		return missing(c, section, "ca", given);
	if (!*cert)
		return missing(c, section, "cert", given);
	if (!*key)
		return missing(c, section, "key", given);
	return 0;
}

static int check_services(const struct check *c)
{
	const struct ft_config *config = c->config;
	int ret;

	/* One lost heartbeat must not look like a dead peer. */
	if (config->ft.takeover_ms < 2 * config->ft.heartbeat_ms)
		return bad(c, "ft",
			   line_of(c, "ft", "takeover_ms", 0) ? "takeover_ms" : "heartbeat_ms",
			   "takeover_ms (%u) is less than twice heartbeat_ms (%u)",
			   config->ft.takeover_ms, config->ft.heartbeat_ms);
	if (config->ft.lease_ms < 2 * config->ft.heartbeat_ms)
		return bad(c, "ft", line_of(c, "ft", "lease_ms", 0) ? "lease_ms" : "takeover_ms",
			   "lease_ms (%u) is less than twice heartbeat_ms (%u)",
			   config->ft.lease_ms, config->ft.heartbeat_ms);
	ret = check_certificate(c, "tls", config->tls.ca, config->tls.cert, config->tls.key);
	if (ret)
		return ret;
	if (config->arbiter.type == CONFIG_ARBITER_FILE && !*config->arbiter.dir)
		return missing(c, "arbiter", "dir", "type");
	if (config->arbiter.type == CONFIG_ARBITER_ETCD && !config->arbiter.endpoints.n)
		return missing(c, "arbiter", "endpoints", "type");
	if (config->arbiter.endpoints.n > ETCD_ENDPOINTS_MAX)
		return bad(c, "arbiter", "endpoints", "more than %d", ETCD_ENDPOINTS_MAX);
	if (*config->arbiter.user && !*config->arbiter.password_file)
		return missing(c, "arbiter", "password_file", "user");
	if (!*config->arbiter.user && *config->arbiter.password_file)
		return missing(c, "arbiter", "user", "password_file");
	/* A server's certificate may be checked without having one. */
	if (*config->arbiter.cert || *config->arbiter.key)
		return check_certificate(c, "arbiter", config->arbiter.ca, config->arbiter.cert,
					 config->arbiter.key);
	return 0;
}

static int digest(const uint8_t *salt, size_t salt_len, const char *text, uint8_t out[20])
{
	uint8_t buf[16 + 2 * CTL_NAME_MAX];
	size_t len = strlen(text);
	unsigned n = 20;

	assert(salt_len + len < sizeof buf);
	memcpy(buf, salt, salt_len);
	memcpy(buf + salt_len, text, len + 1);
	return EVP_Digest(buf, salt_len + len, out, &n, EVP_sha1(), NULL) == 1 && n == 20 ? 0
											  : -EIO;
}

static int make_names(const struct check *c)
{
	struct ft_config *config = c->config;
	uint8_t h[20];

	if (!*config->uuid) {
		if (digest(uuid_namespace, sizeof uuid_namespace, config->name, h))
			return bad(c, "", "uuid",
				   "cannot be made from the name: no SHA-1; give one");
		h[6] = (h[6] & 0x0f) | 0x50;
		h[8] = (h[8] & 0x3f) | 0x80;
		snprintf(config->uuid, sizeof config->uuid,
			 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
			 h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8], h[9], h[10], h[11],
			 h[12], h[13], h[14], h[15]);
	}
	for (unsigned i = 0; i < config->nics_n; i++) {
		struct config_nic *nic = &config->nics[i];
		char text[2 * CTL_NAME_MAX];

		if (*nic->mac)
			continue;
		snprintf(text, sizeof text, "%s/%s", config->name, nic->id);
		if (digest(uuid_namespace, sizeof uuid_namespace, text, h)) {
			ft_err_set(c->err, EIO, "cannot be made from the name: no SHA-1; give one");
			return config_blame(c->origins, CONFIG_DEFAULT, "nic", nic->id, "mac",
					    c->err);
		}
		snprintf(nic->mac, sizeof nic->mac, "52:54:00:%02x:%02x:%02x", h[0], h[1], h[2]);
	}
	return 0;
}

int config_check(struct ft_config *config, const struct config_origins *origins, struct ft_err *err)
{
	struct check c = {config, origins, err};
	int (*const steps[])(const struct check *) = {check_source, check_devices, check_machine,
						      check_services, make_names};
	int ret = 0;

	if (!*config->name)
		return bad(&c, "", "name", "missing");
	if (config->ft.history && !*config->ft.history_dir)
		return missing(&c, "ft", "history_dir", "history");
	if (!config->ft.lease_ms)
		config->ft.lease_ms = config->ft.takeover_ms;
	for (size_t i = 0; i < sizeof steps / sizeof *steps && !ret; i++)
		ret = steps[i](&c);
	return ret;
}

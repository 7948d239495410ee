// SPDX-License-Identifier: Apache-2.0
/* The keys of a guest file in one table, and how a value of each type is read. A new key is a line
 * here, a field in config.h and a paragraph in kemari-guest(5). Texts of errors say what is wrong;
 * config_blame() says where. */
#include "tools/agent/config_parts.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(enum ft_trigger) == sizeof(int) && sizeof(enum ft_survivor) == sizeof(int) &&
		       sizeof(enum store_mode) == sizeof(int) &&
		       sizeof(enum config_vmm) == sizeof(int),
	       "parse_word() writes an int");

static int parse_string(const struct config_key *key, const char *dir, const char *text, void *to,
			struct ft_err *err)
{
	(void)dir;
	if (!*text)
		return ft_err_set(err, EINVAL, "is empty");
	if (strlen(text) >= key->room)
		return ft_err_set(err, ENAMETOOLONG, "longer than %zu bytes", key->room - 1);
	for (const char *p = text; *p; p++)
		if (iscntrl((unsigned char)*p))
			return ft_err_set(err, EINVAL, "contains a control character");
	memcpy(to, text, strlen(text) + 1);
	return 0;
}

static int parse_path(const struct config_key *key, const char *dir, const char *text, void *to,
		      struct ft_err *err)
{
	char *out = to;
	int ret = parse_string(key, dir, text, to, err);

	if (ret || *text == '/')
		return ret;
	if ((size_t)snprintf(out, key->room, "%s%s%s", dir, strcmp(dir, "/") ? "/" : "", text) >=
	    key->room)
		return ft_err_set(err, ENAMETOOLONG, "longer than %zu bytes as a full path",
				  key->room - 1);
	return 0;
}

/* A program without a slash is left to PATH, as a shell would. */
static int parse_binary(const struct config_key *key, const char *dir, const char *text, void *to,
			struct ft_err *err)
{
	return (strchr(text, '/') ? parse_path : parse_string)(key, dir, text, to, err);
}

static int parse_name(const struct config_key *key, const char *dir, const char *text, void *to,
		      struct ft_err *err)
{
	(void)dir;
	if (!ctl_name_ok(text))
		return ft_err_set(err, EINVAL, "'%s' is not a name (%s)", text, CTL_NAME_RULE);
	snprintf(to, key->room, "%s", text);
	return 0;
}

static int parse_uuid(const struct config_key *key, const char *dir, const char *text, void *to,
		      struct ft_err *err)
{
	static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
	char *out = to;
	size_t i;

	(void)key, (void)dir;
	for (i = 0; form[i]; i++) {
		if (form[i] == 'x' ? !isxdigit((unsigned char)text[i]) : text[i] != '-')
			break;
		out[i] = (char)tolower((unsigned char)text[i]);
	}
	out[i] = 0;
	if (form[i] || text[i])
		return ft_err_set(err, EINVAL, "'%s' is not a UUID", text);
	return 0;
}

static int parse_mac(const struct config_key *key, const char *dir, const char *text, void *to,
		     struct ft_err *err)
{
	static const char form[] = "xx:xx:xx:xx:xx:xx";
	char *out = to;
	size_t i;

	(void)key, (void)dir;
	for (i = 0; form[i]; i++) {
		if (form[i] == 'x' ? !isxdigit((unsigned char)text[i]) : text[i] != ':')
			break;
		out[i] = (char)tolower((unsigned char)text[i]);
	}
	out[i] = 0;
	if (form[i] || text[i])
		return ft_err_set(err, EINVAL, "'%s' is not a MAC address", text);
	if (strtoul((char[]){out[0], out[1], 0}, NULL, 16) & 1)
		return ft_err_set(err, EINVAL, "'%s' is a multicast address", text);
	return 0;
}

static int parse_whole(const char *text, const char **end, uint64_t *value)
{
	char *stop;

	if (!isdigit((unsigned char)*text))
		return -EINVAL;
	errno = 0;
	*value = strtoull(text, &stop, 10);
	*end = stop;
	return -errno;
}

static int parse_number(const struct config_key *key, const char *dir, const char *text, void *to,
			struct ft_err *err)
{
	const char *end = text;
	uint64_t value;
	int ret = parse_whole(text, &end, &value);

	(void)dir;
	if (ret == -EINVAL || *end)
		return ft_err_set(err, EINVAL, "'%s' is not a whole number", text);
	if (ret || value < key->min || value > key->max)
		return ft_err_set(err, ERANGE, "%s is out of range (%lu to %lu)", text,
				  (unsigned long)key->min, (unsigned long)key->max);
	*(unsigned *)to = (unsigned)value;
	return 0;
}

/* "256M": powers of 1024. min and max count in MiB, as the error does. */
static int parse_size(const struct config_key *key, const char *dir, const char *text, void *to,
		      struct ft_err *err)
{
	static const char units[] = "KMGT";
	const char *end = text, *unit = NULL;
	uint64_t value, bytes;
	unsigned shift = 0;
	int ret = parse_whole(text, &end, &value);

	(void)dir;
	if (ret != -EINVAL && *end) {
		unit = strchr(units, toupper((unsigned char)*end));
		if (unit)
			shift = 10 * (unsigned)(unit - units + 1);
		end += unit != NULL;
	}
	if (ret == -EINVAL || *end)
		return ft_err_set(err, EINVAL, "'%s' is not a size (bytes, or with K, M, G or T)",
				  text);
	bytes = value << shift;
	if (ret || bytes >> shift != value || bytes < key->min << 20 || bytes > key->max << 20)
		return ft_err_set(err, ERANGE, "%s is out of range (%luM to %luM)", text,
				  (unsigned long)key->min, (unsigned long)key->max);
	if (bytes & 511)
		return ft_err_set(err, EINVAL, "%s is not a multiple of 512 bytes", text);
	*(uint64_t *)to = bytes;
	return 0;
}

static int parse_memory(const struct config_key *key, const char *dir, const char *text, void *to,
			struct ft_err *err)
{
	int ret = parse_size(key, dir, text, to, err);

	if (!ret && *(uint64_t *)to & ((1u << 20) - 1))
		return ft_err_set(err, EINVAL, "%s is not a multiple of 1M", text);
	return ret;
}

static int parse_share(const struct config_key *key, const char *dir, const char *text, void *to,
		       struct ft_err *err)
{
	char *end;
	double value = strtod(text, &end);

	(void)key, (void)dir;
	/* The set of characters keeps out what else strtod() takes: hexadecimal, infinity, nan,
	 * blanks. */
	if (end == text || *end || text[strspn(text, "0123456789.")])
		return ft_err_set(err, EINVAL, "'%s' is not a number such as 0.25", text);
	if (!(value > 0 && value <= 1))
		return ft_err_set(err, ERANGE, "%s is out of range (above 0, to 1)", text);
	*(double *)to = value;
	return 0;
}

static int parse_bool(const struct config_key *key, const char *dir, const char *text, void *to,
		      struct ft_err *err)
{
	bool yes = !strcmp(text, "true") || !strcmp(text, "yes") || !strcmp(text, "on");
	bool no = !strcmp(text, "false") || !strcmp(text, "no") || !strcmp(text, "off");

	(void)key, (void)dir;
	if (!yes && !no)
		return ft_err_set(err, EINVAL, "'%s' is neither true nor false", text);
	*(bool *)to = yes;
	return 0;
}

static const struct config_word *find_word(const struct config_key *key, const char *text,
					   struct ft_err *err)
{
	char all[128] = "";
	size_t n = 0;

	for (const struct config_word *w = key->words; w->name; w++) {
		if (!strcmp(w->name, text))
			return w;
		n += (size_t)snprintf(all + n, sizeof all - n, "%s%s", n ? ", " : "", w->name);
		assert(n < sizeof all);
	}
	ft_err_set(err, EINVAL, "'%s' is none of %s", text, all);
	return NULL;
}

static int parse_word(const struct config_key *key, const char *dir, const char *text, void *to,
		      struct ft_err *err)
{
	const struct config_word *word = find_word(key, text, err);

	(void)dir;
	if (!word)
		return -err->code;
	*(int *)to = word->value;
	return 0;
}

static int parse_flag_word(const struct config_key *key, const char *dir, const char *text,
			   void *to, struct ft_err *err)
{
	const struct config_word *word = find_word(key, text, err);

	(void)dir;
	if (!word)
		return -err->code;
	*(bool *)to = word->value;
	return 0;
}

static int parse_url(const struct config_key *key, const char *dir, const char *text, void *to,
		     struct ft_err *err)
{
	const char *host = !strncmp(text, "http://", 7)	   ? text + 7
			   : !strncmp(text, "https://", 8) ? text + 8
							   : NULL;

	if (!host)
		return ft_err_set(err, EINVAL, "'%s' begins with neither http:// nor https://",
				  text);
	if (!*host || *host == '/' || *host == ':')
		return ft_err_set(err, EINVAL, "'%s' names no host", text);
	return parse_string(key, dir, text, to, err);
}

static int parse_ifname(const char *text, const char *name, char out[IFNAMSIZ], struct ft_err *err)
{
	size_t len = strlen(name);

	if (!len)
		return ft_err_set(err, EINVAL, "'%s' names no interface", text);
	if (len >= IFNAMSIZ)
		return ft_err_set(err, EINVAL, "'%s': interface name is longer than %d bytes", text,
				  IFNAMSIZ - 1);
	/* What the kernel refuses, and the comma, which would begin another option of QEMU's. */
	for (const char *p = name; *p; p++)
		if (*p == '/' || *p == ':' || *p == ',' || isspace((unsigned char)*p))
			return ft_err_set(err, EINVAL, "'%s': interface name contains '%c'", text,
					  *p);
	memcpy(out, name, len + 1);
	return 0;
}

/* HOST:PORT; an IPv6 address in brackets. */
static int parse_udp(const char *text, const char *where, struct config_attach *attach,
		     struct ft_err *err)
{
	const char *host = where, *end = strrchr(where, ':');
	uint64_t port;
	size_t len;

	if (!end)
		return ft_err_set(err, EINVAL, "'%s' has no port", text);
	len = (size_t)(end - host);
	if (*host == '[') {
		if (len < 2 || host[len - 1] != ']')
			return ft_err_set(err, EINVAL, "'%s': bracket is never closed", text);
		host++;
		len -= 2;
	} else if (memchr(host, ':', len)) {
		return ft_err_set(err, EINVAL, "'%s': an IPv6 host needs brackets", text);
	}
	if (!len || len >= sizeof attach->host)
		return ft_err_set(err, EINVAL, "'%s': bad host", text);
	if (parse_whole(end + 1, &end, &port) || *end || !port || port > UINT16_MAX)
		return ft_err_set(err, EINVAL, "'%s': bad port (1 to 65535)", text);
	memcpy(attach->host, host, len);
	attach->host[len] = 0;
	attach->port = (uint16_t)port;
	return 0;
}

static int parse_attach(const struct config_key *key, const char *dir, const char *text, void *to,
			struct ft_err *err)
{
	struct config_attach attach = {0};
	const struct config_word *word;
	const char *rest = strchr(text, ':');
	char kind[CONFIG_TEXT_MAX];
	int ret;

	(void)dir;
	if (!rest)
		return ft_err_set(err, EINVAL,
				  "'%s' is not KIND:WHERE (bridge:NAME, tap:IFNAME, udp:HOST:PORT)",
				  text);
	snprintf(kind, sizeof kind, "%.*s", (int)(rest - text), text);
	rest++;
	word = find_word(key, kind, err);
	if (!word)
		return -err->code;
	attach.kind = (enum config_nic_kind)word->value;
	if (attach.kind == CONFIG_NIC_UDP)
		ret = parse_udp(text, rest, &attach, err);
	else
		ret = parse_ifname(text, rest, attach.ifname, err);
	if (!ret)
		*(struct config_attach *)to = attach;
	return ret;
}

/* clang-format off */
static const struct config_word vmm_words[] = {{"qemu", CONFIG_VMM_QEMU}, {"pocket", CONFIG_VMM_POCKET}, {0}};
static const struct config_word program_words[] = {{"kv", CONFIG_PROGRAM_KV}, {"dirty", CONFIG_PROGRAM_DIRTY}, {0}};
static const struct config_word mode_words[] = {{"replicated", STORE_REPLICATED}, {"shared", STORE_SHARED}, {0}};
static const struct config_word attach_words[] = {{"bridge", CONFIG_NIC_BRIDGE}, {"tap", CONFIG_NIC_TAP}, {"udp", CONFIG_NIC_UDP}, {0}};
static const struct config_word trigger_words[] = {{"output", FT_TRIGGER_OUTPUT}, {"interval", FT_TRIGGER_INTERVAL}, {"both", FT_TRIGGER_BOTH}, {0}};
static const struct config_word takeover_words[] = {{"auto", false}, {"manual", true}, {0}};
static const struct config_word durability_words[] = {{"memory", false}, {"disk", true}, {0}};
static const struct config_word arbiter_words[] = {{"none", CONFIG_ARBITER_NONE}, {"file", CONFIG_ARBITER_FILE}, {"etcd", CONFIG_ARBITER_ETCD}, {0}};
static const struct config_word survivor_words[] = {{"standby", FT_SURVIVOR_STANDBY}, {"primary", FT_SURVIVOR_PRIMARY}, {"manual", FT_SURVIVOR_MANUAL}, {0}};

static const struct config_word seccomp_words[] = {{"on", CONFIG_SECCOMP_ON}, {"log", CONFIG_SECCOMP_LOG}, {"off", CONFIG_SECCOMP_OFF}, {0}};

#define AT(field)      .offset = offsetof(struct ft_config, field), .room = sizeof(((struct ft_config *)0)->field)
#define AT_DISK(field) .offset = offsetof(struct config_disk, field), .room = sizeof(((struct config_disk *)0)->field)
#define AT_NIC(field)  .offset = offsetof(struct config_nic, field), .room = sizeof(((struct config_nic *)0)->field)
#define AT_LIST(field) .offset = offsetof(struct ft_config, field), .room = CONFIG_TEXT_MAX, .list = true
#define MS		.min = 1, .max = 60000
#define MIB(low, high)	.min = (low), .max = (high)

const struct config_key config_keys[] = {
	{"", "name", parse_name, AT(name)},
	{"", "uuid", parse_uuid, AT(uuid)},
	{"", "home", parse_string, AT(home)},
	{"", "vmm", parse_word, AT(vmm), .words = vmm_words},
	{"", "program", parse_word, AT(program), .words = program_words},
	{"", "memory", parse_memory, AT(memory_bytes), MIB(1, 16u << 20), .machine = true},
	{"", "hugepages", parse_bool, AT(huge_pages)},
	{"", "cpus", parse_number, AT(cpus), .min = 1, .max = 255, .machine = true},
	{"", "machine", parse_string, AT(machine), .machine = true},
	{"", "cpu", parse_string, AT(cpu), .machine = true},
	{"", "kernel", parse_path, AT(kernel), .machine = true},
	{"", "initrd", parse_path, AT(initrd), .machine = true},
	{"", "append", parse_string, AT(append), .machine = true},

	{"disk", "image", parse_path, AT_DISK(image), .machine = true},
	{"disk", "mode", parse_word, AT_DISK(mode), .words = mode_words},
	{"disk", "track", parse_bool, AT_DISK(track)},
	{"disk", "size", parse_size, AT_DISK(size), MIB(0, 64u << 20), .machine = true},
	{"nic", "mac", parse_mac, AT_NIC(mac), .machine = true},
	{"nic", "attach", parse_attach, AT_NIC(attach), .words = attach_words, .machine = true},

	{"console", "log", parse_path, AT(console.log), .machine = true},
	{"console", "socket", parse_path, AT(console.socket), .machine = true},

	{"qemu", "binary", parse_binary, AT(qemu.binary)},
	{"qemu", "attach", parse_path, AT(qemu.attach)},
	{"qemu", "args", parse_string, AT_LIST(qemu.args), .machine = true},
	{"qemu", "replace", parse_string, AT_LIST(qemu.replace)},
	{"qemu", "directories", parse_path, AT_LIST(qemu.directories)},

	{"ft", "trigger", parse_word, AT(ft.trigger), .words = trigger_words},
	{"ft", "interval_ms", parse_number, AT(ft.interval_ms), MS},
	{"ft", "max_downtime_ms", parse_number, AT(ft.max_downtime_ms), MS},
	{"ft", "max_overhead", parse_share, AT(ft.max_overhead)},
	{"ft", "heartbeat_ms", parse_number, AT(ft.heartbeat_ms), MS},
	{"ft", "takeover_ms", parse_number, AT(ft.takeover_ms), MS},
	{"ft", "lease_ms", parse_number, AT(ft.lease_ms), MS},
	{"ft", "takeover", parse_flag_word, AT(ft.takeover_manual), .words = takeover_words},
	{"ft", "durability", parse_flag_word, AT(ft.durable), .words = durability_words},
	{"ft", "staging", parse_size, AT(ft.staging_bytes), MIB(1, 1u << 20)},
	{"ft", "history", parse_number, AT(ft.history), .min = 0, .max = 256},
	{"ft", "history_seconds", parse_number, AT(ft.history_seconds), .min = 0, .max = 604800},
	{"ft", "history_bytes", parse_size, AT(ft.history_bytes), MIB(0, 64u << 20)},
	{"ft", "history_dir", parse_path, AT(ft.history_dir)},
	{"ft", "delta_base", parse_size, AT(ft.delta_base_bytes), MIB(0, 1u << 20)},

	{"tls", "ca", parse_path, AT(tls.ca)},
	{"tls", "cert", parse_path, AT(tls.cert)},
	{"tls", "key", parse_path, AT(tls.key)},
	{"tls", "peer", parse_string, AT_LIST(tls.peer)},
	{"tls", "insecure", parse_bool, AT(tls.insecure)},

	{"security", "seccomp", parse_word, AT(security.seccomp), .words = seccomp_words},

	{"arbiter", "type", parse_word, AT(arbiter.type), .words = arbiter_words},
	{"arbiter", "survivor", parse_word, AT(arbiter.survivor), .words = survivor_words},
	{"arbiter", "dir", parse_path, AT(arbiter.dir)},
	{"arbiter", "endpoints", parse_url, AT_LIST(arbiter.endpoints)},
	{"arbiter", "fence", parse_path, AT(arbiter.fence)},
	{"arbiter", "fence_timeout_ms", parse_number, AT(arbiter.fence_timeout_ms), .min = 100, .max = 600000},
	{"arbiter", "ca", parse_path, AT(arbiter.ca)},
	{"arbiter", "cert", parse_path, AT(arbiter.cert)},
	{"arbiter", "key", parse_path, AT(arbiter.key)},
	{"arbiter", "user", parse_string, AT(arbiter.user)},
	{"arbiter", "password_file", parse_path, AT(arbiter.password_file)},
	{"arbiter", "prefix", parse_string, AT(arbiter.prefix)},
};
/* clang-format on */

const unsigned config_keys_n = sizeof config_keys / sizeof *config_keys;
_Static_assert(sizeof config_keys / sizeof *config_keys <= CONFIG_KEYS_MAX, "origins have room");

const struct config_key *config_key_find(const char *section, const char *name)
{
	for (unsigned i = 0; i < config_keys_n; i++)
		if (!strcmp(config_keys[i].section, section) && !strcmp(config_keys[i].name, name))
			return &config_keys[i];
	return NULL;
}

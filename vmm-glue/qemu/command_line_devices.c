// SPDX-License-Identifier: Apache-2.0
// The options of a peer's command line that make devices and what is behind them (see
// command_line.c).
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vmm-glue/qemu/command_line.h"
#include "vmm-glue/qemu/internal.h"
#include "vmm-glue/qemu/options.h"

#define VALUE_MAX      2048
#define KEY_CHARACTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"

static int parse(const char *option, const char *value, const char *first, json_t **out,
		 struct ft_err *err)
{
	const char *key;
	json_t *item;

	*out = options_parse(value, first);
	if (!*out)
		return ft_err_set(err, EPERM, "qemu: command line: -%s %s: malformed", option,
				  value);
	/* JSON takes any text as a key; printed as ours, it could become several. */
	json_object_foreach(
		*out, key,
		item) if (key[strspn(key, KEY_CHARACTERS)]) return ft_err_set(err, EPERM,
									      "qemu: command line: "
									      "-%s: '%s' is no key",
									      option, key);
	return 0;
}

/* Only those keys; values are plain but for that of `path`, which has a rule of its own ("": none
 * has). path NULL: nothing of them will be printed. */
static int check_keys(const char *option, json_t *o, const char *const *keys, const char *path,
		      struct ft_err *err)
{
	const char *key, *text;
	json_t *item;
	int r;

	json_object_foreach(o, key, item)
	{
		const char *const *k = keys;

		while (*k && strcmp(key, *k))
			k++;
		if (!*k)
			return ft_err_set(err, EPERM, "qemu: command line: -%s: %s is not allowed",
					  option, key);
		text = options_get(o, key);
		r = text && path && strcmp(key, path) ? command_line_plain(option, text, err) : 0;
		if (r < 0)
			return r;
	}
	return 0;
}

static int emit(struct argv *a, const char *option, const json_t *o, const char *first,
		struct ft_err *err)
{
	char text[VALUE_MAX], dashed[32];

	if (!options_print(o, first, text, sizeof text))
		return ft_err_set(err, EPERM,
				  "qemu: command line: -%s: too long, or a value of a strange type",
				  option);
	snprintf(dashed, sizeof dashed, "-%s", option);
	argv_opt(a, dashed, "%s", text);
	return 0;
}

static int emit_both(struct command_line *c, const char *option, const json_t *o, const char *first,
		     struct ft_err *err)
{
	int r = emit(&c->run, option, o, first, err);

	return r < 0 ? r : emit(&c->trial, option, o, first, err);
}

static int refuse(const char *option, const char *key, const char *value, struct ft_err *err)
{
	return ft_err_set(err, EPERM, "qemu: command line: -%s: %s=%s is not allowed", option, key,
			  value ? value : "");
}

static bool is_one_of(const char *value, const char *const *list)
{
	while (*list && (!value || strcmp(value, *list)))
		list++;
	return *list != NULL;
}

/* ---- disks ---- */

static int file_bytes(const char *path, char text[24], struct ft_err *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	int r = end < 0 ? ft_err_set(err, errno, "qemu: command line: %s: %s", path,
				     strerror(errno))
			: 0;

	if (fd >= 0)
		close(fd);
	snprintf(text, 24, "%" PRId64, (int64_t)end);
	return r;
}

/* The file below `prefix` ("" or "file.") becomes ours, and in the trial a null device of its size.
 */
static int emit_disk(struct command_line *c, const char *option, json_t *o, const char *path_key,
		     const char *prefix, struct ft_err *err)
{
	char path[VMM_PATH_MAX], bytes[24], key[64];
	int r = command_line_path(c, option, options_get(o, path_key), path, err);

	if (r == 0)
		r = file_bytes(path, bytes, err);
	if (r < 0)
		return r;
	json_object_set_new(o, path_key, json_string(path));
	r = emit(&c->run, option, o, NULL, err);
	json_object_del(o, path_key);
	for (const char *const *k =
		     (const char *const[]){"aio", "locking", "cache.direct", "cache.no-flush",
					   "cache", "discard", "detect-zeroes", NULL};
	     *k; k++) {
		json_object_del(o, *k);
		snprintf(key, sizeof key, "file.%s", *k);
		json_object_del(o, key);
	}
	snprintf(key, sizeof key, "%sdriver", prefix);
	json_object_set_new(o, key, json_string("null-co"));
	snprintf(key, sizeof key, "%ssize", prefix);
	json_object_set_new(o, key, json_string(bytes));
	return r < 0 ? r : emit(&c->trial, option, o, NULL, err);
}

int option_drive(struct command_line *c, const char *option, const char *value, struct ft_err *err)
{
	static const char *const keys[] = {"file",   "if",	 "format",    "id",
					   "cache",  "aio",	 "discard",   "detect-zeroes",
					   "media",  "readonly", "read-only", "werror",
					   "rerror", "index",	 "node-name", NULL};
	static const char *const interfaces[] = {"none", "virtio", NULL};
	json_t *o;
	int r = parse(option, value, NULL, &o, err);

	if (r == 0)
		r = check_keys(option, o, keys, "file", err);
	if (r == 0 && !is_one_of(options_get(o, "if"), interfaces))
		r = refuse(option, "if", options_get(o, "if"), err);
	if (r == 0 && !is_one_of(options_get(o, "format"), (const char *const[]){"raw", NULL}))
		r = refuse(option, "format", options_get(o, "format"), err);
	if (r == 0 && !options_get(o, "file"))
		r = refuse(option, "file", NULL, err);
	if (r == 0)
		r = emit_disk(c, option, o, "file", "file.", err);
	json_decref(o);
	return r;
}

int option_blockdev(struct command_line *c, const char *option, const char *value,
		    struct ft_err *err)
{
	static const char *const keys[] = {"driver",
					   "node-name",
					   "filename",
					   "file",
					   "cache.direct",
					   "cache.no-flush",
					   "aio",
					   "discard",
					   "detect-zeroes",
					   "read-only",
					   "auto-read-only",
					   "locking",
					   "file.driver",
					   "file.filename",
					   "file.aio",
					   "file.discard",
					   "file.locking",
					   "file.cache.direct",
					   "file.cache.no-flush",
					   "file.node-name",
					   NULL};
	static const char *const files[] = {"file", "host_device", NULL};
	const char *driver, *below;
	json_t *o;
	int r = parse(option, value, "driver", &o, err);

	driver = options_get(o, "driver");
	below = options_get(o, "file.driver");
	if (r == 0)
		r = check_keys(option, o, keys,
			       below			  ? "file.filename"
			       : is_one_of(driver, files) ? "filename"
							  : "",
			       err);
	if (r < 0)
		;
	else if (is_one_of(driver, files) && options_get(o, "filename") && !below)
		r = emit_disk(c, option, o, "filename", "", err);
	else if (!is_one_of(driver, (const char *const[]){"raw", NULL}))
		r = refuse(option, "driver", driver, err);
	else if (!below && options_get(o, "file"))
		r = emit_both(c, option, o, NULL, err);
	else if (is_one_of(below, files) && options_get(o, "file.filename"))
		r = emit_disk(c, option, o, "file.filename", "file.", err);
	else
		r = refuse(option, "file.driver", below, err);
	json_decref(o);
	return r;
}

/* ---- networks ---- */

int option_netdev(struct command_line *c, const char *option, const char *value, struct ft_err *err)
{
	static const char *const keys[] = {"type",  "id",	"ifname", "script", "downscript",
					   "vhost", "vnet_hdr", "sndbuf", NULL};
	const char *ifname, *id, *vhost;
	json_t *o;
	int r = parse(option, value, "type", &o, err);

	if (r == 0 && !is_one_of(options_get(o, "type"), (const char *const[]){"tap", NULL}))
		r = refuse(option, "type", options_get(o, "type"), err);
	if (r == 0)
		r = check_keys(option, o, keys, NULL, err);
	ifname = options_get(o, "ifname");
	id = options_get(o, "id");
	vhost = options_get(o, "vhost");
	if (r == 0 && vhost && strcmp(vhost, "off"))
		r = refuse(option, "vhost", vhost, err);
	if (r == 0 && (!ifname || !id))
		r = refuse(option, ifname ? "id" : "ifname", NULL, err);
	if (r == 0)
		ifname = command_line_replace(c, ifname);
	if (r == 0 && (strlen(ifname) >= IFNAMSIZ || command_line_plain(option, ifname, NULL) < 0))
		r = refuse(option, "ifname", ifname, err);
	if (r == 0)
		r = command_line_plain(option, id, err);
	if (r == 0 && c->nics_n == VMM_NICS_MAX)
		r = ft_err_set(err, EPERM, "qemu: command line: more than %d network interfaces",
			       VMM_NICS_MAX);
	if (r == 0) {
		/* No script of the peer's choice ever runs. */
		argv_json(&c->run, "-netdev", "{s:s, s:s, s:s, s:s, s:s, s:b}", "type", "tap", "id",
			  id, "ifname", ifname, "script", "no", "downscript", "no", "vhost", 0);
		argv_opt(&c->trial, "-netdev", "tap,id=%s,vhost=off,fd=%u", id,
			 QEMU_FD_NIC + c->nics_n++);
	}
	json_decref(o);
	return r;
}

/* ---- character devices ---- */

static int add_socket(struct command_line *c, const char *option, const char *id,
		      struct ft_err *err)
{
	char path[2 * VMM_PATH_MAX], escaped[4 * VMM_PATH_MAX];

	snprintf(path, sizeof path, "%s/%s.%s.sock", c->rules->run_dir, c->rules->name, id);
	if (command_line_plain(option, id, err) < 0 || strchr(id, ',') ||
	    !argv_escape(escaped, sizeof escaped, path))
		return ft_err_set(err, EPERM, "qemu: command line: -%s: id=%s is not allowed",
				  option, id);
	argv_opt(&c->run, "-chardev", "socket,id=%s,path=%s,server=on,wait=off", id, escaped);
	argv_opt(&c->trial, "-chardev", "null,id=%s", id);
	return 0;
}

/* Wherever it led on the primary, here it is a socket in our run directory. */
int option_chardev(struct command_line *c, const char *option, const char *value,
		   struct ft_err *err)
{
	static const char *const backends[] = {"socket", "file",    "null", "stdio",
					       "pty",	 "ringbuf", NULL};
	const char *id;
	json_t *o;
	int r = parse(option, value, "backend", &o, err);

	id = options_get(o, "id");
	if (r == 0 && !is_one_of(options_get(o, "backend"), backends))
		r = refuse(option, "backend", options_get(o, "backend"), err);
	if (r == 0 && !id)
		r = refuse(option, "id", NULL, err);
	if (r == 0 && id &&
	    strncmp(id, QEMU_OURS,
		    strlen(QEMU_OURS))) /* the monitor of a guest that ours had started */
		r = add_socket(c, option, id, err);
	json_decref(o);
	return r;
}

int option_serial(struct command_line *c, const char *option, const char *value, struct ft_err *err)
{
	static const char *const known[] = {"null", "stdio", "pty", "vc", NULL};
	static const char *const kinds[] = {
		"unix:", "file:", "mon:", "tcp:", "telnet:", "pipe:", NULL};
	bool ok = is_one_of(value, known);
	char id[32];
	int r;

	if (!strcmp(value, "none") || !strncmp(value, "chardev:", 8)) {
		r = command_line_plain(option, value, err);
		if (r == 0)
			command_line_emit(c, "-serial", value);
		return r;
	}
	for (const char *const *k = kinds; *k && !ok; k++)
		ok = !strncmp(value, *k, strlen(*k));
	if (!ok)
		return ft_err_set(err, EPERM, "qemu: command line: -%s %s is not allowed", option,
				  value);
	snprintf(id, sizeof id, "serial%u", c->serials_n++);
	r = add_socket(c, option, id, err);
	argv_opt(&c->run, "-serial", "chardev:%s", id);
	argv_opt(&c->trial, "-serial", "chardev:%s", id);
	return r;
}

/* ---- devices and objects ---- */

int option_device(struct command_line *c, const char *option, const char *value, struct ft_err *err)
{
	static const char *const drivers[] = {"virtio-blk", "virtio-net", "virtio-serial",
					      "virtio-rng", NULL};
	static const char *const buses[] = {
		"", "-pci", "-pci-transitional", "-pci-non-transitional", "-device", NULL};
	static const char *const others[] = {
		"virtserialport", "virtconsole",     "isa-serial", "pci-serial",  "pci-bridge",
		"pcie-root-port", "pcie-pci-bridge", "pvpanic",	   "pvpanic-pci", NULL};
	const char *driver, *key, *text;
	bool ok = false;
	json_t *o, *item;
	int r = parse(option, value, "driver", &o, err);

	driver = options_get(o, "driver");
	ok = is_one_of(driver, others);
	for (const char *const *d = drivers; *d && driver && !ok; d++)
		ok = !strncmp(driver, *d, strlen(*d)) && is_one_of(driver + strlen(*d), buses);
	if (r == 0 && !ok)
		r = refuse(option, "driver", driver, err);
	json_object_foreach(o, key, item)
	{
		text = options_get(o, key);
		if (r == 0 && text && command_line_plain(option, text, err) < 0)
			r = refuse(option, key, text, err);
	}
	if (r == 0)
		r = emit_both(c, option, o, "driver", err);
	json_decref(o);
	return r;
}

int option_object(struct command_line *c, const char *option, const char *value, struct ft_err *err)
{
	static const char *const rng[] = {"rng-random", "rng-builtin", NULL};
	static const char *const ram[] = {"memory-backend-ram", "memory-backend-memfd",
					  "memory-backend-file", NULL};
	static const char *const keys[] = {"qom-type", "id", "filename", NULL};
	static const char *const sources[] = {"/dev/urandom", "/dev/random", NULL};
	const char *type;
	json_t *o;
	int r = parse(option, value, "qom-type", &o, err);

	type = options_get(o, "qom-type");
	if (r == 0 && is_one_of(type, ram)) {
		json_decref(o); /* ours in its place; if there are more, the memory is not one
				   block, and the primary says so */
		return 0;
	}
	if (r == 0 && !is_one_of(type, rng))
		r = refuse(option, "qom-type", type, err);
	if (r == 0)
		r = check_keys(option, o, keys, "filename", err);
	if (r == 0 && options_get(o, "filename") && !is_one_of(options_get(o, "filename"), sources))
		r = refuse(option, "filename", options_get(o, "filename"), err);
	if (r == 0)
		r = emit_both(c, option, o, "qom-type", err);
	json_decref(o);
	return r;
}

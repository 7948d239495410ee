// SPDX-License-Identifier: Apache-2.0
// A standby for a guest that was not started by us, from the primary's command line. The peer is
// not trusted: what is on the list below is taken, each value by the narrowest rule that will do,
// and all else is refused by name. Its RAM becomes our memfd, its monitors are dropped for one of
// ours, its serial ports become sockets in our run directory.
#include "vmm-glue/qemu/command_line.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/qemu/internal.h"
#include "vmm-glue/qemu/options.h"

#define BINARY	      "qemu-system-x86_64"
#define APPEND_MAX    2048 /* the kernel's COMMAND_LINE_SIZE on x86 */
#define ARGUMENTS_MAX 200

void command_line_emit(struct command_line *c, const char *option, const char *value)
{
	argv_opt(&c->run, option, "%s", value);
	argv_opt(&c->trial, option, "%s", value);
}

int command_line_plain(const char *option, const char *value, struct ft_err *err)
{
	size_t n = strspn(value,
			  "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.,=+:-");

	if (value[n])
		return ft_err_set(err, EPERM,
				  "qemu: command line: -%s %s: '%c' is not allowed there", option,
				  value, value[n]);
	return 0;
}

const char *command_line_replace(const struct command_line *c, const char *word)
{
	for (const char *const *r = c->rules->replace; r && r[0] && r[1]; r += 2)
		if (!strcmp(word, r[0]))
			return r[1];
	return word;
}

static bool is_below(const char *path, const char *folder)
{
	size_t n = strlen(folder);

	while (n > 1 && folder[n - 1] == '/')
		n--;
	return !strncmp(path, folder, n) && (path[n] == '/' || (n == 1 && *folder == '/'));
}

static int replace_path(const struct command_line *c, const char *path, char out[VMM_PATH_MAX])
{
	for (const char *const *r = c->rules->replace; r && r[0] && r[1]; r += 2) {
		if (!strcmp(path, r[0]))
			return snprintf(out, VMM_PATH_MAX, "%s", r[1]);
		if (is_below(path, r[0]))
			return snprintf(out, VMM_PATH_MAX, "%s%s", r[1],
					path + strlen(r[0]) - (r[0][strlen(r[0]) - 1] == '/'));
	}
	return snprintf(out, VMM_PATH_MAX, "%s", path);
}

int command_line_path(struct command_line *c, const char *option, const char *path,
		      char out[VMM_PATH_MAX], struct ft_err *err)
{
	char real[PATH_MAX], allowed[PATH_MAX];

	if (replace_path(c, path, out) >= VMM_PATH_MAX)
		return ft_err_set(err, ENAMETOOLONG, "qemu: command line: -%s: path too long",
				  option);
	if (*out != '/')
		return ft_err_set(err, EPERM, "qemu: command line: -%s %s: not an absolute path",
				  option, out);
	/* The file itself must be there by now: a link that is made later cannot lead elsewhere
	 * than it was looked at. */
	if (!realpath(out, real))
		return ft_err_set(err, errno, "qemu: command line: -%s %s: %s", option, out,
				  strerror(errno));
	for (const char *const *d = c->rules->directories; d && *d; d++) {
		if (realpath(*d, allowed) && is_below(real, allowed)) {
			if (strlen(real) >= VMM_PATH_MAX)
				return ft_err_set(err, ENAMETOOLONG,
						  "qemu: command line: -%s: path too long", option);
			memcpy(out, real, strlen(real) + 1);
			return 0;
		}
	}
	return ft_err_set(err, EPERM, "qemu: command line: -%s %s: not below an allowed directory",
			  option, out);
}

/* ---- handlers ---- */

static int option_drop(struct command_line *c, const char *option, const char *value,
		       struct ft_err *err)
{
	(void)c, (void)option, (void)value, (void)err;
	return 0;
}

static int option_plain(struct command_line *c, const char *option, const char *value,
			struct ft_err *err)
{
	char dashed[32];
	int r = command_line_plain(option, value, err);

	snprintf(dashed, sizeof dashed, "-%s", option);
	if (r == 0)
		command_line_emit(c, dashed, value);
	return r;
}

static int option_switch(struct command_line *c, const char *option, const char *value,
			 struct ft_err *err)
{
	(void)value, (void)err;
	argv_add(&c->run, "-%s", option);
	argv_add(&c->trial, "-%s", option);
	return 0;
}

static int option_none(struct command_line *c, const char *option, const char *value,
		       struct ft_err *err)
{
	(void)c;
	if (strcmp(value, "none"))
		return ft_err_set(err, EPERM, "qemu: command line: -%s %s: only none is allowed",
				  option, value);
	return 0; /* ours says so anyway */
}

static int option_file(struct command_line *c, const char *option, const char *value,
		       struct ft_err *err)
{
	char path[VMM_PATH_MAX], dashed[32];
	int r = command_line_path(c, option, value, path, err);

	snprintf(dashed, sizeof dashed, "-%s", option);
	if (r == 0)
		command_line_emit(c, dashed, path);
	return r;
}

/* Words for the guest's kernel: any text. */
static int option_append(struct command_line *c, const char *option, const char *value,
			 struct ft_err *err)
{
	if (strlen(value) > APPEND_MAX)
		return ft_err_set(err, EPERM, "qemu: command line: -%s: too long", option);
	command_line_emit(c, "-append", value);
	return 0;
}

static int option_machine(struct command_line *c, const char *option, const char *value,
			  struct ft_err *err)
{
	static const char *const keys[] = {"type",
					   "usb",
					   "vmport",
					   "hpet",
					   "smbus",
					   "sata",
					   "i8042",
					   "pit",
					   "acpi",
					   "pic",
					   "rtc",
					   "isa-serial",
					   "pcie",
					   "graphics",
					   "smm",
					   "x-oem-id",
					   "dump-guest-core",
					   "mem-merge",
					   "kernel-irqchip",
					   "suppress-vmdesc"};
	json_t *o = options_parse(value, "type"), *item;
	char text[512];
	const char *key;
	void *next;
	int r = o ? command_line_plain(option, value, err)
		  : ft_err_set(err, EPERM, "qemu: command line: -%s: malformed", option);

	json_object_foreach_safe(o, next, key, item)
	{
		bool known = false;

		for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
			known = known || !strcmp(key, keys[i]);
		if (!strcmp(key, "accel") || !strcmp(key, "memory-backend"))
			json_object_del(o, key); /* this host's */
		else if (!known && r == 0)
			r = ft_err_set(err, EPERM, "qemu: command line: -%s: %s is not allowed",
				       option, key);
	}
	if (r == 0 && !options_print(o, "type", text, sizeof text))
		r = ft_err_set(err, EPERM, "qemu: command line: -%s: too long", option);
	if (r == 0) {
		char *with_ram = NULL;

		if (asprintf(&with_ram, "%s,accel=%s,memory-backend=ram0", text,
			     qemu_kvm_works() ? "kvm" : "tcg") < 0)
			r = ft_err_set(err, ENOMEM, "qemu: no memory");
		else
			command_line_emit(c, "-machine", with_ram);
		free(with_ram);
	}
	json_decref(o);
	return r;
}

static int option_memory(struct command_line *c, const char *option, const char *value,
			 struct ft_err *err)
{
	json_t *o = options_parse(value, "size");
	const char *size = options_get(o, "size");
	char *end = NULL;
	/* A sign is no digit: -1 would be a very large number. */
	uint64_t n = size && isdigit((unsigned char)*size) ? strtoull(size, &end, 10) : 0;
	unsigned shift = 20; /* QEMU: MiB without a suffix */

	if (end && *end) {
		static const char units[] = "BKMGT";
		const char *unit =
			isalpha((unsigned char)*end) ? strchr(units, *end & ~0x20) : NULL;

		shift = unit && end[1] == '\0' ? 10 * (unsigned)(unit - units) : 64;
	}
	if (!size || json_object_size(o) != 1 || n == 0 || shift == 64 || n > UINT64_MAX >> shift) {
		json_decref(o);
		return ft_err_set(err, EPERM, "qemu: command line: -%s %s: only a size is allowed",
				  option, value);
	}
	json_decref(o);
	c->memory_bytes = n << shift;
	if (c->rules->memory_bytes_max && c->memory_bytes > c->rules->memory_bytes_max)
		return ft_err_set(err, EPERM,
				  "qemu: command line: -%s %s: more than this host allows", option,
				  value);
	return 0;
}

static const struct {
	const char *name;
	bool has_value;
	option_handler *handle;
} allowed_options[] = {
	/* the machine */
	{"machine", true, option_machine},
	{"M", true, option_machine},
	{"m", true, option_memory},
	{"cpu", true, option_plain},
	{"smp", true, option_plain},
	{"uuid", true, option_plain},
	{"rtc", true, option_plain},
	{"boot", true, option_plain},
	{"global", true, option_plain},
	{"nodefaults", false, option_switch},
	{"no-user-config", false, option_drop},
	{"no-acpi", false, option_switch},
	{"no-hpet", false, option_switch},
	{"no-reboot", false, option_switch},
	{"no-shutdown", false, option_switch},
	{"kernel", true, option_file},
	{"initrd", true, option_file},
	{"append", true, option_append},
	/* devices */
	{"device", true, option_device},
	{"drive", true, option_drive},
	{"blockdev", true, option_blockdev},
	{"netdev", true, option_netdev},
	{"chardev", true, option_chardev},
	{"serial", true, option_serial},
	{"object", true, option_object},
	{"vga", true, option_none},
	/* this host's own business */
	{"name", true, option_drop},
	{"accel", true, option_drop},
	{"enable-kvm", false, option_drop},
	{"display", true, option_drop},
	{"monitor", true, option_drop},
	{"qmp", true, option_drop},
	{"qmp-pretty", true, option_drop},
	{"mon", true, option_drop},
	{"incoming", true, option_drop},
	{"S", false, option_drop},
	{"daemonize", false, option_drop},
	{"pidfile", true, option_drop},
	{"D", true, option_drop},
	{"msg", true, option_drop},
	{"L", true, option_drop},
	{"sandbox", true, option_drop},
	{"overcommit", true, option_drop},
};

static int take_option(struct command_line *c, const char *const *argv, struct ft_err *err)
{
	const char *name = argv[0] + (argv[0][0] == '-') + (argv[0][0] == '-' && argv[0][1] == '-');

	if (name == argv[0])
		return ft_err_set(err, EPERM,
				  "qemu: command line: %s: a disk without an option is not allowed",
				  argv[0]);
	for (size_t i = 0; i < sizeof allowed_options / sizeof *allowed_options; i++) {
		bool has_value = allowed_options[i].has_value;
		int r;

		if (strcmp(name, allowed_options[i].name))
			continue;
		if (has_value && !argv[1])
			return ft_err_set(err, EPERM, "qemu: command line: -%s: without a value",
					  name);
		r = allowed_options[i].handle(c, name, has_value ? argv[1] : NULL, err);
		return r < 0 ? r : 1 + has_value;
	}
	return ft_err_set(err, EPERM, "qemu: command line: -%s is not allowed", name);
}

static void begin(struct command_line *c)
{
	const char *binary = c->rules->binary ? c->rules->binary : BINARY;

	argv_add(&c->run, "%s", binary);
	argv_add(&c->trial, "%s", binary);
	argv_opt(&c->run, "-name", "%s", c->rules->name);
	argv_opt(&c->trial, "-name", "%s-trial", c->rules->name);
}

int command_line_translate(struct command_line *c, const char *const *argv, struct ft_err *err)
{
	int r = 0;

	begin(c);
	for (unsigned at = 1; *argv && argv[at] && r >= 0; at += (unsigned)r) {
		if (at > ARGUMENTS_MAX)
			return ft_err_set(err, EPERM, "qemu: command line: more than %d arguments",
					  ARGUMENTS_MAX);
		r = take_option(c, argv + at, err);
		if (r < 0)
			return r;
	}
	if (c->memory_bytes == 0 || c->memory_bytes % VMM_PAGE_BYTES)
		return ft_err_set(err, EPERM,
				  "qemu: command line: it does not say how much memory (-m)");
	qemu_common_argv(&c->run, QEMU_WAIT, c->memory_bytes);
	qemu_common_argv(&c->trial, QEMU_TRIAL, c->memory_bytes);
	r = argv_check(&c->run, err);
	return r < 0 ? r : argv_check(&c->trial, err);
}

int qemu_arm_command_line(const char *const *argv, const struct qemu_arm_rules *rules,
			  struct vmm **out, struct ft_err *err)
{
	struct command_line c = {.rules = rules};
	struct qemu *vm = NULL;
	int r = qemu_new(rules->name, rules->run_dir, rules->keeper, &vm, err);

	if (r < 0)
		return r;
	vm->huge_pages = rules->huge_pages;
	r = command_line_translate(&c, argv, err);
	if (r == 0)
		r = qemu_arm_argv(vm, &c.run, &c.trial, c.memory_bytes, err);
	argv_free(&c.run);
	argv_free(&c.trial);
	if (r < 0) {
		qemu_free(&vm->vmm);
		return r;
	}
	*out = &vm->vmm;
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/* Guest file and --set to struct ft_config. libconfuse knows the syntax; to it every value is a
 * string (or a list of them), so that the file and --set go through the same table and the same
 * checks, and every complaint is ours. It calls back after each value, which is when the line is
 * known. */
#include "tools/agent/config.h"
#include "tools/agent/config_parts.h"

#include <assert.h>
#include <confuse.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTIONS_MAX 12

struct loader {
	struct ft_config *config;
	struct config_origins origins;
	char dir[PATH_MAX];
	bool closed[2][CONFIG_ITEMS_MAX]; /* disks, nics whose section has ended in the file */
	struct ft_err *err;
};

/* libconfuse hands its callbacks no pointer of ours. Set during config_load() only. */
static struct loader *loading;

int config_blame(const struct config_origins *origins, int line, const char *section,
		 const char *title, const char *name, struct ft_err *err)
{
	char key[3 * VMM_NAME_MAX];

	snprintf(key, sizeof key, "%s%s%s%s%s", section, *section && *title ? "." : "", title,
		 *section && *name ? "." : "", name);
	if (line > 0)
		return ft_err_context(err, "%s:%d: %s", origins->file, line, key);
	if (line == CONFIG_BY_SET)
		return ft_err_context(err, "--set %s", key);
	return ft_err_context(err, "%s: %s", origins->file, key);
}

/* Sections of which there are several, told apart by their titles. */
static bool is_titled(const char *section)
{
	return !strcmp(section, "disk") || !strcmp(section, "nic");
}

static char *item_id(struct ft_config *config, bool disk, unsigned i)
{
	return disk ? config->disks[i].id : config->nics[i].id;
}

/* The disk or NIC of that name, 0 for every other section; a new one is appended when `add`.
 * -errno. */
static int find_item(struct loader *l, const char *section, const char *title, bool add)
{
	bool disk = !strcmp(section, "disk");
	unsigned *n = disk ? &l->config->disks_n : &l->config->nics_n;

	if (!is_titled(section))
		return 0;
	for (unsigned i = 0; i < *n; i++)
		if (!strcmp(item_id(l->config, disk, i), title))
			return (int)i;
	if (!add)
		return ft_err_set(l->err, ENOENT, "%s has no %s '%s'", l->origins.file, section,
				  title);
	if (!ctl_name_ok(title))
		return ft_err_set(l->err, EINVAL, "'%s' is not a name (%s)", title, CTL_NAME_RULE);
	if (*n == CONFIG_ITEMS_MAX)
		return ft_err_set(l->err, E2BIG, "more than %u of them", *n);
	snprintf(item_id(l->config, disk, *n), VMM_NAME_MAX, "%s", title);
	return (int)(*n)++;
}

static void *value_of(struct loader *l, const struct config_key *key, int item)
{
	char *base = (char *)l->config;

	if (!strcmp(key->section, "disk"))
		base = (char *)&l->config->disks[item];
	else if (!strcmp(key->section, "nic"))
		base = (char *)&l->config->nics[item];
	return base + key->offset;
}

static int append(struct loader *l, const struct config_key *key, const char *text,
		  struct config_list *list)
{
	int ret;

	if (list->n == CONFIG_LIST_MAX)
		return ft_err_set(l->err, E2BIG, "more than %d entries", CONFIG_LIST_MAX);
	ret = key->parse(key, l->dir, text, list->item[list->n], l->err);
	if (!ret)
		list->n++;
	return ret;
}

/* ---- the file ---- */

/* Called again for each entry of a list, with all entries so far. */
static int take_list(struct loader *l, const struct config_key *key, cfg_opt_t *opt,
		     struct config_list *list)
{
	int ret = 0;

	list->n = 0;
	for (unsigned i = 0; i < cfg_opt_size(opt) && !ret; i++)
		ret = append(l, key, cfg_opt_getnstr(opt, i), list);
	return ret;
}

static int take_value(struct loader *l, const struct config_key *key, cfg_t *cfg, cfg_opt_t *opt)
{
	int item = find_item(l, key->section, cfg_title(cfg), true), *line;

	if (item < 0)
		return item;
	if (is_titled(key->section) && l->closed[!strcmp(key->section, "nic")][item])
		return ft_err_set(l->err, EEXIST, "this %s is there already", key->section);
	line = &l->origins.line[key - config_keys][item];
	if (key->list) {
		*line = cfg->line;
		return take_list(l, key, opt, value_of(l, key, item));
	}
	if (*line)
		return ft_err_set(l->err, EEXIST, "given twice, first in line %d", *line);
	*line = cfg->line;
	return key->parse(key, l->dir, cfg_opt_getnstr(opt, 0), value_of(l, key, item), l->err);
}

static const char *section_of(cfg_t *cfg)
{
	return strcmp(cfg_name(cfg), "root") ? cfg_name(cfg) : "";
}

static const char *title_of(cfg_t *cfg)
{
	return cfg_title(cfg) ? cfg_title(cfg) : "";
}

static int on_value(cfg_t *cfg, cfg_opt_t *opt)
{
	const struct config_key *key = config_key_find(section_of(cfg), cfg_opt_name(opt));

	assert(key);
	if (!take_value(loading, key, cfg, opt))
		return 0;
	config_blame(&loading->origins, cfg->line, key->section, title_of(cfg), key->name,
		     loading->err);
	return -1;
}

/* The end of a disk's or NIC's section; it may have been empty. */
static int on_section(cfg_t *cfg, cfg_opt_t *opt)
{
	for (unsigned i = 0; i < cfg_opt_size(opt); i++) {
		const char *title = cfg_title(cfg_opt_getnsec(opt, i));
		int item = find_item(loading, cfg_opt_name(opt), title, true);

		if (item < 0) {
			config_blame(&loading->origins, cfg->line, cfg_opt_name(opt), title, "",
				     loading->err);
			return -1;
		}
		loading->closed[!strcmp(cfg_opt_name(opt), "nic")][item] = true;
	}
	return 0;
}

/* Mistakes of syntax, and unknown keys. */
static void on_error(cfg_t *cfg, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void on_error(cfg_t *cfg, const char *fmt, va_list ap)
{
	char what[FT_ERR_TEXT_MAX / 2];

	vsnprintf(what, sizeof what, fmt, ap);
	if (loading->err->code)
		return; /* the first mistake counts */
	ft_err_set(loading->err, EINVAL, "%s", what);
	if (*section_of(cfg))
		config_blame(&loading->origins, cfg->line, section_of(cfg), title_of(cfg), "",
			     loading->err);
	else
		ft_err_context(loading->err, "%s:%d", loading->origins.file, cfg->line);
}

/* libconfuse's own table, made from ours. Options of the top level include the sections. */
struct options {
	cfg_opt_t root[CONFIG_KEYS_MAX + SECTIONS_MAX + 1];
	cfg_opt_t section[SECTIONS_MAX][CONFIG_KEYS_MAX + 1];
	const char *names[SECTIONS_MAX];
};

static cfg_opt_t *options_of(struct options *o, const char *section)
{
	unsigned i;

	if (!*section)
		return o->root;
	for (i = 0; o->names[i]; i++)
		if (!strcmp(o->names[i], section))
			return o->section[i];
	assert(i + 1 < SECTIONS_MAX);
	o->names[i] = section;
	return o->section[i];
}

static void add_option(cfg_opt_t *to, cfg_opt_t option, cfg_validate_callback_t valid)
{
	while (to->name)
		to++;
	*to = option;
	to->validcb = valid;
}

static void make_options(struct options *o)
{
	memset(o, 0, sizeof *o);
	for (unsigned i = 0; i < config_keys_n; i++) {
		const struct config_key *key = &config_keys[i];
		cfg_opt_t one = CFG_STR(key->name, NULL, CFGF_NODEFAULT);
		cfg_opt_t list = CFG_STR_LIST(key->name, NULL, CFGF_NODEFAULT);

		add_option(options_of(o, key->section), key->list ? list : one, on_value);
	}
	for (unsigned i = 0; o->names[i]; i++) {
		bool titled = is_titled(o->names[i]);
		cfg_opt_t section = CFG_SEC(o->names[i], o->section[i],
					    titled ? CFGF_MULTI | CFGF_TITLE : CFGF_NONE);

		add_option(o->root, section, titled ? on_section : NULL);
	}
}

static int parse_text(struct loader *l, char *text)
{
	struct options options;
	FILE *stream =
		*text ? fmemopen(text, strlen(text), "r") : NULL; /* it takes no empty buffer */
	cfg_t *cfg = NULL;
	int ret = 0;

	make_options(&options);
	if (stream)
		cfg = cfg_init(options.root, CFGF_NONE);
	if (cfg) {
		loading = l;
		cfg_set_error_function(cfg, on_error);
		if (cfg_parse_fp(cfg, stream) != CFG_SUCCESS)
			ret = l->err->code ? -l->err->code
					   : ft_err_set(l->err, EINVAL, "%s:%d: syntax error",
							l->origins.file, cfg->line);
		loading = NULL;
		cfg_free(cfg);
	} else if (*text) {
		ret = ft_err_set(l->err, ENOMEM, "%s: out of memory", l->origins.file);
	}
	if (stream)
		fclose(stream);
	return ret;
}

/* ---- --set ---- */

/* Splits "disk.root.image" at its first and last dot, so that a title may contain dots; "cpus" and
 * "ft.trigger" have no title. */
static int split_key(const char *dotted, char section[VMM_NAME_MAX], char title[VMM_NAME_MAX],
		     const char **name)
{
	const char *first = strchr(dotted, '.'), *last = strrchr(dotted, '.');
	int n;

	*section = *title = 0;
	*name = last ? last + 1 : dotted;
	if (!first)
		return 0;
	n = snprintf(section, VMM_NAME_MAX, "%.*s", (int)(first - dotted), dotted);
	if (n >= VMM_NAME_MAX)
		return -ENOENT;
	if (first != last)
		n = snprintf(title, VMM_NAME_MAX, "%.*s", (int)(last - first - 1), first + 1);
	return n >= VMM_NAME_MAX ? -ENOENT : 0;
}

static int apply_set(struct loader *l, const char *set)
{
	const char *equal = strchr(set, '='), *name;
	char dotted[CONFIG_TEXT_MAX], section[VMM_NAME_MAX], title[VMM_NAME_MAX];
	const struct config_key *key = NULL;
	int item, *line, ret;

	if (!equal || equal == set)
		return ft_err_set(l->err, EINVAL, "--set %s: expects KEY=VALUE", set);
	ret = snprintf(dotted, sizeof dotted, "%.*s", (int)(equal - set), set);
	if (ret < (int)sizeof dotted && !split_key(dotted, section, title, &name))
		key = config_key_find(section, name);
	if (!key || is_titled(section) != (*title != 0))
		return ft_err_set(l->err, ENOENT, "--set %s: no such key", dotted);
	item = find_item(l, section, title, false);
	if (item < 0)
		return ft_err_context(l->err, "--set %s", dotted);
	line = &l->origins.line[key - config_keys][item];
	if (key->list) {
		struct config_list *list = value_of(l, key, item);

		if (*line != CONFIG_BY_SET)
			list->n = 0;
		ret = append(l, key, equal + 1, list);
	} else {
		ret = key->parse(key, l->dir, equal + 1, value_of(l, key, item), l->err);
	}
	*line = CONFIG_BY_SET;
	return ret ? ft_err_context(l->err, "--set %s", dotted) : 0;
}

static void set_defaults(struct ft_config *c)
{
	memset(c, 0, sizeof *c);
	c->memory_bytes = 256u << 20;
	c->cpus = 1;
	snprintf(c->machine, sizeof c->machine, "%s", "pc");
	snprintf(c->cpu, sizeof c->cpu, "%s", "max");
	snprintf(c->qemu.binary, sizeof c->qemu.binary, "%s", "qemu-system-x86_64");
	c->ft.trigger = FT_TRIGGER_OUTPUT;
	c->ft.interval_ms = 50;
	c->ft.max_downtime_ms = 30;
	c->ft.max_overhead = 0.25;
	c->ft.heartbeat_ms = 50;
	c->ft.takeover_ms = 300;
	c->arbiter.fence_timeout_ms = 30000;
	c->ft.staging_bytes = 128u << 20;
	c->ft.history_seconds = 60;
	c->ft.delta_base_bytes = 64u << 20;
	c->arbiter.survivor = FT_SURVIVOR_STANDBY;
}

static int find_dir(struct loader *l, const char *file)
{
	char *slash, *real = realpath(file, NULL);

	if (!real)
		return ft_err_set(l->err, errno, "%s: cannot open: %s", file, strerror(errno));
	slash = strrchr(real, '/');
	slash[slash == real] = 0;
	snprintf(l->dir, sizeof l->dir, "%s", real);
	free(real);
	return 0;
}

/* What is quoted in a complaint came from the file and may be anything: it stays one line. */
static int complain(int ret, struct ft_err *err)
{
	for (char *p = err->text; *p; p++)
		if (iscntrl((unsigned char)*p))
			*p = '?';
	return ret;
}

int config_load(const char *file, const char *const *sets, unsigned sets_n,
		struct ft_config *config, struct ft_err *err)
{
	struct loader l = {.config = config, .origins = {.file = file}, .err = err};
	char *text;
	int ret;

	assert(err);
	*err = (struct ft_err){0};
	set_defaults(config);
	ret = find_dir(&l, file);
	if (!ret)
		ret = config_text_read(file, &text, err);
	if (ret)
		return complain(ret, err);
	ret = parse_text(&l, text);
	free(text);
	for (unsigned i = 0; i < sets_n && !ret; i++)
		ret = apply_set(&l, sets[i]);
	if (!ret)
		ret = config_check(config, &l.origins, err);
	return ret ? complain(ret, err) : 0;
}

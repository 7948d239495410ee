// SPDX-License-Identifier: Apache-2.0
#include "tests/agent/backups.h"

#include <jansson.h>

void guest_writes(const struct host *h, unsigned first, unsigned n)
{
	guest_noise(h, 4096, first, n);
}

Ctl__Reply *ask_for(struct host *h, const char *command, const char *action, const char *name,
		    uint32_t granularity)
{
	Ctl__Request r = CTL__REQUEST__INIT;

	r.command = (char *)(uintptr_t)command;
	r.action = (char *)(uintptr_t)action;
	r.disk = (char *)"root";
	r.bitmap = (char *)(uintptr_t)name;
	r.granularity = granularity;
	return ask_any(h, &r);
}

Ctl__Reply *bitmap(struct host *h, const char *action, const char *name, uint32_t granularity)
{
	return ask_for(h, "bitmap", action, name, granularity);
}

void bitmap_ok(struct host *h, const char *action, const char *name, uint32_t granularity)
{
	Ctl__Reply *reply = bitmap(h, action, name, granularity);

	if (*reply->error)
		fail_msg("%s %s: %s", action, name, reply->message);
	ctl__reply__free_unpacked(reply, NULL);
}

void bitmap_refused(struct host *h, const char *action, const char *name, const char *why)
{
	Ctl__Reply *reply = bitmap(h, action, name, 0);

	if (!strstr(reply->message, why))
		fail_msg("%s %s: '%s' is not '%s'", action, name, reply->message, why);
	ctl__reply__free_unpacked(reply, NULL);
}

uint64_t dirty_of(struct host *h, const char *name, bool *inconsistent)
{
	Ctl__Reply *reply = bitmap(h, "list", "", 0);
	uint64_t dirty = UINT64_MAX;

	for (size_t i = 0; i < reply->n_bitmaps; i++) {
		if (strcmp(reply->bitmaps[i]->name, name))
			continue;
		dirty = reply->bitmaps[i]->dirty_bytes;
		*inconsistent = reply->bitmaps[i]->inconsistent;
	}
	ctl__reply__free_unpacked(reply, NULL);
	return dirty;
}

void digest_of(struct host *h, const char *name, char out[65])
{
	Ctl__Reply *reply = bitmap(h, "sha256", name, 0);

	assert_int_equal(strlen(reply->sha256), 64);
	snprintf(out, 65, "%s", reply->sha256);
	ctl__reply__free_unpacked(reply, NULL);
}

void export_of(struct host *h, char out[300])
{
	Ctl__Reply *reply = bitmap(h, "list", "", 0);

	assert_true(strlen(reply->export_uri) > 0);
	snprintf(out, 300, "%s", reply->export_uri);
	ctl__reply__free_unpacked(reply, NULL);
}

/* ---- the backup tool ---- */

void full_backup(struct host *h, const char *target)
{
	char uri[300];

	export_of(h, uri);
	shell("qemu-img convert -f raw -O raw '%s' %s", uri, at("%s", target));
	shell("test $(stat -c %%s %s) = %u", at("%s", target), DISK_BYTES);
}

/* What qemu-img finds dirty, copied over the backup. Returns how many bytes that were. */
uint64_t incremental_backup(struct host *h, const char *name, const char *target)
{
	char socket[300], *path, command[1200];
	uint64_t bytes = 0;
	json_t *map, *entry;
	size_t i;

	export_of(h, socket);
	path = strstr(socket, "socket=");
	assert_non_null(path);
	/* In this view a dirty part is told as "data": false. */
	snprintf(command, sizeof command,
		 "qemu-img map --output=json --image-opts driver=nbd,export=root,server.type=unix,"
		 "server.path=%s,x-dirty-bitmap=qemu:dirty-bitmap:%s > %s",
		 path + 7, name, at("map.json"));
	shell("%s", command);
	map = json_load_file(at("map.json"), 0, NULL);
	assert_true(json_is_array(map));
	json_array_foreach(map, i, entry)
	{
		json_int_t start = json_integer_value(json_object_get(entry, "start")),
			   length = json_integer_value(json_object_get(entry, "length"));

		if (json_is_true(json_object_get(entry, "data")))
			continue;
		shell("qemu-img dd -f raw -O raw bs=4096 "
		      "skip=%lld count=%lld if='%s' of=%s 2> /dev/null",
		      (long long)start / 4096, (long long)(start + length) / 4096, socket,
		      at("piece"));
		shell("dd if=%s of=%s bs=4096 seek=%lld conv=notrunc status=none", at("piece"),
		      at("%s", target), (long long)start / 4096);
		bytes += (uint64_t)length;
	}
	json_decref(map);
	/* libnbd's tools see the same. */
	snprintf(command, sizeof command,
		 "nbdinfo --map=qemu:dirty-bitmap:%s --totals '%s' | grep -q ' *%llu .* 1 '", name,
		 socket, (unsigned long long)bytes);
	shell("%s", command);
	return bytes;
}

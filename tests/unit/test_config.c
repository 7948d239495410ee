// SPDX-License-Identifier: Apache-2.0
/* Guest files: what a good one becomes, and for each kind of mistake the exact line that the
 * operator sees. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/agent/config.h"
#include "tools/agent/config_parts.h"

static char dir[64];
static struct ft_config config; /* large */
static struct ft_err err;

static int setup(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/test-config-XXXXXX");
	return mkdtemp(dir) && !chdir(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	unlink("web1.conf");
	return chdir("/") || rmdir(dir);
}

static void write_file(const char *text)
{
	FILE *f = fopen("web1.conf", "w");

	assert_non_null(f);
	assert_int_not_equal(fputs(text, f), EOF);
	assert_int_equal(fclose(f), 0);
}

static int load(const char *text, const char *const *sets, unsigned n)
{
	write_file(text);
	return config_load("web1.conf", sets, n, &config, &err);
}

static void good(const char *text)
{
	if (load(text, NULL, 0))
		fail_msg("%s", err.text);
}

static const char *in_dir(const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	return path;
}

static void test_defaults(void **state)
{
	(void)state;
	good("name = \"web1\"\nkernel = \"vmlinuz\"\n");
	assert_string_equal(config.name, "web1");
	assert_int_equal(config.vmm, CONFIG_VMM_QEMU);
	assert_int_equal(config.source, CONFIG_LAUNCH);
	assert_int_equal(config.program, CONFIG_PROGRAM_KV);
	assert_int_equal(config.memory_bytes, 256 << 20);
	assert_int_equal(config.cpus, 1);
	assert_string_equal(config.machine, "pc");
	assert_string_equal(config.cpu, "max");
	assert_string_equal(config.kernel, in_dir("vmlinuz"));
	assert_string_equal(config.qemu.binary, "qemu-system-x86_64");
	assert_int_equal(config.ft.trigger, FT_TRIGGER_OUTPUT);
	assert_int_equal(config.ft.interval_ms, 50);
	assert_int_equal(config.ft.max_downtime_ms, 30);
	assert_true(config.ft.max_overhead == 0.25);
	assert_int_equal(config.ft.heartbeat_ms, 50);
	assert_int_equal(config.ft.takeover_ms, 300);
	assert_int_equal(config.ft.lease_ms, 300);
	assert_string_equal(config.arbiter.fence, "");
	assert_int_equal(config.arbiter.fence_timeout_ms, 30000);
	assert_false(config.ft.takeover_manual);
	assert_int_equal(config.ft.staging_bytes, 128 << 20);
	assert_int_equal(config.ft.history, 0);
	assert_int_equal(config.ft.history_seconds, 60);
	assert_int_equal(config.ft.history_bytes, 0);
	assert_int_equal(config.ft.delta_base_bytes, 64 << 20);
	assert_false(config.tls.insecure);
	assert_int_equal(config.arbiter.type, CONFIG_ARBITER_NONE);
	assert_int_equal(config.arbiter.survivor, FT_SURVIVOR_STANDBY);
	assert_int_equal(config.disks_n + config.nics_n, 0);
}

/* The example of the interface, in full. */
static const char full[] =
	"name    = \"web1\"\n"
	"vmm     = \"qemu\"                  # qemu | pocket\n"
	"memory  = \"1G\"\n"
	"cpus    = 2\n"
	"machine = \"q35\"                    // a type of -machine\n"
	"cpu     = \"qemu64\"\n"
	"kernel  = \"vmlinuz\"  initrd = \"initrd.gz\"  append = \"console=ttyS0 # quiet\"\n"
	"/* two\n   lines */ uuid = \"6b656d61-7269-4f54-a067-75657374696C\"\n"
	"disk root { image = \"web1.img\"  mode = \"shared\" }\n"
	"disk data.1 { image = /srv/data.img size = 8G }\n"
	"nic net0  { mac = \"52:54:00:12:34:5A\"  attach = \"bridge:br0\" }\n"
	"console   { log = \"web1.console\"  socket = \"web1.console.sock\" }\n"
	"qemu      { binary = \"./qemu\"  args = {\"-device\", \"virtio-rng-pci\"}\n"
	"            replace = {\"/a\", \"/b\"} directories = {\"disks\", \"/srv\"} }\n"
	"ft        { trigger = \"both\" interval_ms = 20  max_downtime_ms = 10 max_overhead = 0.5\n"
	"            heartbeat_ms = 30 takeover_ms = 200 lease_ms = 150 takeover = \"manual\"\n"
	"            staging = 64M delta_base = \"0\" }\n"
	"security  { seccomp = log }\n"
	"tls       { ca = \"ca.pem\"  cert = \"host.pem\"  key = \"host.key\" peer = {other, "
	"\"192.0.2.1\"} "
	"insecure = yes }\n"
	"arbiter   { type = \"etcd\" endpoints = {\"http://a:2379\", 'https://b:2379'}\n"
	"            user = ft password_file = secret prefix = \"/vms/\"\n"
	"            survivor = \"manual\" dir = gen fence = \"fence.sh\" fence_timeout_ms = 5000 "
	"}\n";

static void test_full(void **state)
{
	(void)state;
	good(full);
	assert_int_equal(config.memory_bytes, 1 << 30);
	assert_int_equal(config.cpus, 2);
	assert_string_equal(config.machine, "q35");
	assert_string_equal(config.append, "console=ttyS0 # quiet");
	assert_string_equal(config.uuid, "6b656d61-7269-4f54-a067-75657374696c");
	assert_int_equal(config.disks_n, 2);
	assert_string_equal(config.disks[0].id, "root");
	assert_string_equal(config.disks[0].image, in_dir("web1.img"));
	assert_int_equal(config.disks[0].mode, STORE_SHARED);
	assert_string_equal(config.disks[1].id, "data.1");
	assert_string_equal(config.disks[1].image, "/srv/data.img");
	assert_int_equal(config.disks[1].mode, STORE_REPLICATED);
	assert_true(config.disks[1].size == 8ull << 30);
	assert_int_equal(config.nics_n, 1);
	assert_string_equal(config.nics[0].mac, "52:54:00:12:34:5a");
	assert_int_equal(config.nics[0].attach.kind, CONFIG_NIC_BRIDGE);
	assert_string_equal(config.nics[0].attach.ifname, "br0");
	assert_string_equal(config.console.log, in_dir("web1.console"));
	assert_string_equal(config.qemu.binary, in_dir("./qemu"));
	assert_int_equal(config.qemu.args.n, 2);
	assert_string_equal(config.qemu.args.item[1], "virtio-rng-pci");
	assert_int_equal(config.qemu.replace.n, 2);
	assert_string_equal(config.qemu.replace.item[0], "/a");
	assert_string_equal(config.qemu.directories.item[0], in_dir("disks"));
	assert_string_equal(config.qemu.directories.item[1], "/srv");
	assert_int_equal(config.ft.trigger, FT_TRIGGER_BOTH);
	assert_true(config.ft.max_overhead == 0.5);
	assert_true(config.ft.takeover_manual);
	assert_int_equal(config.ft.delta_base_bytes, 0);
	assert_string_equal(config.tls.key, in_dir("host.key"));
	assert_int_equal(config.security.seccomp, CONFIG_SECCOMP_LOG);
	assert_int_equal(config.tls.peer.n, 2);
	assert_string_equal(config.tls.peer.item[0], "other");
	assert_string_equal(config.tls.peer.item[1], "192.0.2.1");
	assert_true(config.tls.insecure);
	assert_int_equal(config.arbiter.type, CONFIG_ARBITER_ETCD);
	assert_int_equal(config.arbiter.endpoints.n, 2);
	assert_string_equal(config.arbiter.endpoints.item[1], "https://b:2379");
	assert_string_equal(config.arbiter.user, "ft");
	assert_string_equal(config.arbiter.password_file, in_dir("secret"));
	assert_string_equal(config.arbiter.prefix, "/vms/");
	assert_int_equal(config.arbiter.survivor, FT_SURVIVOR_MANUAL);
	assert_int_equal(config.ft.lease_ms, 150);
	assert_string_equal(config.arbiter.fence, in_dir("fence.sh"));
	assert_int_equal(config.arbiter.fence_timeout_ms, 5000);
}

static void test_sources(void **state)
{
	(void)state;
	good("name = a disk d0 { mode = shared } qemu { attach = \"/run/a.qmp\" }");
	assert_int_equal(config.source, CONFIG_ATTACH);
	assert_string_equal(config.qemu.attach, "/run/a.qmp");
	assert_int_equal(config.disks[0].mode, STORE_SHARED);
	good("name = a disk d0 {} qemu { replace = {\"x\", \"y\"} binary = q }");
	assert_int_equal(config.source, CONFIG_FROM_PEER);
	assert_int_equal(config.disks_n, 1);
	good("name = a vmm = pocket program = dirty nic n { attach = \"udp:[::1]:4000\" }");
	assert_int_equal(config.program, CONFIG_PROGRAM_DIRTY);
	assert_int_equal(config.source, CONFIG_LAUNCH);
	assert_int_equal(config.nics[0].attach.kind, CONFIG_NIC_UDP);
	assert_string_equal(config.nics[0].attach.host, "::1");
	assert_int_equal(config.nics[0].attach.port, 4000);
}

/* Both hosts make the same ones; the UUID is what uuidgen --sha1 makes of the documented namespace.
 */
static void test_names(void **state)
{
	char mac[18];

	(void)state;
	good("name = web1 nic a { attach = \"tap:t0\" } nic b { attach = \"tap:t1\" }");
	assert_string_equal(config.uuid, "9b32af52-df3d-59c4-a679-b75f851fda98");
	snprintf(mac, sizeof mac, "%s", config.nics[0].mac);
	assert_int_equal(strncmp(mac, "52:54:00:", 9), 0);
	assert_int_equal(strlen(mac), 17);
	assert_string_not_equal(mac, config.nics[1].mac);
	good("name = web1 nic a { attach = \"tap:other\" }");
	assert_string_equal(mac, config.nics[0].mac);
	good("name = web2 nic a { attach = \"tap:t0\" }");
	assert_string_not_equal(config.uuid, "9b32af52-df3d-59c4-a679-b75f851fda98");
	assert_string_not_equal(mac, config.nics[0].mac);
	good("name = web1 uuid = \"0123ABCD-4567-89ab-cdef-0123456789ab\" kernel = k");
	assert_string_equal(config.uuid, "0123abcd-4567-89ab-cdef-0123456789ab");
}

#define A63  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define RULE "(1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first)"

static const struct {
	const char *text, *error;
} mistakes[] = {
	/* syntax */
	{"name = a\n# note\n\ncolour = red\n", "web1.conf:4: no such option 'colour'"},
	{"name = a\n/* note\n */\ndisk d {\n imag = x\n}\n",
	 "web1.conf:5: disk.d: no such option 'imag'"},
	{"ft {\n  interval = 5\n}\n", "web1.conf:2: ft: no such option 'interval'"},
	{"name \"a\"\n", "web1.conf:1: missing equal sign after option 'name'"},
	{"name = a\nname = {\"b\"}\n", "web1.conf:2: unexpected token '{'"},
	{"\ndisk { image = x }\n", "web1.conf:2: missing title for section 'disk'"},
	{"ft = 3\n", "web1.conf:1: missing opening brace for section 'ft'"},
	{"}\n", "web1.conf:1: unexpected closing brace"},
	{"name = a\ndisk d {\n image = x\n\n", "web1.conf:2: brace is never closed"},
	{"name = a\ncpu = \"max\nmemory = 1G\n", "web1.conf:2: string is never closed"},
	{"name = 'a\n", "web1.conf:1: string is never closed"},
	{"name = a\n/* x\n", "web1.conf:2: comment is never closed"},
	{"name =\n", "web1.conf:2: premature end of file"},
	/* names */
	{"", "web1.conf: name: missing"},
	{"# nothing\n", "web1.conf: name: missing"},
	{"cpus = 2\n", "web1.conf: name: missing"},
	{"name = \"../a\"\n", "web1.conf:1: name: '../a' is not a name " RULE},
	{"name = \"a/b\"\n", "web1.conf:1: name: 'a/b' is not a name " RULE},
	{"name = \"\"\n", "web1.conf:1: name: '' is not a name " RULE},
	{"name = \"-a\"\n", "web1.conf:1: name: '-a' is not a name " RULE},
	{"name = a" A63 "\n", "web1.conf:1: name: 'a" A63 "' is not a name " RULE},
	{"name = a\nuuid = \"123\"\n", "web1.conf:2: uuid: '123' is not a UUID"},
	{"name = a\nname = b\n", "web1.conf:2: name: given twice, first in line 1"},
	/* values */
	{"name = a\nvmm = xen\n", "web1.conf:2: vmm: 'xen' is none of qemu, pocket"},
	{"name = a\nhugepages = maybe\n",
	 "web1.conf:2: hugepages: 'maybe' is neither true nor false"},
	{"name = a\nmemory = 33M\nhugepages = true\n",
	 "web1.conf:2: memory: with hugepages it is a multiple of 2M"},
	{"memory = 256Q\n",
	 "web1.conf:1: memory: '256Q' is not a size (bytes, or with K, M, G or T)"},
	{"memory = M\n", "web1.conf:1: memory: 'M' is not a size (bytes, or with K, M, G or T)"},
	{"memory = 10MB\n",
	 "web1.conf:1: memory: '10MB' is not a size (bytes, or with K, M, G or T)"},
	{"memory = \"-1M\"\n",
	 "web1.conf:1: memory: '-1M' is not a size (bytes, or with K, M, G or T)"},
	{"memory = 64K\n", "web1.conf:1: memory: 64K is out of range (1M to 16777216M)"},
	{"memory = 99999999T\n",
	 "web1.conf:1: memory: 99999999T is out of range (1M to 16777216M)"},
	{"memory = 99999999999999999999999\n",
	 "web1.conf:1: memory: 99999999999999999999999 is out of range (1M to 16777216M)"},
	{"memory = 1025K\n", "web1.conf:1: memory: 1025K is not a multiple of 1M"},
	{"cpus = 0\n", "web1.conf:1: cpus: 0 is out of range (1 to 255)"},
	{"cpus = two\n", "web1.conf:1: cpus: 'two' is not a whole number"},
	{"cpus = -1\n", "web1.conf:1: cpus: '-1' is not a whole number"},
	{"machine = \"\"\n", "web1.conf:1: machine: is empty"},
	{"machine = \"pc\\n\"\n", "web1.conf:1: machine: contains a control character"},
	{"\n\nft {\n trigger = never }\n",
	 "web1.conf:4: ft.trigger: 'never' is none of output, interval, both"},
	{"ft {\n interval_ms = 0 }\n",
	 "web1.conf:2: ft.interval_ms: 0 is out of range (1 to 60000)"},
	{"ft { max_overhead = 1.5 }\n",
	 "web1.conf:1: ft.max_overhead: 1.5 is out of range (above 0, to 1)"},
	{"ft { max_overhead = nan }\n",
	 "web1.conf:1: ft.max_overhead: 'nan' is not a number such as 0.25"},
	{"ft { takeover = never }\n", "web1.conf:1: ft.takeover: 'never' is none of auto, manual"},
	{"ft { staging = 100 }\n", "web1.conf:1: ft.staging: 100 is out of range (1M to 1048576M)"},
	{"tls { insecure = maybe }\n",
	 "web1.conf:1: tls.insecure: 'maybe' is neither true nor false"},
	{"arbiter { endpoints = {\"http://a\",\n\"b:2379\"} }\n",
	 "web1.conf:2: arbiter.endpoints: 'b:2379' begins with neither http:// nor https://"},
	{"arbiter { endpoints = {\"http://\"} }\n",
	 "web1.conf:1: arbiter.endpoints: 'http://' names no host"},
	{"arbiter { survivor = me }\n",
	 "web1.conf:1: arbiter.survivor: 'me' is none of standby, primary, manual"},
	/* devices */
	{"disk \"a b\" { image = x }\n", "web1.conf:1: disk.a b.image: 'a b' is not a name " RULE},
	{"disk d { mode = raid }\n",
	 "web1.conf:1: disk.d.mode: 'raid' is none of replicated, shared"},
	{"disk d { size = 100 }\n", "web1.conf:1: disk.d.size: 100 is not a multiple of 512 bytes"},
	{"disk d { image = a }\ndisk d { image = b }\n",
	 "web1.conf:2: disk.d.image: this disk is there already"},
	{"name = a\ndisk d { mode = shared size = 1G }\n", "web1.conf: disk.d.image: missing"},
	{"nic n { mac = 1 }\n", "web1.conf:1: nic.n.mac: '1' is not a MAC address"},
	{"nic n { mac = \"01:00:5e:00:00:01\" }\n",
	 "web1.conf:1: nic.n.mac: '01:00:5e:00:00:01' is a multicast address"},
	{"nic n { attach = br0 }\n", "web1.conf:1: nic.n.attach: 'br0' is not KIND:WHERE "
				     "(bridge:NAME, tap:IFNAME, udp:HOST:PORT)"},
	{"nic n { attach = \"brige:br0\" }\n",
	 "web1.conf:1: nic.n.attach: 'brige' is none of bridge, tap, udp"},
	{"nic n { attach = \"bridge:\" }\n",
	 "web1.conf:1: nic.n.attach: 'bridge:' names no interface"},
	{"nic n { attach = \"tap:a-much-too-long-name\" }\n",
	 "web1.conf:1: nic.n.attach: 'tap:a-much-too-long-name': interface name is longer than 15 "
	 "bytes"},
	{"nic n { attach = \"tap:a,b\" }\n",
	 "web1.conf:1: nic.n.attach: 'tap:a,b': interface name contains ','"},
	{"nic n { attach = \"udp:host\" }\n", "web1.conf:1: nic.n.attach: 'udp:host' has no port"},
	{"nic n { attach = \"udp:host:99999\" }\n",
	 "web1.conf:1: nic.n.attach: 'udp:host:99999': bad port (1 to 65535)"},
	{"nic n { attach = \"udp::1\" }\n", "web1.conf:1: nic.n.attach: 'udp::1': bad host"},
	{"nic n { attach = \"udp:::1:5\" }\n",
	 "web1.conf:1: nic.n.attach: 'udp:::1:5': an IPv6 host needs brackets"},
	{"nic n { attach = \"udp:[::1:5\" }\n",
	 "web1.conf:1: nic.n.attach: 'udp:[::1:5': bracket is never closed"},
	{"name = a\nnic n {\n}\n", "web1.conf: nic.n.attach: missing"},
	{"name = a\nnic n {\n attach = \"udp:h:5\"\n}\n",
	 "web1.conf:3: nic.n.attach: vmm = \"qemu\" cannot use udp"},
	{"name = a vmm = pocket\nnic n { attach = \"tap:t\" }\n",
	 "web1.conf:2: nic.n.attach: vmm = \"pocket\" cannot use bridge or tap"},
	{"disk a{} disk b{} disk c{} disk d{} disk e{} disk f{} disk g{} disk h{}\ndisk i{}\n",
	 "web1.conf:2: disk.i: more than 8 of them"},
	/* combinations */
	{"name = a\n\ninitrd = x\n", "web1.conf:3: kernel: missing, initrd needs it"},
	{"name = a\nappend = x\n", "web1.conf:2: kernel: missing, append needs it"},
	{"name = a\ncpus = 2\nqemu { attach = x }\n",
	 "web1.conf:2: cpus: not together with qemu.attach"},
	{"name = a\nqemu { attach = x }\ndisk d { image = x }\n",
	 "web1.conf:3: disk.d.image: not together with qemu.attach"},
	{"name = a\nqemu { attach = x }\nnic n { }\n",
	 "web1.conf: nic.n: not together with qemu.attach"},
	{"name = a vmm = pocket\nqemu { attach = x }\n",
	 "web1.conf:2: qemu.attach: only for vmm = \"qemu\""},
	{"name = a\nqemu { replace = {\"a\", \"b\",\n\"c\"} }\n",
	 "web1.conf:3: qemu.replace: an odd number of entries; they are OLD, NEW, OLD, NEW ..."},
	{"name = a\nqemu { attach = \"/" A63 A63 "\" }\n",
	 "web1.conf:2: qemu.attach: longer than 107 bytes, the bound of a unix socket"},
	{"name = a\nft { heartbeat_ms = 200 }\n",
	 "web1.conf:2: ft.heartbeat_ms: takeover_ms (300) is less than twice heartbeat_ms (200)"},
	{"name = a\nft { takeover_ms = 900\n lease_ms = 99 }\n",
	 "web1.conf:3: ft.lease_ms: lease_ms (99) is less than twice heartbeat_ms (50)"},
	{"name = a\ntls {\n cert = x }\n", "web1.conf:3: tls.ca: missing, tls.cert needs it"},
	{"name = a\ntls {\n cert = x ca = x }\n",
	 "web1.conf:3: tls.key: missing, tls.cert needs it"},
	{"name = a\ntls {\n ca = x }\n", "web1.conf:3: tls.cert: missing, tls.ca needs it"},
	{"name = a\narbiter { type = file }\n",
	 "web1.conf:2: arbiter.dir: missing, arbiter.type needs it"},
	{"name = a\narbiter { type = etcd }\n",
	 "web1.conf:2: arbiter.endpoints: missing, arbiter.type needs it"},
	{"name = a\narbiter {\n type = none\n key = x }\n",
	 "web1.conf:4: arbiter.ca: missing, arbiter.key needs it"},
	{"name = a\narbiter {\n type = etcd endpoints = {'http://a'}\n user = x }\n",
	 "web1.conf:4: arbiter.password_file: missing, arbiter.user needs it"},
	{"name = a\narbiter {\n type = etcd endpoints = {'http://a'}\n password_file = x }\n",
	 "web1.conf:4: arbiter.user: missing, arbiter.password_file needs it"},
	{"name = a\narbiter { type = etcd endpoints = {'http://1', 'http://2', 'http://3',\n"
	 "'http://4', 'http://5', 'http://6', 'http://7', 'http://8', 'http://9'} }\n",
	 "web1.conf:3: arbiter.endpoints: more than 8"},
};

static void test_mistakes(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
		if (!load(mistakes[i].text, NULL, 0))
			fail_msg("accepted: %s", mistakes[i].text);
		assert_string_equal(err.text, mistakes[i].error);
		assert_true(err.code > 0);
	}
	/* A mistake leaves nothing behind that the next file would see. */
	good(full);
}

static void test_bounds(void **state)
{
	static char text[CONFIG_FILE_MAX + 2];
	int n = 0;

	(void)state;
	memset(text, '#', sizeof text - 1);
	assert_int_equal(load(text, NULL, 0), -EFBIG);
	assert_string_equal(err.text, "web1.conf: larger than 262144 bytes");
	n += snprintf(text, sizeof text, "name = a qemu { args = {");
	for (int i = 0; i < CONFIG_LIST_MAX + 1; i++)
		n += snprintf(text + n, sizeof text - (size_t)n, "%s\"-x\"", i ? "," : "");
	snprintf(text + n, sizeof text - (size_t)n, "} }");
	assert_int_equal(load(text, NULL, 0), -E2BIG);
	assert_string_equal(err.text, "web1.conf:1: qemu.args: more than 64 entries");
	n = snprintf(text, sizeof text, "name = a\nappend = ");
	memset(text + n, 'x', CONFIG_APPEND_MAX);
	text[n + CONFIG_APPEND_MAX] = 0;
	assert_int_equal(load(text, NULL, 0), -ENAMETOOLONG);
	assert_string_equal(err.text, "web1.conf:2: append: longer than 2047 bytes");
}

static void test_no_file(void **state)
{
	(void)state;
	assert_int_equal(config_load("absent.conf", NULL, 0, &config, &err), -ENOENT);
	assert_string_equal(err.text, "absent.conf: cannot open: No such file or directory");
	assert_int_equal(config_load(dir, NULL, 0, &config, &err), -EISDIR);
	assert_non_null(strstr(err.text, ": cannot read: Is a directory"));
}

static void test_set(void **state)
{
	const char *const sets[] = {"disk.data.1.image=other.img",
				    "ft.interval_ms=7",
				    "arbiter.type=none",
				    "cpus=4",
				    "qemu.args=-m",
				    "qemu.args=64,slots=2",
				    "append=a=b c",
				    "nic.net0.attach=tap:t"};

	(void)state;
	if (load(full, sets, sizeof sets / sizeof *sets))
		fail_msg("%s", err.text);
	assert_string_equal(config.disks[1].image, in_dir("other.img"));
	assert_string_equal(config.disks[0].image, in_dir("web1.img"));
	assert_int_equal(config.ft.interval_ms, 7);
	assert_int_equal(config.arbiter.type, CONFIG_ARBITER_NONE);
	assert_int_equal(config.cpus, 4);
	assert_int_equal(config.qemu.args.n, 2);
	assert_string_equal(config.qemu.args.item[1], "64,slots=2");
	assert_string_equal(config.append, "a=b c");
	assert_int_equal(config.nics[0].attach.kind, CONFIG_NIC_TAP);
}

/* --set can repair what the file says, and is checked like it. */
static void test_set_mistakes(void **state)
{
	static const struct {
		const char *set, *error;
	} wrong[] = {
		{"cpus", "--set cpus: expects KEY=VALUE"},
		{"=1", "--set =1: expects KEY=VALUE"},
		{"colour=red", "--set colour: no such key"},
		{"ft.colour=red", "--set ft.colour: no such key"},
		{"ft.x.interval_ms=1", "--set ft.x.interval_ms: no such key"},
		{"disk.image=x", "--set disk.image: no such key"},
		{"disk.roto.image=x", "--set disk.roto.image: web1.conf has no disk 'roto'"},
		{"nic.root.mac=x", "--set nic.root.mac: web1.conf has no nic 'root'"},
		{"cpus=many", "--set cpus: 'many' is not a whole number"},
		{"ft.takeover_ms=10",
		 "--set ft.takeover_ms: takeover_ms (10) is less than twice heartbeat_ms (50)"},
		{"arbiter.type=file", "--set arbiter.dir: missing, arbiter.type needs it"},
		{"qemu.attach=x", "web1.conf:2: disk.root.image: not together with qemu.attach"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		assert_int_not_equal(load("name = a\ndisk root { image = x }", &wrong[i].set, 1),
				     0);
		assert_string_equal(err.text, wrong[i].error);
	}
	assert_int_equal(
		load("name = a\ndisk root { }", (const char *const[]){"disk.root.image=x"}, 1), 0);
	assert_int_equal(load("arbiter { type = file }",
			      (const char *const[]){"arbiter.dir=/x", "name=b"}, 2),
			 0);
	assert_string_equal(config.name, "b");
}

/* What is delivered with the program: the examples are good files, and the manual names every key.
 */
static void test_documents(void **state)
{
	static const struct {
		const char *name;
		enum config_source what;
	} examples[] = {{"guest", CONFIG_LAUNCH},
			{"attach", CONFIG_ATTACH},
			{"attach-standby", CONFIG_FROM_PEER}};
	const char *source = getenv("FT_SOURCE_DIR");
	char path[PATH_MAX], line[256], empty[] = "", *at;
	unsigned found[CONFIG_KEYS_MAX] = {0};
	FILE *manual;

	(void)state;
	if (!source)
		fail_msg("FT_SOURCE_DIR is not set");
	for (unsigned i = 0; i < sizeof examples / sizeof *examples; i++) {
		snprintf(path, sizeof path, "%s/tools/examples/%s.conf", source, examples[i].name);
		if (config_load(path, NULL, 0, &config, &err))
			fail_msg("%s", err.text);
		assert_int_equal(config.source, examples[i].what);
	}
	snprintf(path, sizeof path, "%s/tools/man/kemari-guest.5", source);
	manual = fopen(path, "r");
	assert_non_null(manual);
	while (fgets(line, sizeof line, manual)) {
		bool keys = !strncmp(line, ".It Ic ", 7);

		for (char *word = strtok_r(keys ? line + 7 : empty, " ,\n", &at); word;
		     word = strtok_r(NULL, " ,\n", &at))
			for (unsigned i = 0; i < config_keys_n; i++)
				found[i] += !strcmp(word, config_keys[i].name);
	}
	fclose(manual);
	for (unsigned i = 0; i < config_keys_n; i++)
		if (!found[i])
			fail_msg("%s.%s is not in kemari-guest(5)", config_keys[i].section,
				 config_keys[i].name);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),     cmocka_unit_test(test_full),
		cmocka_unit_test(test_sources),	     cmocka_unit_test(test_names),
		cmocka_unit_test(test_mistakes),     cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_no_file),	     cmocka_unit_test(test_set),
		cmocka_unit_test(test_set_mistakes), cmocka_unit_test(test_documents),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/pocket/io.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ft/log.h"
#include "vmm-glue/pocket/sock.h"

#define RECEIVE_MAX MACHINE_RX_SLOTS // frames taken in at once
#define RELEASE_MAX                                                                                \
	64 // reads from `in` at once, so that a tap in a hurry does not starve the guest

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

// ---- NIC

static void udp_send(const struct pocket_io *io, const uint8_t *frame, size_t len)
{
	struct sockaddr_in sa = {.sin_family = AF_INET};

	memcpy(&sa.sin_addr, frame, 4);
	memcpy(&sa.sin_port, frame + 4, 2);
	// What the host cannot send now is lost, as on any network.
	(void)sendto(io->udp, frame + POCKET_FRAME_ADDR, len - POCKET_FRAME_ADDR,
		     MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&sa, sizeof sa);
}

static void tap_send(struct pocket_io *io, const uint8_t *frame, size_t len)
{
	uint8_t out[4 + POCKET_FRAME_MAX];
	uint32_t be = htonl((uint32_t)len);
	int rc;

	if (io->out_dead)
		return;
	memcpy(out, &be, sizeof be);
	memcpy(out + 4, frame, len);
	rc = psock_write_all(io->links.out, out, 4 + len, psock_deadline(POCKET_OUT_MS));
	if (rc) {
		io->out_dead = true; // half a frame may be out: nothing may follow it
		ft_warn("pocket %s: network tap: %s; what the guest sends is dropped",
			io->config->name, strerror(-rc));
	}
}

static void net_send(void *ctx, const uint8_t *frame, size_t len)
{
	struct pocket_io *io = ctx;

	if (io->udp < 0)
		return;
	if (io->links.out >= 0)
		tap_send(io, frame, len);
	else
		udp_send(io, frame, len);
}

static void receive(struct pocket_io *io, struct machine *m)
{
	uint8_t frame[POCKET_FRAME_MAX + 1];

	for (unsigned i = 0; i < RECEIVE_MAX && machine_can_receive(m); i++) {
		struct sockaddr_in sa;
		socklen_t sa_len = sizeof sa;
		ssize_t n = recvfrom(io->udp, frame + POCKET_FRAME_ADDR,
				     sizeof frame - POCKET_FRAME_ADDR, MSG_DONTWAIT,
				     (struct sockaddr *)&sa, &sa_len);

		if (n < 0)
			return;
		memcpy(frame, &sa.sin_addr, 4);
		memcpy(frame + 4, &sa.sin_port, 2);
		machine_receive(m, frame,
				POCKET_FRAME_ADDR +
					(size_t)n); // one byte too many is dropped there
	}
}

// Sends the whole frames at the front of in_buf. False: what is there is no frame.
static bool release(struct pocket_io *io)
{
	uint32_t len;

	while (io->in_len >= sizeof len) {
		memcpy(&len, io->in_buf, sizeof len);
		len = ntohl(len);
		if (len < POCKET_FRAME_ADDR || len > POCKET_FRAME_MAX)
			return false;
		if (io->in_len < sizeof len + len)
			return true;
		udp_send(io, io->in_buf + sizeof len, len);
		io->in_len -= sizeof len + len;
		memmove(io->in_buf, io->in_buf + sizeof len + len, io->in_len);
	}
	return true;
}

static void drain_in(struct pocket_io *io)
{
	for (unsigned i = 0; i < RELEASE_MAX && !io->in_dead; i++) {
		ssize_t n = recv(io->links.in, io->in_buf + io->in_len,
				 sizeof io->in_buf - io->in_len, MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n > 0)
			io->in_len += (size_t)n;
		if (n <= 0 || !release(io)) {
			io->in_dead = true;
			if (n > 0)
				ft_warn("pocket %s: network tap: sent no frame", io->config->name);
		}
	}
}

static int parse_attach(const char *attach, struct sockaddr_in *sa, struct ft_err *err)
{
	char host[INET_ADDRSTRLEN];
	const char *colon = strrchr(attach, ':');
	size_t len = colon && colon > attach + 4 ? (size_t)(colon - attach - 4) : 0;
	char *end;
	long port;

	*sa = (struct sockaddr_in){.sin_family = AF_INET};
	if (strncmp(attach, "udp:", 4) != 0 || !len || len >= sizeof host)
		return ft_err_set(err, EINVAL, "nic: attach \"%s\": not udp:HOST:PORT", attach);
	memcpy(host, attach + 4, len);
	host[len] = 0;
	if (inet_pton(AF_INET, host, &sa->sin_addr) != 1)
		return ft_err_set(err, EINVAL,
				  "nic: attach \"%s\": host is not a numeric IPv4 address", attach);
	port = strtol(colon + 1, &end, 10);
	if (end == colon + 1 || *end || port < 0 || port > 65535)
		return ft_err_set(err, EINVAL, "nic: attach \"%s\": port is not 0 to 65535",
				  attach);
	sa->sin_port = htons((uint16_t)port);
	return 0;
}

static int open_nic(struct pocket_io *io, bool take_over, struct ft_err *err)
{
	struct sockaddr_in sa = {0};
	int on = 1, rc = parse_attach(io->config->nic_attach, &sa, err);

	if (rc)
		return rc;
	io->udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (io->udp < 0)
		return ft_err_set(err, errno, "nic: socket: %s", strerror(errno));
	// A first start is refused where the address is in use; a takeover is not, for the old
	// machine may be frozen. For that, both sockets must have the flag, which Linux lets one
	// set after the bind.
	if (take_over)
		setsockopt(io->udp, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(io->udp, (struct sockaddr *)&sa, sizeof sa))
		return ft_err_set(err, errno, "nic: attach \"%s\": %s", io->config->nic_attach,
				  strerror(errno));
	setsockopt(io->udp, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	return 0;
}

uint16_t pocket_io_port(const struct pocket_io *io)
{
	struct sockaddr_in sa = {0};
	socklen_t len = sizeof sa;

	return io->udp >= 0 && !getsockname(io->udp, (struct sockaddr *)&sa, &len)
		       ? ntohs(sa.sin_port)
		       : 0;
}

// ---- disks

static int image_read(int fd, uint64_t offset, uint8_t *data, size_t len)
{
	while (len) {
		ssize_t n = pread(fd, data, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		data += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static int image_write(int fd, uint64_t offset, const uint8_t *data, size_t len)
{
	while (len) {
		ssize_t n = pwrite(fd, data, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static int disk_read(void *ctx, unsigned disk, uint64_t offset, uint8_t *data, size_t len)
{
	struct pocket_io *io = ctx;

	return io->links.disks[disk] ? pocket_nbd_read(io->links.disks[disk], offset, data, len)
				     : image_read(io->images[disk], offset, data, len);
}

static int disk_write(void *ctx, unsigned disk, uint64_t offset, const uint8_t *data, size_t len)
{
	struct pocket_io *io = ctx;

	return io->links.disks[disk] ? pocket_nbd_write(io->links.disks[disk], offset, data, len)
				     : image_write(io->images[disk], offset, data, len);
}

static int disk_flush(void *ctx, unsigned disk)
{
	struct pocket_io *io = ctx;

	if (io->links.disks[disk])
		return pocket_nbd_flush(io->links.disks[disk]);
	return fdatasync(io->images[disk]) ? -errno : 0;
}

static int open_image(const struct pocket_config *config, unsigned i, uint64_t *bytes,
		      struct ft_err *err)
{
	const char *path = config->disks[i].image;
	uint64_t want = config->disks[i].bytes;
	int fd = open(path, O_RDWR | O_CLOEXEC | (want ? O_CREAT : 0), 0600);
	off_t size;

	if (fd < 0)
		return ft_err_set(err, errno, "disk %s: %s: %s", config->disks[i].id, path,
				  strerror(errno));
	size = lseek(fd, 0, SEEK_END);
	if (!size && want && !ftruncate(fd, (off_t)want))
		size = (off_t)want;
	if (size > 0 && (!want || want == (uint64_t)size)) {
		*bytes = (uint64_t)size;
		return fd;
	}
	close(fd);
	return ft_err_set(err, EINVAL, "disk %s: %s: has %lld bytes, should have %llu",
			  config->disks[i].id, path, (long long)size, (unsigned long long)want);
}

int pocket_io_size_disks(struct pocket_config *config, struct ft_err *err)
{
	for (unsigned i = 0; i < config->disks_n; i++) {
		int fd;

		if (config->disks[i].bytes)
			continue;
		fd = open_image(config, i, &config->disks[i].bytes, err);
		if (fd < 0)
			return fd;
		close(fd);
	}
	return 0;
}

static void close_images(struct pocket_io *io)
{
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		close_fd(&io->images[i]);
}

/* Those that are not open, and of the tapped ones those in `also`. */
static int open_images(struct pocket_io *io, unsigned also, struct ft_err *err)
{
	unsigned opened = 0;

	for (unsigned i = 0; i < io->config->disks_n; i++) {
		uint64_t bytes;

		if (io->images[i] >= 0 || (io->links.disks[i] && !(also & 1u << i)))
			continue;
		io->images[i] = open_image(io->config, i, &bytes, err);
		opened |= 1u << i;
		if (io->images[i] < 0) {
			int rc = io->images[i];

			io->images[i] = -1;
			for (unsigned k = 0; k < i; k++)
				if (opened & 1u << k)
					close_fd(&io->images[k]);
			return rc;
		}
	}
	return 0;
}

// ---- console

static void console_write(void *ctx, const uint8_t *bytes, size_t len)
{
	struct pocket_io *io = ctx;
	int rc;

	if (io->log >= 0 && write(io->log, bytes, len) < 0) {
		ft_warn("pocket %s: console log: %s", io->config->name, strerror(errno));
		close_fd(&io->log);
	}
	if (io->client < 0)
		return;
	rc = psock_write_all(io->client, bytes, len, psock_deadline(POCKET_CONSOLE_MS));
	if (rc) {
		ft_info("pocket %s: console client: %s", io->config->name, strerror(-rc));
		close_fd(&io->client);
	}
}

static int open_console(struct pocket_io *io, struct ft_err *err)
{
	const struct pocket_config *c = io->config;

	if (c->console_log[0]) {
		io->log = open(c->console_log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (io->log < 0)
			return ft_err_set(err, errno, "console log: %s: %s", c->console_log,
					  strerror(errno));
	}
	if (c->console_socket[0]) {
		io->listener = psock_listen(c->console_socket, err);
		if (io->listener < 0)
			return ft_err_context(err, "console");
	}
	return 0;
}

// Nobody types to these programs; what a client sends is read so that its close is seen.
static void service_client(struct pocket_io *io)
{
	uint8_t junk[256];
	ssize_t n = recv(io->client, junk, sizeof junk, MSG_DONTWAIT);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		close_fd(&io->client);
}

// ---- doorbells

static int doorbell(void *ctx, enum tap_kind kind, uint64_t addr, uint64_t value, unsigned width)
{
	const struct pocket_config *c = ((struct pocket_io *)ctx)->config;

	return c->emit ? c->emit(c->emit_ctx, kind, addr, value, width) : 0;
}

// ---- all together

void pocket_io_init(struct pocket_io *io, const struct pocket_config *config)
{
	*io = (struct pocket_io){
		.config = config,
		.world = {net_send, console_write, disk_read, disk_write, disk_flush, doorbell, io},
		.udp = -1,
		.listener = -1,
		.client = -1,
		.log = -1,
		.links = {.out = -1, .in = -1},
	};
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		io->images[i] = -1;
}

static void close_devices(struct pocket_io *io)
{
	close_images(io);
	close_fd(&io->udp);
	close_fd(&io->client);
	if (io->listener >= 0)
		unlink(io->config->console_socket);
	close_fd(&io->listener);
	close_fd(&io->log);
}

int pocket_io_open(struct pocket_io *io, bool take_over, struct ft_err *err)
{
	int rc = open_console(io, err);

	if (!rc && io->config->nic_attach[0])
		rc = open_nic(io, take_over, err);
	if (!rc)
		rc = open_images(io, 0, err);
	if (rc)
		close_devices(io);
	return rc;
}

void pocket_io_close(struct pocket_io *io)
{
	pocket_links_close(&io->links);
	io->tapped = false;
	close_devices(io);
}

void pocket_links_close(struct pocket_links *links)
{
	close_fd(&links->out);
	close_fd(&links->in);
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++) {
		pocket_nbd_close(links->disks[i]);
		links->disks[i] = NULL;
	}
}

static int open_nbd(struct pocket_links *links, const struct pocket_config *config, unsigned i,
		    const char *path, struct ft_err *err)
{
	uint64_t bytes;
	int rc = pocket_nbd_open(path, &links->disks[i], &bytes, err);

	if (rc)
		return ft_err_context(err, "disk %s", config->disks[i].id);
	if (bytes != config->disks[i].bytes)
		return ft_err_set(err, EINVAL, "disk %s: %s: has %llu bytes, should have %llu",
				  config->disks[i].id, path, (unsigned long long)bytes,
				  (unsigned long long)config->disks[i].bytes);
	return 0;
}

static int open_net(struct pocket_links *links, const struct vmm_tap_points *points,
		    struct ft_err *err)
{
	links->out = psock_connect(points->nics[0].out, err);
	if (links->out < 0)
		return links->out;
	links->in = psock_connect(points->nics[0].in, err);
	return links->in < 0 ? links->in : 0;
}

int pocket_links_open(struct pocket_links *links, const struct pocket_config *config,
		      const struct vmm_tap_points *points, struct ft_err *err)
{
	int rc = 0;

	*links = (struct pocket_links){.out = -1, .in = -1};
	if (config->nic_attach[0] && points->nics[0].out[0])
		rc = open_net(links, points, err);
	for (unsigned i = 0; !rc && i < config->disks_n; i++)
		if (points->disks[i].nbd[0])
			rc = open_nbd(links, config, i, points->disks[i].nbd, err);
	if (rc)
		pocket_links_close(links);
	return rc;
}

void pocket_io_tap(struct pocket_io *io, const struct pocket_links *links)
{
	if (!io->tapped && links->out >= 0) {
		io->links.out = links->out;
		io->links.in = links->in;
		io->out_dead = io->in_dead = false;
		io->in_len = 0;
		io->tapped = true;
	}
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++) {
		if (!links->disks[i])
			continue;
		io->links.disks[i] = links->disks[i];
		close_fd(&io->images[i]);
	}
}

int pocket_io_untap(struct pocket_io *io, unsigned stay, bool with_images, struct ft_err *err)
{
	int rc = with_images ? open_images(io, ~stay, err) : 0;

	if (rc)
		return rc;
	if (io->udp >= 0)
		drain_in(io);
	io->tapped = false;
	close_fd(&io->links.out);
	close_fd(&io->links.in);
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++) {
		if (stay & 1u << i)
			continue;
		pocket_nbd_close(io->links.disks[i]);
		io->links.disks[i] = NULL;
	}
	return 0;
}

void pocket_io_poll_set(const struct pocket_io *io, const struct machine *m,
			struct pollfd set[POLL_MAX])
{
	bool tapped = io->tapped && !io->in_dead && io->udp >= 0;

	set[POLL_UDP] =
		(struct pollfd){.fd = machine_can_receive(m) ? io->udp : -1, .events = POLLIN};
	set[POLL_IN] = (struct pollfd){.fd = tapped ? io->links.in : -1, .events = POLLIN};
	set[POLL_LISTEN] =
		(struct pollfd){.fd = io->client < 0 ? io->listener : -1, .events = POLLIN};
	set[POLL_CLIENT] = (struct pollfd){.fd = io->client, .events = POLLIN};
}

void pocket_io_service(struct pocket_io *io, struct machine *m, const struct pollfd set[POLL_MAX])
{
	if (set[POLL_IN].revents && io->tapped && io->udp >= 0)
		drain_in(io);
	if (set[POLL_UDP].revents && io->udp >= 0)
		receive(io, m);
	if (set[POLL_CLIENT].revents && io->client >= 0)
		service_client(io);
	if (set[POLL_LISTEN].revents && io->client < 0 && io->listener >= 0)
		io->client = accept4(io->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
}

void pocket_io_abort(struct pocket_io *io)
{
	if (io->links.out >= 0)
		shutdown(io->links.out, SHUT_RDWR);
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (io->links.disks[i])
			pocket_nbd_abort(io->links.disks[i]);
}

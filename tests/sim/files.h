/* SPDX-License-Identifier: Apache-2.0 */
/* The hosts' filesystems, under the production code of disks: the linker puts what is here in the
 * place of the system calls (--wrap, see CMakeLists.txt), for paths below /sim and descriptors made
 * from them; all else goes to the system.
 *
 *      /sim/A/...         of host A, as /sim/B of host B
 *      /sim/A/shared/...  the storage that both have; the same as /sim/B/shared
 *
 * What is written is in the page cache of the host that wrote it until it is synced, names too. A
 * process that dies leaves all of that; a host that loses power keeps of it, sector by sector, what
 * chance wants. A host can die in the middle of any call. Locks are those of open files. */
#ifndef TESTS_SIM_FILES_H
#define TESTS_SIM_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SECTOR 512

struct world;
struct node;

void files_init(struct world *w);
void files_free(struct world *w);
/* The processes of a host end: descriptors and locks go. */
void files_process_gone(struct node *n);
/* After files_process_gone(). */
void files_power_lost(struct node *n);
bool files_exists(const char *path);
/* Straight at a file, as nobody's process: len bytes as any reader sees them, or (durable) as they
 * would be read if all power went now. Zeroes beyond its end. */
void files_peek(const char *path, uint64_t offset, uint8_t *out, size_t len, bool durable);
/* A file of zeroes, durable. */
void files_make(struct world *w, const char *path, uint64_t bytes);
/* A path that the simulator has. */
bool files_is_simulated(const char *path);
/* Of all names the i-th; *path NULL: there is none just now. False: there are no more. */
bool files_name(unsigned i, const char **path);
/* Descriptors that a host's processes have open. */
unsigned files_open_count(struct node *n);

#endif

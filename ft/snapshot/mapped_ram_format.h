/* SPDX-License-Identifier: Apache-2.0 */
/* The numbers and words of the format, for its writer and its reader (mapped_ram.h has the
 * picture). QEMU: migration/savevm.h, migration/ram.c, include/migration/qemu-file-types.h. */
#ifndef FT_SNAPSHOT_MAPPED_RAM_FORMAT_H
#define FT_SNAPSHOT_MAPPED_RAM_FORMAT_H

#include <errno.h>

#define MAGIC	      "QEVM"
#define MAGIC_BYTES   4
#define VERSION	      3
#define OPENING_BYTES 8 /* magic and version */

#define SECTION_EOF    0x00
#define SECTION_START  0x01
#define SECTION_PART   0x02
#define SECTION_END    0x03
#define SECTION_FULL   0x04
#define SECTION_SUB    0x05
#define SECTION_VMDESC 0x06
#define SECTION_CONFIG 0x07
#define SECTION_FOOTER 0x7e

#define CAPABILITIES "configuration/capabilities"
#define MAPPED_RAM   "mapped-ram"

#define RAM_NAME	 "ram"
#define RAM_SECTION	 1u
#define STATE_SECTION	 2u
#define RAM_VERSION	 4
#define RAM_MEM_SIZE	 0x04u
#define RAM_EOS		 0x10u
#define RAM_MULTIFD_SYNC 0x200u /* of a QEMU with multifd; says nothing in a file */
#define BLOCK_VERSION	 1

#define STATE_FOOTER_BYTES 6 /* 7e, section, 00 */
#define DESCRIPTION_BYTES  7 /* 06, length, "{}" */

#endif

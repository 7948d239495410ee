/* SPDX-License-Identifier: Apache-2.0 */
/* A file beside a disk's image, in a folder in memory that goes with the process. */
#ifndef TESTS_FUZZ_BESIDE_H
#define TESTS_FUZZ_BESIDE_H

extern char beside_image[64], beside_path[96];

/* The image is only a name; the file is it and the suffix. */
void beside_open(const char *suffix);

#endif

// SPDX-License-Identifier: Apache-2.0
// URIs: an operator's, and those that an agent prints of its peers. What is taken can be printed,
// and what is printed means the same.
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "transport/uri.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	char *text = malloc(len + 1), printed[URI_TEXT_MAX + 1], cut[16];
	struct uri uri, again;
	struct ft_err err = {0};

	memcpy(text, data, len);
	text[len] = '\0';
	if (uri_parse(text, &uri, &err)) {
		assert(err.code && err.text[0]);
	} else {
		assert(strlen(uri.host) <= URI_HOST_MAX && strlen(uri.path) <= URI_PATH_MAX);
		assert(uri.scheme != URI_UNIX || strlen(uri.path) <= URI_UNIX_PATH_MAX);
		assert(uri_is_tcp_based(&uri) == (uri.host[0] && uri.port));
		uri_format(&uri, printed, sizeof printed);
		assert(uri_parse(printed, &again, &err) == 0);
		assert(memcmp(&uri, &again, sizeof uri) == 0);
		assert(strlen(uri_format(&uri, cut, sizeof cut)) < sizeof cut);
	}
	free(text);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A client of the test guest's server (ft.serve): each answer depends on all requests before it, on
 * a page of the guest's RAM and on blocks of its disk. Plain data: a copy of it is what the guest
 * must go on from if it is set back to that moment. */
#ifndef TESTS_AGENT_LEDGER_H
#define TESTS_AGENT_LEDGER_H

#include "tools/drill/ledger.h"

#define LEDGER_PORT 7001

struct ledger_writer { /* who wrote a page or a block last */
	uint64_t number, chain;
};

struct ledger {
	uint64_t lane, number, chain, longest_ms;
	struct ledger_writer pages[LEDGER_PAGES], slots[LEDGER_SLOTS];
};

int ledger_connect(void);
/* n requests, each answer checked. */
void ledger_work(struct ledger *l, int fd, unsigned n);

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/* The attacker: what its files share. */
#ifndef ATTACKER_H
#define ATTACKER_H

#include <linux/types.h>

#include <asm/pgtable_types.h>

/* attacker.c */
void attacker_result(long value);
/* Set and clear bits of the page-table entry that maps an address; false if there is none. */
bool attacker_change(unsigned long address, pteval_t set, pteval_t clear);
phys_addr_t attacker_physical(unsigned long address);

/* stores.c: "store WAY TARGET OFFSET:HEX,OFFSET:HEX,..." */
void attacker_store(int count, char **words);

/* calls.c */
/* "pvalidate GPA 0|1" by VeilMon's call */
void attacker_pvalidate(int count, char **words);
/* "state GPA 1|2": private, shared; by the host */
void attacker_page_state(int count, char **words);
/* "switch VMPL": did the host do it? */
void attacker_switch(int count, char **words);
/* "ask BLOCK SERVICE CALL PAGES HEX": the services, in the driver's place and in its block; the status */
void attacker_ask(int count, char **words);

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/* The attacker: what its files share. */
#ifndef ATTACKER_H
#define ATTACKER_H

#include <linux/types.h>

#include <asm/pgtable_types.h>

/* main.c */
void attacker_result(long value);
/* Set and clear bits of the page-table entry that maps an address; false if there is none. */
bool attacker_change(unsigned long address, pteval_t set, pteval_t clear);
phys_addr_t attacker_physical(unsigned long address);
/* A mapping of a page of guest memory that is writable and executable, as far as page tables decide. */
void *attacker_map(const char *gpa);
/* Code of its own there; and execute what is there. */
void attacker_put_code(void *place);
int attacker_run(const void *place);

/* stores.c: "store WAY TARGET OFFSET:HEX,OFFSET:HEX,..." */
void attacker_store(int count, char **words);

/* calls.c */
/* That of the CPU on which it is called, which its caller does not leave. */
u8 *attacker_calling_area(void);
/* An SVSM call (protocol << 32 | number) in this area; its result. */
u64 attacker_call(u8 *area, u64 call, u64 rcx, u64 rdx, u64 r8);
/* "pvalidate GPA 0|1" by VeilMon's call */
void attacker_pvalidate(int count, char **words);
/* "state GPA 1|2": private, shared; by the host */
void attacker_page_state(int count, char **words);
/* "switch VMPL": did the host do it? */
void attacker_switch(int count, char **words);
/* "ask BLOCK SERVICE CALL PAGES HEX": the services, in the driver's place and in its block; the status */
void attacker_ask(int count, char **words);

/* accomplice.c */
/* "desk DESK FRAME", GPAs: where orders come, and the page that they are about */
void attacker_desk(int count, char **words);
/* "obey": carry the order out that is on the desk */
void attacker_obey(int count, char **words);
/* "together BLOCK ...", as "ask": meanwhile the other CPUs obey */
void attacker_ask_together(int count, char **words);

#endif

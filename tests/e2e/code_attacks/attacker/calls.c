// SPDX-License-Identifier: GPL-2.0
/* Calls to VeilMon, to the host and to the services that are not the kernel's or the driver's. */
#include <linux/gfp.h>
#include <linux/hex.h>
#include <linux/io.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>
#include <linux/string.h>

#include <asm/msr.h>

#include "attacker.h"

#define MSR_GHCB 0xc0010130
#define MSR_SVSM_CAA 0xc001f000
#define RUN_VMPL_REQUEST 0x016
#define RUN_VMPL_RESPONSE 0x017
#define PAGE_STATE_REQUEST 0x014
#define PAGE_STATE_OPERATION_SHIFT 52
#define CORE_PVALIDATE 1
#define SERVICE_VMPL 1
#define NO_ANSWER 0x100
#define TRIES 100
#define LONGEST_BODY 8192

/* veil/formats/request_block.py */
struct block {
	u32 pending;
	u32 status;
	u16 service;
	u16 call;
	u32 length;
	u8 asker[40];
	u32 pages;
	u32 ticket;
	u8 body[];
};

/* 58019, table 5. */
struct pvalidate_list {
	u16 entries;
	u16 next;
	u32 reserved;
	u64 entry;
};

/* Interrupts are off: between the MSR and VMGEXIT nobody else may use the GHCB. */
static u64 exit_with(u64 request, u64 *rax, u64 rcx, u64 rdx, u64 r8)
{
	u64 before = native_read_msr(MSR_GHCB), answer;
	register u64 fourth asm("r8");

	native_wrmsrl(MSR_GHCB, request);
	fourth = r8;
	asm volatile("rep; vmmcall" : "+a"(*rax), "+c"(rcx), "+d"(rdx), "+r"(fourth) : : "memory");
	answer = native_read_msr(MSR_GHCB);
	native_wrmsrl(MSR_GHCB, before);
	return answer;
}

static bool switch_to(u64 vmpl, u64 *rax, u64 rcx, u64 rdx, u64 r8)
{
	return exit_with(vmpl << 32 | RUN_VMPL_REQUEST, rax, rcx, rdx, r8) == RUN_VMPL_RESPONSE;
}

u8 *attacker_calling_area(void)
{
	return __va(native_read_msr(MSR_SVSM_CAA));
}

u64 attacker_call(u8 *area, u64 call, u64 rcx, u64 rdx, u64 r8)
{
	unsigned long flags;

	local_irq_save(flags);
	WRITE_ONCE(*area, 1);
	if (!switch_to(0, &call, rcx, rdx, r8) || xchg(area, 0))
		call = NO_ANSWER;
	local_irq_restore(flags);
	return call;
}

void attacker_pvalidate(int count, char **words)
{
	struct pvalidate_list *list = (struct pvalidate_list *)get_zeroed_page(GFP_KERNEL);

	list->entries = 1;
	list->entry = simple_strtoull(words[0], NULL, 0) | simple_strtoull(words[1], NULL, 0) << 2;
	attacker_result(attacker_call(attacker_calling_area(), CORE_PVALIDATE, virt_to_phys(list), 0, 0));
	free_page((unsigned long)list);
}

void attacker_page_state(int count, char **words)
{
	u64 operation = simple_strtoull(words[1], NULL, 0) << PAGE_STATE_OPERATION_SHIFT, rax = 0, answer;
	unsigned long flags;

	local_irq_save(flags);
	answer = exit_with(operation | simple_strtoull(words[0], NULL, 0) | PAGE_STATE_REQUEST, &rax, 0, 0, 0);
	local_irq_restore(flags);
	/* Bits 63:32 are an error. */
	attacker_result(answer >> 32);
}

void attacker_switch(int count, char **words)
{
	unsigned long flags;
	u64 rax = 0;
	bool done;

	local_irq_save(flags);
	done = switch_to(simple_strtoull(words[0], NULL, 0), &rax, 0, 0, 0);
	local_irq_restore(flags);
	attacker_result(done);
}

void attacker_ask(int count, char **words)
{
	struct block *block = __va(simple_strtoull(words[0], NULL, 0));
	size_t length = strlen(words[4]) / 2;
	unsigned long flags;
	u64 rax = 0;
	int tries;

	if (length > LONGEST_BODY)
		return;
	local_irq_save(flags);
	memset(block, 0, sizeof(*block));
	block->status = NO_ANSWER;
	block->service = simple_strtoul(words[1], NULL, 0);
	block->call = simple_strtoul(words[2], NULL, 0);
	block->pages = simple_strtoul(words[3], NULL, 0);
	block->length = length;
	if (hex2bin(block->body, words[4], length))
		length = 0;
	smp_store_release(&block->pending, 1);
	for (tries = 0; tries < TRIES && smp_load_acquire(&block->pending); tries++)
		switch_to(SERVICE_VMPL, &rax, 0, 0, 0);
	attacker_result(block->pending ? NO_ANSWER : block->status);
	WRITE_ONCE(block->pending, 0);
	local_irq_restore(flags);
}

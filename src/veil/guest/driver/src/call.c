// SPDX-License-Identifier: GPL-2.0
/*
 * Calls to VeilMon (VMPL 0, SVSM protocol) and to the protected services (VMPL 1, request blocks).
 *
 * Both are domain switches: the CPU asks the host, by the GHCB MSR protocol, to run its VMSA of another level. Nothing
 * here is trusted by those who are called.
 */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <linux/mm.h>
#include <linux/nmi.h>
#include <linux/percpu.h>
#include <linux/pfn.h>
#include <linux/smp.h>

#include <asm/msr.h>

#include "call.h"

#define MSR_GHCB 0xc0010130
#define MSR_SVSM_CAA 0xc001f000
#define RUN_VMPL_REQUEST 0x016
#define RUN_VMPL_RESPONSE 0x017
#define MONITOR_VMPL 0
#define SERVICE_VMPL 1
#define ENCLAVE_VMPL 2
/* Of a request: the number of the page with the VMSA. */
#define RUN_CONTEXT_SHIFT 40

#define SVSM_SUCCESS 0
#define SVSM_INCOMPLETE 0x80000000u
#define SVSM_BUSY 0x80000007u
/* Veil's own protocol: register this CPU's request block. */
#define SERVICES_PROTOCOL 16
#define REGISTER_BLOCK 0

/* The host may refuse to run a level, or run it and say that it did not: so often, then the caller hears of it. */
#define MONITOR_TRIES 1000
#define SERVICE_TRIES 100

/* The start of the calling area (58019, table 2). */
struct svsm_caa {
	u8 call_pending;
	u8 mem_available;
	u8 reserved[6];
};

static DEFINE_PER_CPU(struct veil_block *, blocks);
static int hotplug_state;

/* The kernel's own functions for it have another name in each few versions. */
static void write_msr(u32 msr, u64 value)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

/* Interrupts are off: between the MSR and VMGEXIT nobody else may use the GHCB. Gives the host's answer. */
static u64 request(u64 what, u64 *rax, u64 *rcx, u64 *rdx)
{
	u64 before = native_read_msr(MSR_GHCB), answer;
	u64 a = rax ? *rax : 0, c = rcx ? *rcx : 0, d = rdx ? *rdx : 0;

	write_msr(MSR_GHCB, what);
	asm volatile("rep; vmmcall" : "+a"(a), "+c"(c), "+d"(d) : : "memory");
	answer = native_read_msr(MSR_GHCB);
	write_msr(MSR_GHCB, before);
	if (rax)
		*rax = a;
	return answer;
}

static bool switch_to(u64 vmpl, u64 *rax, u64 *rcx, u64 *rdx)
{
	return request(vmpl << 32 | RUN_VMPL_REQUEST, rax, rcx, rdx) == RUN_VMPL_RESPONSE;
}

u64 veil_run_context(u64 vmsa)
{
	unsigned long flags;
	u64 answer;

	local_irq_save(flags);
	answer = request(PHYS_PFN(vmsa) << RUN_CONTEXT_SHIFT | (u64)ENCLAVE_VMPL << 32 | RUN_VMPL_REQUEST, NULL, NULL,
			 NULL);
	local_irq_restore(flags);
	return answer;
}

/* An SVSM call; interrupts are off. */
static u32 monitor_call(u32 protocol, u32 call, u64 rcx, u64 rdx)
{
	struct svsm_caa *caa = __va(native_read_msr(MSR_SVSM_CAA));
	u64 rax;
	int tries;

	for (tries = 0; tries < MONITOR_TRIES; tries++) {
		u64 c = rcx, d = rdx;

		rax = (u64)protocol << 32 | call;
		WRITE_ONCE(caa->call_pending, 1);
		if (!switch_to(MONITOR_VMPL, &rax, &c, &d) || xchg(&caa->call_pending, 0))
			continue;
		if (rax != SVSM_INCOMPLETE && rax != SVSM_BUSY)
			return rax;
	}
	return SVSM_BUSY;
}

/* Runs on the CPU itself. */
static int register_block(unsigned int cpu)
{
	struct page *pages = alloc_pages(GFP_KERNEL | __GFP_ZERO, get_order(VEIL_BLOCK_PAGES * PAGE_SIZE));
	unsigned long flags;
	u32 result;

	if (!pages)
		return -ENOMEM;
	local_irq_save(flags);
	result = monitor_call(SERVICES_PROTOCOL, REGISTER_BLOCK, PFN_PHYS(page_to_pfn(pages)), VEIL_BLOCK_PAGES);
	if (result == SVSM_SUCCESS)
		this_cpu_write(blocks, page_address(pages));
	local_irq_restore(flags);
	if (result == SVSM_SUCCESS)
		return 0;
	pr_err("veil: VeilMon refused the request block of CPU %u (%#x)\n", cpu, result);
	__free_pages(pages, get_order(VEIL_BLOCK_PAGES * PAGE_SIZE));
	return -ENODEV;
}

static int release_block(unsigned int cpu)
{
	struct veil_block *block = this_cpu_read(blocks);
	unsigned long flags;
	u32 result;

	if (!block)
		return 0;
	local_irq_save(flags);
	this_cpu_write(blocks, NULL);
	result = monitor_call(SERVICES_PROTOCOL, REGISTER_BLOCK, 0, 0);
	local_irq_restore(flags);
	/* A page that VMPL 1 may still write to is nobody else's. */
	if (result == SVSM_SUCCESS)
		free_pages((unsigned long)block, get_order(VEIL_BLOCK_PAGES * PAGE_SIZE));
	return 0;
}

/* The host runs the services, until the request in this CPU's block is served; interrupts are off. */
static enum veil_status serve(struct veil_block *block)
{
	int tries;

	/* Until somebody answers: a request that was taken and not served must not look like one that ended well. */
	block->status = VEIL_NO_ANSWER;
	smp_store_release(&block->pending, 1);
	for (tries = 0; tries < SERVICE_TRIES; tries++) {
		/* Whatever the host says: what was served is not asked again, or it would be kept twice, and so on. */
		switch_to(SERVICE_VMPL, NULL, NULL, NULL);
		if (!smp_load_acquire(&block->pending))
			return block->status;
	}
	WRITE_ONCE(block->pending, 0);
	return VEIL_NO_ANSWER;
}

enum veil_status veil_ask(struct veil_request *request)
{
	size_t listed = request->pages ? request->pages->count * sizeof(u64) : 0;
	size_t length = listed + request->head_length + request->data_length;
	enum veil_status status = VEIL_NO_ANSWER;
	struct veil_block *block;
	unsigned long flags;

	if (length > VEIL_BODY_SIZE)
		return VEIL_BAD_REQUEST;
	/* The block is the CPU's: one request at a time, and no other CPU in the middle of it. */
	local_irq_save(flags);
	block = this_cpu_read(blocks);
	if (block) {
		block->service = request->service;
		block->call = request->call;
		block->length = length;
		block->page_count = listed / sizeof(u64);
		block->ticket++;
		if (listed)
			memcpy(block->body, request->pages->gpas, listed);
		memcpy(block->body + listed, request->head, request->head_length);
		memcpy(block->body + listed + request->head_length, request->data, request->data_length);
		status = serve(block);
	}
	if (status == VEIL_OK) {
		request->answer_length = block->length;
		if (request->answer_length <= request->room)
			memcpy(request->answer, block->body, request->answer_length);
	}
	local_irq_restore(flags);
	return status;
}

enum veil_status veil_ask_or_wait(struct veil_request *request, bool (*wait)(enum veil_status status))
{
	for (;;) {
		enum veil_status status = veil_ask(request);

		if (status == VEIL_OK || !wait(status))
			return status;
		touch_softlockup_watchdog();
		cpu_relax();
	}
}

int veil_call_begin(void)
{
	hotplug_state = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "veil:online", register_block, release_block);
	return hotplug_state < 0 ? hotplug_state : 0;
}

void veil_call_end(void)
{
	cpuhp_remove_state(hotplug_state);
}

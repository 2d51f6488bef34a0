/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * #VC of RDMSR and WRMSR in a kvm-unit-test, by the GHCB protocol (56421, "MSR"). Everything else goes on to the
 * handler that was there, the firmware's. That one does not know the test's handlers: a #GP that the host asks for would
 * end the guest.
 *
 * Built in a copy of the user's checkout, not with Veil.
 */
#include "libcflat.h"
#include "x86/desc.h"
#include "x86/processor.h"

#define GHCB_MSR 0xc0010130
#define EXIT_MSR 0x7c

enum {
	GHCB_RAX = 0x1f8,
	GHCB_RCX = 0x308,
	GHCB_RDX = 0x310,
	GHCB_EXIT_CODE = 0x390,
	GHCB_EXIT_INFO_1 = 0x398,
	GHCB_EXIT_INFO_2 = 0x3a0,
	GHCB_VALID = 0x3f0,
	GHCB_VALID_END = 0x400,
	GHCB_VERSION = 0xffa,
};

struct frame {
	u64 rbp, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rbx, rax;
	u64 next; /* where RET goes: on with the test, or to its handler of #GP */
	u64 error_code, rip, cs, rflags, rsp, ss;
};

void setup_vc_msr(void);
void vc_msr(struct frame *frame);
extern char vc_msr_entry[], vc_msr_done[];
static u64 other_handler __attribute__((used));

asm(".pushsection .text\n"
    "vc_msr_entry:\n\t"
    "cmpl $0x7c, (%rsp)\n\t"
    "je 1f\n\t"
    "jmp *other_handler(%rip)\n"
    "1:\n\t"
    "sub $8, %rsp\n\t"
    "push %rax; push %rbx; push %rcx; push %rdx; push %rsi; push %rdi\n\t"
    "push %r8; push %r9; push %r10; push %r11; push %rbp\n\t"
    "mov %rsp, %rdi\n\t"
    "mov %rsp, %rbp\n\t"
    "and $-16, %rsp\n\t"
    "cld\n\t"
    "call vc_msr\n\t"
    "mov %rbp, %rsp\n\t"
    "pop %rbp; pop %r11; pop %r10; pop %r9; pop %r8\n\t"
    "pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rbx; pop %rax\n\t"
    "ret\n"
    "vc_msr_done:\n\t"
    "add $8, %rsp\n\t"
    "iretq\n"
    ".popsection");

static u64 handler_of(const idt_entry_t *gate)
{
	return gate->offset0 | (u64)gate->offset1 << 16 | (u64)gate->offset2 << 32;
}

static void put(u8 *ghcb, unsigned offset, u64 value)
{
	*(volatile u64 *)(ghcb + offset) = value;
	ghcb[GHCB_VALID + offset / 64] |= 1 << (offset / 8 % 8);
}

void vc_msr(struct frame *frame)
{
	u8 *ghcb = (u8 *)(rdmsr(GHCB_MSR) & ~0xffful);
	const u8 *code = (const u8 *)frame->rip;
	bool is_write = code[1] == 0x30;
	struct descriptor_table_ptr idtr;
	unsigned i;

	for (i = GHCB_VALID; i < GHCB_VALID_END; i++)
		ghcb[i] = 0;
	*(volatile u16 *)(ghcb + GHCB_VERSION) = 2;
	put(ghcb, GHCB_RCX, (u32)frame->rcx);
	if (is_write) {
		put(ghcb, GHCB_RAX, (u32)frame->rax);
		put(ghcb, GHCB_RDX, (u32)frame->rdx);
	}
	put(ghcb, GHCB_EXIT_CODE, EXIT_MSR);
	put(ghcb, GHCB_EXIT_INFO_1, is_write);
	put(ghcb, GHCB_EXIT_INFO_2, 0);
	asm volatile("rep; vmmcall" ::: "memory");

	if (*(volatile u32 *)(ghcb + GHCB_EXIT_INFO_1)) {
		sidt(&idtr);
		frame->next = handler_of((idt_entry_t *)idtr.base + GP_VECTOR);
		frame->error_code = 0;
		return;
	}
	if (!is_write) {
		frame->rax = *(volatile u32 *)(ghcb + GHCB_RAX);
		frame->rdx = *(volatile u32 *)(ghcb + GHCB_RDX);
	}
	frame->rip += 2;
	frame->next = (u64)vc_msr_done;
}

void setup_vc_msr(void)
{
	u64 entry = (u64)vc_msr_entry;

	other_handler = handler_of(&boot_idt[VC_VECTOR]);
	boot_idt[VC_VECTOR].offset0 = entry;
	boot_idt[VC_VECTOR].offset1 = entry >> 16;
	boot_idt[VC_VECTOR].offset2 = entry >> 32;
}

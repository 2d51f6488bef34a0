// SPDX-License-Identifier: GPL-2.0-or-later
// A kernel of a few instructions that VeilMon starts at VMPL 3 in place of Linux: it repeats each transition COUNT
// times, and writes for each the TSC's difference (nanoseconds) and the last RAX (or GHCB MSR) to RESULTS.
#define GHCB_MSR 0xC0010130
#define VC 29

	.macro vmgexit
	.byte 0xF3, 0x0F, 0x01, 0xD9
	.endm

	.macro set_ghcb_msr value
	movl $GHCB_MSR, %ecx
	movl $\value, %eax
	xorl %edx, %edx
	wrmsr
	.endm

	.macro start
	rdtsc
	shlq $32, %rdx
	orq %rax, %rdx
	movq %rdx, %r14
	movl $COUNT, %r15d
	.endm

	.macro stop slot
	decl %r15d
	jnz 1b
	movq %rax, %rbx
	rdtsc
	shlq $32, %rdx
	orq %rdx, %rax
	subq %r14, %rax
	movq %rax, RESULTS + \slot * 16
	movq %rbx, RESULTS + \slot * 16 + 8
	.endm

	.code64
	.globl _start
_start:
	// An IDT with the one vector that is used.
	leaq handler(%rip), %rax
	movw %ax, gate(%rip)
	shrq $16, %rax
	movw %ax, gate + 6(%rip)
	lidt descriptor(%rip)

	// Slot 0: CPUID is intercepted, the handler skips it.
	start
1:	cpuid
	stop 0

	// Slot 1: the hypervisor's features by the MSR protocol, an exit to the host and nothing else.
	start
1:	set_ghcb_msr 0x080
	vmgexit
	movl $GHCB_MSR, %ecx
	rdmsr
	stop 1

	// Slot 2: to VMPL 0 and back, without a call pending.
	start
1:	set_ghcb_msr 0x016
	movb $0, CAA
	vmgexit
	stop 2

	// Slot 3: the shortest call, SVSM_CORE_QUERY_PROTOCOL of the core protocol itself, as Linux makes calls.
	start
1:	set_ghcb_msr 0x016
	movb $1, CAA
	movl $6, %eax
	movl $1, %ecx
	vmgexit
	movb $0, %bl
	xchgb %bl, CAA
	stop 3

	// Slot 4: to a context of VMPL 2 and back.
	start
1:	movl $GHCB_MSR, %ecx
	movl $0x016, %eax
	movl $(ENCLAVE_VMSA >> 12 << 8 | 2), %edx
	wrmsr
	vmgexit
	movl $GHCB_MSR, %ecx
	rdmsr
	stop 4

	set_ghcb_msr 0x100
	vmgexit
	hlt

handler:
	addq $8, %rsp
	addq $2, (%rsp)
	iretq

	.balign 16
descriptor:
	.word (VC + 1) * 16 - 1
	.quad idt
	.balign 16
idt:
	.skip VC * 16
gate:
	.word 0, 0x10, 0x8E00, 0
	.quad 0

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where a slot begins, where events arrive, how the enclave is left.
 *
 * All of it runs at CPL 3. The IDT's gates lead here without a change of privilege, on stacks of their own (facts in
 * docs/enclaves.md). A host can inject any vector at any instruction, so an event whose RIP lies in the runtime is
 * handed to event_in_runtime(), which ends the enclave unless it is a page fault of copy_user. The frame on a stack
 * that such an event overwrites is then of no use any more, and is not used.
 */
#include "../../abi.h"
#include "answers.h"

	.set OFFSET_MASK, VEIL_ENC_THREAD_STRIDE - 1
	.set R15, 0x00
	.set R14, 0x08
	.set R13, 0x10
	.set R12, 0x18
	.set R11, 0x20
	.set R10, 0x28
	.set R9, 0x30
	.set R8, 0x38
	.set RBP, 0x40
	.set RDI, 0x48
	.set RSI, 0x50
	.set RDX, 0x58
	.set RCX, 0x60
	.set RBX, 0x68
	.set RAX, 0x70
	.set VECTOR, 0x78
	.set ERROR, 0x80
	.set RIP, 0x88
	.set CS_, 0x90
	.set RFLAGS, 0x98
	.set RSP, 0xa0
	.set SS_, 0xa8
	/* struct thread, behind `regs` */
	.set PENDING, 0xb0
	.set ANSWERS, 0xb8

	.set SYSCALL_OPCODE, 0x050f
	.set SYSCALL_BYTES, 2
	.set VECTOR_UD, 6

	.section .vectors, "ax"
	.globl vectors
	.balign 4096
vectors:
	.set v, 0
	.rept 256
	.balign 16
	/* The processor pushes an error code for these. */
	.if (v == 8) || (v == 10) || (v == 11) || (v == 12) || (v == 13) || (v == 14) || (v == 17) || (v == 21) || (v == 29) || (v == 30)
	.else
	pushq $0
	.endif
	.if v == VECTOR_UD
	jmp undefined_opcode_event
	.else
	pushq $v
	jmp event
	.endif
	.set v, v + 1
	.endr

	.text
	/*
	 * On #UD's own stack: 0, RIP, CS, RFLAGS, RSP, SS. A system call whose answer this thread has had and will have
	 * again goes back at once. All else takes the long way, and what can be wrong with it is looked at there; so
	 * nothing is lost before the answer is certain but RCX and R11, which a system call loses. In the runtime no
	 * instruction is SYSCALL: an event of there goes the long way, too.
	 */
undefined_opcode_event:
	pushq %rcx
	movq 0x10(%rsp), %rcx
	/* The kernel may have taken the page: event_in_runtime() knows this one. */
	.globl peek_site
peek_site:
	cmpw $SYSCALL_OPCODE, (%rcx)
	jne 1f
	cmpq $ANSWERED_CALLS, %rax
	jae 1f
	movq %rsp, %r11
	andq $~OFFSET_MASK, %r11
	/* A signal is looked for when a system call ends. */
	movq process_pending(%rip), %rcx
	orq PENDING(%r11), %rcx
	jnz 1f
	movl ANSWERS(%r11, %rax, 4), %ecx
	testl %ecx, %ecx
	jz 1f
	leal -1(%rcx), %eax
	addq $SYSCALL_BYTES, 0x10(%rsp)
	movq 0x10(%rsp), %rcx
	movq 0x20(%rsp), %r11
	addq $0x10, %rsp
	iretq
	.globl peek_fault
peek_fault:
1:	popq %rcx
	pushq $VECTOR_UD
	/* falls into event */

	/* On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS. */
event:
	cld
	pushq %rax
	pushq %rbx
	movabs $runtime_start, %rax
	movq 0x20(%rsp), %rbx
	subq %rax, %rbx
	movabs $runtime_size, %rax
	cmpq %rax, %rbx
	jb in_runtime

	movq %rsp, %rax
	andq $~OFFSET_MASK, %rax
	movq %rcx, RCX(%rax)
	movq %rdx, RDX(%rax)
	movq %rsi, RSI(%rax)
	movq %rdi, RDI(%rax)
	movq %rbp, RBP(%rax)
	movq %r8, R8(%rax)
	movq %r9, R9(%rax)
	movq %r10, R10(%rax)
	movq %r11, R11(%rax)
	movq %r12, R12(%rax)
	movq %r13, R13(%rax)
	movq %r14, R14(%rax)
	movq %r15, R15(%rax)
	popq RBX(%rax)
	popq RAX(%rax)
	popq VECTOR(%rax)
	popq ERROR(%rax)
	popq RIP(%rax)
	popq CS_(%rax)
	popq RFLAGS(%rax)
	popq RSP(%rax)
	popq SS_(%rax)
	leaq VEIL_ENC_STACK_TOP(%rax), %rsp
	movq %rax, %rdi
	xorl %ebp, %ebp
	call event_of_program
	/* falls into resume with the thread in RAX */
	movq %rsp, %rdi
	decq %rdi
	andq $~OFFSET_MASK, %rdi

	/* void resume(struct thread *): go on with the program, as `regs` says. */
	.globl resume
resume:
	movq RCX(%rdi), %rcx
	movq RDX(%rdi), %rdx
	movq RSI(%rdi), %rsi
	movq RBP(%rdi), %rbp
	movq R8(%rdi), %r8
	movq R9(%rdi), %r9
	movq R10(%rdi), %r10
	movq R11(%rdi), %r11
	movq R12(%rdi), %r12
	movq R13(%rdi), %r13
	movq R14(%rdi), %r14
	movq R15(%rdi), %r15
	movq RBX(%rdi), %rbx
	movq RAX(%rdi), %rax
	leaq VEIL_ENC_STACK_TOP(%rdi), %rsp
	pushq $VEIL_ENC_DATA_SELECTOR
	pushq RSP(%rdi)
	pushq RFLAGS(%rdi)
	pushq $VEIL_ENC_CODE_SELECTOR
	pushq RIP(%rdi)
	movq RDI(%rdi), %rdi
	iretq

in_runtime:
	pushq %rcx
	pushq %rdx
	pushq %rsi
	pushq %rdi
	pushq %rbp
	pushq %r8
	pushq %r9
	pushq %r10
	pushq %r11
	/* vector, error code and frame are behind eleven registers */
	leaq 0x58(%rsp), %rsi
	movq %rsp, %rdi
	andq $~OFFSET_MASK, %rdi
	pushq %rbp
	movq %rsp, %rbp
	andq $~15, %rsp
	call event_in_runtime
	movq %rbp, %rsp
	popq %rbp
	popq %r11
	popq %r10
	popq %r9
	popq %r8
	popq %rbp
	popq %rdi
	popq %rsi
	popq %rdx
	popq %rcx
	popq %rbx
	popq %rax
	addq $16, %rsp
	/* An event that is delivered on a stack of the IST may leave a null selector in SS, and the frame of one that
	   comes then has that; IRETQ to ring 3 refuses it. */
	movq $VEIL_ENC_DATA_SELECTOR, 0x20(%rsp)
	iretq

	/* Each slot begins here: RDI is its number, RSP the top of its stack. */
	.globl enter
enter:
	cld
	xorl %ebp, %ebp
	call slot_main
	ud2

	/* void run_on_fresh_stack(struct thread *, void (*)(struct thread *)): never returns. */
	.globl run_on_fresh_stack
run_on_fresh_stack:
	leaq VEIL_ENC_STACK_TOP(%rdi), %rsp
	xorl %ebp, %ebp
	call *%rsi
	ud2

	/* void leave(struct thread *): VMGEXIT. The host runs VMPL 3; some time it runs this again. */
	.globl leave
leave:
	.byte 0xf3, 0x0f, 0x01, 0xd9
	ret

	.section .note.GNU-stack, "", @progbits

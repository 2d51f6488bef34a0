/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What entry.S of the runtime does, for a runtime that runs as an ordinary process. */
#include "../../../../src/veil/guest/enclaves/abi.h"

	.set OFFSET_MASK, VEIL_ENC_THREAD_STRIDE - 1

	.section .vectors, "ax"
	.globl enter
enter:
	movq %rsp, %rdi
	xorl %ebp, %ebp
	andq $~15, %rsp
	call native_main
	ud2

	.text
	.globl restorer
restorer:
	movl $15, %eax
	syscall
	ud2

	/* s64 raw(u64 nr, u64 a0 ... a5) */
	.globl raw
raw:
	movq %rdi, %rax
	movq %rsi, %rdi
	movq %rdx, %rsi
	movq %rcx, %rdx
	movq %r8, %r10
	movq %r9, %r8
	movq 8(%rsp), %r9
	syscall
	ret

	/* s64 raw_clone(u64 flags, void *stack, u64 slot): the new thread begins in native_thread(slot). */
	.globl raw_clone
raw_clone:
	movq %rdx, %r12
	xorl %edx, %edx
	xorl %r10d, %r10d
	xorl %r8d, %r8d
	movl $56, %eax
	syscall
	testq %rax, %rax
	jz 1f
	ret
1:	movq %r12, %rdi
	xorl %ebp, %ebp
	call native_thread
	ud2

	.globl run_on_fresh_stack
run_on_fresh_stack:
	leaq VEIL_ENC_STACK_TOP(%rdi), %rsp
	xorl %ebp, %ebp
	call *%rsi
	ud2

	/* entry.S of the runtime looks at a system call's instruction here; SIGSYS has none. */
	.globl peek_site, peek_fault
peek_site:
peek_fault:
	.globl resume
resume:
	movq 0x68(%rdi), %rbx
	movq 0x60(%rdi), %rcx
	movq 0x58(%rdi), %rdx
	movq 0x50(%rdi), %rsi
	movq 0x40(%rdi), %rbp
	movq 0x38(%rdi), %r8
	movq 0x30(%rdi), %r9
	movq 0x28(%rdi), %r10
	movq 0x20(%rdi), %r11
	movq 0x18(%rdi), %r12
	movq 0x10(%rdi), %r13
	movq 0x08(%rdi), %r14
	movq 0x00(%rdi), %r15
	movq 0x70(%rdi), %rax
	leaq VEIL_ENC_STACK_TOP(%rdi), %rsp
	pushq $0x2b
	pushq 0xa0(%rdi)
	pushq 0x98(%rdi)
	pushq $0x33
	pushq 0x88(%rdi)
	movq 0x48(%rdi), %rdi
	iretq

	.section .note.GNU-stack, "", @progbits

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Moving bytes. What the compiler expects to be there, and the two functions that touch addresses of the program's.
 *
 * Much is moved by a string instruction, which processors do in large pieces, and this machine a page at a time;
 * little by words, for it begins slowly.
 */

	.set MUCH, 256

	.text

	/* From RSI to RDI, RDX bytes; both go forward. */
	.macro copy_forward
	movq %rdx, %rcx
	shrq $3, %rcx
	jz 3f
	cmpq $(MUCH / 8), %rcx
	jb 2f
	rep movsq
	jmp 3f
2:	movq (%rsi), %r8
	movq %r8, (%rdi)
	addq $8, %rsi
	addq $8, %rdi
	decl %ecx
	jnz 2b
3:	movl %edx, %ecx
	andl $7, %ecx
	jz 5f
4:	movzbl (%rsi), %r8d
	movb %r8b, (%rdi)
	incq %rsi
	incq %rdi
	decl %ecx
	jnz 4b
5:
	.endm

	.globl memcpy
memcpy:
	movq %rdi, %rax
	copy_forward
	ret

	.globl memset
memset:
	movq %rdi, %r8
	movzbl %sil, %eax
	movabs $0x0101010101010101, %rcx
	imulq %rcx, %rax
	movq %rdx, %rcx
	shrq $6, %rcx
	jz 2f
1:	movq %rax, (%rdi)
	movq %rax, 8(%rdi)
	movq %rax, 16(%rdi)
	movq %rax, 24(%rdi)
	movq %rax, 32(%rdi)
	movq %rax, 40(%rdi)
	movq %rax, 48(%rdi)
	movq %rax, 56(%rdi)
	addq $64, %rdi
	decq %rcx
	jnz 1b
2:	movl %edx, %ecx
	andl $63, %ecx
	shrl $3, %ecx
	jz 4f
3:	movq %rax, (%rdi)
	addq $8, %rdi
	decl %ecx
	jnz 3b
4:	movl %edx, %ecx
	andl $7, %ecx
	rep stosb
	movq %r8, %rax
	ret

	.globl memmove
memmove:
	movq %rdi, %rax
	movq %rdi, %rcx
	subq %rsi, %rcx
	cmpq %rdx, %rcx
	jb 7f
	copy_forward
	ret
	/* The other way: what is behind would be overwritten before it is read. */
7:	addq %rdx, %rdi
	addq %rdx, %rsi
	movq %rdx, %rcx
	shrq $3, %rcx
	jz 9f
8:	subq $8, %rsi
	subq $8, %rdi
	movq (%rsi), %r8
	movq %r8, (%rdi)
	decq %rcx
	jnz 8b
9:	andl $7, %edx
	jz 2f
1:	decq %rsi
	decq %rdi
	movb (%rsi), %cl
	movb %cl, (%rdi)
	decl %edx
	jnz 1b
2:	ret

	.globl memcmp
memcmp:
	cmpq $8, %rdx
	jb 2f
	movq (%rdi), %rax
	cmpq (%rsi), %rax
	jne 2f
	addq $8, %rdi
	addq $8, %rsi
	subq $8, %rdx
	jmp memcmp
2:	xorl %eax, %eax
	movq %rdx, %rcx
	cmpq %rax, %rax
	repe cmpsb
	je 3f
	movzbl -1(%rdi), %eax
	movzbl -1(%rsi), %ecx
	subl %ecx, %eax
3:	ret

	/* bool copy_user(void *to, const void *from, u64 bytes): did a fault stop it? A page fault at an instruction from
	   copy_user_site on is the program's, and leads to copy_user_fault, which ends them. */
	.globl copy_user
copy_user:
	.globl copy_user_site
copy_user_site:
	copy_forward
	xorl %eax, %eax
	ret
	.globl copy_user_fault
copy_user_fault:
	movl $1, %eax
	ret

	/* bool swap_user(u32 *place, u32 old, u32 new, u32 *found): compare and exchange; false after a fault. */
	.globl swap_user
swap_user:
	movl %esi, %eax
	.globl swap_user_site
swap_user_site:
	lock cmpxchgl %edx, (%rdi)
	movl %eax, (%rcx)
	movl $1, %eax
	ret
	.globl swap_user_fault
swap_user_fault:
	xorl %eax, %eax
	ret

	.section .note.GNU-stack, "", @progbits

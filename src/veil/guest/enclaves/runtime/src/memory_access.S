/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Moving bytes. What the compiler expects to be there, and the two functions that touch addresses of the program's. */

	.text
	.globl memcpy
memcpy:
	movq %rdi, %rax
	movq %rdx, %rcx
	rep movsb
	ret

	.globl memset
memset:
	movq %rdi, %r8
	movl %esi, %eax
	movq %rdx, %rcx
	rep stosb
	movq %r8, %rax
	ret

	.globl memmove
memmove:
	movq %rdi, %rax
	movq %rdx, %rcx
	movq %rdi, %r8
	subq %rsi, %r8
	cmpq %rdx, %r8
	jb 1f
	rep movsb
	ret
1:	leaq -1(%rdi, %rdx), %rdi
	leaq -1(%rsi, %rdx), %rsi
	std
	rep movsb
	cld
	ret

	.globl memcmp
memcmp:
	xorl %eax, %eax
	movq %rdx, %rcx
	cmpq %rax, %rax
	repe cmpsb
	je 1f
	movzbl -1(%rdi), %eax
	movzbl -1(%rsi), %ecx
	subl %ecx, %eax
1:	ret

	/* u64 copy_user(void *to, const void *from, u64 bytes): how many were not copied. A page fault on its only
	   instruction that touches memory is the program's, and leads to copy_user_fault. */
	.globl copy_user
copy_user:
	movq %rdx, %rcx
	.globl copy_user_site
copy_user_site:
	rep movsb
	.globl copy_user_fault
copy_user_fault:
	movq %rcx, %rax
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

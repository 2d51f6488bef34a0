/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A ROM for QEMU that does what a VMSA does: from the reset vector straight into the state at startup_64. ENTRY, BOOT_PARAMS,
 * STACK_TOP, CR3_VALUE, CR0_VALUE, CR4_VALUE and EFER_VALUE come from the command line.
 */
	.section .text
	.code16
	.globl _start
_start:
	cli
	lgdtl	%cs:(gdt_pointer - _start)
	movl	$0x11, %eax
	movl	%eax, %cr0
	ljmpl	$0x08, $protected

	.code32
protected:
	movw	$0x18, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$CR4_VALUE, %eax
	movl	%eax, %cr4
	movl	$CR3_VALUE, %eax
	movl	%eax, %cr3
	movl	$0xC0000080, %ecx
	movl	$EFER_VALUE, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$CR0_VALUE, %eax
	movl	%eax, %cr0
	ljmpl	$0x10, $long_mode

	.code64
long_mode:
	lgdt	guest_gdt_pointer(%rip)
	/* Firmware's work: QEMU's power management device (00:01.3) is to answer at ports 0x600... */
	movl	$0x80000B40, %eax
	movw	$0xCF8, %dx
	outl	%eax, %dx
	movl	$0x601, %eax
	movw	$0xCFC, %dx
	outl	%eax, %dx
	movl	$0x80000B80, %eax
	movw	$0xCF8, %dx
	outl	%eax, %dx
	movb	$1, %al
	movw	$0xCFC, %dx
	outb	%al, %dx
	movq	$BOOT_PARAMS, %rsi
	movq	$STACK_TOP, %rsp
	movq	$ENTRY, %rax
	jmp	*%rax

	.balign	8
gdt:
	.quad	0, 0x00CF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
guest_gdt_pointer:
	.word	GDT_LIMIT
	.quad	GDT_BASE

	.org	0xFFF0
	.code16
	jmp	_start
	.org	0xFFFF
	.byte	0

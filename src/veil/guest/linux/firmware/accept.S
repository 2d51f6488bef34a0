/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What firmware does before it enters a kernel that has no monitor below it: accept
 * all memory that the launch did not validate, then jump to the kernel. A table
 * follows the code: {start, end} of each range, and {entry, 0}.
 * RSI (boot_params) is left alone. __init__.py beside this file holds the
 * assembled bytes; a test compares them.
 */
    .intel_syntax noprefix
    .code64
start:
    lea     rbx, [rip + table]
next_range:
    mov     rdi, [rbx]
    mov     r8, [rbx + 8]
    add     rbx, 16
    test    r8, r8
    jz      done
next_page:
    cmp     rdi, r8
    jae     next_range
    xor     ecx, ecx
    test    edi, 0x1fffff
    jnz     validate
    lea     r9, [rdi + 0x200000]
    cmp     r9, r8
    ja      validate
    inc     ecx
validate:
    mov     rax, rdi
    mov     edx, 1
    .byte   0xf2, 0x0f, 0x01, 0xff      # pvalidate
    jc      refused
    test    eax, eax
    jz      advance
    dec     ecx
    js      refused
    jmp     validate
advance:
    mov     eax, 0x1000
    lea     ecx, [rcx + rcx*8]
    shl     rax, cl
    add     rdi, rax
    jmp     next_page
refused:
    mov     ecx, 0xc0010130
    mov     eax, 0x21100
    xor     edx, edx
    wrmsr
    .byte   0xf3, 0x0f, 0x01, 0xd9      # vmgexit
    jmp     refused
done:
    jmp     rdi
    .balign 16
table:

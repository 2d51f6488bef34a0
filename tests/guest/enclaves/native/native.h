/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the parts of the native runtime have in common. */
#ifndef NATIVE_H
#define NATIVE_H

#include "runtime.h"

#define NR_WRITE 1
#define NR_MMAP 9
#define NR_MPROTECT 10
#define NR_EXECVE 59
#define NR_EXIT_GROUP 231
#define FIXED 0x32 /* MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED */

/* struct ucontext up to its machine context */
struct user_context {
	u64 flags, link, stack[3];
	u64 r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags, segments, error,
		trap, mask, cr2;
	u8 *fp;
};

/* entry.S */
s64 raw(u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);

/* native.c */
_Noreturn void die(const char *text);

/* loading.c. `pool`: so many pages the enclave may map. */
void load_image(const char *path, u64 *pool);
void pass_strings(char **arguments);

/* outside.c: the kernel, which may lie, and secrets that owners send; environment variables say how. */
void hear(char **variables);
s64 system_call_outside(u64 nr, const u64 *a);
bool is_watched(int number, u64 address, struct user_context *user);
void watch_no_more(void);
u32 give_secret(struct veil_mailbox *mailbox);

#endif

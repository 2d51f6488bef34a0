/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Out of generated code: to the host. */
#ifndef VEIL_EXITS_H
#define VEIL_EXITS_H

#include "core.h"

/* Bits of EXITINFO1 of a nested page fault (APM vol. 2, table 15-40). */
#define NPF_PRESENT (1ULL << 0)
#define NPF_WRITE (1ULL << 1)
#define NPF_USER (1ULL << 2)
#define NPF_FETCH (1ULL << 4)
#define NPF_FINAL (1ULL << 32)
#define NPF_TABLE (1ULL << 33)

/* `retaddr`: where generated code called, as for QEMU's functions; 0 if RIP is the guest's already. */
void QEMU_NORETURN veil_exit(struct veil_engine *e, uint64_t code, uint64_t exit_info_1, uint64_t exit_info_2,
                             uintptr_t retaddr);

#endif

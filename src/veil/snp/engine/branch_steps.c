/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Branch single steps (APM vol. 2, 13.1): with DebugCtl.BTF the trap of RFLAGS.TF comes behind control transfers only.
 * Which instruction it was is looked up when it is done: while TF is set each is a block of its own.
 */
#include "branch_steps.h"

/* Where in the opcode map of two bytes, behind 0F. */
#define ESCAPE 0x0f

struct instruction {
    uint8_t bytes[TARGET_MAX_INSN_SIZE];
    unsigned count;
};

static struct instruction read_instruction(const struct veil_engine *e, const TranslationBlock *tb)
{
    struct instruction in = {.count = MIN(tb->size, TARGET_MAX_INSN_SIZE)};
    unsigned i;

    for (i = 0; i < in.count; i++) {
        target_ulong pc = tb->pc + i;
        unsigned page = (pc ^ tb->pc) & TARGET_PAGE_MASK ? 1 : 0;

        in.bytes[i] = e->ram[tb->page_addr[page] + (pc & ~TARGET_PAGE_MASK)];
    }
    return in;
}

static bool is_prefix(uint8_t byte, bool is_64_bit)
{
    switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64 ... 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3:
        return true;
    default:
        return is_64_bit && (byte & 0xf0) == 0x40;
    }
}

/* Jcc, LOOPcc, JrCXZ: whether they transfer control is seen by where RIP is. */
static bool is_conditional(uint8_t first, uint8_t second)
{
    return (first & 0xf0) == 0x70 || (first & 0xfc) == 0xe0 || (first == ESCAPE && (second & 0xf0) == 0x80);
}

static bool is_unconditional(uint8_t first, uint8_t second)
{
    switch (first) {
    case 0x9a: /* CALL and JMP far, in older modes */
    case 0xea:
    case 0xc2: /* RET */
    case 0xc3:
    case 0xca:
    case 0xcb:
    case 0xcf: /* IRET */
    case 0xe8: /* CALL and JMP near */
    case 0xe9:
    case 0xeb:
        return true;
    case 0xff: /* CALL and JMP, near and far, by an operand */
        return (second >> 3 & 7) >= 2 && (second >> 3 & 7) <= 5;
    case ESCAPE: /* SYSCALL, SYSRET, SYSENTER, SYSEXIT */
        return second == 0x05 || second == 0x07 || second == 0x34 || second == 0x35;
    default:
        return false;
    }
}

bool veil_is_control_transfer(const struct veil_engine *e, const TranslationBlock *tb)
{
    struct instruction in = read_instruction(e, tb);
    bool is_64_bit = tb->flags & HF_CS64_MASK;
    uint8_t first, second;
    unsigned i = 0;

    while (i < in.count && is_prefix(in.bytes[i], is_64_bit)) {
        i++;
    }
    first = i < in.count ? in.bytes[i] : 0;
    second = i + 1 < in.count ? in.bytes[i + 1] : 0;
    if (is_conditional(first, second)) {
        return e->env->eip != (target_ulong)(tb->pc - tb->cs_base + tb->size);
    }
    return is_unconditional(first, second);
}

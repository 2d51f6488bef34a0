/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The instructions that QEMU's core does not know: PVALIDATE, RMPADJUST,
 * RMPQUERY, INVLPGB, TLBSYNC, VMGEXIT, and VMMCALL, which an SEV-ES guest gets
 * as #VC. They reach us as invalid opcodes with a precise RIP.
 */
#include "snp_opcodes.h"
#include "events.h"
#include "exits.h"
#include "mmu.h"
#include "spaces.h"

enum { PREFIX_NONE = 0, PREFIX_REPNE = 0xf2, PREFIX_REP = 0xf3 };

/* APM vol. 3, INVLPGB. CPUID Fn8000_0008 EDX[15:0] of the processors that are modelled is 7. */
#define INVLPGB_RAX_RESERVED 0xfc0u
#define INVLPGB_ECX_RESERVED 0x7fff0000u
#define INVLPGB_EDX_RESERVED 0xf0000000u
#define INVLPGB_COUNT 0xffffu
#define INVLPGB_COUNT_MAX 7

struct operand {
    uint64_t gpa;
    bool private_page;
};

/* rAX holds the page's virtual address; its low bits are ignored. The privilege check comes before the translation:
 * user code must not learn from a #PF what the kernel maps. May not return. */
static struct operand page_operand(struct veil_engine *e)
{
    CPUX86State *env = e->env;
    struct operand operand;
    uint64_t address = env->hflags & HF_CS64_MASK ? env->regs[R_EAX] : (uint32_t)env->regs[R_EAX];

    if ((env->hflags & HF_CPL_MASK) || (uint64_t)((int64_t)address >> 47) + 1 > 1) { /* user code; not canonical */
        raise_exception_err(env, EXCP0D_GPF, 0);
    }
    operand.gpa = veil_translate_operand(e, address & TARGET_PAGE_MASK, &operand.private_page);
    return operand;
}

/* Turns the RMP's refusals into the architecture's; returns when the instruction completed. */
static void check_fault(struct veil_engine *e, uint64_t result, uint64_t gpa)
{
    if (!(result & VEIL_RMP_FAULT_MASK)) {
        return;
    }
    if (result & VEIL_RMP_GP) {
        raise_exception_err(e->env, EXCP0D_GPF, 0);
    }
    if (result & VEIL_RMP_NOT_VALIDATED) {
        veil_raise_vc(e, VEIL_EXIT_NOT_VALIDATED, 0);
    }
    e->counters.nested_faults++;
    veil_exit(e, VEIL_EXIT_NPF, result | NPF_FINAL | NPF_PRESENT | NPF_USER, gpa, 0);
}

/* The return code, and what it makes of RFLAGS: all but CF, which is PVALIDATE's alone (APM vol. 3). */
static void set_result(CPUX86State *env, uint32_t code)
{
    uint32_t flags = cpu_cc_compute_all(env, env->cc_op) & ~(CC_O | CC_S | CC_Z | CC_A | CC_P);

    env->regs[R_EAX] = code;
    env->cc_src = flags | (code ? 0 : CC_Z) | parity_table[(uint8_t)code];
    env->cc_op = CC_OP_EFLAGS;
}

static void pvalidate(struct veil_engine *e, unsigned cpl)
{
    CPUX86State *env = e->env;
    struct operand page = page_operand(e);
    uint64_t result =
        veil_pvalidate(e->rmp, e->vmpl, cpl, page.gpa, page.private_page, env->regs[R_ECX] & 1, env->regs[R_EDX] & 1);

    check_fault(e, result, page.gpa);
    set_result(env, VEIL_RMP_CODE(result));
    env->cc_src = (env->cc_src & ~CC_C) | (VEIL_RMP_CF(result) ? CC_C : 0);
}

static void rmpadjust(struct veil_engine *e, unsigned cpl)
{
    CPUX86State *env = e->env;
    struct operand page = page_operand(e);
    uint64_t result =
        veil_rmpadjust(e->rmp, e->vmpl, cpl, page.gpa, page.private_page, env->regs[R_ECX] & 1, env->regs[R_EDX]);

    check_fault(e, result, page.gpa);
    set_result(env, VEIL_RMP_CODE(result));
}

static void rmpquery(struct veil_engine *e, unsigned cpl)
{
    CPUX86State *env = e->env;
    struct operand page = page_operand(e);
    uint64_t result = veil_rmpquery(e->rmp, e->vmpl, cpl, page.gpa, page.private_page, env->regs[R_EDX]);

    check_fault(e, result, page.gpa);
    if (!VEIL_RMP_CODE(result)) {
        env->regs[R_ECX] = VEIL_RMP_QUERY_SIZE(result);
        env->regs[R_EDX] =
            (env->regs[R_EDX] & 0xff) | VEIL_RMP_QUERY_PERMS(result) << 8 | VEIL_RMP_QUERY_VMSA(result) << 16;
    }
    set_result(env, VEIL_RMP_CODE(result));
}

/* The host lets the guest have it (VMCB, offset 090h bit 7); with whatever ASID, hardware takes the guest's own. All of
 * its translations go, on every VCPU, which is more than most requests ask for. */
static void invlpgb(struct veil_engine *e, unsigned cpl)
{
    const uint64_t *regs = e->env->regs;

    if (cpl || regs[R_EAX] & INVLPGB_RAX_RESERVED || regs[R_ECX] & INVLPGB_ECX_RESERVED ||
        (regs[R_ECX] & INVLPGB_COUNT) > INVLPGB_COUNT_MAX || regs[R_EDX] & INVLPGB_EDX_RESERVED) {
        raise_exception_err(e->env, EXCP0D_GPF, 0);
    }
    veil_spaces_drop(e);
}

/* INVLPGB is done when it ends. */
static void tlbsync(struct veil_engine *e, unsigned cpl)
{
    if (cpl) {
        raise_exception_err(e->env, EXCP0D_GPF, 0);
    }
}

bool veil_snp_instruction(struct veil_engine *e)
{
    CPUX86State *env = e->env;
    unsigned cpl = env->hflags & HF_CPL_MASK;
    uint8_t code[4] = {0};
    unsigned prefix = PREFIX_NONE, length = 0;

    if (!veil_read_virtual(e, env->segs[R_CS].base + env->eip, code, 1)) {
        return false;
    }
    if (code[0] == PREFIX_REPNE || code[0] == PREFIX_REP) {
        prefix = code[0];
        length = 1;
    }
    if (!veil_read_virtual(e, env->segs[R_CS].base + env->eip + length, code, 3) || code[0] != 0x0f ||
        code[1] != 0x01) {
        return false;
    }
    length += 3;

    env->old_exception = -1; /* it was not an invalid opcode after all */
    e->cs->exception_index = -1;
    if (code[2] == 0xd9 && prefix != PREFIX_NONE) {
        env->eip += length;
        env->hflags &= ~HF_INHIBIT_IRQ_MASK;
        veil_exit(e, VEIL_EXIT_VMGEXIT, 0, 0, 0);
    }
    if (code[2] == 0xd9) {
        veil_raise_vc(e, SVM_EXIT_VMMCALL, 0);
    }
    if (code[2] == 0xff && prefix == PREFIX_REPNE) {
        pvalidate(e, cpl);
    } else if (code[2] == 0xfe && prefix == PREFIX_REP) {
        rmpadjust(e, cpl);
    } else if (code[2] == 0xfd && prefix == PREFIX_REP) {
        rmpquery(e, cpl);
    } else if (code[2] == 0xfe && prefix == PREFIX_NONE) {
        invlpgb(e, cpl);
    } else if (code[2] == 0xff && prefix == PREFIX_NONE) {
        tlbsync(e, cpl);
    } else {
        e->cs->exception_index = EXCP06_ILLOP;
        return false;
    }
    env->eip += length;
    env->hflags &= ~HF_INHIBIT_IRQ_MASK;
    return true;
}

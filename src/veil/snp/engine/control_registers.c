/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a guest may not write to control registers, EFER and other MSRs: #GP (APM vol. 2, 3.1, and vol. 3, "MOV CRn",
 * "WRMSR"). QEMU ignores such bits, or takes them.
 */
#include "control_registers.h"

#include "exec/exec-all.h"
#include "exec/helper-proto.h"

#define CR0_NW_MASK (1U << 29)
#define CR0_CD_MASK (1U << 30)

#define CR4_SUPPORTED                                                                                                  \
    (CR4_TSD_MASK | CR4_DE_MASK | CR4_PSE_MASK | CR4_PAE_MASK | CR4_MCE_MASK | CR4_PGE_MASK | CR4_PCE_MASK |           \
     CR4_OSFXSR_MASK | CR4_OSXMMEXCPT_MASK | VEIL_CR4_UMIP | CR4_FSGSBASE_MASK | CR4_SMEP_MASK | CR4_SMAP_MASK)
/* SVME is the VMSA's, whatever the guest writes; LMA is the processor's. */
#define EFER_SUPPORTED (MSR_EFER_SCE | MSR_EFER_LME | MSR_EFER_LMA | MSR_EFER_NXE | MSR_EFER_SVME)
/* Of a code segment's attributes as the VMSA has them: L and D. */
#define VMSA_CODE_64 (1U << 9)
#define VMSA_CODE_32 (1U << 10)
/* Above the 52 bits of a physical address. */
#define CR3_RESERVED (0xfffULL << 52)

void __real_helper_write_crN_x86_64(CPUX86State *env, int reg, target_ulong value);
void __wrap_helper_write_crN_x86_64(CPUX86State *env, int reg, target_ulong value);

static bool is_cr0_allowed(const CPUX86State *env, uint64_t value)
{
    bool paging = value & CR0_PG_MASK;

    if (value >> 32 || ((value & CR0_NW_MASK) && !(value & CR0_CD_MASK)) || (paging && !(value & CR0_PE_MASK))) {
        return false;
    }
    if (env->cr[0] & CR0_PG_MASK) {
        return paging || !(env->hflags & HF_CS64_MASK);
    }
    /* Into long mode: by way of PAE, and of a code segment that is not a 64-bit one yet. */
    return !paging || !(env->efer & MSR_EFER_LME) ||
           ((env->cr[4] & CR4_PAE_MASK) && !(env->segs[R_CS].flags & DESC_L_MASK));
}

static bool has_cr4(const struct veil_engine *e, uint64_t value)
{
    uint64_t supported = CR4_SUPPORTED | (e->features & VEIL_CPU_XSAVE ? CR4_OSXSAVE_MASK : 0) |
                         (e->features & VEIL_CPU_PKU ? CR4_PKE_MASK : 0);

    return !(value & ~supported);
}

static bool is_cr4_allowed(CPUX86State *env, uint64_t value)
{
    return has_cr4(veil_of(env), value) && ((value & CR4_PAE_MASK) || !(env->hflags & HF_LMA_MASK));
}

bool veil_are_consistent(const struct veil_engine *e, const struct veil_vmsa *v)
{
    bool long_mode = (v->efer & MSR_EFER_LME) && (v->cr0 & CR0_PG_MASK);

    if (!(v->efer & MSR_EFER_SVME) || v->efer & ~(uint64_t)EFER_SUPPORTED) {
        return false;
    }
    if (v->cr0 >> 32 || ((v->cr0 & CR0_NW_MASK) && !(v->cr0 & CR0_CD_MASK)) || v->cr3 & CR3_RESERVED ||
        !has_cr4(e, v->cr4) || v->dr6 >> 32 || v->dr7 >> 32) {
        return false;
    }
    return !long_mode || ((v->cr4 & CR4_PAE_MASK) && (v->cr0 & CR0_PE_MASK) &&
                          (v->cs.attrib & (VMSA_CODE_64 | VMSA_CODE_32)) != (VMSA_CODE_64 | VMSA_CODE_32));
}

static bool is_allowed(CPUX86State *env, int reg, uint64_t value)
{
    switch (reg) {
    case 0:
        return is_cr0_allowed(env, value);
    case 3:
        return !(env->hflags & HF_LMA_MASK) || !(value & CR3_RESERVED);
    case 4:
        return is_cr4_allowed(env, value);
    case 8:
        return !(value & ~0xfULL);
    default:
        return true;
    }
}

void __wrap_helper_write_crN_x86_64(CPUX86State *env, int reg, target_ulong value)
{
    /* Outside of 64-bit mode a register's upper half is what it was. */
    uint64_t written = env->hflags & HF_CS64_MASK ? value : (uint32_t)value;
    bool other_keys;

    if (!is_allowed(env, reg, written)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    other_keys = reg == 4 && (written ^ env->cr[4]) & CR4_PKE_MASK;
    __real_helper_write_crN_x86_64(env, reg, written);
    if (other_keys) { /* what keys allow is in the TLB; QEMU leaves it as it is */
        tlb_flush(env_cpu(env));
    }
}

void veil_check_efer(CPUX86State *env, uint64_t value, uintptr_t retaddr)
{
    bool other_mode = (value ^ env->efer) & MSR_EFER_LME;

    if ((value & ~(uint64_t)EFER_SUPPORTED) || (other_mode && (env->cr[0] & CR0_PG_MASK))) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
    }
}

bool veil_msr_takes(uint32_t msr, uint64_t value)
{
    unsigned shift;

    switch (msr) {
    case MSR_FSBASE:
    case MSR_GSBASE:
    case MSR_KERNELGSBASE:
    case MSR_LSTAR:
    case MSR_CSTAR: /* addresses: canonical ones */
        return (uint64_t)((int64_t)value >> 47) + 1 <= 1;
    case MSR_TSC_AUX:
        return !(value >> 32);
    case MSR_PAT: /* of eight memory types two are reserved */
        for (shift = 0; shift < 64; shift += 8) {
            uint8_t type = value >> shift;

            if (type > 7 || type == 2 || type == 3) {
                return false;
            }
        }
        return true;
    default:
        return true;
    }
}

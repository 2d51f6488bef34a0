/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Extended state (APM vol. 2, 11.5): which of it the processor has, and XSAVEC, which QEMU's core lacks. There is x87,
 * SSE, and PKRU if protection keys are offered.
 */
#include "core.h"

#include "exec/cpu_ldst.h"
#include "exec/helper-proto.h"
#include "fpu/softfloat.h"

#define XSTATE_BV 512
#define XCOMP_BV 520
/* In the compacted form PKRU has no other component before it. */
#define COMPACT_PKRU 576
#define COMPACT_FORM (1ULL << 63)

void veil_engine_set_cpu_features(struct veil_engine *e, uint32_t features)
{
    uint64_t *words = e->env->features;

    e->features = features;
    words[FEAT_XSAVE_COMP_LO] = XSTATE_FP_MASK | XSTATE_SSE_MASK;
    words[FEAT_XSAVE_COMP_HI] = 0;
    if (features & VEIL_CPU_XSAVE) {
        words[FEAT_XSAVE] |= CPUID_XSAVE_XSAVEC;
    } else {
        words[FEAT_1_ECX] &= ~(uint64_t)CPUID_EXT_XSAVE;
    }
    if (features & VEIL_CPU_PKU) {
        words[FEAT_7_0_ECX] |= CPUID_7_0_ECX_PKU;
        words[FEAT_XSAVE_COMP_LO] |= XSTATE_PKRU_MASK;
    }
}

/* RCPPS, RCPSS, RSQRTPS and RSQRTSS meet no exceptions (APM vol. 4). */
#define QUIET(name)                                                                                                    \
    void __real_helper_##name##_x86_64(CPUX86State *env, ZMMReg *d, ZMMReg *s);                                        \
    void __wrap_helper_##name##_x86_64(CPUX86State *env, ZMMReg *d, ZMMReg *s);                                        \
    void __wrap_helper_##name##_x86_64(CPUX86State *env, ZMMReg *d, ZMMReg *s)                                         \
    {                                                                                                                  \
        int flags = get_float_exception_flags(&env->sse_status);                                                       \
        __real_helper_##name##_x86_64(env, d, s);                                                                      \
        set_float_exception_flags(flags, &env->sse_status);                                                            \
    }

QUIET(rcpps)
QUIET(rcpss)
QUIET(rsqrtps)
QUIET(rsqrtss)

/* The core's PHADD and PHSUB read the source when half of the destination is written, whether or not it is the same. */
#define FROM_A_COPY(name, type)                                                                                        \
    void __real_helper_##name##_x86_64(CPUX86State *env, type *d, type *s);                                            \
    void __wrap_helper_##name##_x86_64(CPUX86State *env, type *d, type *s);                                            \
    void __wrap_helper_##name##_x86_64(CPUX86State *env, type *d, type *s)                                             \
    {                                                                                                                  \
        type copy = *s;                                                                                                \
        __real_helper_##name##_x86_64(env, d, &copy);                                                                  \
    }

FROM_A_COPY(phaddw_mmx, MMXReg)
FROM_A_COPY(phaddd_mmx, MMXReg)
FROM_A_COPY(phaddsw_mmx, MMXReg)
FROM_A_COPY(phsubw_mmx, MMXReg)
FROM_A_COPY(phsubd_mmx, MMXReg)
FROM_A_COPY(phsubsw_mmx, MMXReg)
FROM_A_COPY(phaddw_xmm, ZMMReg)
FROM_A_COPY(phaddd_xmm, ZMMReg)
FROM_A_COPY(phaddsw_xmm, ZMMReg)
FROM_A_COPY(phsubw_xmm, ZMMReg)
FROM_A_COPY(phsubd_xmm, ZMMReg)
FROM_A_COPY(phsubsw_xmm, ZMMReg)

/* The translator has stored RIP and the flags: a fault in here needs no place in generated code. */
void helper_veil_xsavec(CPUX86State *env, target_ulong ptr, uint64_t wanted)
{
    uint64_t saved = wanted & env->xcr0;

    helper_xsave(env, ptr, saved & (XSTATE_FP_MASK | XSTATE_SSE_MASK));
    if (saved & XSTATE_PKRU_MASK) {
        cpu_stq_data_ra(env, ptr + COMPACT_PKRU, env->pkru, 0);
    }
    cpu_stq_data_ra(env, ptr + XSTATE_BV, saved, 0);
    cpu_stq_data_ra(env, ptr + XCOMP_BV, saved | COMPACT_FORM, 0);
}

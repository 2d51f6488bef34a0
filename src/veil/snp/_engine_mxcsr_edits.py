# SPDX-License-Identifier: GPL-2.0-or-later
"""MXCSR (APM volume 1, 4.2.2): changes of the CPU engine's core. Its floating-point unit kept no status in it."""

from __future__ import annotations

__all__ = ["MXCSR_EDITS"]

_FPU = "src/qemu/target/i386/fpu_helper.c"
_TRANSLATOR = "src/qemu/target/i386/translate.c"

#: As `_engine_edits.EDITS`, which they come after.
MXCSR_EDITS = (
    # The core collects the flags of exceptions beside MXCSR: from there when somebody looks, and there when it is
    # loaded. Flush to zero is SSE's; the core did it to x87.
    (
        _FPU,
        "    set_flush_to_zero((mxcsr & SSE_FZ) ? 1 : 0, &env->fp_status);\n}\n",
        "    set_flush_to_zero((mxcsr & SSE_FZ) ? 1 : 0, &env->sse_status);\n\n"
        "    set_float_exception_flags((mxcsr & FPUS_IE ? float_flag_invalid : 0)\n"
        "        | (mxcsr & FPUS_ZE ? float_flag_divbyzero : 0) | (mxcsr & FPUS_OE ? float_flag_overflow : 0)\n"
        "        | (mxcsr & FPUS_UE ? float_flag_underflow : 0) | (mxcsr & FPUS_PE ? float_flag_inexact : 0),\n"
        "        &env->sse_status);\n}\n\n"
        "void helper_veil_collect_mxcsr(CPUX86State *env)\n{\n"
        "    int flags = get_float_exception_flags(&env->sse_status);\n\n"
        "    env->mxcsr |= (flags & float_flag_invalid ? FPUS_IE : 0) | (flags & float_flag_divbyzero ? FPUS_ZE : 0)\n"
        "        | (flags & float_flag_overflow ? FPUS_OE : 0) | (flags & float_flag_underflow ? FPUS_UE : 0)\n"
        "        | (flags & float_flag_inexact ? FPUS_PE : 0)\n"
        "        | (flags & float_flag_output_denormal ? FPUS_UE | FPUS_PE : 0);\n}\n",
    ),
    (
        "src/qemu/target/i386/helper.h",
        "DEF_HELPER_2(ldmxcsr, void, env, i32)\n",
        "DEF_HELPER_2(ldmxcsr, void, env, i32)\nDEF_HELPER_1(veil_collect_mxcsr, void, env)\n",
    ),
    (
        _TRANSLATOR,
        "            tcg_gen_ld32u_tl(tcg_ctx, s->T0, tcg_ctx->cpu_env, offsetof(CPUX86State, mxcsr));\n",
        "            gen_helper_veil_collect_mxcsr(tcg_ctx, tcg_ctx->cpu_env);\n"
        "            tcg_gen_ld32u_tl(tcg_ctx, s->T0, tcg_ctx->cpu_env, offsetof(CPUX86State, mxcsr));\n",
    ),
    (
        _FPU,
        "    cpu_stl_data_ra(env, ptr + XO(legacy.mxcsr), env->mxcsr, ra);\n",
        "    helper_veil_collect_mxcsr(env);\n    cpu_stl_data_ra(env, ptr + XO(legacy.mxcsr), env->mxcsr, ra);\n",
    ),
    # Reserved bits.
    (
        _FPU,
        "    cpu_set_mxcsr(env, cpu_ldl_data_ra(env, ptr + XO(legacy.mxcsr), ra));\n",
        "    uint32_t mxcsr = cpu_ldl_data_ra(env, ptr + XO(legacy.mxcsr), ra);\n\n"
        "    if (mxcsr >> 16) {\n        raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);\n    }\n"
        "    cpu_set_mxcsr(env, mxcsr);\n",
    ),
    (
        _FPU,
        "{\n    cpu_set_mxcsr(env, val);\n}\n",
        "{\n    if (val >> 16) {\n        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());\n    }\n"
        "    cpu_set_mxcsr(env, val);\n}\n",
    ),
)

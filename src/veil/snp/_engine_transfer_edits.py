# SPDX-License-Identifier: GPL-2.0-or-later
"""What far transfers and events refuse, as APM volumes 2 and 3 have it: changes of the CPU engine's core."""

from __future__ import annotations

__all__ = ["TRANSFER_EDITS"]

_SEGMENTS = "src/qemu/target/i386/seg_helper.c"
_TRANSLATOR = "src/qemu/target/i386/translate.c"

#: As `_engine_edits.EDITS`, which they come after.
TRANSFER_EDITS = (
    # A selector error code has the vector, whatever the size of a gate (APM volume 2, 8.4.1).
    (
        _SEGMENTS,
        "    if (intno * 16 + 15 > dt->limit) {\n        raise_exception_err(env, EXCP0D_GPF, intno * 16 + 2);\n",
        "    if (intno * 16 + 15 > dt->limit) {\n        raise_exception_err(env, EXCP0D_GPF, intno * 8 + 2);\n",
    ),
    (
        _SEGMENTS,
        "    default:\n        raise_exception_err(env, EXCP0D_GPF, intno * 16 + 2);\n",
        "    default:\n        raise_exception_err(env, EXCP0D_GPF, intno * 8 + 2);\n",
    ),
    (
        _SEGMENTS,
        "    if (is_int && dpl < cpl) {\n        raise_exception_err(env, EXCP0D_GPF, intno * 16 + 2);\n",
        "    if (is_int && dpl < cpl) {\n        raise_exception_err(env, EXCP0D_GPF, intno * 8 + 2);\n",
    ),
    (
        _SEGMENTS,
        "raise_exception_err(env, EXCP0B_NOSEG, intno * 16 + 2);",
        "raise_exception_err(env, EXCP0B_NOSEG, intno * 8 + 2);",
    ),
    # Where a far transfer leads: a canonical address, or one within the segment's limit.
    (
        _SEGMENTS,
        "static inline void load_seg_cache_raw_dt(",
        "static inline bool veil_is_outside(CPUX86State *env, target_ulong eip, uint32_t e1, uint32_t e2)\n{\n"
        "    return (env->hflags & HF_LMA_MASK) && (e2 & DESC_L_MASK)\n"
        "        ? (uint64_t)((int64_t)eip >> 47) + 1 > 1 : eip > get_seg_limit(e1, e2);\n}\n\n"
        "static inline void load_seg_cache_raw_dt(",
    ),
    (
        _SEGMENTS,
        "    if (dpl < cpl || ist != 0) {\n",
        "    if (veil_is_outside(env, offset, e1, e2)) {\n        raise_exception_err(env, EXCP0D_GPF, 0);\n    }\n"
        "    if (dpl < cpl || ist != 0) {\n",
    ),
    (
        _SEGMENTS,
        "        limit = get_seg_limit(e1, e2);\n        if (new_eip > limit &&\n"
        "            (!(env->hflags & HF_LMA_MASK) || !(e2 & DESC_L_MASK))) {\n",
        "        limit = get_seg_limit(e1, e2);\n        if (veil_is_outside(env, new_eip, e1, e2)) {\n",
    ),
    (
        _SEGMENTS,
        "                raise_exception_err_ra(env, EXCP0D_GPF, gate_cs & 0xfffc, GETPC());\n            }\n"
        "            limit = get_seg_limit(e1, e2);\n            if (new_eip > limit &&\n"
        "                (!(env->hflags & HF_LMA_MASK) || !(e2 & DESC_L_MASK))) {\n",
        "                raise_exception_err_ra(env, EXCP0B_NOSEG, gate_cs & 0xfffc, GETPC());\n            }\n"
        "            limit = get_seg_limit(e1, e2);\n            if (veil_is_outside(env, new_eip, e1, e2)) {\n",
    ),
    (
        _SEGMENTS,
        "            target_ulong rsp;\n\n            /* 64 bit case */\n",
        "            target_ulong rsp;\n\n            if (veil_is_outside(env, new_eip, e1, e2)) {\n"
        "                raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());\n            }\n"
        "            /* 64 bit case */\n",
    ),
    (
        _SEGMENTS,
        "        if (!(e2 & DESC_C_MASK) && dpl < cpl) {\n            /* to inner privilege */\n"
        "            stack_index",
        "        if (veil_is_outside(env, offset, e1, e2)) {\n"
        "            raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());\n        }\n"
        "        if (!(e2 & DESC_C_MASK) && dpl < cpl) {\n            /* to inner privilege */\n"
        "            stack_index",
    ),
    (
        _SEGMENTS,
        "        raise_exception_err_ra(env, EXCP0B_NOSEG, new_cs & 0xfffc, retaddr);\n    }\n\n    sp += addend;\n",
        "        raise_exception_err_ra(env, EXCP0B_NOSEG, new_cs & 0xfffc, retaddr);\n    }\n"
        "    if (veil_is_outside(env, new_eip, e1, e2)) {\n"
        "        raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);\n    }\n\n    sp += addend;\n",
    ),
    # A stack segment that is not present is #SS, whoever names it.
    (
        _SEGMENTS,
        "raise_exception_err_ra(env, EXCP0B_NOSEG, new_ss & 0xfffc, retaddr);",
        "raise_exception_err_ra(env, EXCP0C_STACK, new_ss & 0xfffc, retaddr);",
    ),
    (
        _SEGMENTS,
        "                if (!(ss_e2 & DESC_P_MASK)) {\n"
        "                    raise_exception_err_ra(env, EXCP0A_TSS, ss & 0xfffc, GETPC());\n",
        "                if (!(ss_e2 & DESC_P_MASK)) {\n"
        "                    raise_exception_err_ra(env, EXCP0C_STACK, ss & 0xfffc, GETPC());\n",
    ),
    (
        _SEGMENTS,
        "        if (!(ss_e2 & DESC_P_MASK)) {\n            raise_exception_err(env, EXCP0A_TSS, ss & 0xfffc);\n",
        "        if (!(ss_e2 & DESC_P_MASK)) {\n            raise_exception_err(env, EXCP0C_STACK, ss & 0xfffc);\n",
    ),
    # LTR takes no null selector: an event from a program would have no stack.
    (
        _SEGMENTS,
        "        /* NULL selector case: invalid TR */\n        env->tr.base = 0;\n        env->tr.limit = 0;\n"
        "        env->tr.flags = 0;\n",
        "        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());\n",
    ),
    # A VMSA may have any TR: QEMU ends the process of a guest that has no task state segment where a stack is to come
    # from it.
    (
        _SEGMENTS,
        "    if (!(env->tr.flags & DESC_P_MASK)) {\n        cpu_abort(CPU(cpu), \"invalid tss\");\n    }\n"
        "    index = 8 * level + 4;\n",
        "    if (!(env->tr.flags & DESC_P_MASK)) {\n"
        "        raise_exception_err(env, EXCP0A_TSS, env->tr.selector & 0xfffc);\n    }\n"
        "    index = 8 * level + 4;\n",
    ),
    (
        _SEGMENTS,
        "        cpu_abort(CPU(cpu), \"invalid tss\");\n    }\n    type = (env->tr.flags >> DESC_TYPE_SHIFT) & 0xf;\n",
        "        raise_exception_err_ra(env, EXCP0A_TSS, env->tr.selector & 0xfffc, retaddr);\n    }\n"
        "    type = (env->tr.flags >> DESC_TYPE_SHIFT) & 0xf;\n",
    ),
    (
        _SEGMENTS,
        "        cpu_abort(CPU(cpu), \"invalid tss type\");\n",
        "        raise_exception_err_ra(env, EXCP0A_TSS, env->tr.selector & 0xfffc, retaddr);\n",
    ),
    # SYSENTER and SYSEXIT are for legacy mode alone; Unicorn's own SYSENTER only calls a hook (intercepts.c).
    (
        _TRANSLATOR,
        "        /* For Intel SYSENTER is valid on 64-bit */\n"
        "        if (CODE64(s) && env->cpuid_vendor1 != CPUID_VENDOR_INTEL_1)\n",
        "        if (s->lma)\n",
    ),
    (
        _TRANSLATOR,
        "        /* For Intel SYSEXIT is valid on 64-bit */\n"
        "        if (CODE64(s) && env->cpuid_vendor1 != CPUID_VENDOR_INTEL_1)\n",
        "        if (s->lma)\n",
    ),
)  # fmt: skip

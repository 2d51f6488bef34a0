# SPDX-License-Identifier: GPL-2.0-or-later
"""Which encodings are undefined, and what some others do (APM volumes 3 and 4): changes of the CPU engine's core."""

from __future__ import annotations

__all__ = ["OPCODE_EDITS"]

_TRANSLATOR = "src/qemu/target/i386/translate.c"
_MMX_OPERAND = (
    "                if (mod == 3) {\n                    op2_offset = offsetof(CPUX86State,fpregs[rm].mmx);\n"
    "                } else {\n                    op2_offset = offsetof(CPUX86State,mmx_t0);\n"
    "                    gen_lea_modrm(env, s, modrm);\n                    gen_ldq_env_A0(s, op2_offset);\n"
    "                }\n            }\n"
)

#: As `_engine_edits.EDITS`, which they come after.
OPCODE_EDITS = (
    # LOCK is for those that read, change and write memory (APM volume 3, 1.2.5). QEMU ended its process for BT, BTS,
    # BTR and BTC of a register, whoever executed it, and went past LOCK in front of most others.
    (
        _TRANSLATOR,
        "/* convert one instruction. s->base.is_jmp is set if the translation must\n",
        "static bool veil_may_lock(CPUX86State *env, DisasContext *s, int b)\n{\n"
        "    unsigned operations = 0xff; /* of those that ModRM tells apart */\n"
        "    int modrm;\n\n"
        "    switch (b) {\n"
        "    case 0x00: case 0x01: case 0x08: case 0x09: case 0x10: case 0x11: case 0x18: case 0x19:\n"
        "    case 0x20: case 0x21: case 0x28: case 0x29: case 0x30: case 0x31: /* ADD to XOR */\n"
        "    case 0x86: case 0x87: case 0x1b0: case 0x1b1: case 0x1c0: case 0x1c1: /* XCHG, CMPXCHG, XADD */\n"
        "    case 0x1ab: case 0x1b3: case 0x1bb: /* BTS, BTR, BTC */\n        break;\n"
        "    case 0x80: case 0x81: case 0x82: case 0x83: /* the same, but for CMP */\n"
        "        operations = 0x7f;\n        break;\n"
        "    case 0xf6: case 0xf7: /* NOT, NEG */\n        operations = 0x0c;\n        break;\n"
        "    case 0xfe: case 0xff: /* INC, DEC */\n        operations = 0x03;\n        break;\n"
        "    case 0x1ba: /* BTS, BTR, BTC */\n        operations = 0xe0;\n        break;\n"
        "    case 0x1c7: /* CMPXCHG8B, CMPXCHG16B */\n        operations = 0x02;\n        break;\n"
        "    case 0x120: case 0x122: /* MOV of CR0, which is CR8 then */\n        return true;\n"
        "    default:\n        return false;\n    }\n"
        "    modrm = x86_ldub_code(env, s);\n    s->pc--;\n"
        "    return modrm < 0xc0 && operations >> (modrm >> 3 & 7) & 1;\n}\n\n"
        "/* convert one instruction. s->base.is_jmp is set if the translation must\n",
    ),
    (
        _TRANSLATOR,
        " reswitch:\n    switch(b) {\n",
        " reswitch:\n    if ((prefixes & PREFIX_LOCK) && b != 0x0f && !veil_may_lock(env, s, b)) {\n"
        "        goto illegal_op;\n    }\n    switch(b) {\n",
    ),
    # XBEGIN and XABORT, and AMD's XOP, of which there is none.
    (
        _TRANSLATOR,
        "    case 0xc7: /* mov Ev, Iv */\n        ot = mo_b_d(b, dflag);\n        modrm = x86_ldub_code(env, s);\n",
        "    case 0xc7: /* mov Ev, Iv */\n        ot = mo_b_d(b, dflag);\n        modrm = x86_ldub_code(env, s);\n"
        "        if (modrm & 0x38) {\n            goto illegal_op;\n        }\n",
    ),
    (
        _TRANSLATOR,
        "    case 0x8f: /* pop Ev */\n        modrm = x86_ldub_code(env, s);\n",
        "    case 0x8f: /* pop Ev */\n        modrm = x86_ldub_code(env, s);\n"
        "        if (modrm & 0x38) {\n            goto illegal_op;\n        }\n",
    ),
    # MOVBE has no form for two registers, and went to memory for it.
    (
        _TRANSLATOR,
        "                if (!(s->cpuid_ext_features & CPUID_EXT_MOVBE)) {\n",
        "                if (!(s->cpuid_ext_features & CPUID_EXT_MOVBE) || modrm >= 0xc0) {\n",
    ),
    # REX extends no MMX register: with it SSSE3's wrote behind them, into what tells how SSE rounds, for all contexts.
    *(
        (
            _TRANSLATOR,
            f"                op1_offset = offsetof(CPUX86State,fpregs[reg].mmx);\n{_MMX_OPERAND}{behind}",
            f"                op1_offset = offsetof(CPUX86State,fpregs[reg & 7].mmx);\n{_MMX_OPERAND}{behind}",
        )
        for behind in ("            if (sse_fn_epp == SSE_SPECIAL) {", "            val = x86_ldub_code(env, s);")
    ),
    # PCMPESTRI and PCMPESTRM take a length of -2^31 as one of 2^31, not as one that is negative: QEMU read far outside
    # of its registers.
    (
        "src/qemu/target/i386/ops_sse.h",
        "    if (ctrl >> 8) {\n        val = abs1((int64_t)env->regs[reg]);\n    } else {\n"
        "        val = abs1((int32_t)env->regs[reg]);\n    }\n",
        "    int64_t given = ctrl >> 8 ? (int64_t)env->regs[reg] : (int32_t)env->regs[reg];\n\n"
        "    val = MIN(given < 0 ? -(uint64_t)given : (uint64_t)given, 16);\n",
    ),
    # PDEP of 32 bits has a mask of 32.
    (
        _TRANSLATOR,
        "                gen_helper_pdep(tcg_ctx, tcg_ctx->cpu_regs[reg], s->T1, s->T0);\n",
        "                if (ot != MO_64) {\n"
        "                    tcg_gen_ext32u_tl(tcg_ctx, s->T0, s->T0);\n                }\n"
        "                gen_helper_pdep(tcg_ctx, tcg_ctx->cpu_regs[reg], s->T1, s->T0);\n",
    ),
    # BZHI with an index behind the operand changes nothing, and sets CF.
    (
        _TRANSLATOR,
        "                    tcg_gen_setcond_tl(tcg_ctx, TCG_COND_LT, tcg_ctx->cpu_cc_src,\n"
        "                                       s->T1, bound);\n"
        "                    tcg_gen_movcond_tl(tcg_ctx, TCG_COND_GT, s->T1, s->T1,\n"
        "                                       bound, bound, s->T1);\n"
        "                    tcg_temp_free(tcg_ctx, bound);\n                }\n"
        "                tcg_gen_movi_tl(tcg_ctx, s->A0, -1);\n"
        "                tcg_gen_shl_tl(tcg_ctx, s->A0, s->A0, s->T1);\n",
        "                    TCGv none = tcg_const_tl(tcg_ctx, 0);\n"
        "                    tcg_gen_movi_tl(tcg_ctx, s->A0, -1);\n"
        "                    tcg_gen_shl_tl(tcg_ctx, s->A0, s->A0, s->T1);\n"
        "                    tcg_gen_movcond_tl(tcg_ctx, TCG_COND_LEU, s->A0, s->T1, bound, s->A0, none);\n"
        "                    tcg_gen_setcond_tl(tcg_ctx, TCG_COND_LEU, tcg_ctx->cpu_cc_src, s->T1, bound);\n"
        "                    tcg_temp_free(tcg_ctx, bound);\n                    tcg_temp_free(tcg_ctx, none);\n"
        "                }\n",
    ),
)

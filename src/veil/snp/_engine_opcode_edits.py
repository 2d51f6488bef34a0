# SPDX-License-Identifier: GPL-2.0-or-later
"""Which encodings are undefined (APM volume 3): changes of the CPU engine's core."""

from __future__ import annotations

__all__ = ["OPCODE_EDITS"]

_TRANSLATOR = "src/qemu/target/i386/translate.c"

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
)

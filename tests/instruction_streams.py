# SPDX-License-Identifier: GPL-2.0-or-later
"""Random machine code that must end the same however often it was left and entered again on the way."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["DATA_PAGES", "KEY", "random_stream"]

#: how many pages after R15 the code works on; the one after them is a program's, and used where SMAP lets it
DATA_PAGES = 3
#: the protection key of that page; all others have key 0
KEY = 5

_PAGE = 4096
_WIDE = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11")
_REGISTERS = {
    64: _WIDE,
    32: ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi", "r8d", "r9d", "r10d", "r11d"),
    16: ("ax", "cx", "dx", "bx", "bp", "si", "di", "r8w", "r9w", "r10w", "r11w"),
    8: ("al", "cl", "dl", "bl", "bpl", "sil", "dil", "r8b", "r9b", "r10b", "r11b"),
}
_POINTER = {8: "byte ptr", 16: "word ptr", 32: "dword ptr", 64: "qword ptr"}
_CONDITIONS = ("o", "no", "c", "nc", "z", "nz", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")
_XMM = tuple(f"xmm{number}" for number in range(8))


class _Stream:
    """One stream in the making."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.labels = 0

    def memory(self, bits: int, align: int = 1) -> str:
        """An operand in the data, often across the border of two pages."""
        rng, size = self.rng, bits // 8
        if align == 1 and rng.random() < 0.3:
            return f"[r15 + {rng.randrange(1, DATA_PAGES) * _PAGE - rng.randrange(0, size + 1)}]"
        return f"[r15 + {rng.randrange(0, DATA_PAGES * _PAGE - size) // align * align}]"

    def pointed(self, bits: int) -> str:
        return f"{_POINTER[bits]} {self.memory(bits)}"

    def bits(self, *choices: int) -> int:
        return self.rng.choice(choices or (8, 16, 32, 64))

    def register(self, bits: int = 64) -> str:
        return self.rng.choice(_REGISTERS[bits])

    def place(self, bits: int) -> str:
        """A register, or memory."""
        return self.register(bits) if self.rng.random() < 0.4 else self.pointed(bits)

    def number(self, bits: int) -> int:
        bits = min(bits, 32)
        value = self.rng.choice((0, 1, -1, self.rng.getrandbits(bits), 1 << bits - 1))
        return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)

    def label(self) -> str:
        self.labels += 1
        return f"l{self.labels}"

    # Kinds of instructions

    def arithmetic(self) -> str:
        bits = self.bits()
        name = self.rng.choice(("add", "adc", "sub", "sbb", "and", "or", "xor", "cmp", "test"))
        return self.rng.choice(
            (
                f"{name} {self.place(bits)}, {self.register(bits)}",
                f"{name} {self.register(bits)}, {self.pointed(bits)}",
                f"{name} {self.place(bits)}, {self.number(bits)}",
            )
        )

    def unary(self) -> str:
        return f"{self.rng.choice(('inc', 'dec', 'neg', 'not'))} {self.place(self.bits())}"

    def locked(self) -> str:
        bits = self.bits()
        name = self.rng.choice(("inc", "dec", "neg", "not", "add", "adc", "sub", "sbb", "xor", "xadd", "cmpxchg"))
        if name in ("inc", "dec", "neg", "not"):
            return f"lock {name} {self.pointed(bits)}"
        return f"lock {name} {self.pointed(bits)}, {self.register(bits)}"

    def exchange(self) -> str:
        bits = self.bits()
        return f"{self.rng.choice(('xchg', 'xadd', 'cmpxchg'))} {self.place(bits)}, {self.register(bits)}"

    def wide_exchange(self) -> str:
        lock = self.rng.choice(("", "lock "))
        return lock + self.rng.choice((f"cmpxchg16b {self.memory(128, 16)}", f"cmpxchg8b {self.memory(64)}"))

    def shift(self) -> str:
        bits = self.bits()
        name = self.rng.choice(("shl", "shr", "sar", "rol", "ror", "rcl", "rcr"))
        return f"{name} {self.place(bits)}, {self.rng.choice(('cl', '1', str(self.rng.randrange(0, 32))))}"

    def double_shift(self) -> str:
        bits = self.bits(32, 64)
        count = self.rng.choice(("cl", str(self.rng.randrange(0, 32))))
        return f"{self.rng.choice(('shld', 'shrd'))} {self.place(bits)}, {self.register(bits)}, {count}"

    def multiply(self) -> str:
        bits = self.bits(16, 32, 64)
        return self.rng.choice(
            (
                f"imul {self.register(bits)}, {self.pointed(bits)}",
                f"{self.rng.choice(('mul', 'imul'))} {self.place(bits)}",
                f"or ecx, 1\nxor edx, edx\ndiv ecx\ntest {self.register()}, 1",
            )
        )

    def bit(self) -> str:
        # Flags other than CF are undefined, and the core leaves there what depends on the block: they are set anew.
        bits = self.bits(16, 32, 64)
        name = self.rng.choice(("bt", "bts", "btr", "btc"))
        return f"{name} {self.place(bits)}, {self.rng.randrange(0, bits)}\nsetc {self.pointed(8)}\n{self.set_flags()}"

    def set_flags(self) -> str:
        return f"cmp {self.register()}, {self.register()}"

    def scan(self) -> str:
        bits = self.bits(16, 32, 64)
        name = self.rng.choice(("bsf", "bsr", "tzcnt", "lzcnt", "popcnt"))
        return f"{name} {self.register(bits)}, {self.pointed(bits)}"

    def condition(self) -> str:
        condition = self.rng.choice(_CONDITIONS)
        if self.rng.random() < 0.6:
            return f"set{condition} {self.place(8)}"
        bits = self.bits(16, 32, 64)
        return f"cmov{condition} {self.register(bits)}, {self.pointed(bits)}"

    def jump(self) -> str:
        over = self.label()
        return f"j{self.rng.choice(_CONDITIONS)} {over}\n{self.simple()}\n{over}:"

    def call(self) -> str:
        routine, over = self.label(), self.label()
        body = self.rng.choice(
            (self.simple(), f"push rbx\n{self.simple()}\npop rbx", f"enter 32, 0\nmov {self.pointed(64)}, rbp\nleave")
        )
        return f"call {routine}\njmp {over}\n{routine}: {body}\nret\n{over}:"

    def far_return(self) -> str:
        there = self.label()
        address = f"lea r12, [rip + {there}]\n"
        if self.rng.random() < 0.5:
            return f"{address}push 8\npush r12\nretfq\n{there}:"
        return f"{address}mov r13, rsp\npush 0x10\npush r13\npushfq\npush 8\npush r12\niretq\n{there}:"

    def move(self) -> str:
        bits = self.bits()
        return self.rng.choice(
            (
                f"mov {self.register()}, {self.rng.getrandbits(64):#x}",
                f"mov {self.register(bits)}, {self.pointed(bits)}",
                f"mov {self.pointed(bits)}, {self.register(bits)}",
                f"bswap {self.register()}",
                f"movsx {self.register()}, {self.pointed(16)}",
            )
        )

    def stack(self) -> str:
        middle = self.simple()
        if self.rng.random() < 0.4:
            return f"pushfq\n{middle}\npopfq"
        return f"push {self.place(64)}\n{middle}\npop {self.place(64)}"

    def flags(self) -> str:
        return self.rng.choice(("stc", "clc", "cmc", "lahf", "sahf", "cld", "sti", "cwde", "cqo"))

    def string(self) -> str:
        rng = self.rng
        name = rng.choice(("rep movs", "rep stos", "rep lods", "repe cmps", "repne cmps", "repe scas", "repne scas"))
        begin = (
            f"mov ecx, {rng.randrange(0, 24)}\nlea rdi, {self.memory(8 * 24 * 8)}\nlea rsi, {self.memory(8 * 24 * 8)}"
        )
        instruction = name + rng.choice("bwdq")
        if rng.random() < 0.3:
            # Backwards, from where there is room below.
            begin += f"\nlea rdi, [r15 + {2 * _PAGE + 8}]\nlea rsi, [r15 + {_PAGE + 40}]"
            return f"{begin}\nstd\n{instruction}\ncld"
        return f"{begin}\n{instruction}"

    def system(self) -> str:
        """What a kernel does."""
        return self.rng.choice(
            (
                "mov r12, cr3\nmov cr3, r12",
                f"invlpg {self.memory(8)}",
                f"cli\n{self.simple()}\nsti\n{self.simple()}",
                f"mov r12d, 0x10\nmov ss, r12d\n{self.simple()}",
                "swapgs",
                "int 0x30",
                "int3",
                f"mov ecx, 0xc0000100\nrdmsr\nmov {self.pointed(32)}, eax",
            )
        )

    def programs_page(self) -> str:
        """Neither the instruction between nor what happens there may close it again."""
        bits = self.bits(16, 32, 64)
        place = f"[r15 + {DATA_PAGES * _PAGE + self.rng.randrange(0, _PAGE - 8)}]"
        set_by_popf = f"pushfq\nbts {_POINTER[64]} [rsp], 18\npopfq"
        return self.rng.choice(
            (
                f"stac\n{self.simple()}\nmov {self.register(bits)}, {place}\nclac",
                f"stac\n{self.simple()}\nadd {place}, {self.register(bits)}\nclac",
                f"stac\nint 0x30\npush {_POINTER[64]} {place}\nclac\npop {self.pointed(64)}",
                f"{set_by_popf}\n{self.simple()}\nmov {place}, {self.register(bits)}\nclac",
            )
        )

    def vector(self) -> str:
        rng = self.rng
        a, b = rng.choice(_XMM), rng.choice(_XMM)
        source = rng.choice((b, f"xmmword ptr {self.memory(128, 16)}"))
        name = rng.choice(("paddd", "pxor", "pshufb", "pcmpeqb", "punpcklbw", "pmaddwd", "psubusb", "por", "pandn"))
        return rng.choice(
            (
                f"{name} {a}, {source}",
                f"movdqu {a}, xmmword ptr {self.memory(128)}",
                f"movdqu xmmword ptr {self.memory(128)}, {a}",
                f"movq {self.register()}, {a}",
                f"movq {a}, {self.register()}",
                f"ptest {a}, {source}",
                f"pcmpistri {a}, {source}, {rng.randrange(0, 128)}",
                f"pmovmskb {self.register(32)}, {a}",
                f"aesenc {a}, {source}",
                f"cvtsi2sd {a}, {self.register()}",
                f"addsd {a}, {b}",
                f"ucomisd {a}, {b}",
                f"cvttsd2si {self.register()}, {a}",
                f"crc32 {self.register()}, {self.pointed(64)}",
                f"movnti {self.memory(64)}, {self.register()}",
                f"pextrq {self.pointed(64)}, {a}, 1",
                f"lea rdi, {self.memory(128)}\nmaskmovdqu {a}, {b}",
                f"fxsave64 {self.memory(4096, 16)}",
            )
        )

    def extended_state(self) -> str:
        """XSAVE and XRSTOR with the registers changed in between; what XRSTOR checks of the header is zero before."""
        rng, save = self.rng, self.rng.choice(("xsave64", "xsaveopt64", "xsavec64"))
        wanted = f"mov eax, {rng.choice((1, 2, 3, 0x200, 0x201, 0x203))}\nxor edx, edx"
        header = "mov qword ptr [r12 + 520], 0\nmov qword ptr [r12 + 528], 0\nmov qword ptr [r12 + 512], 0"
        change = rng.choice(("fninit", "fld1\nfstp st(1)", f"pxor {rng.choice(_XMM)}, {rng.choice(_XMM)}", self.keys()))
        area = f"lea r12, {self.memory(8 * 0xA88, 64)}"
        return f"{area}\n{header}\n{wanted}\n{save} [r12]\n{change}\n{wanted}\nxrstor64 [r12]"

    def keys(self) -> str:
        """Rights that nobody needs, and for a moment those to the program's page."""
        rights = self.rng.getrandbits(32) & ~(3 | 3 << 2 * KEY)
        read_only = rights | 2 << 2 * KEY
        place = f"[r15 + {DATA_PAGES * _PAGE + self.rng.randrange(0, _PAGE - 8)}]"
        write = "xor ecx, ecx\nxor edx, edx\nmov eax, {}\nwrpkru"
        return self.rng.choice(
            (
                write.format(rights),
                f"xor ecx, ecx\nrdpkru\nmov {self.pointed(32)}, eax",
                f"{write.format(read_only)}\nstac\nmov {self.register()}, {place}\nclac\n{write.format(rights)}",
                f"{write.format(rights)}\nstac\nadd {place}, rdx\nclac",
            )
        )

    def x87(self) -> str:
        rng = self.rng
        load = rng.choice((rng.choice(("fld1", "fldpi", "fldz")), f"fld {self.pointed(64)}"))
        middle = rng.choice(("fadd st, st(1)", "fmul st, st(1)", "fsub st, st(1)", "fxch st(1)", "fcomi st, st(1)"))
        store = rng.choice(
            (f"fstp tbyte ptr {self.memory(80)}", f"fstp {self.pointed(64)}", f"fistp {self.pointed(32)}")
        )
        return f"{load}\nfild {self.pointed(64)}\n{middle}\n{store}\nfstp {self.pointed(64)}"

    def patch(self) -> str:
        """A store to code that follows, at its own address or at another one of that page (R14 away)."""
        target, alias = self.label(), self.rng.choice(("", " + r14"))
        return (
            f"lea r13, [rip + {target}]\nmov dword ptr [r13{alias} + 1], {self.number(32)}\n"
            f"{self.rng.choice(('', self.simple()))}\n{target}: mov eax, 0x1234567"
        )

    def simple(self) -> str:
        return self.rng.choice((self.arithmetic, self.unary, self.move, self.condition, self.shift))()

    def kinds(self) -> tuple[Callable[[], str], ...]:
        return (
            self.arithmetic, self.arithmetic, self.unary, self.locked, self.exchange, self.wide_exchange, self.shift,
            self.shift, self.double_shift, self.multiply, self.bit, self.scan, self.condition, self.condition,
            self.condition, self.jump, self.call, self.far_return, self.move, self.stack, self.flags, self.string,
            self.system, self.programs_page, self.vector, self.vector, self.x87, self.patch, self.extended_state,
            self.keys,
        )  # fmt: skip


def random_stream(seed: int, length: int) -> str:
    """Code in Intel syntax for CPL 0 that ends with HLT, again and again. No exception but those of INT 30h and INT3.

    R15 points to DATA_PAGES pages of data, and the code is mapped a second time R14 bytes above.
    """
    stream = _Stream(random.Random(seed))
    kinds = stream.kinds()
    return "\n".join([*(stream.rng.choice(kinds)() for _ in range(length)), "end: hlt\njmp end"])

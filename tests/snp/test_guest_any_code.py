# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever instructions and contexts a guest has, the host's process lives: QEMU's core ends it where it thinks that
nothing can come. Each test's guests are in a process of their own, which must come to its end."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import Synchronized

import pytest

from tests.small_guest import CODE, FREE, PAGE, STACK, VMSA, SmallGuest
from veil.snp import CpuFeature
from veil.snp.layouts import Vmsa, VmsaSegment

_FEATURES = (CpuFeature.XSAVE, CpuFeature.PKU)
_RUN_NS = 2_000_000
_END = b"\xf4\xf4"

_PREFIXES = (b"", b"\x66", b"\xf2", b"\xf3", b"\xf0", b"\x48", b"\xf0\x48")
_MORE_PREFIXES = (
    *(b"\x66\x48", b"\xf2\x48", b"\xf3\x48", b"\xf0\x66", b"\x66\xf2", b"\x66\xf3", b"\xf0\xf2", b"\xf0\xf3"),
    *(b"\x67", b"\x64", b"\x4f"),
)
_MAPS = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
_VEX = (b"\xc5\xf8", b"\xc5\x79", b"\xc4\xe2\x78", b"\xc4\xe3\xf9", b"\xc4\xff\xfc")
#: [RAX], [disp32] or [RBP], a SIB byte, registers; the operation of those that have one
_MODRM = (*range(0, 64, 8), 0x03, 0x04, 0x05, 0x44, *range(0xC0, 0x100, 8), 0xC3)
_FEW_MODRM = (0x00, 0x2D, 0xC0, 0xD8, 0xE8)


def _encodings(prefixes: tuple[bytes, ...]) -> Iterator[bytes]:
    for prefix in (*prefixes, *_VEX):
        for opcodes in _MAPS if prefix not in _VEX else (b"",):
            yield from (prefix + opcodes + bytes((opcode,)) for opcode in range(256))


def _segment(attributes: int, selector: int = 8, base: int = 0, limit: int = 0xFFFFFFFF) -> VmsaSegment:
    return VmsaSegment(selector, attributes, limit, base)


def _set_mode(vmsa: Vmsa, mode: str) -> None:
    if mode == "compatibility":
        vmsa.cs = _segment(0xCFB, 0x2B)
    elif mode != "64-bit":
        vmsa.cr0, vmsa.cr3, vmsa.cr4, vmsa.efer, vmsa.cpl = 0x11, 0, 0x620, 0x1000, 0
        vmsa.cs = _segment(0xC9B if mode == "32-bit" else 0x9B)
    if mode == "real":
        vmsa.cr0, vmsa.rip, vmsa.rsp = 0x10, 0, 0x8000
        vmsa.idtr = _segment(0, 0, FREE + PAGE, 0x3FF)
        vmsa.cs = _segment(0x9B, CODE >> 4, CODE, 0xFFFF)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(vmsa, name, _segment(0x93, FREE >> 8, FREE, 0xFFFF))


def _program(mode: str) -> SmallGuest:
    """A program's, where there is such: what it may do is what anybody may."""
    cpl = 3 if mode in ("64-bit", "compatibility") else 0
    guest = SmallGuest(vmpl=0, cpl=cpl, cpu_features=_FEATURES)
    if cpl:
        guest.make_kernels_own(CODE, FREE, FREE + PAGE, STACK - PAGE)
    return guest


def _run_encodings(at: Synchronized[int], mode: str, prefixes: tuple[bytes, ...], modrm: tuple[int, ...]) -> None:
    code = [encoding + bytes((byte,)) for encoding in _encodings(prefixes) for byte in modrm]
    # The kernel's own destroy their guest.
    for begin in range(0, len(code), 4000):
        with _program(mode) as guest:
            vmsa = guest.vmsa()
            vmsa.rax = vmsa.rdx = FREE
            vmsa.rbx = vmsa.rsi = vmsa.rdi = vmsa.rbp = FREE + 64
            vmsa.rcx = 1
            _set_mode(vmsa, mode)
            context = bytes(vmsa)
            guest.top.write(0, _END)  # where interrupts of real mode lead
            for number in range(begin, min(begin + 4000, len(code))):
                at.value = number
                guest.top.write(CODE, code[number] + bytes((0x25, 1, 0, 0, 0, 0, 0)) + _END)
                guest.top.write(VMSA, context)
                guest.machine.vmrun(guest.vmcb, time.monotonic_ns() + _RUN_NS)


_NUMBERS = (
    *(0, 1, 2, 3, 7, 0xF, 0x10, 0x20, 0x80, 0xFF, 0x3FF, 0xFFF, 0x1000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000),
    *(0xFFFFFFFF, 1 << 32, (1 << 47) - 1, 1 << 47, 1 << 51, 1 << 63, (1 << 64) - 1, (1 << 64) - 0x1000, 0x80050033),
)
_ATTRIBUTES = (0, 3, 0x82, 0x83, 0x8B, 0x93, 0x9B, 0xA9B, 0xC9B, 0xCF3, 0xCFB, 0xFFF)
_BYTES = (0x0F, 0x66, 0xF0, 0xF2, 0xF3, 0x48, 0xCD, 0xCF, 0xCB, 0xFF, 0x8E, 0xEA, 0x9A, 0xC4, 0xC5, 0x67, 0x64, 0x9D)
_FIELDS = [name for name, *_ in Vmsa._fields_ if not name.startswith(("reserved", "fpreg"))]


def _change(vmsa: Vmsa, rng: random.Random) -> None:
    name = rng.choice(_FIELDS)
    old = getattr(vmsa, name)
    if isinstance(old, VmsaSegment):
        old.selector = rng.choice((old.selector, rng.getrandbits(16)))
        old.attrib = rng.choice((old.attrib, *_ATTRIBUTES))
        old.limit = rng.choice((old.limit, rng.choice(_NUMBERS) & 0xFFFFFFFF))
        old.base = rng.choice((old.base, rng.choice(_NUMBERS)))
    # With most of their values VMRUN is refused.
    elif name not in ("sev_features", "vmpl", "efer") or rng.random() < 0.1:
        value = rng.choice((rng.choice(_NUMBERS), rng.getrandbits(64), old ^ 1 << rng.randrange(64)))
        setattr(vmsa, name, value & (1 << 8 * getattr(Vmsa, name).size) - 1)


def _run_contexts(at: Synchronized[int], first: int, count: int) -> None:
    for seed in range(first, first + count):
        at.value = seed
        rng = random.Random(seed)
        with SmallGuest(vmpl=rng.choice((0, 3)), cpl=rng.choice((0, 3)), cpu_features=_FEATURES) as guest:
            context = bytes(guest.vmsa())
            for _ in range(30):
                vmsa = Vmsa.from_buffer_copy(context)
                _set_mode(vmsa, rng.choice(("64-bit", "64-bit", "compatibility", "32-bit", "16-bit", "real")))
                for _ in range(rng.choice((0, 1, 1, 2, 4))):
                    _change(vmsa, rng)
                guest.top.write(CODE, bytes(rng.choice((rng.getrandbits(8), rng.choice(_BYTES))) for _ in range(200)))
                for _ in range(rng.choice((0, 0, 1, 9))):
                    # IDT, GDT, TSS
                    guest.top.write_u8(rng.choice((0x8000, 0x9000, 0xC000)) + rng.randrange(0x400), rng.getrandbits(8))
                guest.top.write(VMSA, bytes(vmsa))
                guest.vmcb.v_intr = rng.choice((0, 0, 1 << 8 | 1 << 20 | rng.getrandbits(8) << 32, 1 << 11 | 1 << 26))
                guest.vmcb.event_inj = rng.choice((0, 0, 1 << 31 | rng.getrandbits(12) | rng.getrandbits(32) << 32))
                for _ in range(rng.choice((1, 1, 5))):
                    guest.machine.vmrun(guest.vmcb, time.monotonic_ns() + _RUN_NS)


def _lives(run: Callable[..., None], *arguments: object) -> None:
    context = multiprocessing.get_context("fork")
    at: Synchronized[int] = context.Value("q", -1)
    process = context.Process(target=run, args=(at, *arguments))
    process.start()
    process.join()
    assert process.exitcode == 0, f"it ended with {process.exitcode} at number {at.value}"


@pytest.mark.parametrize("mode", ["64-bit", "compatibility", "32-bit", "16-bit", "real"])
def test_any_instruction(mode: str) -> None:
    _lives(_run_encodings, mode, _PREFIXES, _FEW_MODRM)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["64-bit", "compatibility", "32-bit", "16-bit", "real"])
def test_any_instruction_with_more_prefixes(mode: str) -> None:
    _lives(_run_encodings, mode, _PREFIXES + _MORE_PREFIXES, _MODRM)


def test_any_context() -> None:
    _lives(_run_contexts, 0, 60)


@pytest.mark.soak
def test_many_contexts() -> None:
    _lives(_run_contexts, 60, 3000)

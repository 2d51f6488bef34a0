# SPDX-License-Identifier: GPL-2.0-or-later
"""Code that a host leaves and enters again anywhere ends as if it had not been: registers, flags and memory.

Random streams of instructions run once without an exit; then again and again with single steps, with one exit at each
position, with interrupts there, with pages taken away and given back when they are touched, and in turn with another
VCPU. Any difference at the end is state that an exit lost.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.instruction_streams import DATA_PAGES, KEY, random_stream
from tests.machine_code import assemble
from tests.small_guest import CODE, FREE, IDT, PAGE, STACK, TABLES, TRAPS, SmallGuest
from veil.formats.registers import Cr4
from veil.snp import CpuFeature, ExitCode, Permission
from veil.snp.layouts import Vmcb, Vmsa

_LENGTH = 20
#: positions in a stream that are tried in each way, evenly spread
_POSITIONS = 10
_CODE_PAGES = 2
#: the data, and a program's page after it
_PAGES = DATA_PAGES + 1
#: the codes of two VCPUs, each with a stack below its end and a VMSA
_PLACES = ((CODE, FREE, STACK), (CODE + 0x4000, FREE + 0x10000, STACK + 0x4000))
_ALIAS = 0x200000
_EXIT = ("exit_info_1", "exit_info_2", "exit_int_info", "nrip", "guest_exit_code", "cr2")
_RANDOM = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13")
_INTERRUPT = 1 << 8 | 1 << 20 | 0x21 << 32
#: of that, and of INT3 and INT 30h
_VECTORS = (0x21, 3, 0x30)
_RIGHTS = (Permission.NONE, Permission.R, Permission.R | Permission.SX, Permission.RW, Permission.ALL)
_EVENT_VALID = 1 << 31
#: x87, SSE and protection keys
_XCR0 = 0x203

State = dict[str, int | bytes]


@dataclass
class _Vcpu:
    """One of two, and the stream that it runs."""

    vmcb: Vmcb
    vmsa: int
    fresh: bytes
    code: int
    data: int
    stream: bytes = b""


class _Bench:
    """A guest whose VCPUs begin the same streams anew as often as one likes."""

    def __init__(self, guest: SmallGuest) -> None:
        self.guest = guest
        programs = [data + DATA_PAGES * PAGE for _, data, _ in _PLACES]
        guest.make_kernels_own(*programs)
        for page in programs:
            guest.map(page, page, key=KEY)
        for page in range((_PLACES[1][0] - CODE) // PAGE + _CODE_PAGES):
            guest.map(_ALIAS + page * PAGE, CODE + page * PAGE, user=False)
        self.vcpus = []
        for number, (code, data, stack) in enumerate(_PLACES):
            gpa = FREE + 0x20000 + number * PAGE
            vmcb = guest.make_context(gpa, vmpl=3, rip=code)
            registers = guest.vmsa(gpa)
            registers.rsp, registers.r15, registers.r14 = stack, data, _ALIAS - CODE
            registers.cr4 |= Cr4.SMEP | Cr4.SMAP | Cr4.OSXSAVE | Cr4.PKE
            registers.xcr0 = _XCR0
            self.vcpus.append(_Vcpu(vmcb, gpa, bytes(registers), code, data))
        self.rng = random.Random(0)
        self._tearing = False
        #: taken away from the guest in one way or the other, and given back when it is touched
        self.victims = [
            *TABLES,
            *range(IDT, TRAPS + 2 * PAGE, PAGE),
            *range(CODE, CODE + _CODE_PAGES * PAGE, PAGE),
            *range(FREE, FREE + _PAGES * PAGE, PAGE),
            STACK - PAGE,
        ]

    def begin(self, vcpu: _Vcpu, seed: int) -> None:
        """The stream's code, and random registers and data, all from the seed."""
        rng, top = random.Random(seed), self.guest.top
        registers = Vmsa.from_buffer_copy(vcpu.fresh)
        for name in _RANDOM:
            setattr(registers, name, rng.getrandbits(64))
        ctypes.memmove(ctypes.addressof(registers.fpreg_xmm), rng.randbytes(256), 256)
        top.write(vcpu.vmsa, bytes(registers))
        top.write(vcpu.data, rng.randbytes(_PAGES * PAGE))
        top.write(vcpu.code, vcpu.stream.ljust(_CODE_PAGES * PAGE, b"\xcc"))
        vcpu.vmcb.v_intr = vcpu.vmcb.interrupt_shadow = vcpu.vmcb.event_inj = 0

    def state(self, vcpu: _Vcpu) -> State:
        """All registers, the data and the code."""
        registers, read = self.guest.vmsa(vcpu.vmsa), self.guest.top.read
        found: State = {}
        for name, *_ in Vmsa._fields_:
            value = getattr(registers, name)
            if name not in _EXIT:
                found[name] = value if isinstance(value, int) else bytes(value)
        for page in range(_PAGES):
            found[f"data {page}"] = bytes(read(vcpu.data + page * PAGE, PAGE))
        return found | {"code": bytes(read(vcpu.code, _CODE_PAGES * PAGE))}

    def enter(self, vcpu: _Vcpu) -> bool:
        """VMRUN once, and what a host does about the exit. Has the stream ended?"""
        guest, vmcb = self.guest, vcpu.vmcb
        exit_code = guest.run(vmcb)
        if vmcb.exit_int_info & _EVENT_VALID:
            vmcb.event_inj = vmcb.exit_int_info
        if exit_code == ExitCode.NPF:
            if self._tearing and self.rng.random() < 0.1:
                self.take_away()
            guest.permit(vmcb.exit_info_2 & -PAGE, Permission.ALL)
            return False
        assert exit_code in (ExitCode.INTR, ExitCode.HLT)
        if exit_code == ExitCode.INTR or guest.vmsa(vcpu.vmsa).rip >= CODE:
            return exit_code == ExitCode.HLT
        # The handlers of interrupts and exceptions halt as well.
        assert guest.trap().vector in _VECTORS, guest.trap()
        return False

    def finish(self, vcpu: _Vcpu) -> None:
        """To the end of the stream."""
        while not self.enter(vcpu):
            pass

    def steps(self, vcpu: _Vcpu, count: int) -> bool:
        """So many instructions; has the stream ended?"""
        self.guest.machine.set_single_step(True)
        ended = any(self.enter(vcpu) for _ in range(count))
        self.guest.machine.set_single_step(False)
        return ended

    def take_away(self) -> None:
        """Rights to every page that the first stream uses."""
        for gpa in self.victims:
            self.guest.permit(gpa, self.rng.choice(_RIGHTS))

    @contextmanager
    def torn(self) -> Iterator[None]:
        """Pages go at random meanwhile."""
        self._tearing = True
        self.take_away()
        try:
            yield
        finally:
            self._tearing = False
            for gpa in self.victims:
                self.guest.permit(gpa, Permission.ALL)

    # Ways to run a stream that must not make a difference

    def stepped(self, vcpu: _Vcpu, position: int) -> None:
        """An exit at a position, and another one after each instruction from there on."""
        if not self.steps(vcpu, position):
            self.guest.machine.set_single_step(True)
            self.finish(vcpu)
            self.guest.machine.set_single_step(False)

    def left_once(self, vcpu: _Vcpu, position: int) -> None:
        """Exits up to a position, and no more."""
        if not self.steps(vcpu, position):
            self.finish(vcpu)

    def interrupted(self, vcpu: _Vcpu, position: int) -> None:
        """The same, and an interrupt is offered there."""
        if not self.steps(vcpu, position):
            vcpu.vmcb.v_intr = _INTERRUPT
            self.finish(vcpu)

    def torn_up(self, vcpu: _Vcpu, position: int) -> None:
        """Nested page faults on the way, and an interrupt."""
        with self.torn():
            self.interrupted(vcpu, position)

    def in_turn(self, vcpu: _Vcpu, other: _Vcpu, ahead: int) -> None:
        """Another VCPU runs between any two instructions."""
        self.steps(vcpu, ahead)
        self.guest.machine.set_single_step(True)
        unfinished = [vcpu, other]
        while unfinished:
            unfinished = [each for each in unfinished if not self.enter(each)]
        self.guest.machine.set_single_step(False)


_WAYS: tuple[Callable[[_Bench, _Vcpu, int], None], ...] = (
    _Bench.stepped,
    _Bench.left_once,
    _Bench.interrupted,
    _Bench.torn_up,
)


def _differences(one: State, other: State) -> dict[str, object]:
    """What is not equal; of memory the places."""
    found: dict[str, object] = {}
    for name, value in one.items():
        if (now := other[name]) != value:
            if isinstance(value, bytes) and isinstance(now, bytes):
                found[name] = [(at, a, b) for at, (a, b) in enumerate(zip(value, now, strict=True)) if a != b][:8]
            else:
                found[name] = (value, now)
    return found


def _check(seed: int, length: int) -> None:
    streams = [assemble(random_stream(2 * seed + number, length), code) for number, (code, _, _) in enumerate(_PLACES)]
    with SmallGuest(cpu_features=list(CpuFeature)) as guest:
        bench = _Bench(guest)
        first, second = bench.vcpus
        expected = []
        for vcpu, stream in zip(bench.vcpus, streams, strict=True):
            vcpu.stream = stream
            bench.begin(vcpu, seed)
            bench.finish(vcpu)
            expected.append(bench.state(vcpu))
        bench.begin(first, seed)
        count = 1
        while not bench.steps(first, 1):
            count += 1
        for way in _WAYS:
            for position in range(0, count, max(1, count // _POSITIONS)):
                bench.begin(first, seed)
                way(bench, first, position)
                assert _differences(expected[0], bench.state(first)) == {}, f"{way.__name__} at {position}"
        for position in range(3):
            bench.begin(first, seed)
            bench.begin(second, seed)
            bench.in_turn(first, second, position)
            for vcpu, state in zip(bench.vcpus, expected, strict=True):
                assert _differences(state, bench.state(vcpu)) == {}, f"in turn, {position} ahead"


@pytest.mark.parametrize("seed", range(10))
def test_streams_end_the_same(seed: int) -> None:
    _check(seed, _LENGTH)


@pytest.mark.soak
def test_many_streams_end_the_same() -> None:
    for seed in range(1000, 3000):
        _check(seed, _LENGTH)

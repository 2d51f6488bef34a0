# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole of VeilS-KCI, with a hostile kernel around it: modules' files, where it put them and what it put there, and
reports of refused stores.

Another loader (`module_loader`) says what an accepted module's memory must be.
"""

from __future__ import annotations

import copy
import functools
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from fuzz import kernel_code
from fuzz.module_loader import CannotLoad, LoadedModule, load_module
from fuzz.modules import EXPORTED, SPACE, bodies
from fuzz.target import Target
from tests.services.kci.model_machine import CODE_OWNERS, ModelMachine
from tests.services.kci.small_kernel import BASE, DATA, PHYSICAL, TEXT_SIZE
from veil.formats.errors import FormatError
from veil.formats.kci import KernelCall, MemoryType, ModuleMemory, ModulePrepared
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_events import Decision
from veil.services import Refused
from veil.services.kci import KernelCode, KernelImage, Segment, Surroundings
from veil.services.kci.modules import AdmittedFile

__all__ = ["TARGETS"]

_FILE_AT, _MEMORY_AT = 0x4000_0000, 0x5000_0000
_MAX_BYTES = 24576
_PATCHED = (
    ".altinstructions", ".retpoline_sites", ".return_sites", ".ibt_endbr_seal", ".smp_locks",
    "__jump_table", ".static_call_sites",
)  # fmt: skip
#: What is left of a machine that did all that its kernel asked for.
_MAX_STATE, _MAX_WORDS = 1 << 20, 2000


class _Report(NamedTuple):
    """Of a refused store."""

    module: bool
    offset: int
    data: bytes
    info: int
    cpl: int


class _Input(NamedTuple):
    """What the kernel does."""

    flips: list[tuple[int, int, int]]
    """Memory type, offset, what is changed there before the service looks."""
    tricks: int
    reports: list[_Report]
    file: bytes


_TWICE, _SHORT, _CHANGED, _GONE_EARLY, _AGAIN, _LOCK_AGAIN, _MOVED = (1 << bit for bit in range(7))


def _parse(data: bytes) -> _Input:
    """Any bytes are an input: counts first, then so many flips and reports, the file is the rest."""
    tricks, flips, reports = data[0], data[1] % 8, data[2] % 8
    at = 3
    changed = []
    for _ in range(flips):
        kind, offset, change = struct.unpack_from("<BHB", data, at)
        changed.append((kind % len(MemoryType), offset, change))
        at += 4
    stores = []
    for _ in range(reports):
        where, offset, length = struct.unpack_from("<BHB", data, at)
        length %= 20
        info = 0x1_8000_0007 if where & 2 else (1 << 36 | 1 << 32 | 1 << (where >> 4))
        stores.append(_Report(bool(where & 1), offset, data[at + 4 : at + 4 + length], info, 3 * (where >> 2 & 1)))
        at += 4 + length
    return _Input(changed, tricks, stores, data[at:])


def _pack(file: bytes, *, tricks: int = 0, flips: Iterable[tuple[int, int, int]] = (), reports: bytes = b"") -> bytes:
    packed = [struct.pack("<BHB", *flip) for flip in flips]
    count = reports[0] if reports else 0
    return bytes((tricks, len(packed), count)) + b"".join(packed) + reports[1:] + file


# The machine

_TEXT = range(PHYSICAL, PHYSICAL + TEXT_SIZE)
#: Read-only data that the policy lets the kernel write.
_EXCEPTION, _WRITABLE = "exception", range(_TEXT.stop + 0x40, _TEXT.stop + 0x60)
_STORED = (*CODE_OWNERS, Owner.KERNEL_RODATA)


@functools.cache
def _image() -> KernelImage:
    kernel = copy.deepcopy(kernel_code.kernel())
    kernel.symbols |= {
        "__start_rodata": BASE + TEXT_SIZE, "__end_rodata": BASE + 0x4000, "__init_begin": BASE + 0x4000,
        "__init_end": DATA, "_sdata": DATA, _EXCEPTION: BASE + _WRITABLE.start - PHYSICAL,
        "after_exception": BASE + _WRITABLE.stop - PHYSICAL,
    }  # fmt: skip
    data = kernel.image().segments[0].data
    return KernelImage([Segment(BASE, PHYSICAL, data.ljust(-(-len(data) // PAGE_SIZE) * PAGE_SIZE, b"\0"))])


@functools.cache
def _code() -> tuple[KernelCode, Surroundings]:
    code = KernelCode(_image())
    return code, code.near


class _Anybody:
    """A policy under which every file is somebody's: what is signed can be anything."""

    def admit(self, file: bytes) -> AdmittedFile:
        return AdmittedFile(file, bytes(32), None)


def _machine() -> ModelMachine:
    machine = ModelMachine(_image(), writable=(_EXCEPTION,))
    measured = machine.service._measured
    # What follows from the image is the same each time.
    measured.image = _image()
    measured.code, near = _code()
    measured.code.admit(near)
    measured.policy = _Anybody()  # type: ignore[assignment]
    measured.module_space = SPACE
    measured.exported = EXPORTED.symbols  # type: ignore[method-assign]
    # What the kernel makes of the padding of an alternative.
    machine.pages[PHYSICAL][0x600:0x603] = bytes.fromhex("0f1f00")
    machine.ask(KernelCall.LOCK_DOWN)
    return machine


def _run(data: bytes) -> None:
    if len(data) < 16:
        raise FormatError("too short for an input")
    try:
        given = _parse(data)
    except struct.error as error:
        raise FormatError(str(error)) from error
    machine = _machine()
    try:
        _attack(machine, given)
    finally:
        machine.close()


def _attack(machine: ModelMachine, given: _Input) -> None:
    text = {gpa: bytes(machine.pages[gpa]) for gpa in range(_TEXT.start, _TEXT.stop, PAGE_SIZE)}
    number = _module(machine, given)
    for report in given.reports:
        _report(machine, report)
    if given.tricks & _LOCK_AGAIN:
        _refused(machine, KernelCall.LOCK_DOWN, b"")
    if number is not None:
        body = struct.pack("<I", number)
        calls = [KernelCall.MODULE_LIVE, KernelCall.MODULE_GONE]
        for call in reversed(calls) if given.tricks & _GONE_EARLY else calls:
            _refused(machine, call, body)
        if given.tricks & _AGAIN:
            assert _refused(machine, KernelCall.MODULE_GONE, body), "a module is gone once"
    _check_end(machine, text)


def _module(machine: ModelMachine, given: _Input) -> int | None:
    """Its number, if it was accepted."""
    try:
        loaded: LoadedModule | None = load_module(given.file)
    except CannotLoad:
        loaded = None
    memory = loaded.memory if loaded else {MemoryType.TEXT: ModuleMemory(SPACE.addresses.start, PAGE_SIZE)}
    images = loaded.images if loaded else {}
    now = {int(kind): bytearray(images.get(kind, b"").ljust(place.size, b"\0")) for kind, place in memory.items()}
    for kind, offset, change in given.flips:
        if kind in now and offset < len(now[kind]):
            now[kind][offset] ^= change
    if given.tricks & _MOVED:
        memory = {kind: ModuleMemory(place.address + PAGE_SIZE, place.size) for kind, place in memory.items()}
    file = given.file
    if given.tricks & _CHANGED and len(file) > PAGE_SIZE:
        # What the driver hooked is not what the loader got.
        file = file[:PAGE_SIZE] + bytes([file[PAGE_SIZE] ^ 1]) + file[PAGE_SIZE + 1 :]
    before = machine.executable()
    try:
        machine.send_file(file, _FILE_AT, PAGE_SIZE if given.tricks & _SHORT else 1 << 20)
        prepared = ModulePrepared(SPACE.percpu.start, memory)
        pages = [gpa for kind in sorted(memory) for gpa in machine.put(_MEMORY_AT + (kind << 24), bytes(now[kind]))]
        if given.tricks & _TWICE and len(pages) > 1:
            pages[-1] = pages[0]
        number = machine.prepared(prepared, pages)
    except Refused:
        assert machine.executable() == before, "a refused module leaves code behind"
        return None
    assert loaded is not None, "what no loader can load is accepted"
    module = machine.service._loader.modules[number]
    if file == given.file and not given.tricks & _MOVED:
        code = [kind for kind in (MemoryType.TEXT, MemoryType.INIT_TEXT) if kind in memory]
        sound = loaded.names & set(_PATCHED) or all(loaded.sound(kind, bytes(now[kind])) for kind in code)
        assert sound, "changed code is accepted"
        for kind, image in module.prepared.images.items():
            expected = images[kind]
            unordered = [place for span in module.prepared.unordered for place in span]
            start = loaded.memory[kind].address
            wrong = [at for at in range(len(image)) if image[at] != expected[at] and start + at not in unordered]
            assert not wrong, f"{kind.name} is loaded otherwise at {wrong[0]:#x}"
    made = machine.executable() - before
    assert len(made) == sum(code.size for code in module.code.values()) // PAGE_SIZE
    return number


def _report(machine: ModelMachine, report: _Report) -> None:
    pages = sorted(gpa for gpa, owner in machine.owners.items() if owner is Owner.MODULE_CODE)
    base, size = (pages[0], len(pages) * PAGE_SIZE) if report.module and pages else (PHYSICAL, TEXT_SIZE + PAGE_SIZE)
    gpa = base + report.offset % size
    before = {at: bytes(page) for at, page in machine.pages.items() if machine.owners[at] in _STORED}
    verdict = machine.store(gpa, report.data, info=report.info, cpl=report.cpl)
    after = {at: bytes(machine.pages[at]) for at in before}
    if verdict.decision is not Decision.RESUME:
        assert before == after, "a store that was refused was made"
        return
    assert report.cpl == 0, "a store of user mode's"
    assert report.info & 1 << 1, "no store at all"
    if machine.owners[gpa - gpa % PAGE_SIZE] is Owner.KERNEL_RODATA:
        assert gpa in _WRITABLE, "a store to read-only data"
        assert gpa + len(report.data) <= _WRITABLE.stop, "a store beyond an exception"
    for at, page in before.items():
        wanted = bytearray(page)
        for offset, byte in enumerate(report.data, gpa - at):
            if 0 <= offset < PAGE_SIZE:
                wanted[offset] = byte
        assert after[at] == bytes(wanted), "another store than the kernel's"


def _refused(machine: ModelMachine, call: int, body: bytes) -> bool:
    try:
        machine.ask(call, body)
    except Refused:
        return True
    return False


def _check_end(machine: ModelMachine, text: Mapping[int, bytes]) -> None:
    assert Owner.MODULE_CODE not in machine.owners.values(), "a module that is gone has code"
    assert machine.executable() == set(text)
    assert machine.restricted == [Owner.KERNEL]
    # Each site is whole or traps; nothing else has changed.
    service = machine.service
    assert service._text is not None
    assert service._configuration is not None
    rules = service._text.rules
    now = bytearray(service._text.read(rules.range.start, rules.range.size))
    for number in range(len(rules.live)):
        site = rules.live.site(number)
        at = site.address - BASE
        if now[at] == 0xCC:
            now[at : at + site.length] = b"".join(text.values())[at : at + site.length]
    assert rules.explain(bytes(now), lambda _, length: bytes(length), service._configuration).sound
    assert len(service.save()) < _MAX_STATE
    assert len(machine.words) < _MAX_WORDS


# Seeds


def _poke(module: bool, offset: int, *steps: tuple[int, bytes]) -> bytes:
    stores = (struct.pack("<BHB", 2 | module, offset + at, len(new)) + new for at, new in steps)
    return bytes([len(steps)]) + b"".join(stores)


def _seeds() -> Iterator[bytes]:
    static = BASE + 0x300 - BASE
    for body in bodies():
        yield _pack(body)
        yield _pack(body, tricks=_SHORT | _AGAIN, flips=[(MemoryType.DATA, 5, 1)])
        yield _pack(body, flips=[(MemoryType.TEXT, 9, 0x80)], tricks=_LOCK_AGAIN)
        yield _pack(body, reports=_poke(False, static, (0, b"\xcc"), (1, b"\x1f\x44\x00\x00"), (0, b"\x0f")))
        stores = [(0x40, bytes(8)), (0x5C, bytes(4)), (0x5C, bytes(8)), (0x3C, bytes(8))]
        yield _pack(body, reports=_poke(False, TEXT_SIZE, *stores))
        yield _pack(body, tricks=_TWICE | _GONE_EARLY, reports=_poke(True, 2, (0, b"\xcc"), (0, b"\x90" * 8)))


TARGETS = (
    Target("code-integrity", _run, _seeds, words=tuple(name.encode() for name in _PATCHED), max_bytes=_MAX_BYTES),
)

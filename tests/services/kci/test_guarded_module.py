# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of modules is taken if it is what the file makes of it, and given back otherwise."""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from veil.formats.kci import MemoryType, ModuleMemory, ModulePrepared
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import Change
from veil.services.kci.explain_code import Unexplained
from veil.services.kci.guarded_module import (
    GuardedModule,
    check_module,
    checked_pages,
    frames_of,
    give_back,
    take_pages,
)
from veil.services.kci.modules import ModuleRefused

ADDRESS = 0xFFFFFFFFC0000000
IMAGE = bytes(range(256)) * (2 * PAGE_SIZE // 256)
TEXT = b"\x90" * PAGE_SIZE
FRAMES = {MemoryType.TEXT: [5 * PAGE_SIZE], MemoryType.RODATA: [9 * PAGE_SIZE, 7 * PAGE_SIZE]}


class _Kernel:
    """Memory in which TEXT and RODATA lie, and who owns what."""

    def __init__(self, content: bytes, text: bytes = TEXT) -> None:
        self.content = dict(zip(FRAMES[MemoryType.RODATA], (content[:PAGE_SIZE], content[PAGE_SIZE:]), strict=True))
        self.content[FRAMES[MemoryType.TEXT][0]] = text
        self.owners: dict[int, Owner] = {}
        self.context: Any = SimpleNamespace(monitor=self, guest=self)

    def change(self, changes: list[Change]) -> Generator[Any, Any, None]:
        for change in changes:
            for start, size in change.ranges:
                for gpa in range(start, start + size, PAGE_SIZE):
                    assert self.owners.get(gpa, Owner.KERNEL) is change.source
                    self.owners[gpa] = change.target
        return
        yield

    def read(self, gpa: int, size: int) -> bytes:
        assert self.owners[gpa] is Owner.KERNEL_RODATA, "what is compared can be changed or executed"
        return self.content[gpa][:size]

    def take(self) -> GuardedModule:
        prepared: Any = SimpleNamespace(
            images={MemoryType.RODATA: IMAGE},
            memory={
                MemoryType.RODATA: ModuleMemory(ADDRESS, len(IMAGE)),
                MemoryType.TEXT: ModuleMemory(ADDRESS - PAGE_SIZE, PAGE_SIZE),
            },
            unordered=(range(ADDRESS + 100, ADDRESS + 120),),
        )
        module = GuardedModule(1, prepared, ModulePrepared(0, {}), None, b"")  # type: ignore[arg-type]
        rules: Any = _Rules()
        anything: Any = None
        pages = checked_pages(FRAMES, live=False)
        _run(take_pages(self.context, pages))
        try:
            _run(check_module(self.context, anything, module, FRAMES, rules, anything))
        except ModuleRefused:
            _run(give_back(self.context, pages))
            raise
        return module


def _run(work: Generator[Any, Any, None]) -> None:
    for _ in work:
        raise AssertionError("nobody is asked here")


class _Rules:
    """Of code that is one page."""

    rules: ClassVar[dict[MemoryType, Any]] = {MemoryType.TEXT: SimpleNamespace(variables=())}

    def unexplained(
        self, kind: MemoryType, now: bytes, data: object, configuration: object
    ) -> tuple[Unexplained, int] | None:
        return None if now == TEXT else (Unexplained(ADDRESS - PAGE_SIZE, 0xCC, 0x90), 1)


def _changed(at: int) -> bytes:
    return IMAGE[:at] + bytes([IMAGE[at] ^ 1]) + IMAGE[at + 1 :]


@pytest.mark.parametrize("content", [IMAGE, _changed(100), _changed(119)])
def test_what_it_must_be(content: bytes) -> None:
    kernel = _Kernel(content)
    module = kernel.take()
    assert {kind: list(pages) for kind, pages in module.read_only.items()} == {
        MemoryType.RODATA: FRAMES[MemoryType.RODATA]
    }
    assert list(module.code[MemoryType.TEXT].pages) == FRAMES[MemoryType.TEXT]
    assert kernel.owners == dict.fromkeys(FRAMES[MemoryType.RODATA], Owner.KERNEL_RODATA) | dict.fromkeys(
        FRAMES[MemoryType.TEXT], Owner.MODULE_CODE
    )


@pytest.mark.parametrize("at", [0, 99, 120, PAGE_SIZE, len(IMAGE) - 1])
def test_one_byte_is_another(at: int) -> None:
    kernel = _Kernel(_changed(at))
    with pytest.raises(ModuleRefused, match=f"{ADDRESS + at:#x}"):
        kernel.take()
    assert set(kernel.owners.values()) == {Owner.KERNEL}


def test_code_is_not_what_it_must_be() -> None:
    kernel = _Kernel(IMAGE, b"\xcc" + TEXT[1:])
    with pytest.raises(ModuleRefused, match="0xcc in place of 0x90"):
        kernel.take()
    assert set(kernel.owners.values()) == {Owner.KERNEL}


def test_a_page_is_named_twice() -> None:
    told = ModulePrepared(0, {MemoryType.RODATA: ModuleMemory(ADDRESS, 2 * PAGE_SIZE)})
    with pytest.raises(ModuleRefused, match="twice"):
        frames_of(told, [PAGE_SIZE, PAGE_SIZE])

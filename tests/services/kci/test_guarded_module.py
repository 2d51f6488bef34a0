# SPDX-License-Identifier: GPL-2.0-or-later
"""Read-only data of modules is taken if it is what the file makes of it, and given back otherwise."""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from veil.formats.kci import MemoryType, ModuleMemory, ModulePrepared
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.kci.guarded_module import frames_of, take_read_only
from veil.services.kci.modules import ModuleRefused

ADDRESS = 0xFFFFFFFFC0000000
IMAGE = bytes(range(256)) * (2 * PAGE_SIZE // 256)
FRAMES = {MemoryType.TEXT: [5 * PAGE_SIZE], MemoryType.RODATA: [9 * PAGE_SIZE, 7 * PAGE_SIZE]}


class _Kernel:
    """Memory in which RODATA lies, and who owns what."""

    def __init__(self, content: bytes) -> None:
        self.content = dict(zip(FRAMES[MemoryType.RODATA], (content[:PAGE_SIZE], content[PAGE_SIZE:]), strict=True))
        self.owners: dict[int, Owner] = {}
        self.context: Any = SimpleNamespace(monitor=self, guest=self)

    def move(self, ranges: list[tuple[int, int]], source: Owner, target: Owner) -> Generator[Any, Any, None]:
        for start, size in ranges:
            for gpa in range(start, start + size, PAGE_SIZE):
                assert self.owners.get(gpa, Owner.KERNEL) is source
                self.owners[gpa] = target
        return
        yield

    def read(self, gpa: int, size: int) -> bytes:
        assert self.owners[gpa] is Owner.KERNEL_RODATA, "what is compared can still be changed"
        return self.content[gpa][:size]

    def take(self) -> Any:
        prepared: Any = SimpleNamespace(
            images={MemoryType.RODATA: IMAGE},
            memory={MemoryType.RODATA: ModuleMemory(ADDRESS, len(IMAGE))},
            unordered=(range(ADDRESS + 100, ADDRESS + 120),),
        )
        work = take_read_only(self.context, prepared, FRAMES)
        try:
            next(work)
        except StopIteration as stop:
            return stop.value
        raise AssertionError("nobody is asked here")


def _changed(at: int) -> bytes:
    return IMAGE[:at] + bytes([IMAGE[at] ^ 1]) + IMAGE[at + 1 :]


@pytest.mark.parametrize("content", [IMAGE, _changed(100), _changed(119)])
def test_what_it_must_be(content: bytes) -> None:
    kernel = _Kernel(content)
    assert kernel.take() == {MemoryType.RODATA: FRAMES[MemoryType.RODATA]}
    assert kernel.owners == dict.fromkeys(FRAMES[MemoryType.RODATA], Owner.KERNEL_RODATA)


@pytest.mark.parametrize("at", [0, 99, 120, PAGE_SIZE, len(IMAGE) - 1])
def test_one_byte_is_another(at: int) -> None:
    kernel = _Kernel(_changed(at))
    with pytest.raises(ModuleRefused, match=f"{ADDRESS + at:#x}"):
        kernel.take()
    assert set(kernel.owners.values()) == {Owner.KERNEL}


def test_a_page_is_named_twice() -> None:
    told = ModulePrepared(0, {MemoryType.RODATA: ModuleMemory(ADDRESS, 2 * PAGE_SIZE)})
    with pytest.raises(ModuleRefused, match="twice"):
        frames_of(told, [PAGE_SIZE, PAGE_SIZE])

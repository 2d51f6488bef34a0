# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images with unsound tables, and stores to verified text, as VeilS-KCI meets them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable

from fuzz.target import Target
from tests.services.kci.small_kernel import BASE, DATA, FENTRY, NOP5, PHYSICAL, SmallKernel, call, jump
from veil.services.kci import Explanation, KernelCode, KernelImage, PatchRefused, Segment, decide

__all__ = ["TARGETS", "kernel"]

_LABEL, _LEADS, _STATIC, _TRACED, _LOCK = (BASE + 0x100 * number for number in range(1, 6))
_LENGTHS = {_LABEL: 5, _STATIC: 5, _TRACED: 5}


@functools.cache
def kernel() -> SmallKernel:
    """One with a site of each kind that is patched at run time."""
    kernel = SmallKernel()
    kernel.entry("__start___jump_table", kernel.put(_LABEL, NOP5), _LEADS, DATA)
    kernel.entry("__start_static_call_sites", kernel.put(_STATIC, call(_STATIC, BASE + 0x1000)), DATA + 0x100)
    kernel.entry("__start_mcount_loc", kernel.put(_TRACED, call(_TRACED, FENTRY)))
    kernel.entry("__smp_locks", kernel.put(_LOCK, b"\xf0\x48\xff\x07"))
    kernel.alternative(kernel.put(BASE + 0x600, b"\x90" * 3), 3, b"\x0f\x01\xcb", 8)
    return kernel


@functools.cache
def _code() -> KernelCode:
    return KernelCode(kernel().image())


@functools.cache
def _before() -> Explanation:
    return _code().explain(bytes(kernel().text), _zeros)


def _zeros(_: int, length: int) -> bytes:
    return bytes(length)


def _image(data: bytes) -> None:
    code = KernelCode(KernelImage([Segment(BASE, PHYSICAL, data)]))
    explanation = code.explain(code.image.read(code.range.start, code.range.size), _zeros)
    assert explanation.sound == (explanation.unexplained_bytes == 0)


def _stores(data: bytes) -> None:
    """Each store: two bytes of offset in the text, one of length, then what is stored."""
    code = _code()
    text = bytearray(kernel().text)
    configuration = _before().configuration

    def read(address: int, length: int) -> bytes:
        return bytes(text[address - BASE : address - BASE + length])

    at = 0
    while at + 3 <= len(data):
        offset, length = int.from_bytes(data[at : at + 2], "little"), data[at + 2] % 16
        new = data[at + 3 : at + 3 + length]
        at += 3 + length
        with contextlib.suppress(PatchRefused):
            decide(code, configuration, BASE + offset, new, read)
            text[offset : offset + len(new)] = new
    # Each site is whole, or traps; nothing else has changed.
    whole = bytearray(text)
    for site, length in _LENGTHS.items():
        if whole[site - BASE] == 0xCC:
            whole[site - BASE : site - BASE + length] = _pristine(site, length)
    assert code.explain(bytes(whole), _zeros, configuration).unexplained == _before().unexplained


def _pristine(site: int, length: int) -> bytes:
    """A site as the compiler wrote it."""
    return bytes(kernel().text[site - BASE : site - BASE + length])


def _images() -> Iterable[bytes]:
    yield kernel().image().segments[0].data


def _patches() -> Iterable[bytes]:
    for site, content in ((_LABEL, jump(_LABEL, _LEADS)), (_STATIC, NOP5), (_TRACED, NOP5)):
        steps = ((site, b"\xcc"), (site + 1, content[1:]), (site, content[:1]))
        yield b"".join((at - BASE).to_bytes(2, "little") + bytes([len(new)]) + new for at, new in steps)


TARGETS = (
    Target("kernel-image", _image, _images, max_bytes=81920),
    Target("text-stores", _stores, _patches, words=(b"\xcc", NOP5), max_bytes=512),
)

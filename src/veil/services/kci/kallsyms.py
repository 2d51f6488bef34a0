# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux' own symbol table, decoded from the bytes of an image that names none of its parts.

scripts/kallsyms.c writes, one after the other: num_syms, names, markers, token_table, token_index, offsets (Linux 6.4
and later). Names are compressed: a length, then codes of a byte, each for a token of the token table, in which digits
stand for themselves (that is how it is found). Every 256th name has a marker.

What kernels differ in is read from the tables, not from a version: each table is aligned to 8 bytes or (7.x) to 4;
offsets are from a relative_base behind them, or (7.x) each from its own place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.services.kci.errors import ImageError

__all__ = ["Symbols", "find_symbols"]

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_BLOCK = 256
_ALIGNMENTS = (4, 8)
_MAX_SYMBOLS = 1 << 22
_FAR = 1 << 24
_IN_TEXT = np.zeros(256, bool)
_IN_TEXT[list(b"tTwW")] = True


class Symbols:
    """Names and addresses, in the order of addresses. `kinds` are nm's letters, one for each."""

    def __init__(self, names: list[str], kinds: bytes, addresses: NDArray[np.uint64]) -> None:
        self.names, self.kinds = names, kinds
        self.addresses = addresses

    @cached_property
    def _by_name(self) -> dict[str, int]:
        # Of several local symbols of one name the lowest counts.
        return dict(zip(reversed(self.names), reversed(self.addresses.tolist()), strict=True))

    def __len__(self) -> int:
        return len(self.names)

    def get(self, name: str) -> int | None:
        """The address of a symbol, if there is one of this name."""
        return self._by_name.get(name)

    def after(self, address: int) -> int:
        """The address of the next symbol behind one; the end of all addresses if there is none."""
        number = int(np.searchsorted(self.addresses, np.uint64(address), "right"))
        return int(self.addresses[number]) if number < len(self) else 1 << 64

    def __getitem__(self, name: str) -> int:
        address = self._by_name.get(name)
        if address is None:
            raise ImageError(f"the kernel image has no symbol {name}")
        return address

    @cached_property
    def _text(self) -> str:
        return "\n".join(("", *self.names, ""))

    def named(self, *, prefix: str = "", suffix: str = "") -> dict[str, int]:
        """The symbols whose names begin with `prefix`, or end with `suffix`."""
        # In all names at once: to look at each of them takes time at lock-down.
        text, wanted = self._text, f"\n{prefix}" if prefix else f"{suffix}\n"
        found, at = {}, text.find(wanted)
        while at >= 0:
            start = at + 1 if prefix else text.rindex("\n", 0, at) + 1
            name = text[start : text.index("\n", start)]
            found[name] = self._by_name[name]
            at = text.find(wanted, at + 1)
        return found

    def functions(self) -> NDArray[np.uint64]:
        """The addresses of all symbols in text, in order."""
        return np.asarray(self.addresses[_IN_TEXT[np.frombuffer(self.kinds, np.uint8)]])

    def describe(self, address: int) -> str:
        """`symbol+0x12` for an address; the plain address where no symbol is near."""
        index = int(np.searchsorted(self.addresses, np.uint64(address), "right")) - 1
        if index < 0:
            return f"{address:#x}"
        start = self.addresses[index]
        if address - int(start) > _FAR:
            return f"{address:#x}"
        # Of the symbols at one address the first is the function's; padding in front (__pfx_) has its own.
        index = int(np.searchsorted(self.addresses, start, "left"))
        return f"{self.names[index]}+{address - int(start):#x}"


def find_symbols(data: bytes, base: int) -> Symbols | None:
    """The kallsyms in `data`, which lies at virtual address `base`; None if there are none."""
    for found in re.finditer(re.escape(_DIGITS), data):
        tokens = _tokens(data, found.start())
        if tokens is not None:
            table, index_end, parts = tokens
            compressed = _names(data, table)
            if compressed is not None:
                starts, markers_at, alignment = compressed
                names, kinds = _decode(data[starts[0] : markers_at], starts - starts[0], parts)
                return _sorted(names, kinds, _addresses(data, index_end, alignment, names, base))
    return None


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _tokens(data: bytes, zero: int) -> tuple[int, int, list[bytes]] | None:
    """The token table with its '0' at an offset: (its start, the end of its index, the tokens)."""
    start = zero
    for _ in range(ord("0")):
        start = data.rfind(b"\0", max(0, start - 64), start - 1) + 1
        if not start:
            return None
    parts = data[start : start + _BLOCK * 64].split(b"\0", _BLOCK)[:_BLOCK]
    lengths = np.array([len(part) + 1 for part in parts])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    expected = offsets[:_BLOCK].astype("<u2").tobytes()
    if len(parts) != _BLOCK:
        return None
    # The index starts with 0 and something else, so it cannot be taken for the zeros in front of it.
    for alignment in _ALIGNMENTS:
        index = _align(start + int(offsets[-1]), alignment)
        if data[index : index + len(expected)] == expected:
            return start, index + len(expected), parts
    return None


def _names(data: bytes, table: int) -> tuple[NDArray[np.int64], int, int] | None:
    """Before the token table: (offset of each compressed name and of the end, offset of the markers, alignment)."""
    # Markers are 32-bit, ascend, and start with 0; they end at the token table or 4 bytes before.
    words = np.frombuffer(data, "<u4", table // 4)
    for end in (len(words), len(words) - 1):
        window = words[max(0, end - _MAX_SYMBOLS // _BLOCK) : end].astype(np.int64)
        if not len(window):
            continue
        falls = np.flatnonzero(np.diff(window) <= 0)
        first = int(falls[-1]) + 1 if len(falls) else 0
        markers = window[first:]
        if markers[0] != 0:
            continue
        markers_at = (end - len(markers)) * 4
        found = _walk(data, markers, markers_at)
        if found is not None:
            return found
    return None


def _walk(data: bytes, markers: NDArray[np.int64], markers_at: int) -> tuple[NDArray[np.int64], int, int] | None:
    """Find the number of symbols that stands before the names, and follow the names' lengths from each marker."""
    blocks = len(markers)
    # The names are longer than the last marker and shorter than if each name of the last block had its maximum.
    last = markers_at - int(markers[-1])
    low = max(0, last - _BLOCK * 1024) // 8 * 8
    words = np.frombuffer(data, "<u4", (last - low) // 4, low)
    numbers = np.flatnonzero((words > (blocks - 1) * _BLOCK) & (words <= blocks * _BLOCK))
    numbers = numbers[numbers + 1 < len(words)]
    raw = np.frombuffer(data, np.uint8)
    for at in reversed(numbers.tolist()):
        # No name is empty: zeros behind the number are there to align the names.
        alignment = 4 if words[at + 1] else 8
        count, names = int(words[at]), _align(low + at * 4 + 4, alignment)
        position = names + markers
        starts = np.empty((blocks, _BLOCK), np.int64)
        for step in range(_BLOCK):
            starts[:, step] = position
            sound = np.minimum(position, markers_at)
            length = raw[sound].astype(np.int64)
            big = length >= 0x80
            length = np.where(big, (length & 0x7F) | raw[sound + 1].astype(np.int64) << 7, length)
            position = sound + 1 + big + length
        flat = starts.reshape(-1)[:count]
        rest = count - (blocks - 1) * _BLOCK
        end = int(position[-1]) if rest == _BLOCK else int(starts[-1, rest])
        follows = bool(np.all(position[:-1] == names + markers[1:]))
        if follows and markers_at == _align(end, alignment):
            return np.append(flat, end), markers_at, alignment
    return None


def _decode(stream: bytes, starts: NDArray[np.int64], parts: list[bytes]) -> tuple[list[str], bytes]:
    """Each symbol's name, and its kind, of one letter. Raises ImageError."""
    # A name's length byte becomes a newline, the second byte of a long length nothing, every other byte its token.
    stream = stream[: int(starts[-1])]
    starts = starts[:-1]
    codes = np.frombuffer(stream, np.uint8).astype(np.int16)
    long = codes[starts] >= 0x80
    codes[starts] = _BLOCK
    codes[starts[long] + 1] = _BLOCK + 1
    tokens = [*parts, b"\n", b""]
    lengths = np.array([len(token) for token in tokens], np.int32)
    places = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int32)
    sizes = lengths[codes]
    begins = np.cumsum(sizes, dtype=np.int32) - sizes
    count = int(begins[-1] + sizes[-1])
    letters = np.arange(count, dtype=np.int32) + np.repeat(places[codes] - begins, sizes)
    text = np.append(np.frombuffer(b"".join(tokens), np.uint8)[letters], np.uint8(ord("\n")))
    # The letter behind each newline is the kind.
    kinds = begins[starts] + 1
    named = np.ones(len(text), bool)
    named[kinds] = False
    names = text[named].tobytes().decode("latin-1").split("\n")[1:-1]
    if len(names) != len(starts):
        raise ImageError("the kernel image has symbols without a name")
    return names, text[kinds].tobytes()


def _addresses(data: bytes, index_end: int, alignment: int, names: list[str], base: int) -> NDArray[np.uint64]:
    """The symbols' addresses, from the offsets behind the token index.

    What the offsets count from shows where the image's first symbol comes out."""
    first = next((number for number, name in enumerate(names) if name in ("_text", "_stext")), None)
    if first is None:
        raise ImageError("the kernel image has no symbol _text")
    start = _align(index_end, alignment)
    end = start + 4 * len(names)
    if end > len(data):
        raise ImageError("the kernel image ends in its kallsyms offsets")
    offsets = np.frombuffer(data, "<i4", len(names), start).astype(np.int64)
    behind = _align(end, alignment)
    relative = np.uint64(int.from_bytes(data[behind : behind + 8], "little"))
    for candidate in _candidates(offsets, np.uint64(base + start), relative):
        if int(candidate[first]) == base:
            return candidate
    raise ImageError(f"the kernel image's symbols do not fit its addresses (_text is not at {base:#x})")


def _candidates(offsets: NDArray[np.int64], place: np.uint64, relative: np.uint64) -> Iterator[NDArray[np.uint64]]:
    yield place + np.arange(0, 4 * len(offsets), 4, dtype=np.uint64) + offsets.astype(np.uint64)
    # With absolute per-CPU symbols others are negative, and count from the base's other side.
    both = np.where(offsets < 0, np.int64(-1) - offsets, offsets).astype(np.uint64)
    yield np.where(offsets < 0, both + relative, both)
    yield (offsets & 0xFFFFFFFF).astype(np.uint64) + relative


def _sorted(names: list[str], kinds: bytes, addresses: NDArray[np.uint64]) -> Symbols:
    order: NDArray[Any] = np.argsort(addresses, kind="stable")
    if np.array_equal(order, np.arange(len(order))):
        return Symbols(names, kinds, addresses)
    places = order.tolist()
    return Symbols([names[at] for at in places], bytes(kinds[at] for at in places), addresses[order])

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the builder bakes into an enclave for its runtime: `struct config` of runtime/src/config.h and what it names."""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from veil.formats.enclaves import RUNTIME
from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.enclaves.rules import ConfigFlag, ConfigRule, RuleKind, Rules

__all__ = [
    "CHUNK",
    "CONFIG_PLACE",
    "Config",
    "ConfigArea",
    "ConfigHeader",
    "TrustedFile",
]

_MAGIC = int.from_bytes(b"VLEVCFG2", "little")
#: Where it lies in an enclave.
CONFIG_PLACE = RUNTIME + 0x1009_0000
#: Bytes of a trusted file that are checked together.
CHUNK = 0x10000
_CALL_WORDS = 8
_RULE = struct.Struct("<4I")
_FILE = struct.Struct("<2I2Q")
_AREA = struct.Struct("<2Q2I")


class ConfigHeader(ctypes.LittleEndianStructure):
    """struct config. Offsets are from its start; of each list the number of entries, or of characters, follows."""

    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("entry", ctypes.c_uint64),
        ("program_entry", ctypes.c_uint64),
        ("headers", ctypes.c_uint64),
        ("header_count", ctypes.c_uint64),
        ("interpreter", ctypes.c_uint64),
        ("brk_start", ctypes.c_uint64),
        ("brk_end", ctypes.c_uint64),
        ("stack_bytes", ctypes.c_uint64),
        ("heap_bytes", ctypes.c_uint64),
        ("pool_pages", ctypes.c_uint64),
        ("slots", ctypes.c_uint64),
        ("calls", ctypes.c_uint64 * _CALL_WORDS),
        ("signals", ctypes.c_uint64),
        ("areas", ctypes.c_uint32),
        ("area_count", ctypes.c_uint32),
        ("rules", ctypes.c_uint32),
        ("rule_count", ctypes.c_uint32),
        ("files", ctypes.c_uint32),
        ("file_count", ctypes.c_uint32),
        ("arguments", ctypes.c_uint32),
        ("argument_count", ctypes.c_uint32),
        ("environment", ctypes.c_uint32),
        ("environment_count", ctypes.c_uint32),
        ("passed", ctypes.c_uint32),
        ("passed_count", ctypes.c_uint32),
        ("program", ctypes.c_uint32),
        ("program_length", ctypes.c_uint32),
        ("directory", ctypes.c_uint32),
        ("directory_length", ctypes.c_uint32),
        ("started", ctypes.c_uint32),
        ("started_count", ctypes.c_uint32),
        ("manifest", ctypes.c_uint32),
        ("manifest_length", ctypes.c_uint32),
    ]


@dataclass(frozen=True)
class ConfigArea:
    """Pages of the program that are there from the start: addresses, and the bits of `Prot`."""

    start: int
    end: int
    prot: int


class TrustedFile(NamedTuple):
    """What is measured of one."""

    size: int
    hashes: bytes
    """BLAKE2b (RFC 7693, 32 bytes) of each chunk of `CHUNK` bytes, the last may be shorter."""

    @classmethod
    def of(cls, data: bytes) -> TrustedFile:
        """From its content."""
        chunks = (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
        return cls(len(data), b"".join(_blake2b(chunk).digest() for chunk in chunks))


def _blake2b(chunk: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(chunk, digest_size=32)


@dataclass(frozen=True)
class Config:
    """All that the runtime is told. Addresses are those of the enclave."""

    entry: int
    program_entry: int
    headers: int
    header_count: int
    interpreter: int
    brk_start: int
    brk_end: int
    heap_bytes: int
    program: str
    rules: Rules = field(default_factory=Rules)
    areas: Sequence[ConfigArea] = ()
    files: Mapping[str, TrustedFile] = field(default_factory=dict)
    """Trusted files by path."""
    manifest: str = ""
    """The text that the rules come from, for readers of the image."""

    def pack(self) -> bytes:
        """Whole pages."""
        rules = self.rules
        header = ConfigHeader(
            magic=_MAGIC, flags=rules.flags, entry=self.entry, program_entry=self.program_entry, headers=self.headers,
            header_count=self.header_count, interpreter=self.interpreter, brk_start=self.brk_start,
            brk_end=self.brk_end, stack_bytes=rules.stack_bytes, heap_bytes=self.heap_bytes,
            pool_pages=rules.pool_pages, slots=rules.slots,
        )  # fmt: skip
        for number in rules.calls:
            header.calls[number // 64] |= 1 << number % 64
        header.signals = sum(1 << number - 1 for number in rules.signals)
        body = _Body(ctypes.sizeof(ConfigHeader))
        areas = [_AREA.pack(area.start, area.end, area.prot, 0) for area in self.areas]
        header.areas, header.area_count = body.add(b"".join(areas)), len(areas)
        of_paths = [_RULE.pack(rule.kind, rule.tree, *body.text(rule.path)) for rule in rules.files]
        header.rules, header.rule_count = body.add(b"".join(of_paths)), len(of_paths)
        files = [self._file(body, path, file) for path, file in sorted(self.files.items(), key=_path_order)]
        header.files, header.file_count = body.add(b"".join(files)), len(files)
        header.arguments, header.argument_count = body.texts(rules.arguments)
        header.environment, header.environment_count = body.texts(rules.environment)
        header.passed, header.passed_count = body.texts(rules.passed)
        header.program, header.program_length = body.text(self.program)
        header.directory, header.directory_length = body.text(rules.directory)
        header.started, header.started_count = body.texts(rules.started)
        header.manifest, header.manifest_length = body.text(self.manifest)
        header.size = body.end
        packed = bytes(header) + bytes(body.data)
        return packed + bytes(-len(packed) % PAGE_SIZE)

    @staticmethod
    def _file(body: _Body, path: str, file: TrustedFile) -> bytes:
        return _FILE.pack(*body.text(path), file.size, body.add(file.hashes))

    @classmethod
    def parse(cls, packed: bytes) -> Config:
        """Raises FormatError for anything that `pack` does not give: what the runtime would read in another way."""
        if len(packed) < ctypes.sizeof(ConfigHeader):
            raise FormatError("no configuration")
        header = ConfigHeader.from_buffer_copy(packed)
        if header.magic != _MAGIC:
            raise FormatError("no configuration of this version's runtime: build it again")
        try:
            config = _Pieces(packed).config(header)
        except (UnicodeDecodeError, ValueError, struct.error) as error:
            raise FormatError("its configuration is damaged") from error
        if config.pack() != packed:
            raise FormatError("its configuration is not as this version's builder writes it: build it again")
        return config


class _Pieces:
    """Reads what follows the header. No piece is read twice, so hostile offsets cost no more than there are bytes."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._left = len(packed)

    def config(self, header: ConfigHeader) -> Config:
        """Raises ValueError for what cannot be."""
        rules = Rules(
            flags=ConfigFlag(header.flags), stack_bytes=header.stack_bytes, pool_pages=header.pool_pages,
            slots=header.slots, directory=self._text(header.directory, header.directory_length),
            calls=_bits(header.calls), signals=frozenset(number + 1 for number in _bits([header.signals])),
            files=tuple(
                ConfigRule(RuleKind(kind), self._text(path, length), bool(tree))
                for kind, tree, path, length in self._table(_RULE, header.rules, header.rule_count)
            ),
            arguments=self._texts(header.arguments, header.argument_count),
            environment=self._texts(header.environment, header.environment_count),
            passed=self._texts(header.passed, header.passed_count),
            started=self._texts(header.started, header.started_count),
        )  # fmt: skip
        areas = self._table(_AREA, header.areas, header.area_count)
        return Config(
            entry=header.entry, program_entry=header.program_entry, headers=header.headers,
            header_count=header.header_count, interpreter=header.interpreter, brk_start=header.brk_start,
            brk_end=header.brk_end, heap_bytes=header.heap_bytes,
            program=self._text(header.program, header.program_length), rules=rules,
            areas=tuple(ConfigArea(start, end, prot) for start, end, prot, _ in areas),
            files=dict(self._file(*entry) for entry in self._table(_FILE, header.files, header.file_count)),
            manifest=self._text(header.manifest, header.manifest_length),
        )  # fmt: skip

    def _file(self, path: int, length: int, size: int, hashes: int) -> tuple[str, TrustedFile]:
        count = (size + CHUNK - 1) // CHUNK
        return self._text(path, length), TrustedFile(size, self._take(hashes, count * _blake2b().digest_size))

    def _table(self, entry: struct.Struct, at: int, count: int) -> list[tuple[int, ...]]:
        return list(entry.iter_unpack(self._take(at, count * entry.size)))

    def _text(self, at: int, length: int) -> str:
        return self._take(at, length).decode()

    def _texts(self, at: int, count: int) -> tuple[str, ...]:
        found = []
        for _ in range(count):
            end = self._packed.index(b"\0", at)
            found.append(self._text(at, end - at))
            self._left -= 1
            at = end + 1
        return tuple(found)

    def _take(self, at: int, length: int) -> bytes:
        self._left -= length
        if self._left < 0 or at + length > len(self._packed):
            raise ValueError
        return self._packed[at : at + length]


def _bits(words: Iterable[int]) -> frozenset[int]:
    return frozenset(64 * at + bit for at, word in enumerate(words) for bit in range(64) if word >> bit & 1)


def _path_order(item: tuple[str, TrustedFile]) -> bytes:
    """As the runtime compares: byte for byte, the shorter first."""
    return item[0].encode()


class _Body:
    """What follows the header, growing; each piece is aligned to eight bytes."""

    def __init__(self, start: int) -> None:
        self._start = start
        self.data = bytearray()

    @property
    def end(self) -> int:
        return self._start + len(self.data)

    def add(self, data: bytes) -> int:
        self.data += bytes(-self.end % 8)
        at = self.end
        self.data += data
        return at

    def text(self, text: str) -> tuple[int, int]:
        encoded = text.encode()
        return self.add(encoded + b"\0"), len(encoded)

    def texts(self, texts: Iterable[str]) -> tuple[int, int]:
        encoded = [text.encode() + b"\0" for text in texts]
        return self.add(b"".join(encoded)), len(encoded)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the builder bakes into an enclave for its runtime: `struct config` of runtime/src/config.h and what it names."""

from __future__ import annotations

import ctypes
import enum
import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from veil.formats.enclaves import RUNTIME
from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE

__all__ = [
    "CHUNK",
    "CONFIG_PLACE",
    "Config",
    "ConfigArea",
    "ConfigFlag",
    "ConfigHeader",
    "ConfigRule",
    "RuleKind",
    "read_config",
]

_MAGIC = int.from_bytes(b"VLEVCFG1", "little")
#: Where it lies in an enclave.
CONFIG_PLACE = RUNTIME + 0x1000_0000
#: Bytes of a trusted file that are checked together.
CHUNK = 0x10000
_CALL_WORDS = 8
_RULE = struct.Struct("<4I")
_FILE = struct.Struct("<2I2Q")
_AREA = struct.Struct("<2Q2I")


class ConfigFlag(enum.IntFlag):
    """What the manifest switches on."""

    NONE = 0
    ARGUMENTS_OUTSIDE = 1
    END_ON_UNSUPPORTED = 2
    SIGNALS_OUTSIDE = 4


class RuleKind(enum.IntEnum):
    """How files below a path are treated. Trusted files are no rules: each is named with its hashes."""

    PASS = 2
    READ = 3
    SEALED = 4
    SECRET = 5


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


@dataclass(frozen=True)
class ConfigRule:
    """Of a path; with `tree` of all below it too."""

    kind: RuleKind
    path: str
    tree: bool


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
    stack_bytes: int
    heap_bytes: int
    pool_pages: int
    slots: int
    program: str
    flags: ConfigFlag = ConfigFlag.NONE
    directory: str = "/"
    calls: frozenset[int] = frozenset()
    signals: frozenset[int] = frozenset()
    areas: Sequence[ConfigArea] = ()
    rules: Sequence[ConfigRule] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Trusted files by path."""
    arguments: Sequence[str] = ()
    environment: Sequence[str] = ()
    """NAME=VALUE."""
    passed: Sequence[str] = ()
    started: Sequence[str] = ()
    """Paths of programs outside that it may start."""
    manifest: str = ""
    """The text that all of this comes from, for readers of the image."""

    def pack(self) -> bytes:
        """Whole pages."""
        header = ConfigHeader(
            magic=_MAGIC, flags=self.flags, entry=self.entry, program_entry=self.program_entry, headers=self.headers,
            header_count=self.header_count, interpreter=self.interpreter, brk_start=self.brk_start,
            brk_end=self.brk_end, stack_bytes=self.stack_bytes, heap_bytes=self.heap_bytes,
            pool_pages=self.pool_pages, slots=self.slots,
        )  # fmt: skip
        for number in self.calls:
            header.calls[number // 64] |= 1 << number % 64
        header.signals = sum(1 << number - 1 for number in self.signals)
        body = _Body(ctypes.sizeof(ConfigHeader))
        areas = [_AREA.pack(area.start, area.end, area.prot, 0) for area in self.areas]
        header.areas, header.area_count = body.add(b"".join(areas)), len(areas)
        rules = [_RULE.pack(rule.kind, rule.tree, *body.text(rule.path)) for rule in self.rules]
        header.rules, header.rule_count = body.add(b"".join(rules)), len(rules)
        files = [self._file(body, path, data) for path, data in sorted(self.files.items(), key=_path_order)]
        header.files, header.file_count = body.add(b"".join(files)), len(files)
        header.arguments, header.argument_count = body.texts(self.arguments)
        header.environment, header.environment_count = body.texts(self.environment)
        header.passed, header.passed_count = body.texts(self.passed)
        header.program, header.program_length = body.text(self.program)
        header.directory, header.directory_length = body.text(self.directory)
        header.started, header.started_count = body.texts(self.started)
        header.manifest, header.manifest_length = body.text(self.manifest)
        header.size = body.end
        packed = bytes(header) + bytes(body.data)
        return packed + bytes(-len(packed) % PAGE_SIZE)

    @staticmethod
    def _file(body: _Body, path: str, data: bytes) -> bytes:
        return _FILE.pack(*body.text(path), len(data), body.add(b"".join(_chunk_hashes(data))))


def _chunk_hashes(data: bytes) -> list[bytes]:
    return [hashlib.sha256(data[at : at + CHUNK]).digest() for at in range(0, len(data), CHUNK)]


def read_config(packed: bytes, files: Mapping[str, bytes]) -> str:
    """The manifest in a packed configuration, once `files` are found to be its trusted files. Raises FormatError.

    An image is anybody's: what is measured decides, not what stands beside it.
    """
    if len(packed) < ctypes.sizeof(ConfigHeader):
        raise FormatError("no configuration")
    header = ConfigHeader.from_buffer_copy(packed)
    if header.magic != _MAGIC:
        raise FormatError("no configuration of this version's runtime: build it again")
    table = _piece(packed, header.files, header.file_count * _FILE.size)
    left = dict(files)
    for path_at, path_length, size, hashes_at in _FILE.iter_unpack(table):
        path = _piece(packed, path_at, path_length).decode()
        data = left.pop(path, None)
        if data is None or len(data) != size:
            raise FormatError(f"the trusted file {path!r:.200} is not the one that is measured")
        hashes = b"".join(_chunk_hashes(data))
        if _piece(packed, hashes_at, len(hashes)) != hashes:
            raise FormatError(f"the trusted file {path!r:.200} is not the one that is measured")
    if left:
        raise FormatError(f"the file {next(iter(left))!r:.200} is no trusted file of what is measured")
    return _piece(packed, header.manifest, header.manifest_length).decode()


def _piece(packed: bytes, at: int, length: int) -> bytes:
    if at + length > len(packed):
        raise FormatError("its configuration is damaged")
    return packed[at : at + length]


def _path_order(item: tuple[str, bytes]) -> bytes:
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch digest (56860, "Launch Digest"), and the list of what went into it.

The secure processor computes the digest; users compute it offline to know what it should be. A launch log names
every page that was launched. A host may show one: it is believed if it leads to the digest in the report, and then
tells what differs from what was expected, which the digest alone does not.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import itertools
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeGuard

from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE

__all__ = ["VMSA_GPA", "LaunchDigest", "LaunchEntry", "LaunchLog", "PageType", "launch_digest"]

#: Where KVM says that VMSAs are, whatever their real address: it is part of what is measured.
VMSA_GPA = 0xFFFFFFFFF000

_DIGEST_BYTES = 48
_ZERO_DIGEST = bytes(_DIGEST_BYTES)
_PAGE_INFO_BYTES = 0x70
_PAGE_INFO_TAIL = struct.Struct("<HBB4BQ")
_LOG_FORMAT = "veil launch log 1"
_MAX_LOG = 64 << 20
#: of a parsed log, 1 GiB: a few bytes of JSON can claim any number of zero pages, and all are hashed
_LOG_MAX_PAGES = 1 << 18


class PageType(enum.IntEnum):
    """PAGE_TYPE of SNP_LAUNCH_UPDATE."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


_CONTENT_MEASURED = (PageType.NORMAL, PageType.VMSA)


class LaunchDigest:
    """The running launch digest: LD(n+1) = SHA-384(PAGE_INFO with LD(n)), from 48 zero bytes."""

    def __init__(self, value: bytes = _ZERO_DIGEST) -> None:
        self.value = value

    def extend(
        self, gpa: int, content: bytes | memoryview, page_type: int, permissions: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        """Measure one page of 4096 bytes. `permissions` are those of VMPL 1, 2 and 3.

        Sources differ on the order of the permission bytes in PAGE_INFO (docs/fidelity.md); it is 0, VMPL1, VMPL2,
        VMPL3 here, and makes no difference for images that grant nothing, as ours.
        """
        digest = hashlib.sha384(content).digest() if page_type in _CONTENT_MEASURED else _ZERO_DIGEST
        self.extend_digest(gpa, digest, page_type, permissions)

    def extend_digest(
        self, gpa: int, digest: bytes, page_type: int, permissions: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        """The same with SHA-384 of the page's content, or zeros where the content is not measured."""
        tail = _PAGE_INFO_TAIL.pack(_PAGE_INFO_BYTES, page_type, 0, 0, *permissions, gpa)
        self.value = hashlib.sha384(self.value + digest + tail).digest()


def launch_digest(pages: Iterable[tuple[int, bytes, int]]) -> bytes:
    """The digest of (GPA, content, PAGE_TYPE) in launch order, each content whole pages; computed offline."""
    running = LaunchDigest()
    for gpa, content, page_type in pages:
        view = memoryview(content)
        for offset in range(0, len(view), PAGE_SIZE):
            running.extend(
                VMSA_GPA if page_type == PageType.VMSA else gpa + offset, view[offset : offset + PAGE_SIZE], page_type
            )
    return running.value


@dataclass(frozen=True)
class LaunchEntry:
    """A run of pages. `pages` holds 48 bytes for each: SHA-384 of the content, zeros where that is not measured."""

    name: str
    gpa: int
    kind: PageType
    pages: bytes
    measured_gpa: int = VMSA_GPA
    """Of a VMSA: where the host said that it is."""

    @classmethod
    def of(cls, name: str, gpa: int, kind: int, content: bytes, *, measured_gpa: int = VMSA_GPA) -> LaunchEntry:
        """From the content, whole pages."""
        view, kind = memoryview(content), PageType(kind)
        if kind in _CONTENT_MEASURED:
            digests = [hashlib.sha384(view[at : at + PAGE_SIZE]).digest() for at in range(0, len(view), PAGE_SIZE)]
        else:
            digests = [_ZERO_DIGEST] * (len(view) // PAGE_SIZE)
        return cls(name, gpa, kind, b"".join(digests), measured_gpa)

    @property
    def count(self) -> int:
        """How many pages."""
        return len(self.pages) // _DIGEST_BYTES

    def page(self, index: int) -> bytes:
        """One page's digest."""
        return self.pages[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES]


@dataclass(frozen=True)
class LaunchLog:
    """Everything that was launched, in order."""

    entries: tuple[LaunchEntry, ...]

    def digest(self) -> bytes:
        """The launch digest, 48 bytes."""
        running = LaunchDigest()
        for entry in self.entries:
            for index in range(entry.count):
                gpa = entry.measured_gpa if entry.kind == PageType.VMSA else entry.gpa + index * PAGE_SIZE
                running.extend_digest(gpa, entry.page(index), entry.kind)
        return running.value

    def differences(self, other: LaunchLog) -> list[str]:
        """What of this (expected) log is not so in the other: a phrase for each of this log's names."""
        theirs: dict[tuple[bool, int], tuple[PageType, bytes]] = {}
        more = 0
        for _, place, page in other._pages():
            more += place in theirs
            theirs.setdefault(place, page)
        found: dict[str, tuple[int, int]] = {}
        for name, place, page in self._pages():
            wrong, total = found.get(name, (0, 0))
            found[name] = wrong + (theirs.pop(place, None) != page), total + 1
        phrases = [
            f"{name} ({wrong} of {total} pages)" if total > 1 else name
            for name, (wrong, total) in found.items() if wrong
        ]  # fmt: skip
        more += len(theirs)
        if more:
            phrases.append(f"{more} more pages")
        if not phrases and self.digest() != other.digest():
            phrases.append("the order of the pages")
        return phrases

    def _pages(self) -> Iterator[tuple[str, tuple[bool, int], tuple[PageType, bytes]]]:
        """(name, place, page). Where VMSAs are is not measured, so a host may say anything: they are numbered."""
        vmsas = itertools.count()
        for entry in self.entries:
            vmsa = entry.kind == PageType.VMSA
            for index in range(entry.count):
                place = next(vmsas) if vmsa else entry.gpa + index * PAGE_SIZE
                yield entry.name, (vmsa, place), (entry.kind, entry.page(index))

    def pack(self) -> bytes:
        """As JSON."""
        entries = [
            {
                "name": entry.name,
                "gpa": entry.gpa,
                "type": entry.kind.name,
                "pages": base64.b64encode(entry.pages).decode()
                if entry.kind in _CONTENT_MEASURED
                else entry.count,
            }
            | ({"measured_gpa": entry.measured_gpa} if entry.measured_gpa != VMSA_GPA else {})
            for entry in self.entries
        ]  # fmt: skip
        return json.dumps({"format": _LOG_FORMAT, "entries": entries}, indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> LaunchLog:
        """From `pack`; a host made it. Raises FormatError."""
        if len(data) > _MAX_LOG:
            raise FormatError(f"a launch log of {len(data)} bytes is too long")
        try:
            content = json.loads(data)
            if content["format"] != _LOG_FORMAT:
                raise FormatError("no launch log of a known format")
            entries, pages = [], 0
            for item in content["entries"]:
                entry = _entry(item)
                pages += entry.count
                if pages > _LOG_MAX_PAGES:
                    raise FormatError(f"a launch log has at most {_LOG_MAX_PAGES} pages")
                entries.append(entry)
            return cls(tuple(entries))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"this is not a launch log ({error})") from error


def _entry(item: dict[str, object]) -> LaunchEntry:
    name, gpa, kind, pages = item["name"], item["gpa"], PageType[str(item["type"])], item["pages"]
    measured_gpa = item.get("measured_gpa", VMSA_GPA)
    if not isinstance(name, str) or not _is_page(gpa) or not _is_page(measured_gpa):
        raise FormatError(f"launch log entry {name!r} at {gpa!r}, measured as at {measured_gpa!r}")
    if kind in _CONTENT_MEASURED:
        try:
            digests = base64.b64decode(str(pages), validate=True)
        except binascii.Error as error:
            raise FormatError(f"launch log entry {name!r}: {error}") from error
    else:
        if not isinstance(pages, int) or not 0 <= pages <= _LOG_MAX_PAGES:
            raise FormatError(f"launch log entry {name!r} of {pages!r} pages")
        digests = _ZERO_DIGEST * pages
    if not digests or len(digests) % _DIGEST_BYTES:
        raise FormatError(f"launch log entry {name!r} has no whole number of pages")
    return LaunchEntry(name, gpa, kind, digests, measured_gpa)


def _is_page(gpa: object) -> TypeGuard[int]:
    return isinstance(gpa, int) and 0 <= gpa < 1 << 52 and not gpa % PAGE_SIZE

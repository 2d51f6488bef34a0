# SPDX-License-Identifier: GPL-2.0-or-later
"""A module of the distribution's made hostile, where the kernel itself does not look, and signed by somebody."""

from __future__ import annotations

import struct

from tests.services.kci.modules.made_module import Authority, append_signature, authority, sign
from veil.services.kci.modules.elf import ModuleElf
from veil.services.kci.modules.signature import split_signature

__all__ = ["HOSTILE", "body_of", "resigned"]

_SECTION = struct.Struct("<IIQQQQIIQQ")
_OFFSET, _SIZE = 4, 5
_RELOCATION = struct.Struct("<QIIq")
_64 = 1
#: Larger than all memory of a module may be, and still within the guest's.
_ABSURD = 129 << 20


def body_of(file: bytes) -> bytes:
    """Without its signature."""
    signed = split_signature(file)
    assert signed is not None
    return bytes(signed[0])


def resigned(body: bytes, signer: Authority | None = None) -> bytes:
    """Signed by the one whom the guests' policy names, or by somebody else."""
    return append_signature(body, sign(body, signer or authority()))


def _changed(body: bytes, name: str, **fields: int) -> bytes:
    """With other numbers in the header of a section."""
    number = next(section.index for section in ModuleElf(body).sections if section.name == name)
    at = struct.unpack_from("<Q", body, 40)[0] + number * _SECTION.size
    header = list(_SECTION.unpack_from(body, at))
    for field, place in (("offset", _OFFSET), ("size", _SIZE)):
        header[place] = fields.get(field, header[place])
    return body[:at] + _SECTION.pack(*header) + body[at + _SECTION.size :]


def _relocated_outside(body: bytes) -> bytes:
    """One relocation more, behind the end of .text, where the page is empty."""
    section = next(section for section in ModuleElf(body).sections if section.name == ".rela.text")
    entries = body[section.offset : section.offset + section.size]
    _, _, symbol, _ = _RELOCATION.unpack_from(entries)
    entries += _RELOCATION.pack(0x800, _64, symbol, 0)
    padded = body + bytes(-len(body) % 8)
    return _changed(padded + entries, ".rela.text", offset=len(padded), size=len(entries))


def _overlapping(body: bytes) -> bytes:
    other = next(section for section in ModuleElf(body).sections if section.name == ".note.gnu.build-id")
    return _changed(body, ".note.Linux", offset=other.offset)


def _absurd(body: bytes) -> bytes:
    return _changed(body, ".bss", size=_ABSURD)


#: What it does -> how it is made, and what VeilS-KCI says.
HOSTILE = {
    "relocates outside of itself": (_relocated_outside, "lies outside its section"),
    "has overlapping sections": (_overlapping, "sections overlap"),
    "has an absurd size": (_absurd, "need more than"),
}

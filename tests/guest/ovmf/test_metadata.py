# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware's file is anybody's: it is read as another reader does, or refused in one line."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sevsnpmeasure.ovmf import OVMF

from tests.guest.ovmf.made_firmware import (
    FOOTER,
    HASH_TABLE,
    HASHES_AT,
    METADATA,
    PAGE,
    RESET_ADDRESS,
    SECTIONS,
    entry,
    metadata,
    write_firmware,
)
from veil.cache import Cache
from veil.guest.errors import GuestImageError
from veil.guest.ovmf.metadata import Firmware, SectionType, parse_firmware
from veil.guest.ovmf.package import DEBIAN_FIRMWARE, firmware_at_hand, open_firmware

_SECRETS, _CPUID = SECTIONS[1], SECTIONS[2]
_FROM_END = struct.pack("<I", 0x800)


def _as_another_reader(path: Path) -> tuple[Any, ...]:
    found: Any = OVMF(str(path))
    sections = [(item.section_type().value, item.gpa, item.size) for item in found.metadata_items()]
    return found.gpa(), sections, found.sev_es_reset_eip(), found.sev_hashes_table_gpa()


def _as_read(firmware: Firmware) -> tuple[Any, ...]:
    sections = [(int(item.kind), item.gpa, item.size) for item in firmware.sections]
    return firmware.gpa, sections, firmware.reset_address, firmware.hashes_address


def test_read_as_another_reader_does(tmp_path: Path) -> None:
    file = tmp_path / "OVMF.fd"
    file.write_bytes(write_firmware())
    firmware = parse_firmware(file.read_bytes(), "OVMF.fd")
    assert _as_read(firmware) == _as_another_reader(file)
    assert firmware.reset_address == RESET_ADDRESS
    assert firmware.hashes_address == HASHES_AT
    assert firmware.gpa == (1 << 32) - 2 * PAGE


@pytest.mark.e2e
def test_debians_is_read_as_another_reader_does() -> None:
    firmware = open_firmware(Cache(), DEBIAN_FIRMWARE)
    at_hand = firmware_at_hand(Cache(), DEBIAN_FIRMWARE)
    assert at_hand is not None
    assert _as_read(firmware) == _as_another_reader(at_hand[1])
    assert firmware.section(SectionType.SVSM_CAA) is not None


def test_what_may_be_missing() -> None:
    firmware = parse_firmware(write_firmware((_SECRETS, _CPUID), hashes_at=0, reset=None), "x")
    assert (firmware.reset_address, firmware.hashes_address) == (None, None)
    assert firmware.section(SectionType.SVSM_CAA) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "whole pages"),
        (bytes(PAGE + 1), "whole pages"),
        (bytes(9 << 20), "at most 8 MiB"),
        (bytes(PAGE), "not OVMF"),
        (write_firmware(footer=METADATA), "not OVMF"),
        (write_firmware(table_size=17), "17 bytes, which is impossible"),
        (write_firmware(table_size=2 * PAGE), "which is impossible"),
        (write_firmware(table_size=60), "which is impossible"),
        (write_firmware(more=b"four", table_size=None), "4 bytes of its table belong to no entry"),
        (write_firmware(more=struct.pack("<H16s", 17, bytes(16))), "17 bytes, which is impossible"),
        (write_firmware(more=entry(METADATA, bytes(4))), "stands in its table twice"),
        (write_firmware().replace(entry(METADATA, _FROM_END), entry(FOOTER, bytes(4))), "no SEV metadata"),
        (write_firmware(from_end=15), "outside of the file"),
        (write_firmware(from_end=2 * PAGE + 1), "outside of the file"),
        (write_firmware(from_end=0xFFFFFFFF), "outside of the file"),
        (write_firmware(described=metadata(SECTIONS, signature=b"BSEV")), "signature b'BSEV' and version 1"),
        (write_firmware(described=metadata(SECTIONS, version=2)), "version 2"),
        (write_firmware(described=metadata(SECTIONS, count=0)), "0 sections in"),
        (write_firmware(described=metadata(SECTIONS, count=7)), "7 sections in 88 bytes"),
        (write_firmware(described=metadata(SECTIONS, count=65, size=16 + 65 * 12)), "65 sections"),
        (write_firmware(described=metadata(SECTIONS, count=0xFFFFFFFF, size=0xFFFFFFFF)), "impossible"),
        (write_firmware((*SECTIONS, (0x900000, PAGE, 9))), "section 6 of its SEV metadata has the type 0x9"),
        (write_firmware(((0x800001, PAGE, 1), *SECTIONS[1:])), "not whole pages"),
        (write_firmware(((0x800000, 0, 1), *SECTIONS[1:])), "not whole pages"),
        (write_firmware(((0x800000, 100, 1), *SECTIONS[1:])), "not whole pages"),
        (write_firmware(((0xFFFFF000, 0x2000, 1), *SECTIONS[1:])), "below 4 GiB"),
        (write_firmware(((0xFFFFE000, PAGE, 1), *SECTIONS[1:])), "overlap at 0xffffe000"),
        (write_firmware((*SECTIONS, (0x801000, PAGE, 1))), "overlap at 0x801000"),
        (write_firmware((*SECTIONS, (0x900000, PAGE, 2))), "one SECRETS section of one page"),
        (write_firmware(((0x80D000, 0x2000, 3), _SECRETS)), "one CPUID section of one page"),
        (write_firmware((_SECRETS,), hashes_at=None), "no CPUID section"),
        (write_firmware((_CPUID,), hashes_at=None), "no SECRETS section"),
        (write_firmware(hashes_at=0x810F51), "not in its page"),
        (write_firmware(hashes_at=0x80FFFF), "not in its page"),
        (write_firmware(hashes_at=None), "not in its page"),
        (write_firmware(hashes_at=None, more=entry(HASH_TABLE, b"abc")), "has 3 bytes, at least 4"),
    ],
)  # fmt: skip
def test_refused_in_one_line(data: bytes, words: str) -> None:
    with pytest.raises(GuestImageError) as caught:
        parse_firmware(data, "OVMF.fd")
    assert words in str(caught.value)
    assert str(caught.value).startswith("OVMF.fd: ")
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.tuples(st.integers(0, 0x400), st.integers(0, 255)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 0x60), st.integers(0, 255)), max_size=6),
)
def test_any_change_is_read_or_refused(near_end: list[tuple[int, int]], in_list: list[tuple[int, int]]) -> None:
    data = bytearray(write_firmware())
    for offset, value in near_end:
        data[len(data) - 1 - offset] = value
    for offset, value in in_list:
        data[len(data) - 0x800 + offset] = value
    with contextlib.suppress(GuestImageError):
        firmware = parse_firmware(bytes(data), "x")
        assert {SectionType.SECRETS, SectionType.CPUID} <= {section.kind for section in firmware.sections}
        assert all(section.gpa + section.size <= 1 << 32 for section in firmware.sections)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(GuestImageError, match="cannot read the firmware: No such file"):
        open_firmware(Cache(tmp_path / "cache"), str(tmp_path / "none.fd"))
    with pytest.raises(GuestImageError, match="cannot read the firmware: Is a directory"):
        open_firmware(Cache(tmp_path / "cache"), str(tmp_path))

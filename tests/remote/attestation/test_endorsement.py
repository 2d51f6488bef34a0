# SPDX-License-Identifier: GPL-2.0-or-later
"""What an endorsement certificate says of its chip."""

from __future__ import annotations

import pytest

from veil.remote.attestation.endorsement import Endorsement

MILAN = {"boot_loader": 4, "tee": 0, "snp": 23, "microcode": 213}
TURIN = {"fmc": 1, **MILAN}


def endorsement(hwid: bytes | None) -> Endorsement:
    return Endorsement("Turin", TURIN, hwid, None)


@pytest.mark.parametrize("length", [8, 64])
def test_chip_ids_are_as_long_as_in_reports(length: int) -> None:
    assert endorsement(bytes([7] * length)).chip_id == bytes([7] * length).ljust(64, b"\0")


@pytest.mark.parametrize("hwid", [None, b"", bytes(8), bytes(64), b"\x07" * 7, b"\x07" * 9, b"\x07" * 63, b"\x07" * 65])
def test_other_forms_name_no_chip(hwid: bytes | None) -> None:
    assert endorsement(hwid).chip_id is None


def test_the_parts_tell_the_layout() -> None:
    assert Endorsement("Turin", TURIN, None, None).layout != Endorsement("Milan", MILAN, None, None).layout

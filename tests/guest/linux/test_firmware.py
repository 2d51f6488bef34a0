# SPDX-License-Identifier: GPL-2.0-or-later
"""The instructions that stand in for firmware: their bytes are those of accept.S, and end as the specification says."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.machine_code import assemble
from veil.formats.ghcb import GHCB_MSR, termination_request
from veil.formats.termination import ReasonSet
from veil.guest.linux import firmware

#: of `ReasonSet.LINUX`, GHCB_TERM_PVALIDATE
_PVALIDATE = 2


def test_bytes_are_the_sources() -> None:
    source = Path(firmware.__file__).with_name("accept.S").read_text()
    assert assemble(source) == firmware.ACCEPT_CODE


def test_how_it_gives_up() -> None:
    request = termination_request(ReasonSet.LINUX, _PVALIDATE)
    given_up = b"\xb9" + struct.pack("<I", GHCB_MSR) + b"\xb8" + struct.pack("<I", request)
    assert given_up in firmware.ACCEPT_CODE

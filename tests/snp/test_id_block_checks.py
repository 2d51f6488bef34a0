# SPDX-License-Identifier: GPL-2.0-or-later
"""ID blocks, made by the tool of others that owners of guests use (`snp-create-id-block`)."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.snp.chip import chip
from tests.snp.guest_requests import POLICY, Guest
from veil.formats.attestation_report import AttestationReport
from veil.snp import LaunchError, Machine
from veil.snp.secure_processor import PageType

TOOL = Path(sys.executable).with_name("snp-create-id-block")


class Signed(NamedTuple):
    block: bytes
    auth: bytes
    id_key: bytes
    author_key: bytes


def pem(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def prepared() -> Machine:
    machine = Machine(2 << 20, endorsement=chip)
    machine.secure_processor.launch_start(POLICY)
    machine.host_view().rmpupdate(0, assigned=True)
    machine.secure_processor.launch_update(0, b"image".ljust(4096, b"\0"), PageType.NORMAL)
    return machine


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """ID block and ID authentication for `prepared`."""
    directory = tmp_path_factory.mktemp("id")
    with prepared() as machine:
        digest = machine.secure_processor.measurement
    command = [
        str(TOOL), "--measurement", base64.b64encode(digest).decode(), "--idkey", str(pem(directory / "id")),
        "--authorkey", str(pem(directory / "author")),
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.match(r"id-block=([^,]+),id-auth=(\S+)\nid_key_hash: (\S+)\nauthor_key: (\S+)", out)
    assert found is not None
    block, auth, id_key, author_key = (base64.b64decode(text) for text in found.groups())
    return Signed(block, auth, id_key, author_key)


def finish(block: bytes, auth: bytes, *, author_key_enabled: bool = False) -> AttestationReport:
    with prepared() as machine:
        machine.secure_processor.launch_finish(id_block=block, id_auth=auth, author_key_enabled=author_key_enabled)
        return AttestationReport.parse(Guest(machine.secure_processor).report()[1])


def test_id_block_of_another_tool(signed: Signed) -> None:
    assert (len(signed.block), len(signed.auth)) == (96, 4096)
    report = finish(signed.block, signed.auth, author_key_enabled=True)
    assert report.author_key_enabled
    assert report.id_key_digest == signed.id_key
    assert report.author_key_digest == signed.author_key
    alone = finish(signed.block, signed.auth)
    assert not alone.author_key_enabled
    assert alone.id_key_digest == signed.id_key
    assert alone.author_key_digest == bytes(48)


def test_without_id_block() -> None:
    with prepared() as machine:
        machine.secure_processor.launch_finish()
        report = AttestationReport.parse(Guest(machine.secure_processor).report()[1])
    assert report.id_key_digest == report.author_key_digest == bytes(48)


@pytest.mark.parametrize(
    ("at", "in_auth", "why"),
    [
        (0, False, "BAD_MEASUREMENT"),
        (0x30, False, "BAD_SIGNATURE: the ID block"),
        (0x50, False, "version"),
        (0x5A, False, "POLICY_FAILURE"),
        (0x00, True, "ID block's key is not"),
        (0x04, True, "ID key's key is not"),
        (0x40, True, "BAD_SIGNATURE: the ID block"),
        (0x244, True, "BAD_SIGNATURE: the ID block"),
        (0x680, True, "BAD_SIGNATURE: the ID key"),
        (0x884, True, "BAD_SIGNATURE: the ID key"),
    ],
)
def test_every_part_counts(signed: Signed, at: int, in_auth: bool, why: str) -> None:
    block, auth = bytearray(signed.block), bytearray(signed.auth)
    (auth if in_auth else block)[at] ^= 1
    with pytest.raises(LaunchError, match=why):
        finish(bytes(block), bytes(auth), author_key_enabled=True)


def test_lengths(signed: Signed) -> None:
    with pytest.raises(LaunchError, match="96 bytes"):
        finish(signed.block[:-1], signed.auth)
    with pytest.raises(LaunchError, match="4096"):
        finish(signed.block, b"")

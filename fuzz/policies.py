# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy files: people write them, but somebody else may have written the one that they downloaded."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fuzz.target import Target
from veil.formats.attestation_report import AttestationReport, TcbVersion
from veil.remote.attestation.checks import Checklist
from veil.remote.attestation.policy import Policy
from veil.remote.attestation.policy_checks import check_policy

__all__ = ["TARGETS"]

_FULL = f"""
measurement = ["{"00" * 48}", "{"ab" * 48}"]
report_data = "{"00" * 64}"
host_data = "{"CD" * 32}"
family_id = "{"01" * 16}"
image_id = "{"02" * 16}"
chip_ids = "{"03" * 64}"
id_key_digests = ["{"04" * 48}"]
author_key_digests = ["{"05" * 48}"]
vmpl = 0
max_vmpl = 2
allow_debug = false
allow_migration_agent = false
allow_smt = true
require_single_socket = true
cxl_allow = "either"
mem_aes_256_xts = "required"
rapl_dis = "forbidden"
ciphertext_hiding = "required"
page_swap_disable = "either"
accept_guest_policy_bits = [26, 63]
minimum_abi = "1.55"
minimum_guest_svn = 1
minimum_report_version = 3
minimum_launch_mitigations = 0x1
require_platform = ["ecc_en"]
forbid_platform = ["smt_en", "rapl_dis"]
products = ["Milan", "Genoa"]
allow_vlek = false
allow_provisional_firmware = true
allow_unknown_fields = false
[minimum_tcb]
snp = 22
microcode = 213
"""


@functools.cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="veil-fuzz-")


def _run(data: bytes) -> None:
    path = Path(_place().name) / "policy.toml"
    path.write_bytes(data)
    policy = Policy.load(path)
    checks = Checklist()
    # What can be loaded can be used.
    check_policy(checks, AttestationReport(), policy, TcbVersion(0), "Milan")
    assert all(check.words for check in checks.done())


def _seeds() -> Iterable[bytes]:
    yield b""
    yield _FULL.encode()
    for line in _FULL.strip().splitlines():
        if not line.startswith(("[", "snp", "microcode")):
            yield line.encode()
    yield b"minimum_tcb = { boot_loader = 1, tee = 0, fmc = 255 } # inline\n"
    yield b'products = """\nMilan\\u0041"""\n'


_WORDS = (
    *(item.name.encode() for item in dataclasses.fields(Policy)),
    b"true", b"false", b"inf", b"nan", b"1e9", b"0x", b"0o7", b"0b1", b"1979-05-27T07:32:00Z", b'"""', b"'''", b"\\u",
    b"\\U", b"[[", b"]]", b"{", b"}", b"=", b".", b"# ", b"\r\n", b"[" * 64, b"9" * 64,
    b".a" * 32,
)  # fmt: skip
TARGETS = (Target("policy", _run, _seeds, words=_WORDS, max_bytes=8192),)

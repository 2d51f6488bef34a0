# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy files."""

from __future__ import annotations

from pathlib import Path

import pytest

from veil.formats.attestation_report import PlatformInfo
from veil.remote import Demand, Policy, RemoteError

EVERYTHING = f"""
measurement = ["{"aa" * 48}", "{"bb" * 48}"]
report_data = "{"01" * 64}"
host_data = "{"02" * 32}"
family_id = "{"03" * 16}"
image_id = "{"04" * 16}"
chip_ids = ["{"05" * 64}"]
id_key_digests = "{"06" * 48}"
author_key_digests = ["{"07" * 48}"]
vmpl = 0
max_vmpl = 1
allow_host_requested = true
allow_debug = true
allow_migration_agent = true
allow_smt = false
require_single_socket = true
cxl_allow = "either"
mem_aes_256_xts = "required"
rapl_dis = "forbidden"
ciphertext_hiding = "required"
page_swap_disable = "either"
accept_guest_policy_bits = [26, 63]
minimum_abi = "1.55"
minimum_guest_svn = 3
minimum_report_version = 3
minimum_launch_mitigations = 5
require_platform = ["alias_check_complete", "ecc_en"]
forbid_platform = ["smt_en"]
products = ["Milan", "Genoa"]
allow_vlek = false
allow_provisional_firmware = true
allow_unknown_fields = false

[minimum_tcb]
boot_loader = 4
snp = 24

[minimum_launch_tcb]
snp = 23
"""


def load(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return Policy.load(path)


def test_every_field(tmp_path: Path) -> None:
    assert load(tmp_path, EVERYTHING) == Policy(
        measurement=(b"\xaa" * 48, b"\xbb" * 48), report_data=b"\x01" * 64, host_data=b"\x02" * 32,
        family_id=b"\x03" * 16, image_id=b"\x04" * 16, chip_ids=(b"\x05" * 64,), id_key_digests=(b"\x06" * 48,),
        author_key_digests=(b"\x07" * 48,), vmpl=0, max_vmpl=1,
        allow_host_requested=True, allow_debug=True, allow_migration_agent=True, allow_smt=False,
        require_single_socket=True, minimum_abi=(1, 55), minimum_guest_svn=3, allow_unknown_fields=False,
        cxl_allow=Demand.EITHER, mem_aes_256_xts=Demand.REQUIRED, rapl_dis=Demand.FORBIDDEN,
        ciphertext_hiding=Demand.REQUIRED, page_swap_disable=Demand.EITHER, accept_guest_policy_bits=(26, 63),
        minimum_report_version=3, minimum_launch_mitigations=5,
        require_platform=PlatformInfo.ALIAS_CHECK_COMPLETE | PlatformInfo.ECC_EN, forbid_platform=PlatformInfo.SMT_EN,
        products=("Milan", "Genoa"), allow_vlek=False, allow_provisional_firmware=True,
        minimum_tcb={"boot_loader": 4, "snp": 24}, minimum_launch_tcb={"snp": 23},
    )  # fmt: skip


def test_short_chip_ids(tmp_path: Path) -> None:
    assert load(tmp_path, f'chip_ids = "{"11" * 8}"').chip_ids == (b"\x11" * 8 + bytes(56),)


def test_empty(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Policy()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("measurment = []", "unknown key 'measurment'"),
        ('measurement = "aa"', "measurement: must be 96 hexadecimal"),
        ('measurement = ["zz"]', "measurement: must be 96"),
        ("measurement = 5", "measurement"),
        ("allow_debug = 1", "allow_debug: must be true or false"),
        ("vmpl = 4", "vmpl: must be a number from 0 to 3"),
        ("vmpl = true", "vmpl: must be a number"),
        ('cxl_allow = "yes"', "cxl_allow: must be one of required, forbidden, either"),
        ("rapl_dis = true", "rapl_dis: must be one of required"),
        ("accept_guest_policy_bits = [25]", "accept_guest_policy_bits: must be a number from 26 to 63"),
        ("accept_guest_policy_bits = []", "accept_guest_policy_bits: must not be empty"),
        ("allow_unknown_fields = 0", "allow_unknown_fields: must be true or false"),
        ('minimum_abi = "1"', "minimum_abi: must be a version"),
        ("minimum_abi = 1.55", "minimum_abi: must be a version"),
        ("[minimum_tcb]\nucode = 1", "minimum_tcb: must be a table of"),
        ("[minimum_tcb]\nsnp = 256", "minimum_tcb: must be a number from 0 to 255"),
        ('require_platform = ["smt"]', "require_platform: must be a list of"),
        ("products = [1]", "products: must be a string"),
        ("[minimum_launch_tcb]\nucode = 1", "minimum_launch_tcb: must be a table of"),
        ("allow_host_requested = 1", "allow_host_requested: must be true or false"),
        *((f"{key} = []", f"{key}: must not be empty")
          for key in ("measurement", "chip_ids", "id_key_digests", "author_key_digests", "products")),
        ("= broken", "is not valid TOML at line 1, column 1: see the example in docs/attestation.md"),
        ("vmpl = 0\n vmpl 1", "is not valid TOML at line 2, column"),
        ("vmpl = [", "is not valid TOML at end"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RemoteError, match=words) as caught:
        load(tmp_path, text)
    assert "policy.toml" in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="cannot read the policy"):
        Policy.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RemoteError, match="cannot read the policy"):
        Policy.load(tmp_path / "binary.toml")

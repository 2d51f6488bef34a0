# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of every kind, and everything that can be wrong with them and their chains."""

from __future__ import annotations

import datetime
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.remote.attestation.model_chain import (
    CHIP,
    END,
    MODEL,
    NOW,
    START,
    TURIN_MODEL,
    VLEK_MODEL,
    Model,
    der_integer,
    der_string,
)
from tests.remote.attestation.verification import Fields, failed, verify
from veil.formats.attestation_report import REPORT_BYTES, SIGNED_BYTES, AttestationReport, PlatformInfo
from veil.formats.certificate_table import ARK, ASK, VCEK, pack_certificates
from veil.formats.errors import FormatError
from veil.remote import (
    CertificateChain,
    Demand,
    Policy,
    RemoteError,
    TrustedRoots,
    VerificationFailed,
    read_report,
)
from veil.remote.attestation.checks import Checklist
from veil.remote.attestation.report_checks import check_report
from veil.remote.attestation.report_encodings import ReportFile
from veil.remote.attestation.verify import verify_report

VECTORS = Path(__file__).parents[4] / "shared" / "vectors"


# Genuine hardware


def genuine(name: str) -> tuple[bytes, CertificateChain]:
    folder = VECTORS / name
    if not folder.is_dir():
        pytest.skip(f"no genuine AMD reports at {VECTORS}")
    text = folder / "report.hex"
    report = bytes.fromhex(text.read_text()) if text.exists() else (folder / "report.bin").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blobs = [path.read_bytes() for path in folder.iterdir() if path.suffix in (".pem", ".der")]
        return report, CertificateChain.parse(*blobs)


@pytest.mark.parametrize(
    ("name", "machine"), [("milan-v2", "AMD Milan"), ("milan-v3", "AMD Milan"), ("genoa-v3", "AMD Genoa")]
)
class TestGenuine:
    def test_down_to_amds_root(self, name: str, machine: str) -> None:
        report, chain = genuine(name)
        result = verify_report(report, chain, at=NOW)
        result.raise_for_failure()
        assert result.machine == machine

    def test_every_signed_byte_counts(self, name: str, machine: str) -> None:
        """The chain is the same each time, so the report's own checks are made alone."""
        report, chain = genuine(name)
        signature = [*range(SIGNED_BYTES, SIGNED_BYTES + 48), *range(SIGNED_BYTES + 72, SIGNED_BYTES + 120)]
        for at in [*range(SIGNED_BYTES), *signature]:
            changed = bytearray(report)
            changed[at] ^= 0x10
            checks = Checklist()
            try:
                file = ReportFile(bytes(changed))
                reported = check_report(checks, file, AttestationReport.parse(file.report), chain, machine, Policy())
            except FormatError:
                continue
            assert not reported.signed, f"byte {at:#x}"
            assert "report signature" in {check.name for check in checks.done() if not check.ok}, f"byte {at:#x}"

    def test_another_machines_certificate(self, name: str, machine: str) -> None:
        report, _ = genuine(name)
        other = "genoa-v3" if name != "genoa-v3" else "milan-v3"
        assert {"report signature", "TCB", "chip ID"} <= failed(verify_report(report, genuine(other)[1], at=NOW))

    def test_expired(self, name: str, machine: str) -> None:
        report, chain = genuine(name)
        late = verify_report(report, chain, at=datetime.datetime(2060, 1, 1, tzinfo=datetime.UTC))
        assert failed(late) == {"validity"}


# Every generation


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("model", [MODEL, TURIN_MODEL, VLEK_MODEL], ids=["vcek", "turin", "vlek"])
def test_all_versions(model: Model, version: int) -> None:
    result = verify(model, model.report(version=version))
    result.raise_for_failure()
    assert result.machine == "software"


def test_software_is_not_believed_unless_one_says_so() -> None:
    result = verify_report(MODEL.report(), MODEL.chain, at=NOW)
    assert {"root", "processor"} == failed(result)
    assert result.machine == "unknown"
    assert "not a trusted root" in next(check.words for check in result.failures if check.name == "root")


def test_advice_about_a_root_is_said_and_believed_no_more_than_before() -> None:
    root = MODEL.root.public_bytes(Encoding.DER)
    roots = TrustedRoots.amd().with_advice(root, "one option believes it")
    result = verify_report(MODEL.report(), MODEL.chain, at=NOW, roots=roots)
    assert {"root", "processor"} == failed(result)
    words = next(check.words for check in result.failures if check.name == "root")
    assert words.endswith("is not a trusted root: one option believes it")
    believed = verify_report(MODEL.report(), MODEL.chain, at=NOW, roots=roots.with_software_root(root))
    assert believed.machine == "software"


def test_amds_root_is_no_software_root() -> None:
    _, chain = genuine("milan-v3")
    with pytest.raises(RemoteError, match="AMD's root for hardware"):
        TrustedRoots.amd().with_software_root(chain.root.public_bytes(Encoding.DER))
    with pytest.raises(FormatError):
        TrustedRoots.amd().with_software_root(b"nonsense")


# Chains


def test_another_root_of_the_same_name() -> None:
    other = replace(MODEL, ark="another ark")
    assert "root" in failed(verify_report(other.report(), other.chain, roots=MODEL.roots, at=NOW))


def test_signatures_of_others() -> None:
    forged = replace(MODEL, ask="my own ask")
    chain = CertificateChain(forged.leaf, MODEL.intermediate, MODEL.root)
    assert failed(verify_report(MODEL.report(), chain, roots=MODEL.roots, at=NOW)) >= {"signature of SEV-VCEK"}
    self_made = replace(MODEL, ark="my own ark")
    chain = CertificateChain(MODEL.leaf, self_made.intermediate, MODEL.root)
    assert failed(verify_report(MODEL.report(), chain, roots=MODEL.roots, at=NOW)) >= {"signature of SEV-Model"}


def test_an_endorsement_key_may_not_issue_certificates() -> None:
    assert "certificates" in failed(verify(replace(MODEL, ask_is_authority=False)))


@pytest.mark.parametrize(("at", "word"), [(END, "expired"), (START, "not valid before")])
def test_times(at: datetime.datetime, word: str) -> None:
    step = datetime.timedelta(days=1 if at == END else -1)
    result = verify(at=at + step)
    assert failed(result) == {"validity"}
    assert word in result.failures[0].words
    verify(at=at).raise_for_failure()


def test_revocation() -> None:
    verify(crls=[MODEL.crl(1, 2, 3)]).raise_for_failure()
    for serial in (MODEL.ask_serial, MODEL.leaf_serial):
        result = verify(crls=[MODEL.crl(serial)])
        assert failed(result) == {"revocation"}
        assert "revoked" in result.failures[0].words
    assert failed(verify(crls=[MODEL.crl(), MODEL.crl(MODEL.ask_serial)])) == {"revocation 2"}


def test_lists_that_prove_nothing() -> None:
    old = MODEL.crl(issued=NOW - datetime.timedelta(days=90))
    early = MODEL.crl(issued=NOW + datetime.timedelta(days=1))
    for crl, words in (
        (MODEL.crl(signer="somebody"), "not signed"), (old, "out of date"), (early, "after the time"),
        (b"nonsense", "unreadable"),
    ):  # fmt: skip
        result = verify(crls=[crl])
        assert failed(result) == {"revocation"}
        assert words in result.failures[0].words


def test_chains_in_any_form() -> None:
    leaf, ask, ark = (item.public_bytes(Encoding.DER) for item in (MODEL.leaf, MODEL.intermediate, MODEL.root))
    pem = MODEL.root.public_bytes(Encoding.PEM) + MODEL.intermediate.public_bytes(Encoding.PEM)
    table = pack_certificates({VCEK: leaf, ASK: ask, ARK: ark})
    for chain in (
        CertificateChain.parse(ark, leaf, ask),
        CertificateChain.parse(pem, leaf),
        CertificateChain.parse(leaf, ark, pem),
        CertificateChain.from_certificate_table(table.ljust(16384, b"\0")),
        CertificateChain.from_certificate_table(pack_certificates({VCEK: leaf}), pem),
    ):
        assert chain == MODEL.chain


def test_hosts_that_give_a_vcek_and_a_vlek() -> None:
    """The report says which of them signed it."""
    both = [item.public_bytes(Encoding.DER)
            for model in (MODEL, VLEK_MODEL) for item in (model.leaf, model.intermediate, model.root)]  # fmt: skip
    for model in (MODEL, VLEK_MODEL):
        kind = read_report(model.report()).signing_key
        chain = CertificateChain.parse(*both, kind=kind)
        assert (chain.leaf, chain.intermediate) == (model.leaf, model.intermediate)
    with pytest.raises(RemoteError, match="2 endorsement"):
        CertificateChain.parse(*both)


def test_incomplete_chains() -> None:
    leaf, ask, ark = (item.public_bytes(Encoding.DER) for item in (MODEL.leaf, MODEL.intermediate, MODEL.root))
    for blobs, words in (
        ((ask, ark), "0 endorsement"), ((leaf, ark), "issued the leaf, is missing"), ((leaf, ask), "root.*missing"),
        ((leaf, ask, ark, TURIN_MODEL.leaf.public_bytes(Encoding.DER)), "2 endorsement"),
    ):  # fmt: skip
        with pytest.raises(RemoteError, match=words):
            CertificateChain.parse(*blobs)


@pytest.mark.parametrize(
    "extensions",
    [
        {"3.1": b""}, {"3.3": b"\x02\x01"}, {"3.8": b"\x02\x01\xdb"}, {"3.2": b"\x02\x02\x00\x00"}, {"2": b"\x16\x7f"},
        {"3.1": b"\x02\x02\x01\x00"}, {"3.1": der_integer(4) + b"\0"}, {"2": b""}, {"2": b"\x04\x01M"},
    ],
)  # fmt: skip
def test_malformed_extensions(extensions: dict[str, bytes]) -> None:
    assert "endorsement" in failed(verify(replace(MODEL, leaf_extensions=extensions)))


@pytest.mark.parametrize(
    ("extensions", "check"),
    [
        ({"3.3": der_integer(23)}, "TCB"), ({"3.8": der_integer(255)}, "TCB"), ({"4": b"\x01" * 64}, "chip ID"),
        ({"4": CHIP[:8]}, "chip ID"), ({"4": b""}, "chip ID"), ({"4": bytes(64)}, "chip ID"),
    ],
)  # fmt: skip
def test_another_tcb_or_chip(extensions: dict[str, bytes], check: str) -> None:
    assert failed(verify(replace(MODEL, leaf_extensions=extensions))) == {check}


@pytest.mark.parametrize("chip", [b"", bytes(8), bytes(64), CHIP[:16]], ids=["none", "short", "zeros", "odd"])
def test_masked_chip_ids_are_no_chips(chip: bytes) -> None:
    """The host can mask CHIP_ID. That it equals a certificate's nothing proves nothing."""
    assert failed(verify(replace(MODEL, chip=chip))) == {"chip ID"}


def test_vlek_names_a_provider_and_no_chip() -> None:
    assert failed(verify(replace(VLEK_MODEL, leaf_extensions={"4": CHIP}))) == {"chip ID"}
    assert failed(verify(replace(VLEK_MODEL, leaf_extensions={"5": b""}))) == {"chip ID"}
    assert failed(verify(VLEK_MODEL, policy=Policy(allow_vlek=False))) == {"signing key"}


# Reports


def test_signing_key_of_another_kind() -> None:
    assert failed(verify(MODEL, MODEL.report(flags=1 << 2))) == {"signing key"}
    assert failed(verify(VLEK_MODEL, VLEK_MODEL.report(flags=0))) == {"signing key"}
    assert failed(verify(MODEL, MODEL.report(flags=3 << 2))) == {"signing key"}
    assert failed(verify(MODEL, MODEL.report(flags=2))) == {"report signature"}
    assert failed(verify(MODEL, MODEL.report(flags=7 << 2))) == {"report signature", "signing key"}


def test_unsigned_or_signed_by_another_key() -> None:
    forged = verify(MODEL, MODEL.report("mine"))
    assert failed(forged) == {"report signature"}
    # The chain is public: who shows it has not shown that his report is from that machine.
    assert forged.machine == "unknown"
    assert failed(verify(MODEL, MODEL.report(None))) == {"report signature"}


@pytest.mark.parametrize(("family", "model"), [(0x19, 0x11), (0x1A, 2), (0x17, 1), (0, 0)])
def test_processor_of_genuine_hardware_must_fit(family: int, model: int) -> None:
    """Not checked for software machines: they say what they like."""
    verify(MODEL, MODEL.report(cpuid_family=family, cpuid_model=model)).raise_for_failure()
    report, chain = genuine("milan-v3")
    changed = bytearray(report)
    changed[0x188:0x18A] = bytes((family, model))
    assert {"processor", "report signature"} <= failed(verify_report(bytes(changed), chain, at=NOW))


@pytest.mark.parametrize("data", [b"", bytes(REPORT_BYTES - 1), bytes(REPORT_BYTES)])
def test_no_report(data: bytes) -> None:
    with pytest.raises(FormatError):
        verify_report(data, MODEL.chain)


# What users demand: for each, a report that passes and one that fails

DEBUG, MIGRATE, SMT, SOCKET = 1 << 19, 1 << 18, 1 << 16, 1 << 20
ONE, CXL = 1 << 17, 1 << 21
#: AMD 56860, table "Guest Policy Structure"
DEMANDED = {
    "cxl_allow": CXL, "mem_aes_256_xts": 1 << 22, "rapl_dis": 1 << 23, "ciphertext_hiding": 1 << 24,
    "page_swap_disable": 1 << 25,
}  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "good", "bad", "check"),
    [
        (Policy(), {}, {"policy": ONE | DEBUG}, "debug"),
        (Policy(allow_debug=True), {"policy": ONE | DEBUG}, {"policy": ONE | MIGRATE}, "guest policy"),
        (Policy(allow_migration_agent=True), {"policy": ONE | MIGRATE}, {"policy": SMT}, "guest policy"),
        (Policy(), {}, {"policy": ONE | 1 << 26}, "guest policy"),
        (Policy(accept_guest_policy_bits=(26,)), {"policy": ONE | 1 << 26}, {"policy": ONE | 3 << 26}, "guest policy"),
        (Policy(), {"policy": ONE | 0xF << 22}, {"policy": ONE | CXL}, "guest policy"),
        (Policy(cxl_allow=Demand.EITHER), {"policy": ONE | CXL}, None, "guest policy"),
        *((Policy().replace(**{key: Demand.REQUIRED}), {"policy": ONE | bit}, {"policy": ONE}, "guest policy")
          for key, bit in DEMANDED.items()),
        *((Policy().replace(**{key: Demand.FORBIDDEN}), {"policy": ONE}, {"policy": ONE | bit}, "guest policy")
          for key, bit in DEMANDED.items()),
        (Policy(allow_smt=False), {"policy": ONE}, {"policy": ONE | SMT}, "guest policy"),
        (Policy(require_single_socket=True), {"policy": ONE | SOCKET}, {"policy": ONE}, "guest policy"),
        (Policy(minimum_abi=(1, 55)), {"policy": ONE | 0x137}, {"policy": ONE | 0x136}, "guest policy"),
        (Policy(measurement=(b"x" * 48, b"m" * 48)), {}, {"measurement": b"y" * 48}, "measurement"),
        (Policy(report_data=b"d" * 64), {}, {"report_data": b"e" * 64}, "report data"),
        (Policy(host_data=bytes(32)), {}, {"host_data": b"h" * 32}, "host data"),
        (Policy(family_id=bytes(16)), {}, {"family_id": b"f" * 16}, "family id"),
        (Policy(image_id=bytes(16)), {}, {"image_id": b"i" * 16}, "image id"),
        (Policy(chip_ids=(CHIP,)), {}, None, "chip"),
        (Policy(id_key_digests=(b"k" * 48,)), {"id_key_digest": b"k" * 48}, {}, "ID key"),
        (Policy(author_key_digests=(b"k" * 48,)), {"author_key_digest": b"k" * 48}, {}, "author key"),
        (Policy(id_key_digests=(bytes(48),)), None, {}, "ID key"),
        (Policy(vmpl=2), {"vmpl": 2}, {"vmpl": 1}, "VMPL"),
        (Policy(max_vmpl=1), {"vmpl": 1}, {"vmpl": 2}, "VMPL"),
        (Policy(max_vmpl=3), {"vmpl": 3}, {"vmpl": 0xFFFFFFFF}, "VMPL"),
        (Policy(allow_host_requested=True), {"vmpl": 0xFFFFFFFF}, None, "VMPL"),
        (Policy(), None, {"vmpl": 0xFFFFFFFF}, "VMPL"),
        (Policy(allow_host_requested=True, max_vmpl=3), {"vmpl": 3}, {"vmpl": 0xFFFFFFFF}, "VMPL"),
        (Policy(minimum_guest_svn=3), {"guest_svn": 3}, {"guest_svn": 2}, "guest SVN"),
        (Policy(minimum_report_version=5), {"version": 5}, {"version": 4}, "report version"),
        (Policy(minimum_tcb={"snp": 24}), {}, None, "minimum TCB"),
        (Policy(minimum_tcb={"snp": 25}), None, {}, "minimum TCB"),
        (Policy(minimum_tcb={"fmc": 0}), None, {}, "minimum TCB"),
        (Policy(minimum_launch_tcb={"snp": 24}), {}, {"launch_tcb": MODEL.tcb.value - (1 << 48)}, "launch TCB"),
        (Policy(minimum_launch_tcb={"fmc": 0}), None, {}, "launch TCB"),
        (Policy(minimum_launch_mitigations=5), {"version": 5, "launch_mitigation_vector": 7},
         {"version": 5, "launch_mitigation_vector": 4}, "mitigations"),
        (Policy(minimum_launch_mitigations=1), None, {"version": 3}, "mitigations"),
        (Policy(require_platform=PlatformInfo.ALIAS_CHECK_COMPLETE), {"platform_info": 0x21}, {"platform_info": 1},
         "platform"),
        (Policy(require_platform=PlatformInfo.IOMMU_WRITE_SAFE), {"platform_info": 0x40}, {"platform_info": 0x3F},
         "platform"),
        (Policy(forbid_platform=PlatformInfo.SMT_EN), {"platform_info": 0x20}, {"platform_info": 1}, "platform"),
        (Policy(products=("Genoa", "Milan")), {}, None, "product"),
        (Policy(products=("Turin",)), None, {}, "product"),
    ],
)  # fmt: skip
def test_policy(policy: Policy, good: Fields | None, bad: Fields | None, check: str) -> None:
    if good is not None:
        verify(MODEL, MODEL.report(**good), policy=policy).raise_for_failure()
    if bad is not None:
        assert failed(verify(MODEL, MODEL.report(**bad), policy=policy)) == {check}


def test_chip_that_is_not_accepted() -> None:
    assert failed(verify(policy=Policy(chip_ids=(bytes(64),)))) == {"chip"}


def test_everything_wrong_is_said_at_once() -> None:
    result = verify(MODEL, MODEL.report(policy=ONE | DEBUG, vmpl=3), policy=Policy(vmpl=0, measurement=(bytes(48),)))
    assert failed(result) == {"debug", "VMPL", "measurement"}
    with pytest.raises(VerificationFailed, match=r"debug: .*; measurement: .*; VMPL: ") as caught:
        result.raise_for_failure()
    assert "\n" not in str(caught.value)


def test_der_string_helper() -> None:
    assert der_string("Milan-B0") == b"\x16\x08Milan-B0"

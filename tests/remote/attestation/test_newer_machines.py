# SPDX-License-Identifier: GPL-2.0-or-later
"""Genuine machines that are newer than this verifier, or set up as real hosts are: a note where nothing is lost by what
is not known, and a failure where something could be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.remote.attestation.model_chain import CHIP, MILAN, MODEL, TURIN_MODEL, Model, der_integer, public_key_of
from tests.remote.attestation.verification import Fields, failed, verify
from veil.formats.attestation_report import TcbVersion
from veil.formats.errors import FormatError
from veil.remote import Check, Demand, Policy, Verification
from veil.remote.attestation.roots import TrustedRoots


def noted(result: Verification) -> Check:
    """The one note of a report that is verified."""
    result.raise_for_failure()
    [note] = [check for check in result.checks if check.note]
    return note


def with_parts(tcb: TcbVersion, **parts: int) -> int:
    return TcbVersion.of(tcb.layout, **{**tcb.parts, **parts}).value


# What a report's version does not define


@pytest.mark.parametrize(
    ("fields", "version", "words"),
    [
        ({"platform_info": 1 << 8}, 3, "platform info bit 8"),
        ({"platform_info": 1 << 63 | 1 << 9}, 5, "platform info bits 9, 63"),
        ({"flags": 1 << 5}, 3, "key info bit 5"),
        ({"reserved_04c": 1}, 5, "bytes at 0x4c"),
        ({"reserved_1eb": 1}, 3, "bytes at 0x1eb"),
        ({"cpuid_stepping": 1}, 2, "bytes at 0x188"),
        ({"launch_mitigation_vector": 1}, 3, "bytes at 0x1f8"),
        ({"launch_tcb": MILAN.value | 1 << 24}, 3, "a part of the launch TCB"),
    ],
)
def test_unknown_fields_are_a_note_unless_the_policy_says_so(fields: Fields, version: int, words: str) -> None:
    report = MODEL.report(version=version, **fields)
    note = noted(verify(MODEL, report))
    assert note.name == "reserved fields"
    assert note.words == f"not known in a report of version {version}: {words}; what is known means what it says"
    strict = verify(MODEL, report, policy=Policy(allow_unknown_fields=False))
    assert failed(strict) == {"reserved fields"}
    assert strict.failures[0].words.endswith("(allow_unknown_fields = false)")


def test_a_note_is_no_way_around_the_signature() -> None:
    changed = bytearray(MODEL.report())
    changed[0x41] = 1
    assert failed(verify(MODEL, bytes(changed))) == {"report signature"}


def test_iommu_write_safe_is_known() -> None:
    result = verify(TURIN_MODEL, TURIN_MODEL.report(version=5, platform_info=1 << 6))
    result.raise_for_failure()
    assert not any(check.note for check in result.checks)


def test_known_fields_of_known_versions_are_no_note() -> None:
    result = verify(MODEL, MODEL.report(version=5, launch_mitigation_vector=1, platform_info=0xFF))
    assert result.ok
    assert not any(check.note for check in result.checks)


@pytest.mark.parametrize("bit", [26, 40, 63])
def test_unknown_bits_of_the_guest_policy_fail_for_they_may_be_permissions(bit: int) -> None:
    report = MODEL.report(policy=0x30000 | 1 << bit)
    refused = verify(MODEL, report)
    assert failed(refused) == {"guest policy"}
    assert f"the unknown bits {bit} are set" in refused.failures[0].words
    assert "accept_guest_policy_bits" in refused.failures[0].words
    assert noted(verify(MODEL, report, policy=Policy(accept_guest_policy_bits=(bit,)))).name == "guest policy"


@pytest.mark.parametrize("version", [0, 1, 6, 0xFFFF])
def test_unknown_versions_are_not_read(version: int) -> None:
    with pytest.raises(FormatError, match="Another version may have its fields at other places"):
        verify(MODEL, MODEL.report(version=version))


# TCB versions


def test_microcode_that_is_not_committed_is_for_minimum_tcb_to_judge() -> None:
    report = MODEL.report(committed_tcb=with_parts(MILAN, microcode=209))
    note = noted(verify(MODEL, report))
    assert note.name == "firmware"
    assert note.words == ("microcode 219 runs, 209 is committed, 219 is reported (which is what minimum_tcb judges)")
    verify(MODEL, report, policy=Policy(minimum_tcb={"microcode": 219})).raise_for_failure()
    behind = MODEL.report(current_tcb=with_parts(MILAN, microcode=222))
    assert "microcode 222 runs, 219 is committed, 219 is reported" in noted(verify(MODEL, behind)).words
    old = verify(MODEL, behind, policy=Policy(minimum_tcb={"microcode": 220}))
    assert failed(old) == {"minimum TCB"}
    assert "microcode 219 is below 220 (minimum_tcb)" in old.failures[0].words


@pytest.mark.parametrize(
    ("model", "part"),
    [
        *((MODEL, part) for part in ("boot_loader", "snp")),
        *((TURIN_MODEL, part) for part in ("fmc", "boot_loader", "tee", "snp")),
    ],
)
def test_other_firmware_that_is_not_committed_fails(model: Model, part: str) -> None:
    parts = model.tcb.parts
    report = model.report(committed_tcb=with_parts(model.tcb, **{part: parts[part] - 1}))
    result = verify(model, report)
    assert failed(result) == {"firmware"}
    title = part.replace("_", " ")
    assert result.failures[0].words == (
        f"{title} {parts[part]} runs, {parts[part] - 1} is committed, so that it can be rolled back "
        "(allow_provisional_firmware)"
    )
    lenient = verify(model, report, policy=Policy(allow_provisional_firmware=True))
    assert noted(lenient).name == "firmware"


@pytest.mark.parametrize("part", ["boot_loader", "snp", "microcode"])
@pytest.mark.parametrize("lenient", [False, True])
def test_what_runs_is_not_older_than_what_is_committed_or_reported(part: str, lenient: bool) -> None:
    older = with_parts(MILAN, **{part: MILAN.parts[part] - 1})
    result = verify(MODEL, MODEL.report(current_tcb=older), policy=Policy(allow_provisional_firmware=lenient))
    assert failed(result) == {"firmware"}
    title, number = part.replace("_", " "), MILAN.parts[part]
    assert result.failures[0].words == (
        f"{title} {number} is reported, and {number - 1} runs; {title} {number} is committed, and {number - 1} runs"
    )


def test_versions_of_the_firmware() -> None:
    newer: Fields = {"current_minor": 2, "committed_minor": 1}
    result = verify(MODEL, MODEL.report(**newer))
    assert failed(result) == {"firmware"}
    assert result.failures[0].words.startswith("firmware 0.2 build 0 runs, 0.1 build 0 is committed, so that it can be")
    lenient = Policy(allow_provisional_firmware=True)
    assert noted(verify(MODEL, MODEL.report(**newer), policy=lenient)).name == "firmware"
    for policy in (Policy(), lenient):
        assert failed(verify(MODEL, MODEL.report(committed_minor=1), policy=policy)) == {"firmware"}


def test_parts_that_no_known_generation_has() -> None:
    """They can be rolled back like any other, and a key that is bound to one is not the key of this TCB version."""
    unknown = MILAN.value | 1 << 24
    assert failed(verify(MODEL, MODEL.report(current_tcb=unknown))) == {"firmware"}
    assert "TCB" in failed(verify(MODEL, MODEL.report(current_tcb=unknown, reported_tcb=unknown)))
    for suffix in ("3.4", "3.7", "3.10"):
        result = verify(replace(MODEL, leaf_extensions={suffix: der_integer(1)}))
        assert failed(result) == {"endorsement", "TCB", "chip ID", "processor"}
        assert f"a TCB part that is not known (1.3.6.1.4.1.3704.1.{suffix})" in result.failures[0].words
    verify(replace(MODEL, leaf_extensions={"3.4": der_integer(0), "3.7": der_integer(0)})).raise_for_failure()


# Processors and chips


def as_amd(model: Model, line: str, **fields: int | bytes) -> Verification:
    """As if the tests' root were AMD's for a line."""
    roots = TrustedRoots({public_key_of(model.root): f"AMD {line}"})
    return verify(model, model.report(**fields), roots=roots)


@pytest.mark.parametrize(
    ("line", "model", "product", "family", "cpuid"),
    [
        ("Milan", MODEL, "Milan-B1", 0x19, 0x01), ("Genoa", MODEL, "Genoa-B2", 0x19, 0x11),
        ("Genoa", MODEL, "Bergamo-A2", 0x19, 0xA0), ("Genoa", MODEL, "Siena-A0", 0x19, 0xA1),
        ("Turin", TURIN_MODEL, "Turin-C1", 0x1A, 0x02), ("Turin", TURIN_MODEL, "Turin-B0", 0x1A, 0x11),
    ],
)  # fmt: skip
def test_processors_of_every_line(line: str, model: Model, product: str, family: int, cpuid: int) -> None:
    model = replace(model, product=product, family=family, model=cpuid)
    result = as_amd(model, line)
    result.raise_for_failure()
    assert result.machine == f"AMD {line}"
    assert not any(check.note for check in result.checks)


def test_unknown_processors_of_a_known_line_are_a_note() -> None:
    for changes in ({"model": 0x21}, {"product": "Sorano-A0"}):
        note = noted(as_amd(replace(TURIN_MODEL, **changes), "Turin"))
        assert note.name == "processor"
        assert note.words.endswith("not known here, and of its line")


@pytest.mark.parametrize(
    ("line", "model"),
    [
        ("Milan", replace(MODEL, model=0x11)),
        ("Milan", replace(MODEL, product="Genoa-B1")),
        ("Genoa", replace(MODEL, product="Genoa-B1", model=0x01)),
        ("Milan", replace(MODEL, family=0x1A)),
        ("Turin", replace(TURIN_MODEL, family=0x1B)),
        ("Turin", replace(MODEL, product="Turin-B0", family=0x1A, model=2)),
        ("Milan", replace(TURIN_MODEL, product="Milan-B0", family=0x19, model=1)),
    ],
    ids=["model", "product", "model of another", "family", "unknown family", "layout", "layout of another"],
)
def test_processors_of_another_line_fail(line: str, model: Model) -> None:
    assert failed(as_amd(model, line)) == {"processor"}


def test_masked_chip_ids() -> None:
    """The host can mask CHIP_ID. The chip's key signed the report all the same, and its certificate names the chip."""
    report = MODEL.report(chip_id=bytes(64))
    note = noted(verify(MODEL, report))
    assert note.name == "chip ID"
    assert note.words.startswith("the host masked CHIP_ID")
    assert failed(verify(MODEL, report, policy=Policy(chip_ids=(CHIP,)))) == {"chip"}
    assert failed(verify(MODEL, MODEL.report("another", chip_id=bytes(64)))) == {"report signature"}


def test_what_real_hosts_and_guests_set_besides() -> None:
    """Migration agents' IDs, ID blocks, all levels, every known bit of the platform, derived flags."""
    fields: Fields = {
        "report_id_ma": b"\xff" * 32, "flags": 1, "author_key_digest": b"a" * 48, "id_key_digest": b"i" * 48, "vmpl": 3,
        "platform_info": 0xBF, "policy": 0x3D30137, "cpuid_stepping": 255,
    }  # fmt: skip
    for version in (3, 4, 5):
        result = verify(MODEL, MODEL.report(version=version, **fields))
        result.raise_for_failure()
        assert not any(check.note for check in result.checks)


def test_firmware_that_does_not_know_a_demanded_bit() -> None:
    report = MODEL.report(current_major=1, current_minor=51, committed_major=1, committed_minor=51)
    result = verify(MODEL, report, policy=Policy(page_swap_disable=Demand.REQUIRED))
    assert failed(result) == {"guest policy"}
    assert result.failures[0].words.endswith(
        "PAGE_SWAP_DISABLE is clear: the host may move and swap pages by the firmware's commands; "
        'firmware before 1.58 does not know the bit, this one is 1.51 (page_swap_disable = "required")'
    )

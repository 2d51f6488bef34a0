# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of what a report says of itself and of its machine's firmware."""

from __future__ import annotations

from veil.formats.attestation_report import AttestationReport, PlatformInfo, TcbLayout, TcbVersion
from veil.remote.attestation.checks import Checklist
from veil.remote.attestation.policy import Policy

__all__ = ["check_firmware", "check_unknown_fields"]

_KEY_INFO_BITS = 5


def check_unknown_fields(checks: Checklist, report: AttestationReport, layout: TcbLayout, policy: Policy) -> None:
    """What the report's version does not define: newer firmware describes more, in places that were empty before.

    The chip signed it, so nobody put it there; what is defined keeps its meaning as long as the version does. Unknown
    bits of the guest policy and of the reported TCB version are judged elsewhere, and are failures.
    """
    data = report.signed_bytes
    empty = [(0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0)]
    if not report.has_cpuid:
        empty.append((0x188, 0x18B))
    if not report.has_mitigations:
        empty.append((0x1F8, 0x208))
    found = [f"bytes at {start:#x}" for start, end in sorted(empty) if any(data[start:end])]
    found += _bits("platform info", report.platform_info & ~int(sum(PlatformInfo)))
    found += _bits("key info", report.flags >> _KEY_INFO_BITS << _KEY_INFO_BITS)
    for name in ("current_tcb", "committed_tcb", "launch_tcb"):
        if any(TcbVersion(getattr(report, name), layout).reserved.values()):
            found.append(f"a part of the {name.replace('_', ' ').replace('tcb', 'TCB')}")
    words = f"not known in a report of version {report.version}: {', '.join(found)}"
    checks.add(
        "reserved fields",
        not found or policy.allow_unknown_fields,
        f"{words}; what is known means what it says"
        if found
        else f"the report has nothing that version {report.version} does not define",
        f"{words} (allow_unknown_fields = false)",
        note=bool(found),
    )


def _bits(what: str, value: int) -> list[str]:
    bits = [str(bit) for bit in range(value.bit_length()) if value >> bit & 1]
    return [f"{what} bit{'s' if len(bits) > 1 else ''} {', '.join(bits)}"] if bits else []


def check_firmware(checks: Checklist, report: AttestationReport, layout: TcbLayout, policy: Policy) -> None:
    """Does it run what it reports, and is that committed? What is not committed can be rolled back.

    Hosts load microcode while they run, and commit it much later or never: an older one may come back, with a TCB
    version of its own in the reports then. Which microcode is good enough is for minimum_tcb to say.
    """
    running = TcbVersion(report.current_tcb, layout)
    current, committed, reported = (
        _all_parts(tcb)
        for tcb in (running, TcbVersion(report.committed_tcb, layout), TcbVersion(report.reported_tcb, layout))
    )
    wrong, notes = [], []
    for name, runs in current.items():
        title = name.replace("_", " ")
        if reported[name] > runs:
            wrong.append(f"{title} {reported[name]} is reported, and {runs} runs")
        if committed[name] > runs:
            wrong.append(f"{title} {committed[name]} is committed, and {runs} runs")
        elif committed[name] < runs:
            words = f"{title} {runs} runs, {committed[name]} is committed"
            if name == "microcode":
                notes.append(f"{words}, {reported[name]} is reported (which is what minimum_tcb judges)")
            else:
                (notes if policy.allow_provisional_firmware else wrong).append(f"{words}{_PROVISIONAL}")
    versions = [
        (report.committed_major, report.committed_minor, report.committed_build),
        (report.current_major, report.current_minor, report.current_build),
    ]
    words = f"firmware {_dotted(versions[1])} runs, {_dotted(versions[0])} is committed"
    if versions[0] > versions[1]:
        wrong.append(words)
    elif versions[0] < versions[1]:
        (notes if policy.allow_provisional_firmware else wrong).append(f"{words}{_PROVISIONAL}")
    checks.add(
        "firmware",
        not wrong,
        "; ".join(notes) or f"firmware {_dotted(versions[1])} with the TCB version {running} is committed",
        "; ".join(wrong),
        note=bool(notes),
    )


_PROVISIONAL = ", so that it can be rolled back (allow_provisional_firmware)"


def _all_parts(tcb: TcbVersion) -> dict[str, int]:
    """With the bytes in which this generation has no part: if another has one, it can be rolled back like any other."""
    return {**tcb.parts, **tcb.reserved}


def _dotted(version: tuple[int, int, int]) -> str:
    return f"{version[0]}.{version[1]} build {version[2]}"

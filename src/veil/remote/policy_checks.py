# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of a report against what its user demands."""

from __future__ import annotations

from collections.abc import Mapping

from veil.formats.attestation_report import AttestationReport, GuestPolicy, PlatformInfo, TcbVersion
from veil.remote.checks import Checklist
from veil.remote.policy import Policy

__all__ = ["check_policy"]

#: VMPL of a report that the host asked for (SNP_HV_REPORT_REQ)
_HOST = 0xFFFFFFFF


def check_policy(checks: Checklist, report: AttestationReport, policy: Policy, tcb: TcbVersion, product: str) -> None:
    """`tcb` is the reported TCB version, `product` the product line of the processor."""
    _guest_policy(checks, report, policy)
    _identity(checks, report, policy)
    _levels(checks, report, policy)
    _tcb(checks, report, policy, tcb)
    _platform(checks, report, policy, product)


def _guest_policy(checks: Checklist, report: AttestationReport, policy: Policy) -> None:
    bits = GuestPolicy(report.policy & ~0xFFFF & (1 << 26) - 1)
    wrong = []
    if report.policy >> 26 or not bits & GuestPolicy.RESERVED_ONE:
        wrong.append(f"{report.policy:#x} is no guest policy: reserved bits are wrong")
    if bits & GuestPolicy.MIGRATE_MA and not policy.allow_migration_agent:
        wrong.append("a migration agent may take the guest elsewhere")
    if not policy.allow_smt and bits & GuestPolicy.SMT:
        wrong.append("the guest may share a core with others (SMT)")
    if policy.require_single_socket and not bits & GuestPolicy.SINGLE_SOCKET:
        wrong.append("the guest may run on several sockets")
    abi = report.policy >> 8 & 0xFF, report.policy & 0xFF
    least = policy.minimum_abi
    if least is not None and abi < least:
        wrong.append(f"the firmware's ABI may be {abi[0]}.{abi[1]}, below {least[0]}.{least[1]}")
    debug = bool(bits & GuestPolicy.DEBUG)
    checks.add(
        "debug",
        not debug or policy.allow_debug,
        "the host may debug the guest, which is accepted" if debug else "the host may not debug the guest",
        "the guest's policy has DEBUG: the host can read and change all of its memory",
    )
    checks.add("guest policy", not wrong, f"guest policy {report.policy:#x} is acceptable", "; ".join(wrong))


def _identity(checks: Checklist, report: AttestationReport, policy: Policy) -> None:
    if policy.measurement:
        expected = ", ".join(item.hex() for item in policy.measurement)
        checks.add(
            "measurement",
            report.measurement in policy.measurement,
            f"the launch digest {report.measurement.hex()} is the expected one",
            "something else was launched than expected: "
            f"the launch digest is {report.measurement.hex()}, expected {expected}",
        )
    for name in ("report_data", "host_data", "family_id", "image_id"):
        wanted: bytes | None = getattr(policy, name)
        if wanted is not None:
            found: bytes = getattr(report, name)
            title = name.replace("_", " ")
            checks.add(
                title, found == wanted, f"{title} is as expected", f"{title} is {found.hex()}, expected {wanted.hex()}"
            )
    keys = (("ID key", policy.id_key_digests, report.id_key_digest),
            ("author key", policy.author_key_digests, report.author_key_digest))  # fmt: skip
    for title, allowed, digest in keys:
        if allowed:
            checks.add(
                title,
                digest in allowed and any(digest),
                f"the {title} {digest.hex()} is an accepted one",
                f"the guest's {title} is {digest.hex() if any(digest) else 'none'}, which is not accepted",
            )
    if policy.chip_ids:
        checks.add(
            "chip",
            report.chip_id in policy.chip_ids,
            "the report is from an accepted chip",
            f"the report is from the chip {report.chip_id.hex()}, which is not accepted",
        )
    checks.add(
        "guest SVN",
        report.guest_svn >= policy.minimum_guest_svn,
        f"guest SVN {report.guest_svn}",
        f"guest SVN {report.guest_svn} is below {policy.minimum_guest_svn}",
    )


def _levels(checks: Checklist, report: AttestationReport, policy: Policy) -> None:
    if report.vmpl == _HOST:
        checks.add(
            "VMPL",
            policy.allow_host_requested and policy.vmpl is None and policy.max_vmpl is None,
            "the host asked for the report, which is accepted",
            "the host asked for the report, not the guest: it speaks for no VMPL",
        )
        return
    if policy.vmpl is None and policy.max_vmpl is None:
        return
    highest = policy.max_vmpl if policy.vmpl is None else policy.vmpl
    assert highest is not None
    ok = report.vmpl == policy.vmpl if policy.vmpl is not None else report.vmpl <= highest
    wanted = f"VMPL {highest}" if policy.vmpl is not None else f"VMPL {highest} or more privileged"
    checks.add(
        "VMPL",
        ok,
        f"the report was asked for at VMPL {report.vmpl}",
        f"the report was asked for at VMPL {report.vmpl}, expected {wanted}: it speaks for somebody else",
    )


def _tcb(checks: Checklist, report: AttestationReport, policy: Policy, tcb: TcbVersion) -> None:
    old = _below(tcb, policy.minimum_tcb)
    checks.add("minimum TCB", not old, f"the TCB ({tcb}) is new enough", f"firmware with known flaws: {old}")
    if policy.minimum_launch_tcb:
        launch = TcbVersion(report.launch_tcb, tcb.layout)
        old = _below(launch, policy.minimum_launch_tcb)
        checks.add(
            "launch TCB",
            not old,
            f"the guest was launched with a TCB ({launch}) that is new enough",
            f"the guest was launched by firmware with known flaws, even if it was updated since: {old}",
        )


def _below(tcb: TcbVersion, least: Mapping[str, int]) -> str:
    """Which parts are too old, in words."""
    return "; ".join(
        f"{name.replace('_', ' ')} {tcb.parts[name]} is below {minimum}" if name in tcb.parts
        else f"there is no {name.replace('_', ' ')}"
        for name, minimum in least.items() if tcb.parts.get(name, -1) < minimum
    )  # fmt: skip


def _platform(checks: Checklist, report: AttestationReport, policy: Policy, product: str) -> None:
    checks.add(
        "report version",
        report.version >= policy.minimum_report_version,
        f"report of version {report.version}",
        f"report of version {report.version}, at least {policy.minimum_report_version} is demanded",
    )
    if policy.minimum_launch_mitigations:
        missing = policy.minimum_launch_mitigations & ~report.launch_mitigation_vector
        checks.add(
            "mitigations",
            not missing and report.has_mitigations,
            "all demanded mitigations were active at launch",
            f"mitigations were not active at launch: {missing or policy.minimum_launch_mitigations:#x}",
        )
    info = PlatformInfo(report.platform_info & int(sum(PlatformInfo)))
    lacking, unwanted = policy.require_platform & ~info, policy.forbid_platform & info
    if policy.require_platform or policy.forbid_platform:
        checks.add(
            "platform",
            not lacking and not unwanted,
            f"platform info {report.platform_info:#x} is acceptable",
            f"platform info {report.platform_info:#x} lacks {_names(lacking)}, has unwanted {_names(unwanted)}",
        )
    if policy.products:
        checks.add(
            "product",
            product in policy.products,
            f"product line {product}",
            f"product line {product}, expected {', '.join(policy.products)}",
        )


def _names(bits: PlatformInfo) -> str:
    return ", ".join(str(bit.name) for bit in PlatformInfo if bit & bits) or "nothing"

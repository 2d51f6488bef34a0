# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of a report against what its user demands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from veil.formats.attestation_report import (
    FIRST_UNKNOWN_POLICY_BIT,
    HOST_REQUESTED_VMPL,
    AttestationReport,
    GuestPolicy,
    PlatformInfo,
    TcbVersion,
)
from veil.remote.attestation.checks import Checklist
from veil.remote.attestation.policy import Demand, Policy

__all__ = ["check_policy"]

#: by key of the policy: the bit, the firmware's ABI that has it first, what it means set, what it means clear
_DEMANDED_BITS = {
    "cxl_allow": (GuestPolicy.CXL_ALLOW, (1, 55), "CXL may have memory and devices", "CXL may have none"),
    "mem_aes_256_xts": (
        GuestPolicy.MEM_AES_256_XTS, (1, 55), "memory must be encrypted with AES-256-XTS",
        "memory may be encrypted with AES-128",
    ),
    "rapl_dis": (
        GuestPolicy.RAPL_DIS, (1, 55), "RAPL must be off", "the host may measure the processor's power (RAPL)"
    ),
    "ciphertext_hiding": (
        GuestPolicy.CIPHERTEXT_HIDING, (1, 55), "the host must not see ciphertext", "the host may read ciphertext"
    ),
    "page_swap_disable": (
        GuestPolicy.PAGE_SWAP_DISABLE, (1, 58), "the host must not move and swap pages by the firmware's commands",
        "the host may move and swap pages by the firmware's commands",
    ),
}  # fmt: skip


def check_policy(checks: Checklist, report: AttestationReport, policy: Policy, tcb: TcbVersion, product: str) -> None:
    """`tcb` is the reported TCB version, `product` the product line of the processor."""
    _guest_policy(checks, report, policy)
    _identity(checks, report, policy)
    _levels(checks, report, policy)
    _tcb(checks, report, policy, tcb)
    _platform(checks, report, policy, product)


def _guest_policy(checks: Checklist, report: AttestationReport, policy: Policy) -> None:
    bits = GuestPolicy(report.policy & ~0xFFFF & (1 << FIRST_UNKNOWN_POLICY_BIT) - 1)
    wrong = []
    if not bits & GuestPolicy.RESERVED_ONE:
        wrong.append("bit 17 is clear, and no firmware launches a guest without it")
    # A bit of the policy that is set may forbid the host something or permit it: who does not know it cannot tell.
    unknown = {bit for bit in range(FIRST_UNKNOWN_POLICY_BIT, 64) if report.policy >> bit & 1}
    refused = sorted(unknown.difference(policy.accept_guest_policy_bits))
    if refused:
        wrong.append(
            f"the unknown bits {', '.join(map(str, refused))} are set, which may permit the host something "
            "(accept_guest_policy_bits)"
        )
    wrong += _demanded(report, policy)
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
    checks.add(
        "guest policy",
        not wrong,
        f"guest policy {report.policy:#x} is acceptable"
        + (f", with the unknown bits {', '.join(map(str, sorted(unknown)))}" if unknown else ""),
        f"guest policy {report.policy:#x}: {'; '.join(wrong)}",
        note=bool(unknown),
    )


def _demanded(report: AttestationReport, policy: Policy) -> Iterator[str]:
    """Bits that must be set or clear and are not, in words."""
    for key, (bit, first, when_set, when_clear) in _DEMANDED_BITS.items():
        demand, found = Demand(getattr(policy, key)), bool(report.policy & bit)
        if demand == (Demand.FORBIDDEN if found else Demand.REQUIRED):
            words = f"{bit.name} is {'set' if found else 'clear'}: {when_set if found else when_clear}"
            runs = report.current_major, report.current_minor
            if not found and runs < first:
                words += "; firmware before {}.{} does not know the bit, this one is {}.{}".format(*first, *runs)
            yield f'{words} ({key} = "{demand}")'


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
    if report.vmpl == HOST_REQUESTED_VMPL:
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
    checks.add(
        "minimum TCB",
        not old,
        f"the reported TCB version ({tcb}) is new enough" if policy.minimum_tcb
        else f"the policy has no minimum_tcb, so that any TCB version is new enough ({tcb})",
        f"the reported TCB version ({tcb}) has known flaws: {old} (minimum_tcb)",
    )  # fmt: skip
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The authors of valid inputs: a software machine with its own root, and AMD's if their reports are there.

The software machine's keys are kept in the cache and all that it says is the same each time, so that a finding means
the same when it is run again.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from veil.cache import cache_directory
from veil.formats.attestation_report import GuestPolicy
from veil.remote.attestation.certificates import CertificateChain
from veil.remote.attestation.roots import TrustedRoots
from veil.snp import MODEL_TCB
from veil.snp.endorsement import Endorsement
from veil.snp.guest_requests import GuestRequests, LaunchedGuest
from veil.snp.id_block_checks import LaunchIdentity

__all__ = [
    "GUEST",
    "Witness",
    "endorsement",
    "fuzz_directory",
    "genuine_machines",
    "guest_requests",
    "software_machine",
]

_VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"
_GENOA = 0x00A10F10

GUEST = LaunchedGuest(
    policy=int(GuestPolicy.RESERVED_ONE | GuestPolicy.SMT),
    measurement=bytes(range(48)),
    host_data=bytes(range(32)),
    identity=LaunchIdentity(),
)


def fuzz_directory() -> Path:
    """Corpora, findings, keys. All of it can be deleted."""
    return cache_directory() / "fuzz"


@functools.cache
def endorsement() -> Endorsement:
    """The software machine's keys; made in a few seconds the first time."""
    return Endorsement.load(fuzz_directory() / "chip", MODEL_TCB)


def guest_requests(*, report_version: int = 3) -> GuestRequests:
    """A secure processor's end of the guest's messages, fresh."""
    made = GuestRequests(endorsement, cpuid_signature=_GENOA, report_version=report_version)
    made.load({**made.dump(), "report_id": bytes(range(32))})
    return made


@dataclass(frozen=True)
class Witness:
    """A machine, by what it gives a remote user: reports, and the chain that they verify with."""

    reports: tuple[bytes, ...]
    chain: CertificateChain
    roots: TrustedRoots


@functools.cache
def software_machine() -> Witness:
    """Ours, with a report of each version that it makes."""
    keys = endorsement()
    root = keys.ark.public_bytes(serialization.Encoding.PEM)
    reports = [
        bytes(guest_requests(report_version=version).make_report(GUEST, bytes(range(64)), vmpl))
        for vmpl, version in enumerate((2, 3, 5))
    ]
    return Witness(
        tuple(reports),
        CertificateChain.from_certificate_table(keys.certificate_table),
        TrustedRoots.amd().with_software_root(root),
    )


@functools.cache
def genuine_machines() -> tuple[Witness, ...]:
    """AMD's hardware, from the reports beside the project; none if they are not there."""
    found = []
    for report in sorted(_VECTORS.glob("*/report.*")):
        data = report.read_bytes()
        certificates = [path.read_bytes() for path in report.parent.iterdir() if path.suffix in (".pem", ".der")]
        found.append(
            Witness(
                (bytes.fromhex(data.decode()) if report.suffix == ".hex" else data,),
                CertificateChain.parse(*certificates),
                TrustedRoots.amd(),
            )
        )
    return tuple(found)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Attestation and the secure channel: how often a second, how long, how much."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from cryptography.hazmat.primitives.serialization import Encoding

from bench.report import Latency, Rate
from veil import installation
from veil.cvm import ConfidentialVM
from veil.formats.services_manifest import CHANNEL_SERVICE
from veil.remote import CertificateChain, ChannelClient, Policy, Trust, TrustedRoots, attest, verify_report
from veil.remote.attestation.evidence import ask_for_evidence

__all__ = ["measure_attestation", "measure_cold"]

_SECONDS = 1.5
_BODY = 1 << 20


def _rate(step: Callable[[], object]) -> float:
    """How often a second, over a second or two."""
    step()
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < _SECONDS:
        step()
        count += 1
    return count / passed


def _roots() -> TrustedRoots:
    return TrustedRoots.amd().with_software_root(installation.software_root())


def measure_attestation(vm: ConfidentialVM) -> Iterator[Rate]:
    """On a running CVM; one thread plays user, host and guest."""
    policy = Policy(measurement=(vm.machine.secure_processor.measurement,))
    roots = _roots()
    with ChannelClient(vm.user_transport(), identity=installation.user_key()) as client:
        evidence = ask_for_evidence(client, bytes(64))
        ours = installation.endorsement()
        blobs = [item.public_bytes(Encoding.DER) for item in (ours.vcek, ours.ask, ours.ark)]

        def verify() -> None:
            chain = CertificateChain.parse(*blobs)
            verify_report(evidence.report, chain, policy=policy, roots=roots).raise_for_failure()

        yield Rate("reports verified, chain and all", _rate(verify), "/s")
        yield Rate(
            "reports asked for and verified over the channel",
            _rate(lambda: attest(client, Trust(policy=policy, roots=roots)).raise_for_failure()),
            "/s",
        )
        body = os.urandom(_BODY)
        both = _rate(lambda: client.request(CHANNEL_SERVICE, 0, body)) * 2 * _BODY / 1e6
        yield Rate("channel, both ways together, in requests of 1 MiB", both, "MB/s")
        yield Rate("channel, requests without a body", _rate(lambda: client.request(CHANNEL_SERVICE, 0)), "/s")
    yield Rate("TLS handshakes", _rate(lambda: ChannelClient(vm.user_transport()).close()), "/s")


def measure_cold() -> Iterator[Latency]:
    """From nothing to a verified channel: build and measure the image, launch, boot VeilMon, handshake, verify."""
    roots = _roots()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        vm = ConfidentialVM("512M")
        try:
            vm.launch()
            assert vm.image is not None
            with ChannelClient(vm.user_transport()) as client:
                attest(client, Trust(policy=Policy(), roots=roots, expected=vm.image.log())).raise_for_failure()
        finally:
            vm.close()
        times.append(time.perf_counter() - start)
    yield Latency("attestation from cold: launch to verified channel", sorted(times)[1] * 1e6)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A remote user attests a CVM, and attackers who would like to be taken for it.

A CVM answers on its channel as soon as VeilMon has handed over to the kernel, so most of these do not wait for it.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

import veil.cvm.vm
from tests.e2e.snapshots import Resume, RunSnapshots
from tests.snp.chip import chip
from veil import installation
from veil.cvm import ConfidentialVM, Configuration
from veil.formats.channel import MessageReader, Request, Response, pack_response
from veil.formats.launch_digest import LaunchLog
from veil.formats.monitor_calls import MonitorCall
from veil.formats.services_manifest import CHANNEL_SERVICE
from veil.formats.status import Status
from veil.host import DEFAULT_POLICY, GuestTerminated, LaunchRegion
from veil.image.launch_image import LaunchImage
from veil.monitor.channel.tls import ChannelKey, TlsFailed
from veil.remote import Attested, ChannelClient, Policy, RequestFailed, Trust, TrustedRoots, VerificationFailed, attest
from veil.remote.attestation.evidence import ask_for_evidence
from veil.remote.channel.identity import UserKey
from veil.snp import MODEL_TCB, SnpError
from veil.snp.endorsement import _PSS, Endorsement

MEMORY = "256M"
ATTEST = 1
DEBUG = 1 << 19


@functools.cache
def usual_image() -> LaunchImage:
    return ConfidentialVM(MEMORY).build_image()


@pytest.fixture(scope="module")
def expected() -> LaunchLog:
    """What the user computed beforehand."""
    return usual_image().log()


@pytest.fixture(scope="module")
def roots() -> TrustedRoots:
    return TrustedRoots.amd().with_software_root(installation.software_root())


@dataclass
class Host:
    """A host with a launched CVM."""

    vm: ConfidentialVM

    def client(self) -> ChannelClient:
        return ChannelClient(self.vm.user_transport())

    @property
    def log(self) -> LaunchLog:
        assert self.vm.image is not None
        return self.vm.image.log()


class _Altered(ConfidentialVM):
    """A host that launches something else than what was asked for."""

    change: Callable[[LaunchRegion], LaunchRegion] = staticmethod(lambda region: region)

    def _build_image(self, machine: object) -> LaunchImage:
        usual = self.configuration == Configuration.make(MEMORY)
        image = usual_image() if usual else super()._build_image(machine)  # type: ignore[arg-type]
        return replace(image, regions=tuple(self.change(region) for region in image.regions))


@contextmanager
def launched(change: Callable[[LaunchRegion], LaunchRegion] | None = None, **options: Any) -> Iterator[Host]:
    vm = _Altered(MEMORY, **options)
    if change is not None:
        vm.change = change
    vm.launch()
    try:
        yield Host(vm)
    finally:
        vm.close()


@pytest.fixture(scope="module")
def good() -> Iterator[Host]:
    """One that launches what it was asked for."""
    with launched() as host:
        yield host


def check(host: Host, expected: LaunchLog, roots: TrustedRoots, **more: object) -> Attested:
    with host.client() as client:
        return attest(client, Trust(policy=Policy(), roots=roots, expected=expected, host_log=host.log, **more))  # type: ignore[arg-type]


def failures(result: Attested) -> dict[str, str]:
    with pytest.raises(VerificationFailed):
        result.raise_for_failure()
    return {item.name: item.words for item in result.failures}


def test_fresh_boot(snapshots: RunSnapshots, expected: LaunchLog, roots: TrustedRoots) -> None:
    """The whole way, with a kernel that is up."""
    with snapshots.booting(Configuration.make(MEMORY)) as vm, ChannelClient(vm.user_transport()) as client:
        result = attest(client, Trust(policy=Policy(), roots=roots, expected=expected))
        result.raise_for_failure()
        assert result.machine == "software"
        assert vm.run(["true"]).exit_status == 0
        again = attest(client, Trust(policy=Policy(measurement=(expected.digest(),)), roots=roots))
        again.raise_for_failure()


def test_resumed_guest(resume: Resume, roots: TrustedRoots) -> None:
    expected = ConfidentialVM().build_image().log()
    for vm in (resume(), resume()):
        with ChannelClient(vm.user_transport()) as client:
            attest(client, Trust(policy=Policy(), roots=roots, expected=expected)).raise_for_failure()


# Another image


def changed(name: str, at: int) -> Callable[[LaunchRegion], LaunchRegion]:
    """One byte of the first region of that name (the last one, for a negative offset)."""
    done: list[LaunchRegion] = []

    def change(region: LaunchRegion) -> LaunchRegion:
        if region.name != name or done or len(region.data) <= at:
            return region
        done.append(region)
        data = bytearray(region.data)
        data[at] ^= 1
        return replace(region, data=bytes(data))

    return change


@pytest.mark.parametrize(
    ("name", "at", "words"),
    [
        ("kernel", 0x100000, r"kernel \(1 of \d+ pages\)$"),
        ("initramfs", 4000, r"initramfs \(1 of \d+ pages\)$"),
        ("boot_params", 0x1E9, "boot_params$"),
        ("acpi", 0x40, "acpi$"),
        ("kernel VMSA", 0x1D8, "kernel VMSA$"),
        ("VMSA", 0x408, ": VMSA$"),
    ],
)
def test_one_changed_byte(expected: LaunchLog, roots: TrustedRoots, name: str, at: int, words: str) -> None:
    with launched(changed(name, at)) as host:
        found = failures(check(host, expected, roots))
        assert set(found) == {"measurement", "what was launched"}
        assert "something else was launched than expected" in found["measurement"]
        assert re.search(words, found["what was launched"]), found["what was launched"]


def test_another_command_line(expected: LaunchLog, roots: TrustedRoots) -> None:
    with launched(kernel_options=("quiet", "loglevel=4", "lsm=")) as host:
        found = failures(check(host, expected, roots))
        assert "command line" in found["what was launched"]
        assert "kernel (" not in found["what was launched"]


def test_another_initramfs(expected: LaunchLog, roots: TrustedRoots) -> None:
    """A program more in it, so that it also lies elsewhere."""
    with launched(modules=("zram",)) as host:
        assert "initramfs" in failures(check(host, expected, roots))["what was launched"]


def test_changed_monitor_source_runs_and_is_noticed(expected: LaunchLog, roots: TrustedRoots) -> None:
    """The host has VeilMon tell tales. That VeilMon runs; its digest is another."""

    def change(region: LaunchRegion) -> LaunchRegion:
        if region.name != "VeilMon" or b"def describe" not in region.data:
            return region
        return replace(region, data=region.data.replace(b'"vcpus": parameters.vcpus', b'"vcpus": 1234567812345678'))

    with launched(change) as host:
        with ChannelClient(host.vm.user_transport(), identity=installation.user_key()) as owner:
            assert b'"vcpus": 1234567812345678' in owner.request(CHANNEL_SERVICE, MonitorCall.STATUS)
        found = failures(check(host, expected, roots))
        assert set(found) == {"measurement", "what was launched"}
        assert re.search(r": VeilMon \([12] of \d+ pages\)$", found["what was launched"])


def test_another_cpuid_page(expected: LaunchLog, roots: TrustedRoots) -> None:
    """The launch digest does not cover it; VeilMon refuses to start, so that there is nobody to talk to."""
    with launched(changed("CPUID page", 0x60)) as host:
        assert host.log.digest() == expected.digest()
        with pytest.raises(GuestTerminated, match="CPUID"):
            host.client()


def test_host_that_lies_about_what_it_launched(expected: LaunchLog, roots: TrustedRoots) -> None:
    with launched(changed("kernel", 0x100000)) as host, host.client() as client:
        result = attest(client, Trust(policy=Policy(), roots=roots, expected=expected, host_log=expected))
        assert "not that of the launch in the report" in failures(result)["what was launched"]
        result = attest(client, Trust(policy=Policy(), roots=roots, expected=expected))
        assert "no launch log" in failures(result)["what was launched"]


# Another policy


def test_debug_policy(good: Host, expected: LaunchLog, roots: TrustedRoots) -> None:
    """With it the host reads VeilMon's memory, the key of its messages to the secure processor for one."""
    with launched(policy=DEFAULT_POLICY | DEBUG) as host:
        found = failures(check(host, expected, roots))
        assert set(found) == {"debug"}
        assert "the host can read and change all of its memory" in found["debug"]
        assert host.vm.image is not None
        secrets = host.vm.image.protected[0].gpa + 4 * 4096
        processor = host.vm.machine.secure_processor
        assert processor.dbg_decrypt(secrets)[0x20:0x40] == processor.vmpcks[0]
    with pytest.raises(SnpError, match="POLICY_FAILURE"):
        good.vm.machine.secure_processor.dbg_decrypt(secrets)


def test_host_data(expected: LaunchLog, roots: TrustedRoots) -> None:
    with launched(host_data=b"h" * 32) as host, host.client() as client:
        good = Policy(host_data=b"h" * 32)
        attest(client, Trust(policy=good, roots=roots, expected=expected)).raise_for_failure()
        bad = attest(client, Trust(policy=Policy(host_data=bytes(32)), roots=roots, expected=expected))
        assert set(failures(bad)) == {"host data"}


def test_another_owner_is_another_image(expected: LaunchLog, roots: TrustedRoots) -> None:
    """A host cannot make itself an owner unnoticed."""
    with launched(owners=[b"o" * 32]) as host:
        assert "parameters" in failures(check(host, expected, roots))["what was launched"]


def test_a_reader_is_measured_and_known(expected: LaunchLog, roots: TrustedRoots) -> None:
    """A host cannot make itself a reader unnoticed; one that the launch names is told what strangers are not."""
    reader = UserKey.generate()
    with launched(readers=[reader.fingerprint]) as host:
        assert "parameters" in failures(check(host, expected, roots))["what was launched"]
        with ChannelClient(host.vm.user_transport(), identity=reader) as client:
            assert json.loads(client.request(CHANNEL_SERVICE, MonitorCall.STATUS))["vcpus"] == 1
        with host.client() as stranger, pytest.raises(RequestFailed, match="only a reader or an owner"):
            stranger.request(CHANNEL_SERVICE, MonitorCall.STATUS)


# Somebody in between


class Impostor:
    """A transport to somebody who has a TLS key of his own, and answers requests as he likes."""

    def __init__(self, answer: Callable[[Request], Response], key: ChannelKey | None = None) -> None:
        self._tls = (key or ChannelKey()).accept()
        self._reader = MessageReader()
        self._answer = answer
        self._out: deque[bytes] = deque()

    def send(self, data: bytes, /) -> None:
        try:
            self._reader.feed(self._tls.receive(data))
        except TlsFailed:
            return  # the user has gone
        while (request := self._reader.request()) is not None:
            self._tls.send(pack_response(self._answer(request)))
        self._out.append(self._tls.take())

    def receive(self) -> bytes:
        return self._out.popleft() if self._out else b""

    def close(self) -> None:
        return None


def forward(client: ChannelClient) -> Callable[[Request], Response]:
    """Requests go on to a real CVM."""
    return lambda request: Response(
        request.number, Status.OK, client.request(request.service, request.call, request.body)
    )


def test_relay_with_a_key_of_its_own(good: Host, expected: LaunchLog, roots: TrustedRoots) -> None:
    with good.client() as real:
        with ChannelClient(Impostor(forward(real))) as client:
            found = failures(attest(client, Trust(policy=Policy(), roots=roots, expected=expected)))
            assert set(found) == {"channel key"}
            assert "somebody sits in between" in found["channel key"]
        attest(real, Trust(policy=Policy(), roots=roots, expected=expected)).raise_for_failure()


def test_replayed_report(good: Host, expected: LaunchLog, roots: TrustedRoots) -> None:
    """Recorded when another user attested, played back to this one."""
    with good.client() as real:
        recorded = real.request(CHANNEL_SERVICE, ATTEST, bytes(64))
        replay = Impostor(lambda request: Response(request.number, Status.OK, recorded))
        with ChannelClient(replay) as client:
            found = failures(attest(client, Trust(policy=Policy(), roots=roots, expected=expected)))
        assert set(found) == {"freshness", "channel key"}
        assert "an old one" in found["freshness"]


def test_old_nonce(good: Host, expected: LaunchLog, roots: TrustedRoots) -> None:
    """The relay asks the real CVM with a nonce of its own choice; even with the CVM's key that would not do."""
    with good.client() as real:
        program = good.vm.machine.hosted_program(good.vm.hypervisor.vcpus[0].contexts[0].vmcb.vmsa_pa)
        stolen: ChannelKey = program._key  # type: ignore[union-attr]
        body = real.request(CHANNEL_SERVICE, ATTEST, b"old nonce".ljust(64))
        with ChannelClient(Impostor(lambda request: Response(request.number, Status.OK, body), stolen)) as client:
            found = failures(attest(client, Trust(policy=Policy(), roots=roots, expected=expected)))
        assert "does not bind our nonce" in found["freshness"]


def test_report_of_another_cvm(good: Host, expected: LaunchLog, roots: TrustedRoots) -> None:
    """The user is led to a CVM with an altered VeilMon, whose host has a good one make the report."""
    with launched(changed("kernel", 0x100000)) as bad, good.client() as decoy:
        with bad.client() as inside:
            assert inside.server_key != decoy.server_key
            evidence = ask_for_evidence(inside, bytes(64))
        assert evidence.report

        def answer(request: Request) -> Response:
            return forward(decoy)(request)

        program = bad.vm.machine.hosted_program(bad.vm.hypervisor.vcpus[0].contexts[0].vmcb.vmsa_pa)
        with ChannelClient(Impostor(answer, program._key)) as client:  # type: ignore[union-attr]
            assert client.server_key == inside.server_key
            found = failures(attest(client, Trust(policy=Policy(), roots=roots, expected=expected)))
        assert set(found) == {"channel key"}


def test_guest_kernel_cannot_speak_for_the_monitor(good: Host, expected: LaunchLog, roots: TrustedRoots) -> None:
    """It has VMPCK 3 and asks for a report with the user's nonce and a manifest of its own."""
    from veil.formats.guest_message import MessageType, ReportRequest, open_message, parse_report_response, seal_message
    from veil.formats.services_manifest import attested_report_data, pack_manifest

    mine = ChannelKey()
    with good.client() as real:
        processor = good.vm.machine.secure_processor
        certificates = processor.endorsement.certificate_table
        ping = real.request(CHANNEL_SERVICE, 0, b"up")
        assert ping == b"up"

        def answer(request: Request) -> Response:
            manifest = pack_manifest({CHANNEL_SERVICE: mine.public_bytes()})
            asked = ReportRequest(vmpl=3)
            asked.report_data[:] = list(attested_report_data(request.body, manifest))
            status, page = processor.guest_request(
                seal_message(processor.vmpcks[3], 1, 3, MessageType.REPORT_REQ, bytes(asked))
            )
            assert status == 0
            _, payload = open_message(processor.vmpcks[3], page, sequence_number=2, vmpck=3)
            report = parse_report_response(payload)[1]
            lengths = b"".join(len(part).to_bytes(4, "little") for part in (report, manifest, certificates))
            return Response(request.number, Status.OK, lengths + report + manifest + certificates)

        with ChannelClient(Impostor(answer, mine)) as client:
            found = failures(attest(client, Trust(policy=Policy(), roots=roots, expected=expected)))
        assert set(found) == {"VMPL"}


# Another chain


@contextmanager
def machine_of(endorsement: Endorsement, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(veil.cvm.vm, "endorsement", lambda: endorsement)
    with launched() as host:
        yield host


def test_chain_to_a_wrong_root(expected: LaunchLog, roots: TrustedRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine_of(chip(), monkeypatch) as host:
        found = failures(check(host, expected, roots))
        assert set(found) == {"root", "processor"}
        assert "not a trusted root" in found["root"]
        # The right root's certificates on top of it do not help.
        ours = installation.endorsement()
        chain = [item.public_bytes(Encoding.DER) for item in (ours.vcek, ours.ask, ours.ark)]
        assert "report signature" in failures(check(host, expected, roots, certificates=chain))


def test_software_machine_without_a_word(good: Host, expected: LaunchLog) -> None:
    assert set(failures(check(good, expected, TrustedRoots.amd()))) == {"root", "processor"}


def test_expired_and_revoked_certificates(
    expected: LaunchLog, roots: TrustedRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    born = datetime.datetime(2018, 1, 1, tzinfo=datetime.UTC)
    old = Endorsement.certified(chip().ark_key, chip().ask_key, MODEL_TCB, born=born)
    with machine_of(old, monkeypatch) as host:
        trusting = TrustedRoots.amd().with_software_root(old.ark.public_bytes(Encoding.DER))
        found = failures(check(host, expected, trusting))
        assert set(found) == {"validity"}
        assert "'SEV-VCEK' expired on" in found["validity"]
        then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        check(host, expected, trusting, at=then).raise_for_failure()
        entry = x509.RevokedCertificateBuilder().serial_number(old.ask.serial_number).revocation_date(then).build()
        builder = x509.CertificateRevocationListBuilder().issuer_name(old.ark.subject).last_update(then)
        builder = builder.next_update(then + datetime.timedelta(days=9))
        for revoked in (builder, builder.add_revoked_certificate(entry)):
            crl = revoked.sign(old.ark_key, hashes.SHA384(), rsa_padding=_PSS).public_bytes(Encoding.DER)
            result = check(host, expected, trusting, at=then, crls=[crl])
            if revoked is builder:
                result.raise_for_failure()
            else:
                assert "was revoked" in failures(result)["revocation"]


def test_guests_of_one_snapshot_are_told_apart(resume: Resume, roots: TrustedRoots) -> None:
    """Both are good; neither has the other's key, so that neither can be passed off as the other."""
    one, two = resume(), resume()
    expected = one.build_image().log()
    with ChannelClient(one.user_transport()) as first, ChannelClient(two.user_transport()) as second:
        for client in (first, second):
            attest(client, Trust(policy=Policy(), roots=roots, expected=expected)).raise_for_failure()
        assert first.server_key != second.server_key
    keys = [vm.machine.secure_processor.vmpcks for vm in (one, two)]
    assert all(keys[0][vmpl] != keys[1][vmpl] for vmpl in range(3))

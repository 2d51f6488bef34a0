# SPDX-License-Identifier: GPL-2.0-or-later
"""The SVSM attestation protocol: reports of VMPL 0 for the kernel, hostile requests, and a hostile carrier."""

from __future__ import annotations

import struct
import uuid
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.monitor.harness import (
    CPUID,
    FREE,
    KERNEL_VMSA,
    MONITOR,
    PAGE,
    RAM,
    SECRETS,
    SERVICES,
    SHARED,
    SMALL,
    SVME,
    VMGEXIT,
    Answer,
    Bench,
    kernel_vmsa,
)
from veil.formats.attestation_report import REPORT_BYTES, AttestationReport
from veil.formats.services_manifest import (
    CHANNEL_SERVICE,
    SERVICES_MANIFEST,
    attested_report_data,
    pack_manifest,
    parse_manifest,
)
from veil.monitor import VeilMon
from veil.monitor.svsm_call import ResultCode
from veil.services import Service, ServiceDomain
from veil.snp.errors import SnapshotError

ATTESTATION, ALL, ONE = 1, 0, 1
NONCE = bytes(range(64))
REQUEST, NONCE_AT, REPORT, MANIFEST, CERTIFICATES = (FREE + number * PAGE for number in range(5))
OK = ResultCode.SUCCESS


class Claims(Service):
    """A service that says something about itself."""

    name = "claims"
    number = 17
    guid = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    said: ClassVar[bytes] = b"I keep logs"

    def manifest(self) -> bytes:
        return self.said


class Services(ServiceDomain):
    service_types = (Claims,)


@pytest.fixture
def bench() -> Bench:
    return Bench(vcpus=2, services=Services).boot()


def ask(
    bench: Bench,
    call: int = ALL,
    guid: uuid.UUID = uuid.UUID(int=0),  # noqa: B008
    /,
    *,
    at: int = REQUEST,
    **changes: int,
) -> Answer:
    fields = {
        "report": REPORT, "report_size": PAGE, "r1": 0, "nonce": NONCE_AT, "nonce_size": 64, "r2": 0,
        "manifest": MANIFEST, "manifest_size": PAGE, "r3": 0, "certificates": CERTIFICATES,
        "certificates_size": PAGE, "r4": 0, "version": 0, "r5": 0, **changes,
    }  # fmt: skip
    bench.kernel.write(NONCE_AT, NONCE)
    operation = struct.pack(
        "<QIIQHHIQIIQII16sII",
        *(fields[name] for name in ("report", "report_size", "r1", "nonce", "nonce_size")), fields["r2"], 0,
        *(fields[name] for name in ("manifest", "manifest_size", "r3", "certificates", "certificates_size", "r4")),
        guid.bytes_le, fields["version"], fields["r5"],
    )  # fmt: skip
    if bench.kernel.allows(at, 2, len(operation)):
        bench.kernel.write(at, operation)
    return bench.call(ATTESTATION, call, at)


def test_all_services(bench: Bench) -> None:
    answer = ask(bench)
    assert answer.rax == OK
    report = AttestationReport.parse(bench.kernel.read(REPORT, answer.r8))
    manifest = bench.kernel.read(MANIFEST, answer.rcx)
    assert report.vmpl == 0
    assert report.report_data == attested_report_data(NONCE, manifest)
    services = parse_manifest(manifest)
    assert services[Claims.guid] == b"I keep logs"
    assert next(iter(services)) == CHANNEL_SERVICE
    assert answer.rdx == PAGE
    assert bench.kernel.read(CERTIFICATES, 12) == b"certificates"


def test_one_service(bench: Bench) -> None:
    answer = ask(bench, ONE, Claims.guid)
    assert answer.rax == OK
    assert bench.kernel.read(MANIFEST, answer.rcx) == b"I keep logs"
    report = AttestationReport.parse(bench.kernel.read(REPORT, REPORT_BYTES))
    assert report.report_data == attested_report_data(NONCE, b"I keep logs")
    assert ask(bench, ONE, CHANNEL_SERVICE).rax == OK
    assert ask(bench, ONE, uuid.uuid4()).rax == ResultCode.UNSUPPORTED_PROTOCOL
    assert ask(bench, ONE, Claims.guid, version=1).rax == ResultCode.INVALID_PARAMETER


def test_a_service_cannot_speak_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever makes it say something could have a services manifest with a key of its own attested."""
    monkeypatch.setattr(Claims, "said", pack_manifest({CHANNEL_SERVICE: b"a key of mine"}))
    bench = Bench(services=Services).boot()
    assert ask(bench, ONE, Claims.guid).rax == ResultCode.UNSUPPORTED_PROTOCOL
    assert ask(bench).rax == OK
    monkeypatch.setattr(Claims, "said", SERVICES_MANIFEST.bytes + b"in another byte order")
    assert ask(Bench(services=Services).boot(), ONE, Claims.guid).rax == OK


def test_short_buffers_get_the_lengths(bench: Bench) -> None:
    full = ask(bench)
    for name in ("report_size", "manifest_size"):
        short = ask(bench, **{name: 8})
        assert short.rax == ResultCode.INVALID_PARAMETER
        assert short[1:4] == full[1:4]
    without = ask(bench, certificates_size=0)
    assert (without.rax, without.rdx) == (OK, 0)
    bench.certificates = b"c" * (PAGE + 1)
    longer = ask(bench)
    assert (longer.rax, longer.rdx) == (ResultCode.INVALID_PARAMETER, 2 * PAGE)
    bench.certificates = b""
    none = ask(bench)
    assert (none.rax, none.rdx) == (OK, 0)


@pytest.mark.parametrize("call", [2, 0xFFFFFFFF])
def test_unknown_calls(bench: Bench, call: int) -> None:
    assert ask(bench, call).rax == ResultCode.UNSUPPORTED_CALL


@pytest.mark.parametrize(
    "changes",
    [
        {"r1": 1}, {"r2": 1}, {"r3": 1}, {"r4": 1}, {"nonce_size": 63}, {"nonce_size": 65}, {"nonce_size": 0},
        {"nonce": FREE + PAGE - 32}, {"report": REPORT + 8}, {"manifest": MANIFEST + 64},
        {"certificates": CERTIFICATES + 16}, {"certificates_size": 0x4001}, {"at": REQUEST + 4},
        {"at": REQUEST + PAGE - 8},
    ],
)  # fmt: skip
def test_malformed_requests(bench: Bench, changes: dict[str, int]) -> None:
    before = bench.processor.dump()
    assert ask(bench, **changes).rax == ResultCode.INVALID_PARAMETER
    assert bench.processor.dump() == before, "the secure processor was asked"


PROTECTED = [SECRETS, MONITOR, SERVICES, SHARED, KERNEL_VMSA, CPUID, RAM, RAM - PAGE, (1 << 64) - PAGE]


@pytest.mark.parametrize("gpa", PROTECTED)
@pytest.mark.parametrize("name", ["report", "manifest", "certificates", "nonce", "at"])
def test_addresses_that_are_not_the_kernels(bench: Bench, name: str, gpa: int) -> None:
    """Written to, VeilMon would overwrite itself; read from, a report would tell a hash of its secrets."""
    memory = bytes(bench.memory.buf[MONITOR:RAM])
    assert ask(bench, **{name: gpa}).rax == ResultCode.INVALID_ADDRESS
    pages = range(0, len(memory), PAGE)
    changed = {MONITOR + at for at in pages if memory[at : at + PAGE] != bench.memory.buf[MONITOR + at :][:PAGE]}
    assert changed <= {KERNEL_VMSA}
    bench.check()


@pytest.mark.parametrize("name", ["report_size", "manifest_size"])
def test_buffers_that_reach_into_protected_memory(bench: Bench, name: str) -> None:
    gpa = MONITOR - PAGE
    fields = {name.removesuffix("_size"): gpa, name: 2 * PAGE}
    assert ask(bench, **fields).rax == ResultCode.INVALID_ADDRESS
    assert ask(bench, **{**fields, name: PAGE}).rax == OK
    assert ask(bench, **{**fields, name: 0xFFFFFFFF}).rax == ResultCode.INVALID_ADDRESS


@settings(max_examples=examples(60), deadline=None)
@given(st.binary(min_size=0x58, max_size=0x58), st.integers(0, 1))
def test_any_request(data: bytes, call: int) -> None:
    bench = Bench(services=Services).boot()
    bench.kernel.write(REQUEST, data)
    assert bench.call(ATTESTATION, call, REQUEST).rax >= 0x80000000
    bench.check()


# While VeilMon waits for the host


def test_the_caller_cannot_run_or_be_deleted_meanwhile(bench: Bench) -> None:
    second = SMALL + 8 * PAGE
    bench.kernel.write(second, kernel_vmsa())
    assert bench.create_vcpu(second, second + PAGE, 1) == OK
    seen: list[int] = []

    def meanwhile(request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        assert not bench.vmsa(KERNEL_VMSA).efer & SVME
        # Another VCPU of the kernel wants the VMSA, into which an answer will be written, back as memory.
        seen.append(bench.call(0, 3, KERNEL_VMSA, vcpu=1).rax)
        seen.append(bench.call(ATTESTATION, ALL, REQUEST, vcpu=1).rax)
        with pytest.raises(SnapshotError):
            bench.monitor.save()
        return bench.carry(request, response, data)

    bench.on_message = meanwhile
    assert ask(bench).rax == OK
    assert seen == [ResultCode.BUSY, ResultCode.BUSY]
    bench.on_message = bench.carry
    assert bench.call(ATTESTATION, ALL, REQUEST, vcpu=1).rax == OK
    bench.check()


def test_buffers_given_away_meanwhile(bench: Bench) -> None:
    second = SMALL + 8 * PAGE
    bench.kernel.write(second, kernel_vmsa())
    assert bench.create_vcpu(second, second + PAGE, 1) == OK

    def meanwhile(request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        # The report's buffer becomes a VMSA.
        bench.kernel.write(REPORT, kernel_vmsa())
        assert bench.call(0, 2, REPORT, SMALL + 12 * PAGE, 1, vcpu=1).rax == OK
        return bench.carry(request, response, data)

    bench.on_message = meanwhile
    assert ask(bench).rax == ResultCode.INVALID_ADDRESS
    assert bench.vmsa(REPORT).vmpl == 3
    assert not bench.kernel.allows(REPORT, 2)
    bench.check()


# The host as a carrier


def given_up(bench: Bench) -> None:
    """No report now, and none later: the number of a message that went out may not be used again."""
    assert ask(bench).rax == ResultCode.INVALID_REQUEST
    assert bench.view(0).read(SECRETS + 0x20, 32) == bytes(32)
    bench.on_message = bench.carry
    assert ask(bench).rax == ResultCode.INVALID_REQUEST
    assert bench.call(0, 6, 1).rax == OK  # all else goes on


def test_host_that_answers_nothing(bench: Bench) -> None:
    bench.on_message = lambda request, response, data: (0, 0)
    given_up(bench)


def test_host_that_replays_an_answer(bench: Bench) -> None:
    assert ask(bench).rax == OK
    old = bench.host.read(SHARED + PAGE, PAGE)

    def replay(request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        bench.host.write(response, old)
        return 0, 0

    bench.on_message = replay
    given_up(bench)


@pytest.mark.parametrize("at", [0, 0x20, 0x34, 0x36, 0x60, 0x60 + 0x20 + 0x90])
def test_host_that_changes_an_answer(bench: Bench, at: int) -> None:
    def change(request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        done = bench.carry(request, response, data)
        page = bytearray(bench.host.read(response, PAGE))
        page[at] ^= 1
        bench.host.write(response, bytes(page))
        return done

    bench.on_message = change
    given_up(bench)


@pytest.mark.parametrize("errors", [0x16, 3 << 32, 1 << 63])
def test_host_that_refuses(bench: Bench, errors: int) -> None:
    bench.on_message = lambda request, response, data: (errors, 0)
    given_up(bench)


def test_host_that_is_busy_for_a_while_gets_the_same_message_again(bench: Bench) -> None:
    sent: list[bytes] = []

    def busy(request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        sent.append(bench.host.read(request, PAGE))
        return (2 << 32, 0) if len(sent) < 4 else bench.carry(request, response, data)

    bench.on_message = busy
    assert ask(bench).rax == OK
    assert len(sent) == 4
    assert len(set(sent)) == 1
    bench.on_message = lambda request, response, data: (2 << 32, 0)
    given_up(bench)


def test_more_certificates_than_fit(bench: Bench) -> None:
    """The same message goes out once more without asking for them."""
    bench.certificates = b"c" * (5 * PAGE)
    answer = ask(bench)
    assert (answer.rax, answer.rdx) == (OK, 0)
    assert ask(bench).rax == OK


def test_host_that_comes_in_the_middle(bench: Bench) -> None:
    """It runs VeilMon again without having carried the message: VeilMon finds no answer."""

    def forget(request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        return 0, 0

    bench.on_message = forget
    vmsa = bench.vmsa(KERNEL_VMSA)
    given_up(bench)
    assert vmsa.efer & SVME
    assert vmsa.guest_exit_code == VMGEXIT


def test_snapshot_begins_with_new_keys(bench: Bench) -> None:
    assert ask(bench).rax == OK
    first, sent = bench.kernel.read(MANIFEST, PAGE), bench.host.read(SHARED, PAGE)
    assert any(sent)
    monitor = VeilMon()
    monitor.restore(bench.monitor.save())
    bench.resume(monitor)
    bench.enter(0)
    assert not any(bench.host.read(SHARED, 2 * PAGE)), "what the other life sent lies about"
    assert ask(bench).rax == OK
    assert bench.kernel.read(MANIFEST, PAGE) != first, "the channel's key is the same"

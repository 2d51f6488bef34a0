# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves over a channel to a VeilMon that is attested first: who is told what, and who gets which secret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.monitor.wire import Wire
from tests.services.enc.enclave_bench import LAYOUT, EnclaveBench
from tests.services.log.harness import OWNER, READER
from tests.snp.chip import chip
from veil.formats.enclave_pages import MailboxCall
from veil.formats.enclave_reports import (
    LONGEST_SECRET,
    EnclaveManifest,
    EnclaveStatement,
    EnclaveUserCall,
    EnclaveWord,
    Provision,
    Speaker,
    parse_enclaves,
)
from veil.formats.errors import FormatError
from veil.formats.roles import Call, Role
from veil.formats.status import Status
from veil.remote import ChannelClient, Policy, Trust, TrustedRoots
from veil.remote.channel.client import RequestFailed
from veil.remote.channel.identity import UserKey
from veil.remote.enc.enclaves import Enclaves, open_enclaves
from veil.remote.errors import RemoteError
from veil.services.enc.keys import EnclaveKeys
from veil.services.enc.service import EncService

LONGEST = b"s" * LONGEST_SECRET


@pytest.fixture
def bench() -> EnclaveBench:
    bench = EnclaveBench(owners=[OWNER.fingerprint], readers=[READER.fingerprint])
    bench.certificates = chip().certificate_table
    bench.boot()
    return bench


@contextmanager
def enclaves_of(bench: EnclaveBench, identity: UserKey | None = OWNER) -> Iterator[Enclaves]:
    roots = TrustedRoots.amd().with_software_root(chip().ark.public_bytes(Encoding.PEM))
    with ChannelClient(Wire(bench), identity=identity) as client:
        yield open_enclaves(client, Trust(Policy(), roots=roots))


def test_which_there_are(bench: EnclaveBench) -> None:
    number = bench.make()
    bench.create()
    with enclaves_of(bench, READER) as enclaves:
        found = enclaves.all()
        assert [(item.number, item.state, item.slots) for item in found] == [(1, "ready", 2), (2, "making", 2)]
        assert found[0].measurement == LAYOUT.measurement.hex()
        said = enclaves.attest(number, b"n" * 64)
        assert (said.speaker, said.measurement, said.data) == (Speaker.USER, LAYOUT.measurement, b"n" * 64)
        for other in (2, 3):
            with pytest.raises(RequestFailed) as refused:
                enclaves.attest(other)
            assert refused.value.status == Status.UNAVAILABLE


def test_one_that_ends_meanwhile_keeps_nobody_from_the_others(
    bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody in the guest makes enclaves and ends them, between the list and the statement."""
    first, second = bench.make(), bench.make()
    with enclaves_of(bench, READER) as enclaves:
        listed = enclaves.all()
        bench.destroy(first)
        monkeypatch.setattr(enclaves, "all", lambda: listed)
        found = enclaves.running(LAYOUT.measurement)
        assert [(number, said.measurement) for number, (_, said) in found.items()] == [(second, LAYOUT.measurement)]
        assert not enclaves.running(b"x" * 48)
        monkeypatch.setattr(enclaves, "all", lambda: [replace(item, measurement="ab" * 48) for item in listed])
        with pytest.raises(RemoteError, match="about another enclave than the list"):
            enclaves.running()


def test_statements_that_do_not_hold(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    number = bench.make()
    with enclaves_of(bench) as enclaves:
        old = enclaves.attest(number)
        honest = EnclaveStatement.parse
        changes: list[dict[str, Any]] = [
            {"measurement": b"x" * 48}, {"enclave": 9}, {"speaker": Speaker.ENCLAVE}, {"data": old.data},
            {"signature": old.signature}, {"signature": b"junk"},
        ]  # fmt: skip
        for change in changes:

            def changed(packed: bytes, change: dict[str, Any] = change) -> EnclaveStatement:
                return honest(packed)._replace(**change)

            monkeypatch.setattr(EnclaveStatement, "parse", changed)
            with pytest.raises(RemoteError):
                enclaves.attest(number)


def test_who_may_ask(bench: EnclaveBench) -> None:
    bench.make()
    with enclaves_of(bench, None) as enclaves, pytest.raises(RequestFailed) as refused:
        enclaves.all()
    assert refused.value.status == Status.NOT_ALLOWED
    with enclaves_of(bench, READER) as enclaves, pytest.raises(RequestFailed) as refused:
        enclaves.provision(LAYOUT.measurement, b"name", b"secret")
    assert refused.value.status == Status.NOT_ALLOWED


def test_if_anyone_might_send_a_reader_would_choose_the_secret(
    bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-test: without the role."""
    number = bench.make()
    anyone = Call(Role.ANYONE, EncService._provision)
    monkeypatch.setitem(EncService.user_calls, EnclaveUserCall.PROVISION, anyone)
    with enclaves_of(bench, READER) as enclaves:
        enclaves.provision(LAYOUT.measurement, b"name", b"the reader's")
    assert secret_of(bench, number) == b"the reader's"


def test_without_signatures_anybody_would_speak_for_the_service(
    bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = bench.make()
    honest = EnclaveStatement.parse
    monkeypatch.setattr(
        EnclaveStatement, "parse", lambda packed: honest(packed)._replace(measurement=b"x" * 48, signature=b"junk")
    )
    monkeypatch.setattr(EnclaveStatement, "verify", lambda statement, key: True)
    with enclaves_of(bench) as enclaves:
        assert enclaves.attest(number).measurement == b"x" * 48


def secret_of(bench: EnclaveBench, number: int, name: bytes = b"name") -> bytes | None:
    answer = bench.mail(number, MailboxCall.SECRET, len(name), data=name)
    return bytes(answer.data[: answer.result]) if answer.status == Status.OK else None


def test_a_secret_for_one_measurement(bench: EnclaveBench) -> None:
    """Another enclave of the same gets it; one with another byte does not."""
    number, other = bench.make(), bench.make(replace(LAYOUT, pool_pages=9))
    assert secret_of(bench, number) is None
    with enclaves_of(bench) as enclaves:
        enclaves.provision(LAYOUT.measurement, b"name", LONGEST)
        assert secret_of(bench, number) == LONGEST
        assert secret_of(bench, number, b"nam") is None
        assert secret_of(bench, other) is None
        assert secret_of(bench, bench.make()) == LONGEST
        enclaves.provision(LAYOUT.measurement, b"name", b"")
    assert secret_of(bench, number) is None


def test_if_it_did_not_go_by_the_measurement(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: by the name alone."""
    other = bench.make(replace(LAYOUT, pool_pages=9))
    with enclaves_of(bench) as enclaves:
        enclaves.provision(LAYOUT.measurement, b"name", b"secret")
    assert secret_of(bench, other) is None
    monkeypatch.setattr(EnclaveKeys, "secret", lambda keys, _, name: keys._secrets[LAYOUT.measurement, name])
    assert secret_of(bench, other) == b"secret"


def test_bounds_of_secrets(bench: EnclaveBench) -> None:
    with enclaves_of(bench) as enclaves:
        with pytest.raises(RequestFailed):
            enclaves.provision(LAYOUT.measurement, b"name", LONGEST + b"s")
        with pytest.raises(RequestFailed):
            enclaves.provision(LAYOUT.measurement, b"", b"s")
        for count in range(256):
            enclaves.provision(LAYOUT.measurement, b"%d" % count, b"s")
        with pytest.raises(RequestFailed):
            enclaves.provision(LAYOUT.measurement, b"one more", b"s")
        enclaves.provision(LAYOUT.measurement, b"7", b"other")


def test_a_report_for_the_enclave(bench: EnclaveBench) -> None:
    """What it shows to others says that the enclave asked, not a user."""
    number = bench.make()
    answer = bench.mail(number, MailboxCall.REPORT, data=b"d" * 64)
    said = EnclaveStatement.parse(bytes(answer.data[: answer.result]))
    manifest = EnclaveManifest.parse(bench.service.manifest())
    assert (said.speaker, said.measurement, said.data) == (Speaker.ENCLAVE, LAYOUT.measurement, b"d" * 64)
    assert said.verify(manifest.public_key)
    assert not said._replace(speaker=Speaker.USER).verify(manifest.public_key)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert not said.verify(other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    assert not said.verify(b"no key")


@given(st.binary(max_size=300))
def test_hostile_messages(data: bytes) -> None:
    for parse in (EnclaveStatement.parse, EnclaveManifest.parse, EnclaveWord.parse, Provision.parse, parse_enclaves):
        try:
            found = parse(data)
        except FormatError:
            continue
        if isinstance(found, EnclaveStatement | Provision):
            assert found.pack() == data


@pytest.mark.parametrize(
    "text", ["[{}]", "[1]", "{}", "1", '[{"number": -1, "measurement": "", "state": "", "slots": 0}]']
)
def test_lists_that_are_none(text: str) -> None:
    with pytest.raises(FormatError):
        parse_enclaves(text.encode())

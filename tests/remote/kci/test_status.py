# SPDX-License-Identifier: GPL-2.0-or-later
"""The status of VeilS-KCI, over a channel to a VeilMon that is attested first."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.monitor.harness import Bench
from tests.monitor.wire import Wire
from tests.services.log.harness import OWNER, READER
from tests.snp.chip import chip
from veil.formats.errors import FormatError
from veil.formats.kci_settings import OFF, ON
from veil.formats.kci_status import KciStatus, ModuleStatus
from veil.formats.status import Status
from veil.remote import ChannelClient, Policy, Trust, TrustedRoots
from veil.remote.channel.client import RequestFailed
from veil.remote.channel.identity import UserKey
from veil.remote.errors import RemoteError, VerificationFailed
from veil.remote.kci.status import read_status
from veil.services.kci.service import KciService
from veil.services.program import ServiceDomain

MODULE = ModuleStatus(1, "loop", "", "Debian", "ab" * 32, 8192, True)
STATUS = KciStatus(ON, 5, 4096, 100, {"return": 3}, {"jump label": {"schedule": 2}}, 1, 2, (MODULE,), ("a word",))


class Services(ServiceDomain):
    """Code integrity alone."""

    service_types = (KciService,)


def _bench(services: type[ServiceDomain] = Services) -> Bench:
    bench = Bench(services=services, owners=[OWNER.fingerprint], readers=[READER.fingerprint])
    bench.certificates = chip().certificate_table
    return bench.boot()


def _ask(bench: Bench, identity: UserKey | None, **policy: Any) -> KciStatus:
    roots = TrustedRoots.amd().with_software_root(chip().ark.public_bytes(Encoding.PEM))
    with ChannelClient(Wire(bench), identity=identity) as client:
        return read_status(client, Trust(Policy(**policy), roots=roots))


@pytest.mark.parametrize("identity", [OWNER, READER], ids=["owner", "reader"])
def test_those_who_may_know(identity: UserKey) -> None:
    found = _ask(_bench(), identity)
    assert (found.mode, found.locked_ns, found.modules, found.violations) == (OFF, None, (), 0)


def test_strangers() -> None:
    with pytest.raises(RequestFailed) as caught:
        _ask(_bench(), UserKey.generate())
    assert caught.value.status == Status.NOT_ALLOWED


def test_another_cvm_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = _bench()
    asked = []
    monkeypatch.setattr(KciService, "_tell_status", lambda *_: asked.append(1))
    with pytest.raises(VerificationFailed):
        _ask(bench, OWNER, measurement=(bytes(47) + b"x",))
    assert asked == []


def test_without_the_service() -> None:
    with pytest.raises(RemoteError, match="no VeilS-KCI"):
        _ask(_bench(ServiceDomain), OWNER)


def test_the_wire() -> None:
    assert KciStatus.parse(STATUS.pack()) == STATUS


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(sorted(asdict(STATUS))), _PLAIN)
def test_a_status_of_other_types_is_none(name: str, value: Any) -> None:
    """What is parsed can be shown; all else is refused in one way."""
    from veil.cli.kci.commands import status_lines

    try:
        found = KciStatus.parse(json.dumps({**asdict(STATUS), name: value}).encode())
    except FormatError:
        return
    assert all(line for line in status_lines(found))


@given(st.sampled_from(sorted(asdict(MODULE))), _PLAIN)
def test_a_module_of_other_types_is_none(name: str, value: Any) -> None:
    from veil.cli.kci.commands import status_lines

    try:
        found = KciStatus.parse(json.dumps({**asdict(STATUS), "modules": [{**asdict(MODULE), name: value}]}).encode())
    except FormatError:
        return
    assert all(line.isprintable() for line in status_lines(found))


@given(st.binary() | _PLAIN.map(lambda value: json.dumps(value).encode()))
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        KciStatus.parse(data)

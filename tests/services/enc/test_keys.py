# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of enclaves: by measurement, label, and a root that outlives the launch of an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.monitor.harness import PAGE
from tests.services.enc.enclave_bench import LAYOUT, EnclaveBench
from tests.snp.chip import chip
from veil.formats.enclave_pages import MailboxCall
from veil.formats.status import Status
from veil.services.context import Asking, MonitorClient
from veil.snp.guest_requests import GuestRequests
from veil.snp.id_block_checks import LaunchIdentity


def test_keys(bench: EnclaveBench) -> None:
    first, again = bench.make(), bench.make()
    other = bench.make(replace(LAYOUT, pool_pages=9))
    ask = [bytes(bench.mail(each, MailboxCall.KEY, 5, data=b"label").data[:32]) for each in (first, again, other)]
    assert ask[0] == ask[1] != ask[2]
    assert bytes(bench.mail(first, MailboxCall.KEY, 5, data=b"other").data[:32]) != ask[0]
    assert bench.mail(first, MailboxCall.KEY, 0).status == Status.BAD_REQUEST
    assert bench.mail(first, MailboxCall.KEY, 5000).status == Status.BAD_REQUEST


def key_of(bench: EnclaveBench, number: int) -> bytes:
    answer = bench.mail(number, MailboxCall.KEY, 5, data=b"label")
    return bytes(answer.data[:32]) if answer.status == Status.OK else b""


@pytest.mark.parametrize(
    ("launch", "same"),
    [
        ({}, True),
        ({"host_data": b"h" * 32}, True),
        ({"measurement": b"m" * 48}, False),
        ({"policy": 1 << 17 | 1 << 19}, False),
        ({"identity": LaunchIdentity(image_id=b"i" * 16)}, False),
        ({"identity": LaunchIdentity(family_id=b"f" * 16)}, False),
    ],
    ids=["same", "host data", "measurement", "policy", "image ID", "family ID"],
)
def test_keys_outlive_the_launch_of_an_image(bench: EnclaveBench, launch: dict[str, Any], same: bool) -> None:
    """Another launch: another VeilMon, other VMPCKs, another root of reports; of this image, or of another one."""
    again = EnclaveBench()
    again.launched = replace(again.launched, **launch)
    again.boot()
    key = key_of(bench, bench.make())
    assert len(key) == 32
    assert (key_of(again, again.make()) == key) is same


def test_without_a_root_of_the_launch_any_image_would_have_the_keys(
    bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-test: a root that is the same everywhere."""

    def lasting_key(monitor: MonitorClient) -> Asking[bytes]:
        return bytes(32)
        yield

    monkeypatch.setattr(MonitorClient, "lasting_key", lasting_key)
    other = EnclaveBench()
    other.launched = replace(other.launched, measurement=b"m" * 48)
    other.boot()
    assert key_of(other, other.make()) == key_of(bench, bench.make()) != b""


def test_keys_are_not_those_of_another_processor(bench: EnclaveBench) -> None:
    other = EnclaveBench()
    strange = replace(chip(), chip_secret=b"another")
    other.processor = GuestRequests(lambda: strange, cpuid_signature=0, report_version=3)
    other.boot()
    assert key_of(other, other.make()) != key_of(bench, bench.make())


def test_no_key_but_from_the_secure_processor(bench: EnclaveBench) -> None:
    """A host with an answer of its own: enclaves run, without a key."""

    def forge(request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        bench.host.write(response, b"x" * PAGE)
        return 0, 0

    bench.on_message = forge
    number = bench.make()
    assert bench.mail(number, MailboxCall.KEY, 5, data=b"label").status == Status.UNAVAILABLE
    assert bench.mail(number, MailboxCall.TIME).status == Status.OK
    # The key for messages is gone, as after any failure: an IV must not be used twice.
    bench.on_message = bench.carry
    assert key_of(bench, bench.make()) == b""


def test_a_key_is_asked_for_again(bench: EnclaveBench) -> None:
    """Somebody else's message was on its way."""
    messages = bench.monitor._messages
    assert messages is not None
    messages.busy = True
    first = bench.make()
    assert key_of(bench, first) == b""
    messages.busy = False
    bench.make()
    assert len(key_of(bench, first)) == 32

# SPDX-License-Identifier: GPL-2.0-or-later
"""Who knocks at the listener: what it changes for an owner, and what for others."""

from __future__ import annotations

import pytest

from tests.host.desk import PLACES, Desk, is_open
from veil.formats.knock import CHALLENGE_BYTES, KNOCK
from veil.host import channel_listener
from veil.host.channel_listener import EXPECTED, GREETED, PROVE_S, SILENT_S, STAY_S
from veil.remote import UserKey


def test_an_owner_does_not_wait_with_strangers(desk: Desk) -> None:
    """All places are taken, each for a while yet, and the lobby is full of those who want them."""
    held = [desk.answered(desk.connect()) for _ in range(PLACES)]
    for _ in range(10 * PLACES):
        desk.connect().sendall(b"hello")
    desk.look()
    owner = desk.connect()
    desk.knock(owner)
    for _ in range(PLACES):
        desk.connect().sendall(b"hello")
    desk.look()
    assert len(desk.device.opened) == PLACES + 1
    assert desk.device.expected == [desk.device.opened[-1]]
    assert all(connection.is_open for connection in held)
    # Nor does he give way to them, before VeilMon has come to him and after.
    for _ in range(3):
        desk.later(STAY_S)
    assert desk.device.expected[0].is_open
    assert not held[0].is_open


def test_an_owner_does_not_wait_for_veilmons_look_at_strangers(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_listener, "STRANGERS", 1000)
    for _ in range(GREETED):
        desk.say(desk.connect())
    desk.connect().sendall(b"hello")
    desk.look()
    assert len(desk.device.opened) == GREETED
    desk.knock(desk.connect())
    assert len(desk.device.expected) == 1


def test_what_follows_a_knock_goes_to_veilmon(desk: Desk) -> None:
    owner = desk.connect()
    desk.knock(owner)
    owner.sendall(b"ClientHello")
    desk.look()
    (connection,) = desk.device.expected
    assert bytes(desk.device._waiting).endswith(b"ClientHello")
    assert connection.on_data is not None
    connection.on_data(b"ServerHello")
    desk.look()
    assert owner.recv(64) == b"ServerHello"


def test_a_strangers_knock_changes_nothing(desk: Desk) -> None:
    """A user whom the launch does not name, but who has a key: what he says then is what counts."""
    sock = desk.connect()
    desk.knock(sock, UserKey.generate())
    assert desk.device.opened == []
    desk.say(sock, b"ClientHello")
    assert desk.device.expected == []
    assert bytes(desk.device._waiting).endswith(b"ClientHello")


def test_who_knocks_and_says_no_more_is_dropped(desk: Desk) -> None:
    sock = desk.connect()
    sock.sendall(KNOCK)
    desk.look()
    desk.later(SILENT_S + 1)
    sock.recv(CHALLENGE_BYTES)
    assert not is_open(sock)


def test_who_knocked_and_proves_nothing_to_veilmon_is_dropped(desk: Desk) -> None:
    first, second = desk.connect(), desk.connect()
    for sock in (first, second):
        desk.knock(sock)
    proven = desk.device.expected[1]
    assert proven.on_proven is not None
    proven.on_proven()
    desk.look()
    desk.later(PROVE_S + 1)
    assert [connection.is_open for connection in desk.device.expected] == [False, True]
    assert not desk.listener._expected


def test_owners_who_prove_nothing_make_room_for_one_another(desk: Desk) -> None:
    for _ in range(EXPECTED + 1):
        desk.knock(desk.connect())
    assert [connection.is_open for connection in desk.device.expected] == [False, *[True] * EXPECTED]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The listener's places: who gets one, who gives one up."""

from __future__ import annotations

import errno
import selectors
import socket
from typing import Any

import pytest

from tests.host.desk import PLACES, Desk, is_open
from veil.formats.channel import Frame, FrameKind
from veil.host import channel_listener, lobby
from veil.host.channel_listener import DRAIN_S, GREETED, SILENT_S, STAY_S
from veil.host.lobby import ACCEPTS, LOBBY_SHARE


def test_who_says_nothing_is_no_work_for_veilmon(desk: Desk) -> None:
    sock = desk.connect()
    assert desk.device.opened == []
    desk.say(sock)
    assert len(desk.device.opened) == 1


def test_the_oldest_makes_room_for_the_newest(desk: Desk) -> None:
    first, *others = [desk.connect() for _ in range(PLACES)]
    for sock in (first, *others):
        desk.answered(sock)
    desk.later(STAY_S)
    desk.say(desk.connect())
    assert not desk.device.opened[0].is_open
    assert all(connection.is_open for connection in desk.device.opened[1:])


def test_each_may_stay_a_while(desk: Desk) -> None:
    """Newcomers wait in the lobby until the oldest has had his time."""
    held = [desk.answered(desk.connect()) for _ in range(PLACES)]
    newest = desk.connect()
    newest.sendall(b"hello")
    desk.later(STAY_S - 0.01)
    assert all(connection.is_open for connection in held)
    assert len(desk.device.opened) == PLACES
    desk.later(0.01)
    assert [connection.is_open for connection in held] == [False, *[True] * (PLACES - 1)]
    assert len(desk.device.opened) == PLACES + 1


def test_a_place_that_is_given_back_is_had_at_once(desk: Desk) -> None:
    held = [desk.connect() for _ in range(PLACES)]
    connections = [desk.answered(sock) for sock in held]
    held[2].close()
    desk.look()
    desk.say(desk.connect())
    assert connections[0].is_open


def test_who_says_nothing_takes_no_place(desk: Desk) -> None:
    silent = [desk.connect() for _ in range(3 * PLACES)]
    desk.say(desk.connect())
    assert all(map(is_open, silent))


def test_who_waits_in_the_lobby_is_in_nobodys_way(desk: Desk) -> None:
    """Many more than there are places, who come again as soon as they are put out: the next place is the newest's."""
    for _ in range(PLACES):
        desk.answered(desk.connect())
    for _ in range(10 * PLACES):
        desk.connect().sendall(b"hello")
    desk.look()
    assert len(desk.device.opened) == PLACES
    owner = desk.connect()
    owner.sendall(b"owner")
    desk.look()
    desk.later(STAY_S)
    assert len(desk.device.opened) > PLACES
    (his,) = [user for sock, user in desk.listener._strangers.items() if sock.getpeername() == owner.getsockname()]
    assert his.connection is desk.device.opened[PLACES]


def test_the_lobby_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its oldest goes for one more, whether he said something or not."""
    desk.listener._lobby_size = 5
    for _ in range(PLACES):
        desk.answered(desk.connect())
    first, *others = [desk.connect() for _ in range(5)]
    first.sendall(b"hello")
    desk.connect()
    assert not is_open(first)
    assert all(map(is_open, others))
    assert len(desk.listener._lobby) == 5


def test_who_left_the_lobby_is_no_work_for_veilmon(desk: Desk) -> None:
    for _ in range(PLACES):
        desk.answered(desk.connect())
    leaver = desk.connect()
    leaver.sendall(b"hello")
    desk.look()
    leaver.close()
    desk.later(STAY_S)
    assert len(desk.device.opened) == PLACES
    assert not desk.listener._lobby


def test_whom_the_launch_names_stays(desk: Desk) -> None:
    owner = desk.connect()
    connection = desk.say(owner)
    assert connection.on_proven is not None
    connection.on_proven()
    desk.look()
    for _ in range(3 * PLACES):
        desk.connect().sendall(b"hello")
        desk.later(STAY_S)
    desk.later(10 * SILENT_S)
    assert is_open(owner)
    assert connection.is_open


def test_who_does_not_read_is_dropped(desk: Desk) -> None:
    """VeilMon's end is closed; the host has something for him that he does not take."""
    sock = desk.connect()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection = desk.say(sock)
    for user in desk.listener._users:
        user.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    assert connection.on_data is not None
    for _ in range(64):
        connection.on_data(bytes(1 << 16))
    desk.look()
    assert desk.listener._users
    connection.lost()
    desk.later(DRAIN_S / 2)
    assert desk.listener._users
    desk.later(DRAIN_S)
    assert not desk.listener._users


def test_strangers_who_never_read_are_dropped_while_veilmon_waits(desk: Desk) -> None:
    sock = desk.connect()
    connection = desk.say(sock)
    assert connection.on_data is not None
    for _ in range(64):
        connection.on_data(bytes(1 << 18))
    desk.look()
    desk.later(SILENT_S + 1)
    assert not desk.listener._users
    assert not connection.is_open


def test_silent_ones_are_dropped(desk: Desk) -> None:
    silent, speaker = desk.connect(), desk.connect()
    desk.answered(speaker)
    desk.later(SILENT_S + 1)
    assert not is_open(silent)
    assert is_open(speaker)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN])
def test_a_connection_that_cannot_be_taken_in(desk: Desk, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """For want of descriptors or memory, the oldest gives its own back. If that connection failed, nobody does."""
    oldest, other = desk.connect(), desk.connect()
    listener: Any = desk.listener

    class Failing:
        def accept(self) -> None:
            raise OSError(number, "")

    with monkeypatch.context() as patch:
        patch.setattr(listener, "_listening", Failing())
        before = listener._intake.opens
        taken = listener._accept()
    exhausted = number in (errno.EMFILE, errno.ENOMEM)
    assert taken != exhausted
    assert is_open(oldest) != exhausted
    assert is_open(other)
    # A failure that lasts is not tried more often than connections are taken in, and want not at once.
    assert listener._intake.opens >= (desk.now if exhausted else before + 0.5 / ACCEPTS)


def test_not_everybody_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking connections in costs the host's time, too."""
    burst = 8
    monkeypatch.setattr(lobby, "BURST", burst)
    for _ in range(2 * burst):
        desk.connect()
    taken = len(desk.listener._users)
    assert burst <= taken <= burst + 1
    desk.later(1)
    assert len(desk.listener._users) == 2 * burst


def test_no_more_than_veilmon_answers(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that comes while many wait for VeilMon waits in the lobby; none is dropped unheard."""
    monkeypatch.setattr(channel_listener, "STRANGERS", 1000)
    connections = [desk.say(desk.connect()) for _ in range(GREETED)]
    desk.connect().sendall(b"hello")
    desk.later(STAY_S / 2)
    assert len(desk.device.opened) == GREETED
    connections[3].handle(Frame(connections[3].number, FrameKind.CREDIT, bytes(4)))
    desk.look()
    assert len(desk.device.opened) == GREETED + 1


def test_a_veilmon_that_looks_at_nobody_stops_nobody_from_coming(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_listener, "STRANGERS", 1000)
    for _ in range(GREETED):
        desk.say(desk.connect())
    newest = desk.connect()
    desk.later(STAY_S)
    desk.say(newest)


def test_no_descriptors_left(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not tried again and again, and the oldest stranger gives his back."""
    held = [desk.connect(), desk.connect()]

    class Full:
        def __init__(self, sock: socket.socket) -> None:
            self.sock, self.tries = sock, 0

        def fileno(self) -> int:
            return self.sock.fileno()

        def accept(self) -> None:
            self.tries += 1
            raise OSError(24, "Too many open files")

    listener: Any = desk.listener
    real = listener._listening
    full = Full(real)
    listener._selector.unregister(real)
    listener._listening = full
    listener._selector.register(full, selectors.EVENT_READ)
    newest = desk.connect()
    assert full.tries == 1
    assert [is_open(sock) for sock in held] == [False, True]
    listener._listening = real
    desk.later(1)
    desk.say(newest)


def test_a_stay_begins_with_veilmons_answer(desk: Desk) -> None:
    """However late VeilMon comes to a handshake in a full house: its user has time to go on with it."""
    owner = desk.connect()
    connection = desk.say(owner)
    others = [desk.answered(desk.connect()) for _ in range(PLACES - 1)]
    desk.later(STAY_S * 0.9)
    assert connection.on_data is not None
    connection.on_data(b"ServerHello")
    connection.handle(Frame(connection.number, FrameKind.CREDIT, bytes(4)))
    desk.look()
    for _ in range(PLACES - 1):
        desk.connect().sendall(b"hello")
    desk.later(STAY_S * 0.9)
    assert connection.is_open
    assert not any(other.is_open for other in others)


def test_nobody_makes_room_before_veilmon_looked_at_him(desk: Desk) -> None:
    waiting = desk.say(desk.connect())
    done = desk.answered(desk.connect())
    for _ in range(PLACES - 2):
        desk.say(desk.connect())
    desk.connect().sendall(b"hello")
    desk.later(STAY_S)
    assert waiting.is_open
    assert not done.is_open


def test_the_lobby_has_its_share_of_a_core(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However dear it is what those do who come: the next ones wait, in the kernel, as long as that is worth."""
    listener: Any = desk.listener
    hear, cost = listener._hear, 0.1

    def dear(user: object) -> None:
        desk.work += cost
        hear(user)

    monkeypatch.setattr(listener, "_hear", dear)
    begin = desk.now
    for _ in range(10):
        desk.connect().sendall(b"hello")
        desk.look()
        paid = listener._intake._next - begin
        assert paid >= desk.work / LOBBY_SHARE
        assert listener._intake.opens <= begin or len(listener._users) == 1
    assert desk.work == cost
    desk.later(cost / LOBBY_SHARE)
    assert desk.work > cost


def test_what_the_listener_needs_is_told(desk: Desk) -> None:
    desk.work_step = 0.001
    desk.connect()
    assert desk.host.listener_ns >= 1_000_000

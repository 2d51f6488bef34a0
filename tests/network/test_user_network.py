# SPDX-License-Identifier: GPL-2.0-or-later
"""The network in user mode, with libslirp as it is: what a guest reaches, what reaches it, and how it ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.network.frames import FakeCard, arp_request, dhcp_discover, free_port, ping, udp
from veil.cache import Cache
from veil.cvm import Network
from veil.cvm.networks import open_network
from veil.formats.user_network import GATEWAY, GUEST, MAC, NAME_SERVER
from veil.guest.packages import unpacked_library
from veil.network import Forward, LibraryMissing, NetworkError, UserNetwork
from veil.network.slirp import Slirp, load_library

# Where this computer has no libslirp, Debian's package is fetched.
pytestmark = pytest.mark.e2e


@contextmanager
def _plugged(text: str = "user") -> Iterator[FakeCard]:
    with closing(open_network(Network.parse(text), Cache(), print)) as network:
        yield FakeCard(network)


@pytest.fixture
def card() -> Iterator[FakeCard]:
    with _plugged() as card:
        yield card


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A server at this computer's own address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        yield server


def test_who_is_there(card: FakeCard) -> None:
    answer = card.expect(lambda frame: frame[12:14] == b"\x08\x06" and frame[21] == 2)
    assert answer[28:32] == socket.inet_aton(GATEWAY)


def test_dhcp_gives_the_address_that_the_initramfs_has(card: FakeCard) -> None:
    card.network.send(dhcp_discover())
    offer = card.expect(lambda frame: frame[12:14] == b"\x08\x00" and frame[34:38] == b"\0\x43\0\x44")
    assert offer[58:62] == socket.inet_aton(GUEST)
    assert b"\x03\x04" + socket.inet_aton(GATEWAY) in offer
    assert b"\x06\x04" + socket.inet_aton(NAME_SERVER) in offer


def test_a_guest_reaches_this_computer(card: FakeCard, server: socket.socket) -> None:
    card.network.send(udp(b"from the guest", server.getsockname()[1]))
    data, address = server.recvfrom(100)
    assert data == b"from the guest"
    server.sendto(b"to the guest", address)
    frame = card.expect(lambda frame: b"to the guest" in frame)
    assert frame[26:34] == socket.inet_aton(GATEWAY) + socket.inet_aton(GUEST)


#: This computer's own, to whoever sends to them from here.
_OWN_ADDRESSES = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "255.255.255.255"]


@pytest.mark.parametrize("text", ["user,restrict=on", "user,loopback=off"])
def test_a_guest_that_must_not(text: str) -> None:
    """However it asks: libslirp itself would let some of these through, see below."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, _plugged(text) as card:
        server.bind(("", 0))
        for address in (GATEWAY, *_OWN_ADDRESSES):
            card.network.send(udp(b"from the guest", server.getsockname()[1], address=address))
        card.round_trip(7)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(100)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "0.0.0.0"])
def test_what_libslirp_alone_lets_through(address: str) -> None:
    network = Network(loopback=False)
    open_network(network, Cache(), print).close()  # fetches the library, if need be
    places = list((Cache().root / "library").glob("libslirp0_*/usr/lib/x86_64-linux-gnu"))
    try:
        library = load_library()
    except OSError:
        library = load_library([str(place) for place in places])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", 0))
        server.settimeout(60)
        slirp = Slirp(library, lambda frame: None, loopback=False)
        slirp.happened([])
        slirp.input(arp_request())
        slirp.input(udp(b"from the guest", server.getsockname()[1], address=address))
        assert server.recv(100) == b"from the guest"


def test_a_guest_has_only_so_many_connections(card: FakeCard, server: socket.socket) -> None:
    """And goes on with those."""
    number = 0
    for source in range(2000, 3500):
        while not card.network.send(udp(b"one more", server.getsockname()[1], source=source)):
            number += 1
            card.wait(lambda seen=number: card.resumed >= seen)  # type: ignore[misc]
    card.round_trip(1)
    assert 1000 < len(os.listdir(f"/proc/{card.network._process.pid}/fd")) <= 1024
    data, address = server.recvfrom(100)
    assert data == b"one more"
    server.sendto(b"to the first", address)
    card.expect(lambda frame: b"to the first" in frame)


def test_protocols_that_the_network_does_not_have(card: FakeCard) -> None:
    """libslirp answers NC-SI, which is for management controllers."""
    request = b"\xff" * 6 + MAC + b"\x88\xf8" + bytes([0, 1, 0, 1, 0, 0, 0, 0]) + bytes(38)
    card.network.send(request)
    card.network.send(request[:12] + b"\x86\xdd" + bytes(60))
    card.round_trip(1)
    assert not [frame for frame in card.frames if frame[12:14] in (b"\x88\xf8", b"\x86\xdd")]


def test_who_comes_to_a_forwarded_port_reaches_the_guest() -> None:
    port = free_port(socket.SOCK_DGRAM)
    with (
        _plugged(f"user,hostfwd=udp:{port}:5353") as card,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user,
    ):
        card.round_trip(1)
        user.settimeout(5)
        user.sendto(b"a question", ("127.0.0.1", port))
        frame = card.expect(lambda frame: b"a question" in frame)
        assert frame[30:34] == socket.inet_aton(GUEST)
        source, target = frame[34:36], frame[36:38]
        assert int.from_bytes(target) == 5353
        card.network.send(udp(b"an answer", int.from_bytes(source), source=5353))
        assert user.recv(100) == b"an answer"


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = rf"^network: cannot listen at tcp:127\.0\.0\.1:{port}: Address already in use$"
        with pytest.raises(NetworkError, match=words):
            open_network(Network.parse(f"user,hostfwd=tcp:{port}:80"), Cache(), print)


def test_nobody_listens_once_it_is_closed() -> None:
    port = free_port(socket.SOCK_STREAM)
    for _ in range(2):
        with _plugged(f"user,hostfwd=tcp:{port}:80") as card:
            socket.create_connection(("127.0.0.1", port)).close()
        assert card.network._process.returncode == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_card_that_is_busy_stops_the_guests_own_frames(card: FakeCard) -> None:
    """Nobody holds frames without end: neither what the guest does not take nor what it goes on to send."""
    card.busy = True
    sent = 0
    while card.network.send(ping(sent)):
        sent += 1
        assert sent < 100_000
    assert len(card.frames) <= 64
    card.busy = False
    card.network.taken()
    card.wait(lambda: card.resumed > 0)
    card.round_trip(0xFFFF)
    assert not card.unplugged


def test_when_its_process_ends_the_guest_hears_of_it(card: FakeCard) -> None:
    said: list[str] = []
    card.network.on_end = said.append
    os.kill(card.network._process.pid, signal.SIGKILL)
    card.wait(lambda: bool(said))
    assert card.unplugged
    assert said == ["the guest's network is gone: its process ended (signal 9)"]
    # What the guest still sends is lost.
    assert card.network.send(arp_request())
    card.network.taken()


_HOLDER = """
import time
from veil.cache import Cache
from veil.cvm import Network
from veil.cvm.networks import open_network
network = open_network(Network(), Cache(), lambda words: None)
print(network._process.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_the_process_that_has_the_guest() -> None:
    """However that ends."""
    with subprocess.Popen([sys.executable, "-c", _HOLDER], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        process = int(holder.stdout.readline())
        watched = os.pidfd_open(process)
        holder.kill()
    assert select.select([watched], [], [], 60)[0], "it runs on"
    os.close(watched)


def test_it_leaves_nothing_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with _plugged() as card:
            card.network.close()
        assert card.network._thread is not None
        assert not card.network._thread.is_alive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_debians_package() -> None:
    place = unpacked_library(Cache(), "libslirp0")
    assert (place / "usr/lib/x86_64-linux-gnu/libslirp.so.0").exists()
    assert not list(place.rglob("libc.so.6")), "the C library is this computer's"
    with closing(UserNetwork(folders=[place / "lib/x86_64-linux-gnu", place / "usr/lib/x86_64-linux-gnu"])) as network:
        assert str(place) in Path(f"/proc/{network._process.pid}/maps").read_text()
        FakeCard(network).round_trip(1)


def test_a_library_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "libslirp.so.0").write_text("no library")
    with pytest.raises(LibraryMissing, match=r"^libslirp\.so\.0 cannot be loaded: .*libslirp\.so\.0: file too short"):
        UserNetwork(folders=[tmp_path])


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (("icmp", "127.0.0.1", 1, 1), "by tcp or udp"),
        (("tcp", "::1", 1, 1), "is not an IPv4 address"),
        (("tcp", "1\0", 1, 1), "is not an IPv4 address"),
        (("tcp", "127.0.0.1", 0, 1), "from 1 to 65535"),
    ],
)
def test_what_cannot_be_forwarded(forward: tuple[str, str, int, int], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        Forward(*forward)

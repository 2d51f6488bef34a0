# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's network: Debian's own driver, connections in both directions, and none to the world."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.disk_guest import NETWORK, disk_guest
from tests.e2e.snapshots import RunSnapshots
from veil.cvm import ConfidentialVM, Configuration
from veil.errors import VeilError
from veil.formats.user_network import GATEWAY, GUEST

_CONTENT = hashlib.sha256(b"content").digest() * 40_000


@pytest.fixture
def named(snapshots: RunSnapshots, disk_image: Path) -> tuple[Path, list[str]]:
    return disk_guest(snapshots, disk_image)


@contextmanager
def _guest(named: tuple[Path, list[str]], network: str = NETWORK) -> Iterator[ConfidentialVM]:
    path, disks = named
    with ConfidentialVM.restore(path, disks=disks, network=network) as vm:
        yield vm


class _Server:
    """Sends `_CONTENT` to each that comes to it, or keeps what they send."""

    def __init__(self, *, sends: bool) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.came: list[bytes] = []
        self._sends = sends
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection, suppress(OSError):
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        if self._sends:
            head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(_CONTENT)
            connection.recv(4096)
            connection.sendall(head + _CONTENT)
        else:
            with connection.makefile("rb") as stream:
                self.came.append(stream.read())


class _Visitor(threading.Thread):
    """Comes to a port until somebody says something there."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self.heard = b""
        self.start()

    def run(self) -> None:
        while not self.heard:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as connection:
                connection.settimeout(60)
                with connection.makefile("rb") as stream:
                    self.heard = stream.read()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _run(vm: ConfidentialVM, script: str) -> str:
    done = vm.run(["sh", "-c", script])
    assert done.exit_status == 0, done.stderr
    return done.stdout.decode().strip()


def _fetch(vm: ConfidentialVM) -> None:
    with _Server(sends=True) as server:
        said = _run(vm, f"wget -q -O - http://{GATEWAY}:{server.port}/ | sha256sum")
    assert said.split()[0] == hashlib.sha256(_CONTENT).hexdigest()


def _send(vm: ConfidentialVM) -> None:
    with _Server(sends=False) as server:
        said = _run(vm, f"head -c 1000000 /dev/urandom > /tmp/data; nc {GATEWAY} {server.port} < /tmp/data; "
                        "sha256sum /tmp/data")  # fmt: skip
    assert [hashlib.sha256(data).hexdigest() for data in server.came] == [said.split()[0]]


def test_a_guest_reaches_this_computer(named: tuple[Path, list[str]], tmp_path: Path) -> None:
    with _guest(named) as vm:
        assert _run(vm, "readlink /sys/class/net/eth0/device/driver").endswith("/virtio_net")
        _fetch(vm)
        _send(vm)
        # What DHCP would say is how the guest was brought up already.
        script = 'printf "#!/bin/sh\\necho $1 $ip $router\\n" > /tmp/lease; chmod +x /tmp/lease'
        _run(vm, script.replace("$", "\\$"))
        said = _run(vm, "udhcpc -i eth0 -n -q -s /tmp/lease 2>/dev/null; ip route")
        assert f"bound {GUEST} {GATEWAY}" in said
        assert f"default via {GATEWAY} dev eth0" in said
        # When the other end is gone, the guest hears of it and runs on.
        network = vm._attachments.network
        assert network is not None
        os.kill(network._process.pid, signal.SIGKILL)
        _run(vm, "until grep -q 0 /sys/class/net/eth0/carrier; do sleep 0.1; done")
        vm.snapshot(tmp_path / "alone")
    # And that there is one again, when it is restored.
    with _guest((tmp_path / "alone", named[1])) as vm:
        _run(vm, "until grep -q 1 /sys/class/net/eth0/carrier; do sleep 0.1; done")
        _fetch(vm)


def test_who_comes_to_a_forwarded_port_reaches_the_guest(named: tuple[Path, list[str]]) -> None:
    """And only they do: a restricted guest reaches nobody."""
    port = _free_port()
    with _Server(sends=True) as server, _guest(named, f"user,restrict=on,hostfwd=tcp:{port}:8080") as vm:
        assert vm.run(["nc", "-w", "2", GATEWAY, str(server.port)]).exit_status != 0
        visitor = _Visitor(port)
        _run(vm, "echo served by $(hostname) | nc -l -p 8080")
        visitor.join(60)
        assert visitor.heard == b"served by veil\n"


def test_a_snapshot_has_no_connections(named: tuple[Path, list[str]], tmp_path: Path) -> None:
    """What was open is reset as soon as the guest uses it; the guest goes on."""
    path = tmp_path / "snapshot"
    with _Server(sends=False) as server, _guest(named) as vm:
        talk = f"nc {GATEWAY} {server.port} < /tmp/words; echo ended > /tmp/ended"
        _run(vm, f"mkfifo /tmp/words; ({talk}) > /dev/null 2>&1 & sleep 1000 > /tmp/words 2> /dev/null &")
        _run(vm, f"echo first > /tmp/words; until grep -q ':{server.port:04X} 01' /proc/net/tcp; do sleep 0.1; done")
        vm.snapshot(path)
    with _guest((path, named[1])) as vm:
        # It may have used it already: what was not acknowledged is sent again.
        _run(vm, "(echo second > /tmp/words) > /dev/null 2>&1 & until [ -e /tmp/ended ]; do sleep 0.1; done")
        _fetch(vm)


def test_a_snapshot_does_not_choose_its_users_network(named: tuple[Path, list[str]]) -> None:
    path, disks = named
    with pytest.raises(VeilError, match=r"had the network user: name one \(`network`\)"):
        ConfidentialVM.restore(path, disks=disks)


def test_a_port_that_is_taken_is_said_before_anything_boots() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(VeilError, match=f"cannot listen at tcp:127.0.0.1:{port}"):
            ConfidentialVM(network=f"user,hostfwd=tcp:{port}:80").start()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("monitor", "firmware", "vcpus"), [(True, None, 2), (False, None, 1), (True, "debian", 1), (False, "debian", 2)]
)
def test_guests_of_each_kind(monitor: bool, firmware: str | None, vcpus: int) -> None:
    configuration = Configuration.make("512M", vcpus, firmware=firmware, monitor=monitor, network=NETWORK)
    with ConfidentialVM(configuration, fresh=True) as vm:
        _fetch(vm)
        _send(vm)

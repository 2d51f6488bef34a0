# SPDX-License-Identifier: GPL-2.0-or-later
"""`veil serve` in a process of its own, and users who come by TCP: several, slow ones, hostile ones."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.e2e.snapshots import Resume
from veil import installation
from veil.cli.main import veil as cli
from veil.errors import VeilError
from veil.formats.kci_settings import OFF, ON, KciSettings
from veil.formats.log import LOG_GUID, UserCall
from veil.formats.services_manifest import CHANNEL_SERVICE
from veil.formats.status import Status
from veil.remote import ChannelClient, ChannelClosed, RemoteError, RequestFailed, SocketTransport
from veil.remote.channel.identity import UserKey

MEMORY = "512M"
PING = 0


class Served:
    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int) -> None:
        self.process, self.host, self.port = process, host, port

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def client(self, *, owner: bool = False) -> ChannelClient:
        identity = installation.user_key() if owner else None
        return ChannelClient(SocketTransport.connect(self.host, self.port, timeout=20.0), identity=identity)

    def raw(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), 10)


@pytest.fixture(scope="module")
def served(kept: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    where = tmp_path_factory.mktemp("serve") / "address"
    program = [sys.executable, "-c", "from veil.cli import main; main()"]
    process = subprocess.Popen(
        [*program, "serve", "--memory", MEMORY, "--port-file", str(where)],
        # A shell's background jobs, and their children, ignore Ctrl-C: not so this one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not where.exists() or not where.read_text().endswith("\n"):
        assert process.poll() is None, "veil serve ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    host, port = where.read_text().strip().split(":")
    yield Served(process, host, int(port))
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130


def veil(*arguments: str) -> Result:
    done = CliRunner().invoke(cli, list(arguments), standalone_mode=False)
    if done.exception is not None and not isinstance(done.exception, VeilError):
        raise done.exception
    return done


def ping(client: ChannelClient, size: int = 1000) -> None:
    body = os.urandom(size)
    assert client.request(CHANNEL_SERVICE, PING, body) == body


def test_attest_from_elsewhere(served: Served, tmp_path: Path) -> None:
    measured = veil("measure", "--memory", MEMORY, "--json", "--log", str(tmp_path / "log"))
    digest = json.loads(measured.output)["launch_digest"]
    done = veil("attest", "--connect", served.address, "--software", "--measurement", digest)
    assert done.return_value == 0
    assert "verified; machine: software" in done.output
    by_log = veil("attest", "--connect", served.address, "--software", "--launch-log", str(tmp_path / "log"), "--json")
    assert by_log.return_value == 0
    assert "initramfs" in json.loads(by_log.output)["covers"]
    (tmp_path / "root").write_bytes(installation.software_root())
    root = ("--software-root", str(tmp_path / "root"))
    assert veil("attest", "--connect", served.address, *root, "--measurement", digest).return_value == 0


def test_the_state_of_the_code_from_elsewhere(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here of a CVM that is not locked down, unless VEIL_KCI says so; `test_kci_user` has one that is."""
    locked = KciSettings.mode != OFF
    digest = json.loads(veil("measure", "--memory", MEMORY, "--json").output)["launch_digest"]
    of = ("kci", "status", "--connect", served.address, "--software", "--measurement")
    words = "locked down " if locked else "not locked down: this CVM was launched with --kci off"
    assert veil(*of, digest).output.startswith(words)
    assert (json.loads(veil(*of, digest, "--json").output)["locked_ns"] is not None) == locked
    measured = veil("measure", "--memory", MEMORY, "--kci", OFF if locked else ON, "--json")
    other = json.loads(measured.output)["launch_digest"]
    wrong = veil(*of, other)
    assert (wrong.return_value, "locked" in wrong.output) == (1, False)
    stranger = UserKey.generate()
    monkeypatch.setattr(installation, "user_key", lambda: stranger)
    refused = veil(*of, digest)
    assert "--reader" in str(refused.exception)


def test_only_readers_and_owners_read_the_log(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger may be the host itself: he gets no record, and reads what to do about it."""
    with served.client() as stranger:
        for call in UserCall:
            with pytest.raises(RequestFailed) as caught:
                stranger.request(LOG_GUID, call, bytes(16))
            assert caught.value.status == Status.NOT_ALLOWED
    digest = json.loads(veil("measure", "--memory", MEMORY, "--json").output)["launch_digest"]
    of = ("--connect", served.address, "--software", "--measurement", digest, "--to", str(tmp_path / "log"))
    assert "new entries verified" in veil("logs", "fetch", *of).output
    other = UserKey.generate()
    monkeypatch.setattr(installation, "user_key", lambda: other)
    monkeypatch.setattr(installation, "owner_fingerprint", lambda: other.fingerprint)
    key = veil("key").output.strip()
    for command, option in (("fetch", "--reader"), ("follow", "--reader"), ("rules", "--owner"), ("ack", "--owner")):
        # Acknowledging wants a log in the folder, and asks for its head first.
        words = str(veil("logs", command, *of).exception)
        assert f"veil serve {option} {key}" in words, (command, words)


def test_follow_says_that_it_is_connected(served: Served, tmp_path: Path) -> None:
    digest = json.loads(veil("measure", "--memory", MEMORY, "--json").output)["launch_digest"]
    of = ("--connect", served.address, "--measurement", digest, "--to", str(tmp_path / "log"))
    said = [veil("logs", "follow", *of, "--software", "--seconds", "0").stderr.splitlines()[0] for _ in range(2)]
    for line in said:
        assert line.startswith(f"veil: connected to {served.address}, verified (")
        assert "machine: software" in line
    assert "from number 0 on" in said[0]
    assert "from number 0 on" not in said[1]
    # The same command without --software is told about it.
    assert "only with --software" in veil("logs", "follow", *of, "--seconds", "0").stderr


def test_attest_fails_in_words(served: Served) -> None:
    connect = ("attest", "--connect", served.address)
    wrong = veil(*connect, "--software", "--measurement", "00" * 48)
    assert (wrong.return_value, "FAIL  measurement" in wrong.output) == (1, True)
    unbelieved = veil(*connect, "--measurement", "00" * 48)
    assert (unbelieved.return_value, "FAIL  root" in unbelieved.output) == (1, True)
    assert "this installation's own software machine, which is believed only with --software\n" in unbelieved.output
    late = veil(*connect, "--software", "--measurement", "00" * 48, "--at", "2090-01-01")
    assert "expired" in late.output
    nothing = veil(*connect, "--software")
    assert "give --measurement or --launch-log" in str(nothing.exception)
    assert "is not an address" in str(veil("attest", "--connect", "nowhere", "--measurement", "00" * 48).exception)
    assert "cannot connect" in str(veil("attest", "--connect", "127.0.0.1:1", "--measurement", "00" * 48).exception)
    assert "--at" in str(veil(*connect, "--software", "--measurement", "00" * 48, "--at", "soon").exception)
    assert "96 hexadecimal" in str(veil(*connect, "--measurement", "xyz").exception)


def test_somebody_else_at_the_address(tmp_path: Path) -> None:
    """A server that speaks no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        done = veil("attest", "--connect", address, "--measurement", "00" * 48)
        assert "no secure channel" in str(done.exception)


def test_several_users_at_once(served: Served) -> None:
    failures: list[BaseException] = []

    def work(owner: bool) -> None:
        try:
            with served.client(owner=owner) as client:
                for size in (1, 100_000, 300_000) if owner else (1, 1000, 4096):
                    ping(client, size)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_slow_and_hostile_users_block_nobody(served: Served) -> None:
    lazy = served.client(owner=True)  # strangers have to make room when there are too many of them
    for _ in range(6):
        lazy.send(CHANNEL_SERVICE, PING, bytes(500_000))  # and reads none of the answers
    silent = [served.raw() for _ in range(70)]
    garbage = served.raw()
    garbage.sendall(os.urandom(100_000))
    half = served.raw()
    half.sendall(b"\x16\x03\x01\x02\x00")
    with served.client(owner=True) as client:
        start = time.monotonic()
        for _ in range(5):
            ping(client, 200_000)
        assert time.monotonic() - start < 10
    for _ in range(6):
        assert len(lazy.receive().body) == 500_000
    for sock in (*silent, garbage, half):
        sock.close()
    with served.client() as client:
        ping(client)


def test_users_who_leave_in_the_middle(served: Served) -> None:
    for number in range(20):
        client = served.client(owner=number % 2 == 0)
        with contextlib.suppress(ChannelClosed):  # a stranger who says so much may be put out before the end
            client.send(CHANNEL_SERVICE, PING, bytes(200_000))
        client._transport.close()
    with served.client() as client:
        ping(client)


def test_address_in_use(served: Served) -> None:
    done = veil("serve", "--memory", MEMORY, "--listen", served.address)
    assert f"cannot listen at {served.address}" in str(done.exception)


def test_cannot_connect() -> None:
    with pytest.raises(RemoteError, match="cannot connect to 127"):
        SocketTransport.connect("127.0.0.1", 1)


def test_two_vcpus(resume: Resume) -> None:
    """VeilMon works for users on whichever is free, while the other one may be in the middle of it."""
    vm = resume(vcpus=2)
    with ChannelClient(vm.user_transport(timeout=60)) as one:
        with ChannelClient(vm.user_transport(timeout=60), identity=installation.user_key()) as two:
            for _ in range(20):
                ping(one)
                ping(two, 100_000)
        assert vm.run(["grep", "-c", "^processor", "/proc/cpuinfo"]).stdout == b"2\n"
        ping(one)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that are not gdb: what they may ask, and what a hostile one gets."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.debugger.test_gdb_on_bare_metal import KERNEL, SECRET, two_levels
from tests.examples import examples
from veil.bare_metal import CODE, FREE, BareGuest, ExitCode, assemble
from veil.debugger import Killed, Place, session
from veil.debugger.packets import MAX_PACKET, frame
from veil.debugger.registers import REGISTERS
from veil.errors import VeilError
from veil.snp.hosted import hosted_header

LIMIT = 15.0
_SPIN = "again: inc rax\npause\njmp again"


class Peer:
    """Speaks the protocol, without acknowledgements."""

    def __init__(self, address: str) -> None:
        if ":" in address:
            self.socket = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 20)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(20)
            self.socket.connect(address)
        self._come = b""
        assert self.ask("QStartNoAckMode") == "OK"

    def ask(self, request: str) -> str:
        self.socket.sendall(frame(request.encode("latin-1")))
        return self.answer()

    def answer(self) -> str:
        while self._come.find(b"#") + 2 >= len(self._come) or b"#" not in self._come:
            more = self.socket.recv(4096)
            if not more:
                raise EOFError
            self._come += more
        end = self._come.index(b"#")
        data, self._come = self._come[:end], self._come[end + 3 :]
        return data.lstrip(b"+").removeprefix(b"$").decode("latin-1")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def is_closed(self) -> bool:
        try:
            return not self.socket.recv(1)
        except ConnectionError:
            return True


def converse(
    guest: BareGuest,
    tmp_path: Path,
    talk: Callable[[str], None],
    *,
    waits: bool = True,
    end: ExitCode = ExitCode.HLT,
) -> None:
    """Run the guest to its end while a peer talks in another thread; fails as that does."""
    failed: list[BaseException] = []

    def run(address: str) -> None:
        try:
            talk(address)
        except BaseException as error:
            failed.append(error)

    with guest.debugger(str(tmp_path / "socket"), waits=waits, say=lambda _: None) as debugger:
        thread = threading.Thread(target=run, args=(debugger.address,))
        thread.start()
        with suppress(TimeoutError):
            guest.run(seconds=LIMIT)
    thread.join(60)
    if failed:
        raise failed[0]
    assert guest.exits[-1].code == end


def test_stops_goes_on_and_detaches(tmp_path: Path) -> None:
    def talk(address: str) -> None:
        peer = Peer(address)
        assert peer.ask("?") == "T05thread:1;core:0;"
        assert peer.ask(f"Z0,{KERNEL:x},1") == "OK"
        assert peer.ask("vCont;c") == "T05swbreak:;thread:4;core:0;"
        assert peer.ask("qC") == "QC4"
        assert peer.ask("s") == "T05thread:4;core:0;"
        assert peer.ask(f"Z1,{KERNEL + 14:x},1") == "OK"
        # It stands at a breakpoint, and goes on all the same.
        assert peer.ask("c") == "T05hwbreak:;thread:4;core:0;"
        assert peer.ask("D") == "OK"
        assert peer.is_closed()

    with two_levels() as guest:
        converse(guest, tmp_path, talk)
        assert guest.view(0).read_u64(FREE) == 4


def test_an_interrupt_stops_what_runs(tmp_path: Path) -> None:
    def talk(address: str) -> None:
        peer = Peer(address)
        peer.ask("?")
        peer.send(frame(b"c"))
        peer.send(b"\x03")
        assert peer.answer() == "T02thread:1;core:0;"
        rax = next(number for number, register in enumerate(REGISTERS) if register.name == "rip")
        assert peer.ask(f"P{rax:x}={(CODE + 0x100).to_bytes(8, 'little').hex()}") == "OK"
        assert peer.ask("D") == "OK"

    with BareGuest(assemble(_SPIN)) as guest:
        guest.put(CODE + 0x100, b"\xf4")
        converse(guest, tmp_path, talk)


@pytest.mark.parametrize("how", ["connects later", "goes away"])
def test_peers_come_and_go_while_it_runs(how: str, tmp_path: Path) -> None:
    def talk(address: str) -> None:
        if how == "goes away":
            Peer(address).socket.close()
        peer = Peer(address)
        assert peer.ask("?").startswith("T02")
        assert peer.ask(f"Z0,{CODE:x},1") == "OK"
        peer.socket.close()
        last = Peer(address)
        assert last.ask(f"M{CODE + 3:x},1:f4") == "OK"
        last.send(frame(b"c"))
        assert last.answer() == "W00", "the machine ended"

    with BareGuest(assemble(_SPIN)) as guest:
        converse(guest, tmp_path, talk, waits=False)


@pytest.mark.parametrize("steps", [True, False])
def test_a_triple_fault_is_shown_however_it_is_come_to(steps: bool, tmp_path: Path) -> None:
    """By a step, and by going on from a breakpoint, which is one as well."""

    def talk(address: str) -> None:
        peer = Peer(address)
        if steps:
            assert peer.ask("s") == "T05thread:1;core:0;"
            assert peer.ask("s") == "T0bthread:1;core:0;"
        else:
            assert peer.ask(f"Z0,{CODE + 1:x},1") == "OK"
            assert peer.ask("c") == "T05swbreak:;thread:1;core:0;"
            assert peer.ask("c") == "T0bthread:1;core:0;"
        assert peer.ask(f"m{CODE + 1:x},2") == "0f0b"
        peer.send(frame(b"D"))

    with BareGuest(assemble("nop\nud2")) as guest:
        converse(guest, tmp_path, talk, end=ExitCode.SHUTDOWN)


def test_one_peer_at_a_time(tmp_path: Path) -> None:
    def talk(address: str) -> None:
        first = Peer(address)
        second = socket.socket(socket.AF_UNIX)
        second.connect(address)
        assert first.ask("qAttached") == "1"
        assert second.recv(1) == b""
        first.send(frame(b"D"))

    with two_levels() as guest:
        converse(guest, tmp_path, talk)


def test_whoever_says_nothing_keeps_nobody_out(tmp_path: Path) -> None:
    def talk(address: str) -> None:
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(address)
        peer = Peer(address)
        assert silent.recv(1) == b""
        peer.send(frame(b"D"))

    with two_levels() as guest:
        converse(guest, tmp_path, talk)


@pytest.mark.parametrize(
    ("request_text", "answer"),
    [
        ("m", "E16"), ("m1", "E16"), ("m1,", "E16"), ("m,1", "E16"), ("mzz,1", "E16"), ("m-1,1", "E16"),
        (f"m{'f' * 17},1", "E16"), ("mffffffffffffffff,4", "E0e"), (f"m{SECRET:x},1", None), ("M0,2:00", "E16"),
        ("M0,1:0", "E16"), ("G00", "E16"), ("Gzz", "E16"), ("P", "E16"), ("P0", "E16"), ("P0=00", "E16"),
        ("Pffff=00", "E16"), ("pffff", "E16"), ("p", "E16"), ("Z9,0,0", "E16"), ("Z0,", "E16"), ("Z2,0,0", "E16"),
        ("Z2,0,ffffffff", "E16"), ("vCont", "E16"), ("vCont;x", "E16"), ("vCont;s:99", "E16"), ("Hg99", "E16"),
        ("Tff", "E16"), ("qRcmd,zz", "E16"), ("qThreadExtraInfo,99", "E16"),
        ("qXfer:features:read:target.xml:", "E16"),
        ("qXfer:features:read:target.xml:ffffff,10", "l"), ("qXfer:features:read:other.xml:0,10", ""),
        ("vAttach;1", ""), ("X0,0:", ""), ("", ""), ("\x00", ""), ("qSupported", "PacketSize=4000;"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be(request_text: str, answer: str | None, tmp_path: Path) -> None:
    def talk(address: str) -> None:
        peer = Peer(address)
        said = peer.ask(request_text)
        if answer is not None:
            assert said.startswith(answer) if answer.endswith(";") else said == answer
        assert peer.ask("qC") == "QC1"
        peer.send(frame(b"D"))

    with two_levels() as guest:
        converse(guest, tmp_path, talk)


def test_bounds(tmp_path: Path) -> None:
    def talk(address: str) -> None:
        peer = Peer(address)
        assert len(peer.ask("m0,ffffffff")) == MAX_PACKET
        for number in range(256):
            assert peer.ask(f"Z0,{0x700000 + number:x},1") == "OK"
        assert peer.ask("Z0,800000,1") == "E1c"
        for number in range(32):
            assert peer.ask(f"Z2,{0x700000 + number:x},1") == "OK"
        assert peer.ask("Z2,800000,1") == "E1c"
        peer.send(frame(b"D"))

    with two_levels() as guest:
        converse(guest, tmp_path, talk)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"$" + b"a" * 100_000, frame(b"a" * (MAX_PACKET + 1)), b"$qC#b4" * 200]
)
def test_a_hostile_peer_is_shown_the_door_and_the_machine_runs_on(data: bytes, tmp_path: Path) -> None:
    def talk(address: str) -> None:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(20)
        peer.connect(address)
        try:
            peer.sendall(data)
            while peer.recv(4096):
                pass
        except ConnectionError:
            pass
        last = Peer(address)
        assert last.ask(f"M{CODE + 3:x},1:f4") == "OK"
        last.send(frame(b"D"))

    with BareGuest(assemble(_SPIN)) as guest:
        converse(guest, tmp_path, talk, waits=False)


def test_all_registers_there_and_back(tmp_path: Path) -> None:
    def talk(address: str) -> None:
        peer = Peer(address)
        everything = peer.ask("g")
        assert len(everything) == 2 * sum(register.size for register in REGISTERS)
        assert peer.ask(f"G{everything}") == "OK"
        assert peer.ask("g") == everything
        assert "".join(peer.ask(f"p{number:x}") for number in range(len(REGISTERS))) == everything
        peer.send(frame(b"D"))

    with two_levels() as guest:
        before = guest.machine.memory.mapping[0x9000:0xA000]
        converse(guest, tmp_path, talk)
        assert len(before) == 0x1000


def test_the_end_of_the_machine_on_request(tmp_path: Path) -> None:
    with two_levels() as guest, pytest.raises(Killed):
        converse(guest, tmp_path, lambda address: Peer(address).send(frame(b"k")))


_PROGRAM = (
    b"""
class Program:
    def run(self, cpu):
        cpu.view.write(%d, b"honest")
        yield
"""
    % FREE
)
_ARCHIVE = FREE + 0x10000


def _hosted() -> tuple[BareGuest, int]:
    """A guest whose VMPL 0 is Python that has not begun, and where the word is that it will write."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("program_of_this_test.py")
        info.size = len(_PROGRAM)
        tar.addfile(info, io.BytesIO(_PROGRAM))
    archive = buffer.getvalue()
    header = hosted_header("program_of_this_test:Program", archive=(_ARCHIVE, len(archive)), parameters=(FREE, 8))
    guest = BareGuest(header)
    guest.machine.runs_hosted = True
    guest.put(_ARCHIVE, archive)
    return guest, _ARCHIVE + archive.index(b"honest")


@pytest.mark.parametrize("guarded", [True, False])
def test_a_peer_has_no_python_of_his_run(guarded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is Python begins as the image has it. Without the check it is whatever the peer wrote there."""
    if not guarded:
        monkeypatch.setattr(session, "HOSTED_VMPLS", ())
    guest, word = _hosted()

    def talk(address: str) -> None:
        peer = Peer(address)
        answer = "E01" if guarded else "OK"
        assert peer.ask(f"m{word:x},6") == b"honest".hex()
        assert peer.ask(f"M{word:x},6:{b'stolen'.hex()}") == answer
        everything = peer.ask("g")
        assert peer.ask(f"G{everything}") == answer
        assert peer.ask(f"P10={CODE.to_bytes(8, 'little').hex()}") == answer
        # What is machine code can still be changed.
        assert peer.ask("Hg4") == "OK"
        assert peer.ask(f"M{FREE + 8:x},6:{b'kernel'.hex()}") == "OK"
        assert peer.ask(f"P0={bytes(8).hex()}") == "OK"
        assert peer.ask(f"M{word:x},6:{b'stolen'.hex()}") == "E0e"
        peer.send(frame(b"D"))

    with guest:
        guest.permit(0, 3, pages=FREE // 0x1000 + 1)
        guest.add_context(3, rip=FREE)
        converse(guest, tmp_path, talk, end=ExitCode.VMGEXIT)
        assert guest.view(0).read(FREE, 14) == (b"honest" if guarded else b"stolen") + b"\0\0kernel"


_REQUESTS = st.one_of(
    st.binary(max_size=30),
    st.builds(
        lambda head, rest: head + rest,
        st.sampled_from(
            [b"m", b"M", b"g", b"G", b"p", b"P", b"Z0", b"z2", b"H", b"qRcmd,", b"qXfer:threads:read::", b"T"]
        ),
        st.text("0123456789abcdef,:;=-", max_size=24).map(str.encode),
    ),
)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(_REQUESTS, max_size=10))
def test_nonsense_hurts_nobody(requests: list[bytes], tmp_path: Path) -> None:
    """Nothing that goes on, ends or leaves: that is above."""

    def talk(address: str) -> None:
        peer = Peer(address)
        for request in requests:
            if request[:1] not in (b"c", b"s", b"D", b"k", b"v", b"Q", b"C", b"S") and not set(request) & set(b"$#}"):
                peer.ask(request.decode("latin-1"))
        assert peer.ask("qAttached") == "1"
        peer.send(frame(b"D"))

    with BareGuest(b"\xf4") as guest:
        guest.machine.memory.mapping[FREE : FREE + 1] = b"\0"
        with guest.debugger(str(tmp_path / "socket"), say=lambda _: None) as debugger:
            thread = threading.Thread(target=talk, args=(debugger.address,))
            thread.start()
            guest.run(seconds=60)
            thread.join()


class TestPlaces:
    def test_understood(self) -> None:
        assert [Place.parse(text) for text in ("1234", ":1234", "localhost:1", "127.0.0.1:1")] == [
            Place(None, 1234), Place(None, 1234), Place(None, 1), Place(None, 1),
        ]  # fmt: skip
        assert Place.parse("/tmp/x") == Place(Path("/tmp/x"))

    @pytest.mark.parametrize("text", ["0.0.0.0:1234", "192.0.2.1:1", "example.org:1", "99999", "", "/" + "x" * 200])
    def test_refused(self, text: str) -> None:
        with pytest.raises(VeilError):
            Place.parse(text)

    def test_a_socket_is_its_owners_alone(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            place = Place.parse(str(tmp_path / "socket"))
            listener = place.listen()
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "socket").lstat().st_mode) == 0o700
        with pytest.raises(VeilError, match="cannot listen for gdb"):
            place.listen()
        place.close(listener)
        assert not (tmp_path / "socket").exists()

    def test_a_port_is_this_computers_alone(self) -> None:
        listener = Place.parse("0").listen()
        assert listener.getsockname()[0] == "127.0.0.1"
        assert Place.describe(listener).startswith("127.0.0.1:")
        listener.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command prints of others is visible: no control character of theirs gets to the terminal, from anywhere."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import veil.cvm
from tests.cli.desk_connection import connect_to
from tests.cli.written_log import write_log
from tests.remote.attestation.model_chain import MODEL
from tests.services.log.desk import Desk
from tests.snp.chip import chip
from veil.cli import main
from veil.cli.main import veil as veil_group
from veil.errors import VeilError
from veil.formats.certificate_table import ARK, ASK, VCEK, pack_certificates
from veil.formats.channel import MessageReader, Response, pack_response
from veil.formats.log import AuditRecord, KernelCall, pack_records
from veil.formats.status import Status
from veil.host.knocks import Doorkeeper
from veil.monitor.channel.tls import ChannelKey, TlsFailed

Veil = Callable[..., tuple[int, str, str]]

HOSTILE = "\r\x1b[2K\x1b[32mverified (22 checks); machine: AMD Milan\n\x9bA\u202e\u2028\x07\x7f\x1b[8m"
SAYS = HOSTILE.encode() + b"\x9b2J\x85\xff"
COMMANDS = {
    "run": ("--", "true"), "shell": (), "boot": (), "serve": (), "attest": ("--software",), "measure": (),
    "gdb": (), "inspect": (), "demo": (), "cache list": (), "cache clear": (), "doctor": ("--no-engine",), "key": (),
    "verify": ("report", "--certificates", "table"),
    "logs verify": ("--to", "log"), "logs export": ("--to", "log", "--directory", "lines"),
    "logs fetch": (), "logs follow": ("--seconds", "0"), "logs rules": (), "logs ack": ("--to", "log"),
    "kci status": (), "enclave build": ("program",), "enclave inspect": ("image",), "enclave attest": ("--software",),
    "enclave provision": ("--software", "image", "name", "file"),
}  # fmt: skip
"""each command, with arguments by which it meets something hostile in one of the tests here"""
REMOTE = ("attest", "enclave attest", "kci status", "logs fetch", "logs follow", "logs rules")


def _leaves(group: click.Group, before: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _leaves(command, f"{before}{name} ")
        else:
            yield before + name


def test_all_commands_are_here() -> None:
    assert set(_leaves(veil_group)) == set(COMMANDS)


@pytest.fixture
def veil_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Veil:
    """Runs a command and looks at every byte that it prints."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["veil", *name.split(), *arguments])
        monkeypatch.setattr("sys.stdin", None)
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = (part.decode() for part in capfdbinary.readouterr())
        for text in (out, err):
            assert text.replace("\n", "").isprintable(), ascii(text)
            assert len(re.findall("^verified", text, re.MULTILINE)) <= (name == "logs verify"), text
        return int(caught.value.code or 0), out, err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    chip()._save(tmp_path / "data" / "veil" / "machine")
    return run


@pytest.mark.parametrize("error", [VeilError, OSError, RuntimeError])
@pytest.mark.parametrize("name", ["run", "shell", "boot", "serve", "attest", "measure", "inspect", "demo"])
def test_errors(monkeypatch: pytest.MonkeyPatch, veil_command: Veil, name: str, error: type[Exception]) -> None:
    """Whatever it was, and whoever's words are in it, a trace of ours included; and it is nobody's verdict."""

    def fail(*_: object, **__: object) -> None:
        raise error(HOSTILE)

    monkeypatch.setattr(veil.cvm, "ConfidentialVM", fail)
    status, out, err = veil_command(name, *COMMANDS[name])
    assert (status, out) == (125, "")
    assert "\\x1b[32mverified" in err
    assert error is not VeilError or err.count("\n") == 1


def test_names_of_files(veil_command: Veil) -> None:
    name = HOSTILE.replace("/", "")
    options = ("verify", "--vcek"), ("attest", "--policy"), ("logs verify", "--to"), ("verify", f"--no{name}")
    for command, option in options:
        status, _, err = veil_command(command, option, name, *(("report",) if command == "verify" else ()))
        assert status in (2, 125)
        assert "\\x1b[32mverified" in err


@pytest.mark.parametrize("command", ["enclave build", "enclave inspect", "enclave provision"])
def test_names_of_programs_and_images(veil_command: Veil, command: str) -> None:
    more = ("name", "file", "--connect", "127.0.0.1:1", "--software") if command == "enclave provision" else ()
    status, out, err = veil_command(command, HOSTILE.replace("/", ""), *more)
    assert (status, out) == (125, "")
    assert "\\x1b[32mverified" in err


def test_the_name_of_the_cache(veil_command: Veil, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / HOSTILE))
    (tmp_path / HOSTILE / "veil" / HOSTILE).mkdir(parents=True)
    for command in ("cache list", "doctor"):
        assert "\\x1b[32mverified" in veil_command(command, *COMMANDS[command])[1]
    assert veil_command("cache clear")[0] == 0


def test_certificates(veil_command: Veil, tmp_path: Path) -> None:
    model = replace(MODEL, ask_name="X\x1b[32mverified\n\u202e", ask="the host's own")
    der = {
        guid: item.public_bytes(Encoding.DER)
        for guid, item in ((VCEK, model.leaf), (ASK, model.intermediate), (ARK, model.root))
    }
    (tmp_path / "table").write_bytes(pack_certificates(der))
    (tmp_path / "report").write_bytes(model.report())
    for more in ((), ("--json",)):
        status, out, _ = veil_command("verify", *COMMANDS["verify"], *more)
        assert status == 1
        assert "[32mverified" in out


@pytest.fixture
def liar() -> Iterator[str]:
    """HOST:PORT of somebody who answers each request with a refusal of his own wording."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _answer(server: socket.socket) -> None:
    connection, _ = server.accept()
    end, reader = ChannelKey().accept(), MessageReader()
    with connection, contextlib.suppress(OSError, TlsFailed):
        # They knock first.
        knock = Doorkeeper(()).hear()
        while not knock.over and (data := connection.recv(knock.wants)):
            connection.sendall(knock.heard(data) or b"")
        if knock.words:
            end.receive(knock.words)
        while data := connection.recv(1 << 16):
            reader.feed(end.receive(data))
            connection.sendall(end.take())
            while (request := reader.request()) is not None:
                end.send(pack_response(Response(request.number, Status.UNAVAILABLE, SAYS + b"x" * 100_000)))
                connection.sendall(end.take())


@pytest.mark.parametrize("name", REMOTE)
def test_refusals(veil_command: Veil, liar: str, name: str) -> None:
    status, out, err = veil_command(name, "--connect", liar, "--measurement", "00" * 48, *COMMANDS[name])
    assert (status, out) == (125, "")
    assert "the other end refused the request (unavailable): '\\r\\x1b[2K\\x1b[32mverified" in err
    assert len(err) < 1000


RECORDS = (
    AuditRecord(1300, b"audit(1700000000.000:1): " + SAYS),
    AuditRecord(1300, SAYS),
    AuditRecord(1305, b"audit(1700000000.000:2): op=add_rule " + SAYS),
    AuditRecord(1305, b"audit(1700000000.000:3): op=set audit_enabled=0" + SAYS),
    AuditRecord(1300, b"audit(1700000000.000:4): " + SAYS + b"x" * 60_000),
)
INTENT = b'audit(1700000000.000:2147483649): pid=1 msg=\'veil-intent op=module comm="x" ' + SAYS + b"'"


def test_records_in_a_folder(veil_command: Veil, tmp_path: Path) -> None:
    write_log(tmp_path / "log", *RECORDS)
    assert veil_command("logs verify", *COMMANDS["logs verify"], "--json")[0] == 3
    status, out, _ = veil_command("logs verify", *COMMANDS["logs verify"])
    assert status == 3
    assert "[32mverified" in out
    assert veil_command("logs export", *COMMANDS["logs export"])[0] == 0
    (lines,) = Path("lines").glob("*.jsonl")
    assert lines.read_bytes().count(b"\n") == len(RECORDS)
    assert all(byte >= 0x20 or byte == 0x0A for byte in lines.read_bytes())


def test_records_that_come(veil_command: Veil, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()

    connect_to(desk, monkeypatch)
    desk.kernel(KernelCall.RECORDS, pack_records(RECORDS))
    desk.kernel(KernelCall.INTENT, pack_records([AuditRecord(1121, INTENT)]))
    connect = ("--connect", "127.0.0.1:1")
    for form in ("audit", "json"):
        status, out, err = veil_command("logs follow", *connect, "--seconds", "0", "--to", form, "--format", form)
        assert status == 0
        assert "[32mverified" in out
        assert "TROUBLE" in err
    assert "TROUBLE" in veil_command("logs fetch", *connect, "--to", "one")[2]
    assert veil_command("logs fetch", *connect, "--to", "two", "--json")[0] == 0


def test_what_a_guest_says(veil_command: Veil, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent, when a command cannot be started; its kernel, on the console."""
    from veil.guest.agent import protocol as agent_protocol
    from veil.host.panic_messages import PanicWatcher

    assert agent_protocol._text(SAYS).isprintable()
    panics: list[str] = []
    watcher = PanicWatcher(lambda panic: panics.append(str(panic)))
    watcher.feed(b"Kernel panic - not syncing: " + SAYS + b"\n---[ end Kernel panic\n")
    assert panics[0].isprintable()

    class _Cvm:
        boot_seconds = 1.0

        def __init__(self, *_: object, **__: object) -> None:
            self.machine = self.secure_processor = self
            self.measurement = bytes(48)

        def boot(self, console: Callable[[bytes], None]) -> None:
            console(b"one line\r\n" + SAYS)

        def close(self) -> None:
            pass

    monkeypatch.setattr(veil.cvm, "ConfidentialVM", _Cvm)
    _, out, _ = veil_command("boot", "--console")
    assert "one line\n\\r\\x1b[2K\\x1b[32mverified" in out

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands print: through one place, visible, and noticed if it cannot be written."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import veil.cli
from tests.cli.written_log import write_log
from tests.remote.attestation.model_chain import MODEL
from veil.cli.output import Console
from veil.formats.log import AuditRecord

_PROGRAM = "from veil.cli import main; main()"
_SOURCES = Path(veil.cli.__file__).parent
_CASES = {
    "help": (("measure", "--help"), 0),
    "verified": (("verify", "report", "--certificates", "table", "--software-root", "root"), 0),
    "not verified": (("verify", "report", "--certificates", "table", "--json"), 1),
    "trouble": (("logs", "verify", "--to", "trouble"), 3),
    "doctor": (("doctor", "--no-engine"), 0),
}
"""arguments, and the status with an stdout that takes all"""


def test_nobody_else_prints() -> None:
    """A command that wrote past `output` would show what others say as they say it."""
    printing = {"print", "echo", "secho", "echo_via_pager", "write", "writelines"}
    for path in _SOURCES.glob("*.py"):
        if path.name == "output.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                assert name not in printing, f"{path.name}:{node.lineno}: {name}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sys":
                assert node.attr not in ("stdout", "stderr"), f"{path.name}:{node.lineno}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from veil.formats.certificate_table import ARK, ASK, VCEK, pack_certificates

    path = tmp_path_factory.mktemp("inputs")
    der = {
        guid: certificate.public_bytes(Encoding.DER)
        for guid, certificate in ((VCEK, MODEL.leaf), (ASK, MODEL.intermediate), (ARK, MODEL.root))
    }
    (path / "report").write_bytes(MODEL.report())
    (path / "table").write_bytes(pack_certificates(der))
    (path / "root").write_bytes(der[ARK])
    off = b"audit(1700000000.000:1): op=set audit_enabled=0 old=1 res=1"
    write_log(path / "trouble", AuditRecord(1305, off))
    return path


def _veil(folder: Path, name: str, prepare: Callable[[], None] | None = None) -> tuple[int, str]:
    """Status and stderr (stdout's, too, unless `prepare`, in the child, has moved it)."""
    environment = {**os.environ, "PYTHONPATH": str(_SOURCES.parents[1]), "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *_CASES[name][0]],
        cwd=folder, env=environment, capture_output=True, text=True, preexec_fn=prepare, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def _to(path: str, *descriptors: int) -> None:
    for descriptor in descriptors:
        os.dup2(os.open(path, os.O_WRONLY), descriptor)


def _closed_pipe(*descriptors: int) -> None:
    read, write = os.pipe()
    os.close(read)
    for descriptor in descriptors:
        os.dup2(write, descriptor)


@pytest.mark.parametrize("name", _CASES)
def test_output_that_cannot_be_written(folder: Path, name: str) -> None:
    assert _veil(folder, name)[0] == _CASES[name][1]
    status, words = _veil(folder, name, lambda: _to("/dev/full", 1))
    assert (status, words.count("\n")) == (125, 1)
    assert re.fullmatch("veil: .*No space left on device\n", words)
    assert _veil(folder, name, lambda: _closed_pipe(1)) == (141, "")


def test_a_closed_stdout(folder: Path) -> None:
    status, words = _veil(folder, "verified", lambda: os.close(1))
    assert (status, words) == (125, "veil: cannot write the output: Bad file descriptor\n")


@pytest.mark.parametrize("name", ["not verified", "trouble"])
def test_nobody_reads_stderr(folder: Path, name: str) -> None:
    """The verdict is on stdout, and in the status."""
    due = _CASES[name][1]
    assert _veil(folder, name, lambda: _to("/dev/full", 2))[0] == due
    assert _veil(folder, name, lambda: os.close(2))[0] == due
    assert _veil(folder, name, lambda: _to("/dev/full", 1, 2))[0] == 125
    assert _veil(folder, name, lambda: _closed_pipe(1, 2))[0] == 141


def test_a_console() -> None:
    lines: list[str] = []
    console = Console(lines.append)
    for part in (b"one\r", b"\ntw", b"o\x1b[2J\tx\r\nver", b"ified\r\rfalse\n", b"x" * 2000, b"login: "):
        console.feed(part)
    console.close()
    assert lines == ["one", "two\\x1b[2J x", "verified\\r\\rfalse", "x" * 2000, "login: "]

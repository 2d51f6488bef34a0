# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that a newcomer gives a command wrongly is one line that begins with "veil: ", and a documented status."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from veil.cli import main

#: docs/troubleshooting.md
_DOCUMENTED = (1, 2, 3, 125, 126, 127, 130, 141)
_DOUBLED = re.compile(r"\b([a-z]{2,})\b[\s:,.;()'\"]+\1\b", re.IGNORECASE)
_DIGEST = "00" * 48
_HERE = ("--connect", "127.0.0.1:1", "--measurement", _DIGEST)

# {0} is a place that is not there, {d} a folder, {e} an empty file, {b} a file of bytes that are no text, {h} a huge
# sparse file.
_USAGE = (
    "nosuch", "run", "run --memoy 4G -- true", "run --memory", "run --vcpus 9 -- true", "run --vcpus x -- true",
    "run --timeout soon -- true", "shell extra", "shell --nosuch", "boot --vcpus 0", "serve extra", "measure --nosuch",
    "measure --log-full never", "verify", "verify a b", "attest extra", "inspect --png", "inspect extra",
    "doctor extra", "cache nosuch", "cache list extra", "demo extra", "logs nosuch", "logs fetch",
    "logs follow --connect x:1 --format xml", "logs verify --silence 0", "logs verify --untrusted-from -1",
    "logs rules --connect x:1 a b", "--nosuch", "key extra", "kci status",
    "kci nosuch", "run --kci maybe -- true", "boot --kci",
    "measure --kci on --kci-keys all",
    "run --memory many -- true", "run --memory 99999999999999999999999G -- true", "run --file x -- true",
    "run --file :x -- true", "run --get x: -- true", "shell --memory many", "measure --memory many",
    "measure --owner 12", "measure --log-memory lots", "measure --service log", "measure --service disk:size=1",
    "measure --reader zz", "serve --listen nowhere", "serve --listen 127.0.0.1:99999",
    "serve --listen 127.0.0.1:http", "serve --owner xy",
    "attest --at soon", "attest --measurement xyz", "verify {e} --measurement xyz", "verify {e} --at soon",
    "measure --service kci:mode=maybe",
    "inspect --kci on --kci-hash 00", "measure --kci on --kci-writable a-b/c",
    *(f"{command} --connect nowhere --measurement {_DIGEST}" for command in ("attest", "logs fetch", "kci status")),
    "logs fetch --to {d} --at soon " + " ".join(_HERE),
    "measure --kci on " + " ".join(f"--kci-hash {number:064x}" for number in range(60)),
)  # fmt: skip
_FAILURES = (
    "run --memory 3M -- true", "run --memory 0 -- true", "run --memory 900G -- true", "run --kernel {0} -- true",
    "run --kernel {d} -- true", "run --kernel {e} -- true", "run --kernel {b} -- true", "run --kernel {h} -- true",
    "boot --memory 3M", "boot --kernel {e}", "inspect --memory 3M", "measure --kernel {0}", "serve --memory 3M",
    "verify {0}", "verify {d}", "verify {e} --vcek {e}", "verify {0} --vcek {0}", "verify {e} --chain {d}",
    "verify {b} --chain {b}", "verify {e} --certificates {e}", "verify {e} --certificates {b}",
    "verify {e} --vcek {e} --policy {0}", "verify {e} --policy {d}", "verify {e} --policy {b}",
    "verify {e} --vcek {e} --report-data 00",
    "attest --no-monitor", "attest --policy {0}", "attest --policy {b}", "attest --chain {e}", "attest --crl {0}",
    "attest --launch-log {0}", "attest --launch-log {b}",
    "attest --software-root {0}", "attest --software-root {e}", "attest --connect 127.0.0.1:1",
    "attest --connect 127.0.0.1:1 --measurement " + _DIGEST,
    "logs fetch --connect 127.0.0.1:1",
    "logs fetch --to {e} " + " ".join(_HERE), "logs fetch --to {d} " + " ".join(_HERE),
    "logs fetch --to {d} --chain {e} " + " ".join(_HERE),
    "logs follow --to {d} --directory {e} " + " ".join(_HERE), "logs rules {0} " + " ".join(_HERE),
    "logs rules {d} " + " ".join(_HERE), "logs ack --to {0} " + " ".join(_HERE),
    "logs verify --to {0}", "logs verify --to {e}", "logs verify --to {d}", "logs export --to {d}",
    "logs export --to {0} --directory {d}", "logs export --to {d} --directory {e}",
    "logs export --to {d} --otlp nonsense", "kci status --connect 127.0.0.1:1",
    "kci status " + " ".join(_HERE),
    "run --kci on --no-monitor -- true", "boot --kci halt --no-monitor", "shell --kci-hash " + "00" * 32,
    "run --kci-writable full_fops -- true", "measure --kci on --kci-writable nosuch",
    "attest --kci off --kci-keys none", "measure --kci on --kci-certificate {0}",
    "run --kci on --kci-certificate {b} -- true",
    "run --net tap -- true", "measure --net user,hostfwd=tcp:0:80", "boot --net user,restrict=maybe",
)  # fmt: skip


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 20)
    with open(tmp_path / "huge", "wb") as stream:
        stream.truncate(1 << 40)
    monkeypatch.chdir(tmp_path)
    names = {"d": "folder", "e": "empty", "b": "bytes", "h": "huge"}
    return {"0": str(tmp_path / "gone"), **{key: str(tmp_path / name) for key, name in names.items()}}


def _run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["veil", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), *capfd.readouterr()


def _fill(command: str, places: dict[str, str]) -> list[str]:
    return [re.sub(r"\{(\w)\}", lambda match: places[match[1]], word) for word in command.split()]


_PROGRESS = ("veil: building ", "veil: fetching ", "veil: extracting ")


def _check_line(err: str) -> None:
    assert "Traceback" not in err
    # With an empty cache the first of these commands says what it makes before it fails.
    lines = [line for line in err.splitlines() if not line.startswith(_PROGRESS)]
    assert len(lines) == 1, err
    assert lines[0].startswith("veil: ")
    words = lines[0].removeprefix("veil: ")
    assert len(words) < 600, words
    # Names of files and quoted text are the user's.
    said = re.sub(r"/\S+|'[^']*'|\"[^\"]*\"", "_", words)
    assert not _DOUBLED.search(said), words
    assert "veil: " not in words
    assert not re.search(r"\[Errno|<class|Error\(|0x[0-9a-f]{12}", words), words


@pytest.mark.parametrize("command", _USAGE)
def test_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], places: dict[str, str], command: str
) -> None:
    status, out, err = _run(monkeypatch, capfd, *_fill(command, places))
    assert (status, out) == (2, "")
    _check_line(err)


@pytest.mark.parametrize("command", _FAILURES)
def test_what_cannot_be_done(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], places: dict[str, str], command: str
) -> None:
    status, out, err = _run(monkeypatch, capfd, *_fill(command, places))
    assert (status, out) == (125, "")
    assert status in _DOCUMENTED
    _check_line(err)


def test_names_that_are_no_text(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], places: dict[str, str]
) -> None:
    odd = os.fsdecode(b"\xff\xfe\x1b[31m")
    for arguments in (("verify", odd, "--vcek", odd), ("logs", "verify", "--to", odd), ("run", "--kernel", odd, "x")):
        status, out, err = _run(monkeypatch, capfd, *arguments)
        assert (status, out) == (125, "")
        _check_line(err)
        assert "\x1b" not in err


@pytest.mark.parametrize("command", ["run", "shell", "attest", "verify", "doctor", "logs verify", ""])
def test_help_says_the_statuses(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    status, out, err = _run(monkeypatch, capfd, *command.split(), "--help")
    assert (status, err) == (0, "")
    assert "Exit status: " in out


@pytest.mark.parametrize("command", ["run -- true", "boot", "shell", "serve", "measure", "attest", "inspect"])
def test_a_full_disk_while_the_engine_is_built(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("veil.snp._engine_library.compile_engine", full)
    status, out, err = _run(monkeypatch, capfd, *command.split())
    assert (status, out) == (125, "")
    _check_line(err)
    assert "the disk is full: cannot store the CPU engine in" in err

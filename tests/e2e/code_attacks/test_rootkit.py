# SPDX-License-Identifier: GPL-2.0-or-later
"""A rootkit hides a file by the methods of public ones: if nobody vouches for it, and if somebody does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.e2e.code_attacks.guests import CodeGuest, build
from tests.e2e.log_guest import log_reader
from veil.cli.main import veil as cli
from veil.remote.log.folder import LogFolder
from veil.services.kci import KernelCode

SHOWN, HIDDEN = "shown-file", "hidden-file"
_FOLDER = "/root/files"
_FINDINGS = 3


def _hide(guest: CodeGuest, code: KernelCode, method: str, file: str) -> tuple[int, list[str]]:
    """insmod's exit status, and the names that the directory has then."""
    symbols = code.image.symbols
    wanted = {
        "getdents": hex(symbols["__x64_sys_getdents64"]),
        "dispatcher": hex(symbols["x64_sys_call"]),
        "dispatcher_size": hex(symbols["ia32_sys_call"] - symbols["x64_sys_call"]),
        "directory": _FOLDER,
        "method": method,
    }
    words = " ".join(f"{name}={value}" for name, value in wanted.items())
    assert guest.sh(f"mkdir -p {_FOLDER}; touch {_FOLDER}/{SHOWN} {_FOLDER}/{HIDDEN}") == (0, "")
    status, _ = guest.sh(f"insmod /root/{file}.ko {words}")
    listed, names = guest.sh(f"ls {_FOLDER}")
    assert listed == 0
    return status, sorted(names.split())


def _stranger(guest: CodeGuest, folder: Path) -> bytes:
    """The rootkit once more, as a file that the policy does not name."""
    file = build("rootkit") + bytes(8)
    guest.put("stranger", file, folder)
    return file


def _verified(guest: CodeGuest, folder: Path) -> tuple[int, str]:
    """What `veil logs verify` says of the log, fetched by its owner."""
    place = LogFolder(folder)
    with place.lock():
        reader = log_reader(guest.vm, place.known(), timeout=60)
        entries = list(reader.fetch(reader.head()))
        place.add(entries, reader.state)
    done = CliRunner().invoke(cli, ["logs", "verify", "--to", str(folder)], standalone_mode=False)
    assert done.exception is None, done.output
    return int(done.return_value), done.output


@pytest.mark.parametrize("method", ["dispatch", "ftrace", "data"])
def test_off_it_hides_files(unlocked: CodeGuest, code: KernelCode, tmp_path: Path, method: str) -> None:
    _stranger(unlocked, tmp_path)
    assert _hide(unlocked, code, method, "stranger") == (0, [SHOWN])
    assert unlocked.sh(f"rmmod rootkit; ls {_FOLDER}") == (0, f"{HIDDEN}\n{SHOWN}\n")


def test_nobody_vouches_for_it(locked: CodeGuest, code: KernelCode, tmp_path: Path) -> None:
    file = _stranger(locked, tmp_path)
    for method in ("dispatch", "ftrace", "data"):
        status, names = _hide(locked, code, method, "stranger")
        assert status
        assert names == [HIDDEN, SHOWN]
    status, said = _verified(locked, tmp_path / "log")
    assert status == _FINDINGS
    assert f"its hash {hashlib.sha256(file).hexdigest()} is not listed" in said


@pytest.mark.parametrize("method", ["ftrace", "data"])
def test_what_code_integrity_does_not_stop(locked: CodeGuest, code: KernelCode, method: str) -> None:
    """Who has verified code do it, by means that the kernel has: a hook of the tracer, a pointer in its data."""
    known = locked.status().violations
    assert _hide(locked, code, method, "rootkit") == (0, [SHOWN])
    assert locked.status().violations == known
    assert locked.sh(f"rmmod rootkit; ls {_FOLDER}") == (0, f"{HIDDEN}\n{SHOWN}\n")


def test_it_does_not_patch_the_kernel_even_if_somebody_vouches(
    locked: CodeGuest, code: KernelCode, tmp_path: Path
) -> None:
    status, names = _hide(locked, code, "dispatch", "rootkit")
    assert status
    assert names == [HIDDEN, SHOWN]
    assert locked.violations()[-1].detail["symbol"].startswith("x64_sys_call+")
    status, said = _verified(locked, tmp_path / "log")
    assert status == _FINDINGS
    assert "x64_sys_call+" in said

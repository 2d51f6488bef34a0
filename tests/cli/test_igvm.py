# SPDX-License-Identifier: GPL-2.0-or-later
"""veil run, boot and measure --igvm."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.debugger.test_session import Peer
from tests.igvm_writer import IgvmWriter, vmsa
from tests.image.igvm_guest import GUEST, two_levels, words
from veil.cli.main import veil
from veil.debugger.packets import frame
from veil.errors import VeilError

_SAID = words(2).decode()


@pytest.fixture
def guest(tmp_path: Path) -> str:
    """A file whose guest prints a line and switches off."""
    path = tmp_path / "two.igvm"
    path.write_bytes(two_levels().write())
    return str(path)


def _veil(*arguments: str) -> Result:
    return CliRunner().invoke(veil, arguments, catch_exceptions=False)


def test_run_shows_its_console(guest: str) -> None:
    done = _veil("run", "--igvm", guest, "--memory", "16M")
    assert (done.exit_code, done.stdout) == (0, _SAID)


def test_boot_and_measure_say_the_same_digest(guest: str) -> None:
    measured = _veil("measure", "--igvm", guest, "--memory", "16M", "--json")
    booted = _veil("boot", "--igvm", guest, "--memory", "16M", "--json")
    said, was = json.loads(measured.stdout), json.loads(booted.stdout)
    assert said["launch_digest"] == was["launch_digest"]
    assert said["pages"] == {"pages": 9, "VMSA": 2}
    assert said["made_from"]["packages"] == f"IGVM file {guest}"
    assert _SAID.strip() in booted.stderr


@pytest.mark.parametrize(
    "more",
    [["--", "true"], ["--json"], ["--timeout", "5"], ["--file", "a:/b"], ["--get", "/a:b"], ["--enclave", "a.enclave"]],
    ids=lambda more: more[0] + more[-1],
)
def test_it_takes_no_commands(guest: str, more: list[str]) -> None:
    done = _veil("run", "--igvm", guest, *more)
    assert done.exit_code == 2
    assert "nobody in an IGVM file takes commands or files" in done.stderr


def test_gdb_comes_before_its_first_instruction(guest: str, tmp_path: Path) -> None:
    place, said = tmp_path / "socket", list[str]()

    def talk() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                peer = Peer(str(place))
                break
            time.sleep(0.01)
        said.extend(peer.ask(text) for text in ("?", f"Z0,{GUEST:x},1", "c"))
        peer.send(frame(b"D"))

    thread = threading.Thread(target=talk)
    thread.start()
    done = _veil("gdb", "--igvm", guest, "--memory", "16M", "--listen", str(place))
    thread.join()
    assert said == ["T05thread:1;core:0;", "OK", "T05swbreak:;thread:3;core:0;"]
    assert (done.exit_code, _SAID in done.output) == (0, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--kernel", "6.1"], "an IGVM file has all that the guest begins with"),
        (["--firmware", "debian"], "an IGVM file has all that the guest begins with"),
        (["--kci", "on"], "kernel code integrity needs VeilMon: --kci off, or leave out --igvm"),
        (["--enclaves"], "enclaves need VeilMon: leave out --igvm"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_does_not_go_with_it(guest: str, more: list[str], message: str) -> None:
    with pytest.raises(VeilError, match=message):
        _veil("measure", "--igvm", guest, *more)


def test_what_no_machine_launches(tmp_path: Path) -> None:
    """It is measured, to tell what is wrong and what the digest would be."""
    path = tmp_path / "guest.igvm"
    path.write_bytes(IgvmWriter().platform().policy(5).context(0x1000, vmsa(0)).write())
    with pytest.raises(
        VeilError, match=r"no machine launches it; its digest is \w{96}; policy 0x5: bit 17 must be one"
    ):
        _veil("measure", "--igvm", str(path))
    with pytest.raises(VeilError, match="cannot read the IGVM file"):
        _veil("measure", "--igvm", str(tmp_path / "missing"))
    path.write_bytes(b"IGVM")
    with pytest.raises(VeilError, match="this is not an IGVM file"):
        _veil("boot", "--igvm", str(path))

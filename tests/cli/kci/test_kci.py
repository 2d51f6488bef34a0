# SPDX-License-Identifier: GPL-2.0-or-later
"""veil kci, and what the command line says of the code that a kernel may run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.snp.chip import chip
from veil.cli import main
from veil.cli.cvm_options import CvmOptions
from veil.cli.service_options import SERVICE_OPTIONS
from veil.errors import VeilError
from veil.formats.kci_settings import HALT, OFF, ON, KciSettings
from veil.formats.kci_status import KciStatus, ModuleStatus

Veil = Callable[..., tuple[int, str, str]]
HOSTILE = "\r\x1b[2Kverified\n\u202e"
LOOP = ModuleStatus(1, "loop", "", "Debian Secure Boot CA", "ab" * 32, 8192, True)
LOCKED = KciStatus(
    ON,
    4_500_000_000,
    text_pages=4096,
    read_only_pages=1200,
    explained={"return": 30, "alternative": 2000},
    patches={"jump label": {f"function_{number}": number for number in range(1, 9)}, "static call": {"schedule": 1}},
    violations=2,
    refused=1,
    modules=(LOOP, replace(LOOP, name="veil", version="1.0", signer="", text=4096, live=False)),
    words=("module intruder: nobody vouches for it", "a write to KERNEL_CODE"),
)


@pytest.fixture
def veil(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Veil:
    @contextlib.contextmanager
    def connected(**_: Any) -> Iterator[tuple[None, None]]:
        yield None, None

    def run(found: KciStatus, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("veil.remote.kci.status.read_status", lambda *_: found)
        monkeypatch.setattr("sys.argv", ["veil", "kci", "status", "--connect", "127.0.0.1:1", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capfd.readouterr()

    monkeypatch.setattr("veil.cli.kci.commands.connected", connected)
    return run


def test_locked(veil: Veil) -> None:
    status, out, err = veil(LOCKED)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "locked down 4.500 s after the launch, mode on",
        "  text       4096 pages, read-only data 1200 pages",
        "  explained  alternative 2000, return 30 (sites that were not as measured at lock-down)",
        "patches of the kernel's own that were allowed since:",
        "  jump label         36  function_8 8, function_7 7, function_6 6, function_5 5, function_4 4, 3 more symbols",
        "  static call         1  schedule 1",
        "modules: 2 run, 1 was refused",
        f"  loop: 2 pages of code, signed by Debian Secure Boot CA; SHA-256 {'ab' * 32}",
        f"  veil 1.0: 1 page of code, the policy lists its hash, not started yet; SHA-256 {'ab' * 32}",
        "violations: 2",
        "what was refused, the newest 2 last:",
        "  module intruder: nobody vouches for it",
        "  a write to KERNEL_CODE",
    ]


def test_more_modules_than_are_named(veil: Veil) -> None:
    _, out, _ = veil(replace(LOCKED, modules_left_out=1000))
    assert "modules: 1002 run, 1 was refused\n  the newest 2 of them are:\n  loop: " in out


@pytest.mark.parametrize(
    ("mode", "words"),
    [(OFF, "not locked down: this CVM was launched with --kci off"), (ON, "NOT LOCKED DOWN, mode on")],
)
def test_not_locked(veil: Veil, mode: str, words: str) -> None:
    out = veil(KciStatus(mode, None))[1]
    assert out.startswith(words)
    assert out.splitlines()[1:] == ["modules: 0 run, 0 were refused", "violations: 0"]


def test_exceptions_are_shown(veil: Veil) -> None:
    out = veil(replace(LOCKED, writable={"sys_call_table": 2, "loop/lo_fops": 0}))[1]
    assert "\nstores to what the policy lets the kernel write: loop/lo_fops 0, sys_call_table 2\n" in out


def test_json_has_all_of_it(veil: Veil) -> None:
    value = json.loads(veil(LOCKED, "--json")[1])
    assert len(value["patches"]["jump label"]) == 8
    assert (value["locked_ns"], value["modules"][0]["sha256"]) == (4_500_000_000, "ab" * 32)
    assert KciStatus.parse(json.dumps(value).encode()) == LOCKED


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_names_are_the_kernels(veil: Veil, more: tuple[str, ...]) -> None:
    """A module's name and version, its signer's, and a symbol's."""
    found = replace(
        LOCKED,
        modules=(replace(LOOP, name=HOSTILE, version=HOSTILE, signer=HOSTILE, sha256=HOSTILE),),
        patches={HOSTILE: {HOSTILE: 1}},
        explained={HOSTILE: 1},
        writable={HOSTILE: 1},
        words=(HOSTILE,),
    )
    out = veil(found, *more)[1]
    assert "[2Kverified" in out
    assert out.replace("\n", "").isprintable()
    assert "\nverified" not in out


def _policy(**options: Any) -> KciSettings:
    settings = {name: options.pop(name) for name in SERVICE_OPTIONS if name in options}
    cvm = CvmOptions("512M", 1, None, **{"no_monitor": False, "settings": settings, **options})
    configuration = cvm.configuration(owners=())
    assert configuration.services is not None
    return KciSettings.of(configuration.services.settings["kci"])


def test_options_become_the_policy(tmp_path: Path) -> None:
    assert _policy() == KciSettings()
    der = tmp_path / "key.der"
    der.write_bytes(chip().ask.public_bytes(Encoding.DER))
    pem = tmp_path / "key.pem"
    pem.write_bytes(chip().ark.public_bytes(Encoding.PEM))
    hashes = ("ab" * 32, "cd" * 32)
    found = _policy(kci=HALT, kci_keys="none", kci_hash=hashes, kci_certificate=(str(der),))
    assert found == KciSettings(HALT, "none", found.certificates, hashes)
    assert _policy(kci=ON, kci_writable=("sys_call_table", "loop/lo_fops")).writable == (
        "sys_call_table",
        "loop/lo_fops",
    )
    assert found.allowed_certificates == (der.read_bytes(),)
    assert _policy(kci=ON, kci_certificate=(str(pem),)).allowed_certificates == (chip().ark.public_bytes(Encoding.DER),)


def test_what_is_said_last_counts() -> None:
    assert _policy(kci=ON, service=("kci:mode=halt",)).mode == HALT


def test_a_policy_is_not_dropped_silently() -> None:
    with pytest.raises(VeilError, match="only asked with --kci on"):
        _policy(kci_hash=("ab" * 32,))
    with pytest.raises(VeilError, match="needs VeilMon"):
        _policy(kci=ON, no_monitor=True)
    CvmOptions("512M", 1, None, no_monitor=True).configuration(owners=())


@pytest.mark.parametrize("command", ["run", "shell", "boot", "serve", "attest", "measure", "inspect"])
def test_each_command_that_makes_an_image_has_the_options(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr("sys.argv", ["veil", command, "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "--kci [off|on|halt]" in capfd.readouterr().out

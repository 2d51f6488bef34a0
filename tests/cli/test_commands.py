# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line with a CVM that is played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import veil.cvm
from veil.cli import main
from veil.cli.option_types import parse_address
from veil.cvm import Configuration
from veil.errors import VeilError
from veil.formats.log_settings import LogSettings
from veil.image.services_image import protected_services


class _PlayedCvm:
    """Remembers what it was asked; `sha256sum`-like programs are not needed to see that streams are joined."""

    made: list[_PlayedCvm]

    def __init__(self, *args: Any, **options: Any) -> None:
        self.args, self.options = args, options
        self.calls: list[tuple[Any, ...]] = []
        self.boot_seconds: float | None = 1.5
        self.machine = self
        self.secure_processor = self
        self.measurement = bytes(48)
        _PlayedCvm.made.append(self)

    def __enter__(self) -> _PlayedCvm:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append(("closed",))

    def run(self, argv: Any, *, stdin: Any = None, stdout: Any = None, stderr: Any = None, timeout: Any = None) -> Any:
        self.calls.append(("run", tuple(argv), timeout))
        if argv[0] == "fail":
            raise VeilError("the guest said no")
        if argv[0] == "interrupt":
            raise KeyboardInterrupt
        if stdout is not None:
            stdout(b"out\n")
            stderr(b"err\n")
            return veil.cvm.Result(b"", b"", 7)
        return veil.cvm.Result(b"out\n", b"\xff\xfe", 7)

    def boot(self, console: Any) -> None:
        self.calls.append(("boot",))

    def close(self) -> None:
        self.calls.append(("closed",))

    def copy_in(self, host: str, guest: str) -> None:
        self.calls.append(("in", host, guest))

    def copy_out(self, guest: str, host: str) -> None:
        self.calls.append(("out", guest, host))


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> list[_PlayedCvm]:
    _PlayedCvm.made = []
    monkeypatch.setattr(veil.cvm, "ConfidentialVM", _PlayedCvm)
    return _PlayedCvm.made


def _veil(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["veil", *arguments])
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--reader", "abc"], 2, "--reader must be 64"),
        (["--reader", "none"], 2, "--reader must be 64"),
        (["--owner", "ab" * 31], 2, "--owner must be 64"),
        (["--reader", "ab" * 32] * 9, 125, "at most 8"),
    ],
)
def test_keys_of_users(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], options: list[str], status: int, words: str
) -> None:
    assert _veil(monkeypatch, "serve", *options) == status
    assert words in capfd.readouterr().err


def test_run_joins_streams_and_status(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], played: list[_PlayedCvm]
) -> None:
    status = _veil(monkeypatch, "run", "--memory", "1G", "--vcpus", "2", "--", "prog", "--flag", "-x")
    assert status == 7
    assert capfdbinary.readouterr() == (b"out\n", b"err\n")
    assert played[0].args == (Configuration.make("1G", 2),)
    assert played[0].calls == [("run", ("prog", "--flag", "-x"), None), ("closed",)]


def test_run_copies_before_and_after(monkeypatch: pytest.MonkeyPatch, played: list[_PlayedCvm]) -> None:
    _veil(monkeypatch, "run", "--file", "a:/b", "--get", "/c:d", "--no-monitor", "--fresh", "--", "prog")
    assert [call[0] for call in played[0].calls] == ["in", "run", "out", "closed"]
    assert played[0].calls[0] == ("in", "a", "/b")
    assert played[0].calls[2] == ("out", "/c", "d")
    assert played[0].args[0].monitor is False
    assert played[0].options["fresh"] is True


def test_run_json(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert _veil(monkeypatch, "run", "--json", "--", "prog") == 7
    answer = json.loads(capfd.readouterr().out)
    assert answer["stdout"] == "out\n"
    assert answer["stderr"] == {"base64": "//4="}
    assert answer["exit_status"] == 7


@pytest.mark.parametrize("option", ["--file=x", "--file=:y", "--get=x:"])
def test_bad_pairs_are_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], played: list[_PlayedCvm], option: str
) -> None:
    assert _veil(monkeypatch, "run", option, "--", "prog") == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not played


@pytest.mark.parametrize(
    ("option", "status", "words"),
    [
        ("--chain={}", 125, "{}: no certificate"),
        ("--crl={}.gone", 125, "cannot read {}.gone"),
        ("--at=soon", 2, "--at 'soon'"),
    ],
)
def test_what_attest_needs_is_read_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    played: list[_PlayedCvm],
    tmp_path: Path,
    option: str,
    status: int,
    words: str,
) -> None:
    file = tmp_path / "chain.pem"
    file.write_bytes(b"none")
    assert _veil(monkeypatch, "attest", option.format(file)) == status
    error = capfd.readouterr().err
    assert words.format(file) in error
    assert error.count("\n") == 1
    assert not played


def test_errors_are_one_line_and_125(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert _veil(monkeypatch, "run", "--", "fail") == 125
    assert capfd.readouterr().err == "veil: the guest said no\n"


def test_ctrl_c_closes_the_cvm_and_is_130(monkeypatch: pytest.MonkeyPatch, played: list[_PlayedCvm]) -> None:
    assert _veil(monkeypatch, "run", "--", "interrupt") == 130
    assert played[0].calls[-1] == ("closed",)


def test_boot_with_its_console_says_why_its_digest_is_another(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _veil(monkeypatch, "boot", "--console") == 0
    out = capfd.readouterr().out
    assert "this digest is not that of `veil measure`: --console gives the kernel another command line" in out
    assert _veil(monkeypatch, "boot") == 0
    assert "command line" not in capfd.readouterr().out


def test_usage_errors_are_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _veil(monkeypatch, "run") == 2
    assert _veil(monkeypatch, "run", "--vcpus", "9", "--", "x") == 2


@pytest.mark.parametrize("command", ["", "run", "shell", "boot", "inspect", "doctor", "cache", "demo"])
def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert _veil(monkeypatch, *command.split(), "--help") == 0
    assert "Usage: " in capfd.readouterr().out


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert _veil(monkeypatch, "doctor", "--no-engine") == 1
    output = capfd.readouterr().out
    assert "apt install gcc" in output
    assert "MISSING" in output


def test_doctor_does_not_miss_what_makes_what_is_at_hand(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("veil.cli.doctor._still_to_make", set)
    assert _veil(monkeypatch, "doctor", "--no-engine") == 0
    output = capfd.readouterr().out
    assert "MISSING" not in output
    assert "apt-get" in output
    assert "at hand" in output
    # What make setup puts beside Python is found there, and not in PATH alone.
    (tmp_path / "ninja").write_text("#!/bin/sh\n")
    (tmp_path / "ninja").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("veil.cli.doctor._still_to_make", lambda: {"engine"})
    assert _veil(monkeypatch, "doctor", "--no-engine") == 1
    lines = {line.split()[1]: line.split()[0] for line in capfd.readouterr().out.splitlines()}
    assert (lines["ninja"], lines["cmake"], lines["apt-get"]) == ("ok", "MISSING", "without")


def test_doctor_compiles_in_the_cache_and_says_that_a_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cache, compiler = tmp_path / "veil", tmp_path / "compiler"
    cache.mkdir(0o700)
    # Finds room in the cache alone, as the compiler does when /tmp is full.
    compiler.write_text(
        f'#!/bin/sh\ncase "$TMPDIR" in {cache}/*) exit 0;; esac\necho "cc1: No space left on device" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(compiler))
    _veil(monkeypatch, "doctor", "--no-engine")
    assert "ok       static libc " in capfd.readouterr().out
    assert not list(cache.iterdir())
    monkeypatch.setattr("veil.cli.doctor.tool_environment", lambda _: {})
    _veil(monkeypatch, "doctor", "--no-engine")
    assert "MISSING  static libc          not tried: the disk is full\n" in capfd.readouterr().out


def test_doctor_json(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _veil(monkeypatch, "doctor", "--no-engine", "--json")
    assert {"name", "good", "needed", "words"} <= set(json.loads(capfd.readouterr().out)[0])


def test_cache_list_and_clear(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "veil" / "kernel").mkdir(parents=True)
    (tmp_path / "veil" / "kernel" / "file").write_bytes(bytes(5000))
    _veil(monkeypatch, "cache", "list", "--json")
    assert json.loads(capfd.readouterr().out)["bytes"]["kernel"] >= 5000
    _veil(monkeypatch, "cache", "clear")
    assert not (tmp_path / "veil").exists()


def test_parse_size() -> None:
    assert veil.cvm.parse_size("512M") == 512 << 20
    assert veil.cvm.parse_size("2GiB") == 2 << 30
    assert veil.cvm.parse_size("4096") == 4096
    for text in ("many", "9" * 5000 + "M", "\u0665M"):
        with pytest.raises(VeilError, match="not a size"):
            veil.cvm.parse_size(text)


def test_parse_address() -> None:
    assert parse_address("[::1]:7700") == ("::1", 7700)
    for text in ("host", ":1", "host:\u00b2", "host:65536", "host:" + "9" * 5000):
        with pytest.raises(VeilError, match="not an address"):
            parse_address(text)


def test_each_option_is_in_the_configuration(monkeypatch: pytest.MonkeyPatch, played: list[_PlayedCvm]) -> None:
    options = (
        "--memory=1G", "--vcpus=3", "--kernel=6.1", "--log-memory=1M", "--log-full=drop",
        "--driver-options=log_intent=exec", "--owner", "aa" * 32, "--reader", "bb" * 32, "--reader", "cc" * 32,
    )  # fmt: skip
    assert _veil(monkeypatch, "serve", *options) == 125  # the played one carries nobody
    (configuration,) = played[0].args
    assert configuration == Configuration(
        memory=1 << 30,
        vcpus=3,
        kernel="6.1",
        owners=(b"\xaa" * 32,),
        readers=(b"\xbb" * 32, b"\xcc" * 32),
        services=protected_services(LogSettings(memory=1 << 20, full="drop")),
        driver_options="log_intent=exec",
    )
    assert _veil(monkeypatch, "serve", "--without-driver", "--kernel=7.3/trixie-backports") == 125
    (configuration,) = played[1].args
    assert (configuration.driver, configuration.kernel) == (False, "7.3/trixie-backports")

# SPDX-License-Identifier: GPL-2.0-or-later
"""veil logs: what it prints, and its exit statuses. The CVM is the real service at a desk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.desk_connection import connect_to
from tests.services.log.desk import Desk
from veil.cli import main
from veil.formats.log import AuditRecord, KernelCall, pack_records

Veil = Callable[..., tuple[int, str, str]]
CONNECT = ("--connect", "127.0.0.1:1")


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def veil(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Veil:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["veil", "logs", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    connect_to(desk, monkeypatch)
    return run


def honest(desk: Desk, seconds: int = 10, first: int = 1) -> None:
    for number in range(first, first + seconds):
        desk.log(number)
        desk.kernel(KernelCall.HEARTBEAT, b"", after=10**9)


def test_verified(desk: Desk, veil: Veil) -> None:
    honest(desk)
    assert veil("fetch", *CONNECT)[:2] == (0, "21 new entries verified, 21 in all; veil-log/audit.log\n")
    status, out, err = veil("verify")
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    assert first == "verified: 21 entries with 30 audit records, in order"
    assert second.startswith("the kernel called last at 11.010 s, 20")
    assert second.endswith("by this computer's clock, 0.000 s before the head was signed")


def test_verified_with_trouble(desk: Desk, veil: Veil) -> None:
    honest(desk)
    off = b"audit(1700000011.030:11): op=set audit_enabled=0 old=1 auid=0 ses=1 subj=unconfined res=1"
    desk.kernel(KernelCall.RECORDS, pack_records([AuditRecord(1305, off)]))
    desk.now += 60 * 10**9
    status, _, err = veil("fetch", *CONNECT)
    assert status == 0
    assert [line.split()[0] for line in err.splitlines()] == ["TROUBLE", "TROUBLE"]
    status, out, _ = veil("verify")
    assert status == 3
    assert "TROUBLE  entry 21, 11.011 s (the kernel said 2023-11-14 22:13:31.030 UTC): the kernel's audit was" in out
    assert "TROUBLE  entry 21, 11.011 s (the kernel said 2023-11-14 22:13:31.030 UTC): no sign of life for 60.0" in out
    assert "from entry 21 (11.011 s; the kernel said 2023-11-14 22:13:31.030 UTC) on, treat the kernel's words" in out
    assert "entries 0 to 20 were made before, and stay proven as they are" in out
    status, out, _ = veil("verify", "--json")
    value = json.loads(out)
    assert (status, value["trouble"], value["untrusted_from"]) == (3, 2, 21)
    assert [item["kind"] for item in value["findings"]] == ["audit-off", "silence"]
    assert value["head"]["time_ns"] == desk.now
    status, out, _ = veil("verify", "--silence", "100", "--untrusted-from", "5")
    # What the user knows is not news.
    assert status == 0
    assert "TROUBLE" not in out
    assert "from entry 5 (--untrusted-from) on, treat the kernel's words as untrusted: you say so" in out


def test_not_verified(desk: Desk, veil: Veil) -> None:
    honest(desk)
    veil("fetch", *CONNECT)
    place = Path("veil-log/entries.bin")
    data = bytearray(place.read_bytes())
    data[100] ^= 1
    place.write_bytes(data)
    for command in (("verify",), ("export", "--directory", "out"), ("ack", *CONNECT)):
        status, _, err = veil(*command)
        assert status == 1
        assert err.startswith("veil: NOT VERIFIED: ")
        assert err.count("\n") == 1


def test_taken_back(desk: Desk, veil: Veil) -> None:
    old = desk.save()
    honest(desk)
    veil("fetch", *CONNECT)
    desk.restore(old)
    status, _, err = veil("fetch", *CONNECT)
    assert status == 1
    assert "taken back to an older state" in err


def test_nothing_there(veil: Veil) -> None:
    assert veil("verify")[0] == 125
    assert veil("export", "--directory", "out") == (125, "", "veil: there is no log in veil-log\n")
    assert veil("export")[0] == 125


def test_follow_prints_and_exports(desk: Desk, veil: Veil) -> None:
    honest(desk, 3)
    desk.kernel(KernelCall.RECORDS, b"nonsense")
    status, out, err = veil("follow", *CONNECT, "--seconds", "0", "--format", "json", "--directory", "out")
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["sequence"] for line in lines] == list(range(8))
    assert lines[7]["unreadable"] == b"nonsense".hex()
    assert err.startswith("TROUBLE  entry 7")
    exported = [json.loads(line) for line in Path("out/veil-log-00000000000000000000.jsonl").read_text().splitlines()]
    assert [{**line, "log": lines[0].get("log")} for line in exported] == [{**line, "log": None} for line in lines]


def test_what_was_known_before_is_not_said_to_be_gone(desk: Desk, veil: Veil) -> None:
    honest(desk, 3)
    veil("fetch", *CONNECT)
    veil("ack", *CONNECT)
    honest(desk, 3, first=4)
    assert veil("fetch", *CONNECT)[2] == ""
    assert veil("follow", *CONNECT, "--seconds", "0")[2] == ""
    status = veil("fetch", *CONNECT, "--to", "other")[0]
    assert status == 0
    assert "entries 0 to 6 had been acknowledged before this user came" in veil("verify", "--to", "other")[1]


def test_export(desk: Desk, veil: Veil) -> None:
    honest(desk, 3)
    veil("fetch", *CONNECT)
    assert veil("export", "--directory", "out") == (0, "7 entries exported to out\n", "")
    status, out, _ = veil("export", "--directory", "out", "--json")
    assert (status, json.loads(out)) == (0, {"exported": {"out": 0}})


def test_the_extra_is_missing(desk: Desk, veil: Veil, monkeypatch: pytest.MonkeyPatch) -> None:
    veil("fetch", *CONNECT)
    for name in [name for name in sys.modules if name.startswith(("opentelemetry", "veil.remote.log.otlp"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    status, _, err = veil("export", "--otlp", "http://127.0.0.1:9")
    assert (status, err) == (125, "veil: --otlp needs the extra otlp: pip install 'veil[otlp]'\n")


def test_fetched_by_two(desk: Desk, veil: Veil) -> None:
    from veil.remote.log.folder import LogFolder

    with LogFolder(Path("veil-log")).lock():
        status, _, err = veil("fetch", *CONNECT)
    assert (status, err) == (125, "veil: somebody else is fetching into veil-log\n")


def test_acknowledged(desk: Desk, veil: Veil) -> None:
    honest(desk, 3)
    veil("fetch", *CONNECT)
    assert veil("ack", *CONNECT) == (0, "the CVM may forget its first 7 entries\n", "")
    assert desk.service.store.first == 7


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "1e300", "9" * 5000])
def test_numbers_of_seconds_that_no_clock_has(veil: Veil, value: str) -> None:
    status, _, err = veil("verify", "--silence", value)
    assert (status, err.count("\n")) == (2, 1)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The command: which tests it runs, what it says, its exit status; and that the documents say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvm_unit_tests.__main__ as command
from kvm_unit_tests.adaptations import ADAPTATIONS
from kvm_unit_tests.checkout import Test
from kvm_unit_tests.errors import JudgeError
from kvm_unit_tests.expected import KNOWN, NOT_APPLICABLE, NOT_FOR_EFI, Known, KnownFailure
from kvm_unit_tests.output import End, Outcome, read_output
from kvm_unit_tests.report import sums, table
from tests.kvm_unit_tests.made_checkout import make_checkout

_FIRST, _SECOND, _ABSENT = Test("first", "first"), Test("second", "first"), Test("third", "absent")
_DOCUMENT = (Path(__file__).parents[2] / "docs/fidelity.md").read_text()


class _Guest:
    """Every test prints this."""

    def __init__(self, printed: bytes) -> None:
        self.printed = printed
        self.ran: list[Test] = []

    def run(self, test: Test, program: Path) -> Outcome:
        self.ran.append(test)
        return read_output(self.printed, End.EXITED, 0)


def test_which_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "NOT_APPLICABLE", {"second": "no"})
    assert command.chosen_tests([_FIRST, _SECOND], []) == [_FIRST]
    assert command.chosen_tests([_FIRST, _SECOND], ["sec*"]) == [_SECOND]
    with pytest.raises(JudgeError, match="no test that is called other"):
        command.chosen_tests([_FIRST], ["other"])


def test_runs_are_judged_one_by_one(tmp_path: Path) -> None:
    said: list[str] = []
    known = {"first": Known((KnownFailure("it", "for a reason"),))}
    guest = _Guest(b"PASS: one\nFAIL: it\n")
    found = command.run_tests([_FIRST, _SECOND, _ABSENT], {"first": tmp_path}, guest, known, said.append)
    assert guest.ran == [_FIRST, _SECOND]
    assert said == [
        "first: as expected: 1 passed, 1 failed, 0 skipped",
        "second: NOT AS EXPECTED: 1 passed, 1 failed, 0 skipped",
        "  FAIL: it",
    ]
    assert command.not_applicable([_FIRST], [_FIRST, _ABSENT], {"first": tmp_path}) == {"third": NOT_FOR_EFI}
    text = table(found, {"realmode": "no real mode", "vmx": "no Intel", "svm": "no real mode"})
    assert "| first | 1 | 1 | 0 | for a reason |" in text
    assert "| realmode, svm | no real mode |" in text
    assert sums(found, 3).startswith("2 tests ran, 1 not as expected; lines: 2 passed, 2 failed, 0 skipped; 3 tests")


@pytest.mark.parametrize(("printed", "status"), [(b"PASS: it\n", 0), (b"FAIL: it\n", 1)])
def test_the_exit_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    printed: bytes,
    status: int,
) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    monkeypatch.setattr(command, "Guest", lambda *_: _Guest(printed))
    file = tmp_path / "table.md"
    assert command.main(["--kvm-unit-tests", str(checkout), "--table", str(file), "first"]) == status
    assert "1 tests ran" in capsys.readouterr().out
    assert file.read_text().startswith("| Test |")


def test_nothing_to_run_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--kvm-unit-tests", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_list_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--kvm-unit-tests", str(make_checkout(tmp_path)), "--list"]) == 0
    assert "first: is run" in capsys.readouterr().out


def _reasons() -> set[str]:
    found = {reason for known in KNOWN.values() for reason in (*(item.reason for item in known.failures), known.no_end)}
    return (found | {NOT_FOR_EFI, *NOT_APPLICABLE.values()}) - {""}


@pytest.mark.parametrize("reason", sorted(_reasons()))
def test_the_document_has_each_reason(reason: str) -> None:
    assert reason in _DOCUMENT


@pytest.mark.parametrize("name", sorted({*KNOWN, *NOT_APPLICABLE}))
def test_the_document_has_each_test(name: str) -> None:
    assert name in _DOCUMENT


@pytest.mark.parametrize("file", sorted({item.file for item in ADAPTATIONS}))
def test_the_document_has_each_adaptation(file: str) -> None:
    assert f"`{file}`" in _DOCUMENT

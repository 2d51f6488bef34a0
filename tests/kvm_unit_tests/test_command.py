# SPDX-License-Identifier: GPL-2.0-or-later
"""The command: which tests it runs, what it says, its exit status; and that the documents say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvm_unit_tests.__main__ as command
from kvm_unit_tests.adaptations import ADAPTATIONS
from kvm_unit_tests.checkout import Built, Test
from kvm_unit_tests.errors import JudgeError
from kvm_unit_tests.expected import KNOWN, NOT_APPLICABLE, NOT_FOR_EFI, Known, KnownFailure
from kvm_unit_tests.output import End, Outcome, read_output
from kvm_unit_tests.report import sums, table
from tests.kvm_unit_tests.made_checkout import make_checkout

_FIRST, _SECOND, _ABSENT = Test("first", "first"), Test("second", "first"), Test("third", "absent")
_WRONG = Test("wrong", "wrong")
_CHAPTER = (
    (Path(__file__).parents[2] / "docs/fidelity.md").read_text().split("\n## kvm-unit-tests\n")[1].split("\n## ")[0]
)
_ROWS = [[cell.strip() for cell in row.strip("|").split("|")] for row in _CHAPTER.splitlines() if row.startswith("| ")]


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
    built = Built({"first": tmp_path}, {"wrong": "an error"})
    found = command.run_tests([_FIRST, _SECOND, _ABSENT, _WRONG], built, guest, known, said.append)
    assert guest.ran == [_FIRST, _SECOND]
    assert said == [
        "first: as expected: 1 passed, 1 failed, 0 skipped",
        "second: NOT AS EXPECTED: 1 passed, 1 failed, 0 skipped",
        "  FAIL: it",
        "wrong: NOT AS EXPECTED: 0 passed, 0 failed, 0 skipped",
        "  its program could not be built: an error",
    ]
    assert command.not_applicable([_FIRST], [_FIRST, _ABSENT, _WRONG], built) == {"third": NOT_FOR_EFI}
    text = table(found, {"realmode": "no real mode", "vmx": "no Intel", "svm": "no real mode"})
    assert "| first | 1 | 1 | 0 | for a reason |" in text
    assert "| realmode, svm | no real mode |" in text
    assert sums(found, 3).startswith("3 tests ran, 2 not as expected; lines: 2 passed, 2 failed, 0 skipped; 3 tests")


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


def test_what_a_test_prints_cannot_paint_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    monkeypatch.setattr(command, "Guest", lambda *_: _Guest(b"FAIL: \x1b[2Jas | expected\n"))
    file = tmp_path / "table.md"
    assert command.main(["--kvm-unit-tests", str(checkout), "--table", str(file), "first"]) == 1
    assert "\x1b" not in capsys.readouterr().err + file.read_text()
    assert r"as \| expected" in file.read_text()


def test_a_table_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    monkeypatch.setattr(command, "Guest", lambda *_: _Guest(b"PASS: it\n"))
    assert command.main(["--kvm-unit-tests", str(checkout), "--table", str(tmp_path), "first"]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_it_can_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "build", interrupted)
    assert command.main(["--kvm-unit-tests", str(make_checkout(tmp_path))]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_table_has_each_reason_of_a_test(name: str) -> None:
    (why,) = [row[4] for row in _ROWS if len(row) == 5 and row[0] == name]
    for reason in KNOWN[name].reasons:
        assert reason in why
        why = why.replace(reason, "")
    assert set(why) <= set("; "), "and no other"


def test_the_table_has_no_other_reasons() -> None:
    rows = [row for row in _ROWS if len(row) == 5 and row[0] not in KNOWN]
    assert len(rows) > 10
    assert all(row[2] in ("Failed", "0") for row in rows)
    assert [row[4] for row in rows if row[0] != "Test" and row[4]] == []


def test_the_sums_are_those_of_the_table() -> None:
    rows = [row for row in _ROWS if len(row) == 5 and row[0] != "Test"]
    passed, failed, skipped = (sum(int(row[column]) for row in rows) for column in (1, 2, 3))
    assert f"{passed} lines pass, {failed} fail, {skipped} are skipped" in " ".join(_CHAPTER.split())


@pytest.mark.parametrize("name", sorted(NOT_APPLICABLE))
def test_the_document_has_what_is_not_applicable(name: str) -> None:
    (row,) = [row for row in _ROWS if len(row) == 2 and name in row[0].split(", ")]
    assert row[1] == NOT_APPLICABLE[name]


def test_the_document_has_what_is_not_for_efi() -> None:
    assert NOT_FOR_EFI in {row[1] for row in _ROWS if len(row) == 2}


@pytest.mark.parametrize("file", sorted({item.file for item in ADAPTATIONS}))
def test_the_document_has_each_adaptation(file: str) -> None:
    assert f"`{file}`" in _CHAPTER

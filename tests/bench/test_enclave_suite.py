# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of Python's own tests in an enclave: how it is made, and that what stands in the docs is what comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.enclave_suite import MODULES, main, outcomes_of, reasons_of

_DOCS = Path(__file__).resolve().parents[2] / "docs" / "enclaves-suite.md"
_SAID = """
test_a (test.test_x.Some.test_a) ... ok
test_b (test.test_x.Some.test_b)
What it is about ... FAIL
test_c (test.test_x.Some.test_c) ... words of its own
ERROR
test_d (test.test_x.Some.test_d) ... skipped 'no such thing'
test_e (test.test_y.Other.test_e) ... expected failure

======================================================================
FAIL: test_b (test.test_x.Some.test_b)
----------------------------------------------------------------------
Traceback (most recent call last):
  File "x.py", line 1, in test_b
AssertionError: 1 != 2

----------------------------------------------------------------------
"""


def test_what_unittest_says() -> None:
    found = outcomes_of(_SAID)
    assert (found["test_x"].passed, found["test_x"].skipped) == (1, 1)
    assert found["test_x"].failed == ["test_x.Some.test_b", "test_x.Some.test_c"]
    assert (found["test_y"].passed, found["test_y"].failed) == (1, [])
    assert reasons_of(_SAID) == {"test_x.Some.test_b": "AssertionError: 1 != 2"}


def test_a_program_that_ends_in_the_middle() -> None:
    (found,) = outcomes_of("test_f (test.test_y.Other.test_f) ... Killed\n").values()
    assert found.failed == ["test_y.Other.test_f (the program ended here)"]


def test_the_table_names_modules_that_the_command_has() -> None:
    named = re.findall(r"^\| (test_\w+) \| \d", _DOCS.read_text(), re.MULTILINE)
    assert len(named) == len(set(named)) > 15
    assert set(named) <= set(MODULES)


@pytest.mark.soak
@pytest.mark.e2e
def test_the_table_is_what_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Of some modules."""
    main(["test_file", "test_fileio", "test_openpty", "test_stat"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| test_")]
    assert len(rows) == 4
    documented = _DOCS.read_text().splitlines()
    assert [row for row in rows if row not in documented] == []

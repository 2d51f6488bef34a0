# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel-mode code exchanges a function in a table of the kernel's read-only data: in one that the policy names, in
another, and in the same one when no policy names it."""

from __future__ import annotations

import pytest

from tests.e2e.code_attacks.guests import EFAULT, VICTIM, CodeGuest, Resume
from tests.e2e.module_symbols import ModuleSymbols
from tests.e2e.snapshots import EXCEPTION, EXCEPTION_OF_MODULE
from veil.formats.kci_status import CodeEvent
from veil.services.kci import KernelCode
from veil.services.kci.measured_kernel import MeasuredKernel

#: A table beside it.
_OTHER = "zero_fops"
#: The function of a table that reads: /dev/full and /dev/zero give zeros without end, /dev/null gives nothing.
_OLD = {EXCEPTION: "read_iter_zero", _OTHER: "read_zero"}
_NEW = {EXCEPTION: "read_iter_null", _OTHER: "read_null"}


def _member(code: KernelCode, table: str) -> int:
    """Where in a table the function stands that reads."""
    symbols = code.image.symbols
    start = symbols[table]
    words = code.image.read(start, symbols.after(start) - start)
    return start + words.index(symbols[_OLD[table]].to_bytes(8, "little"))


def _point(guest: CodeGuest, code: KernelCode, way: str, table: str, functions: dict[str, str]) -> int:
    """The attacker's result, when it has the table name another function."""
    target = code.image.symbols[functions[table]].to_bytes(8, "little")
    results = guest.store(way, _member(code, table), f"0:{target.hex()}")
    assert results is not None
    return results[0]


def _reads(guest: CodeGuest, device: str = "full") -> int:
    """How many of four bytes a device gives."""
    status, count = guest.sh(f"head -c 4 /dev/{device} | wc -c")
    assert status == 0
    return int(count)


@pytest.mark.parametrize("way", ["alias", "wp"])
def test_a_table_that_the_policy_names(locked: CodeGuest, code: KernelCode, way: str) -> None:
    before = locked.status()
    assert _reads(locked) == 4
    assert _point(locked, code, way, EXCEPTION, _NEW) == 0
    assert _reads(locked) == 0
    *_, word = locked.words()
    assert word.event is CodeEvent.EXCEPTION
    assert (word.detail["symbol"], word.detail["address"]) == (EXCEPTION, _member(code, EXCEPTION))
    assert f" at {EXCEPTION}+" in word.words
    assert "RIP attacker:" in word.words
    assert _point(locked, code, way, EXCEPTION, _OLD) == 0
    after = locked.status()
    assert after.writable == dict(before.writable) | {EXCEPTION: before.writable[EXCEPTION] + 2}
    assert after.violations == before.violations


@pytest.mark.parametrize("way", ["alias", "wp"])
def test_not_the_table_beside_it(locked: CodeGuest, code: KernelCode, way: str) -> None:
    known = len(locked.violations())
    assert _point(locked, code, way, _OTHER, _NEW) == EFAULT
    assert _reads(locked, "zero") == 4
    # The last bytes of the one, and the first of the other.
    first, other = code.image.symbols[EXCEPTION], code.image.symbols[_OTHER]
    edge = code.image.symbols.after(first) - 4
    assert locked.store(way, edge, "0:0000000000000001") == [EFAULT]
    assert [word.detail["symbol"] for word in locked.violations()[known:]] == [
        f"{_OTHER}+{_member(code, _OTHER) - other:#x}", f"{EXCEPTION}+{edge - first:#x}",
    ]  # fmt: skip


def test_a_table_of_a_module(locked: CodeGuest) -> None:
    """As large as the module's file says."""
    locked.module_text(VICTIM)
    ((_, file),) = locked.vm.kernel_modules([VICTIM])
    table = ModuleSymbols(locked.vm, file).address(EXCEPTION_OF_MODULE.partition("/")[2])
    known = locked.status()
    assert locked.store("alias", table, f"0:{locked.text(table, 8).hex()}") == [0]
    assert locked.status().writable == dict(known.writable) | {
        EXCEPTION_OF_MODULE: known.writable[EXCEPTION_OF_MODULE] + 1
    }
    assert locked.words()[-1].detail["address"] == table
    for beside in (table - 8, table - 4):
        assert locked.store("alias", beside, f"0:{locked.text(beside, 8).hex()}") == [EFAULT]
    assert locked.status().violations == known.violations + 2


def test_it_is_stopped_where_no_policy_names_it(
    resume: Resume, code: KernelCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MeasuredKernel, "writable", ())
    guest = resume()
    assert _point(guest, code, "alias", EXCEPTION, _NEW) == EFAULT
    assert _reads(guest) == 4
    assert guest.violations()[-1].detail["symbol"].startswith(f"{EXCEPTION}+")


def test_off_each_is_written(unlocked: CodeGuest, code: KernelCode) -> None:
    for table, device in ((EXCEPTION, "full"), (_OTHER, "zero")):
        assert _point(unlocked, code, "wp", table, _NEW) == 0
        assert _reads(unlocked, device) == 0
        assert _point(unlocked, code, "wp", table, _OLD) == 0

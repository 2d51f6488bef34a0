# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of the page book: what the code says, the documentation says, and the RMP does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.monitor.echo import Services
from tests.monitor.harness import MONITOR_VMSA, PAGE, RAM, Bench
from veil.formats.domains import Domain
from veil.monitor import Option, Owner
from veil.monitor.page_book import PageBook
from veil.monitor.page_rights import ROWS, TRANSITIONS, Rows
from veil.snp.rmp import Permission

_DOCUMENT = Path(__file__).parents[2] / "docs" / "monitor.md"
_BITS = {"R": Permission.R, "W": Permission.W, "UX": Permission.UX, "SX": Permission.SX}


def _permissions(cell: str) -> Permission:
    found = Permission.NONE
    for word in cell.split():
        found |= _BITS.get(word, Permission.NONE)
        assert word in _BITS or cell == "none"
    return found


def _table(head: str) -> list[list[str]]:
    text = _DOCUMENT.read_text()
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_documentation_has_the_rows() -> None:
    documented = {}
    for name, _, kernel, services, enclaves, change, data in _table("| Owner | Meaning"):
        permissions = tuple(_permissions(cell) for cell in (kernel, services, enclaves))
        documented[name] = (*permissions, change == "yes", data == "yes")
    assert documented == {
        owner.name: (row.kernel, row.services, row.enclaves, row.kernel_may_change, row.kernel_data)
        for owner, row in ROWS.items()
    }


def test_the_documentation_has_the_transitions() -> None:
    documented = {}
    for sources, targets, who in _table("| From | To"):
        for source in sources.split(", "):
            for target in targets.split(", "):
                documented[source, target] = (who.startswith("a service"), "zeroed" in who)
    assert documented == {
        (source.name, target.name): (transition.services_may_ask, transition.zero)
        for (source, target), transition in TRANSITIONS.items()
    }


@pytest.mark.parametrize("options", [Option.NONE, Option.UNPROTECTED])
def test_after_boot_the_rmp_says_what_the_rows_say(options: Option) -> None:
    bench = Bench(services=Services, options=options).boot()
    state = bench.monitor.state
    table = bench.rmp.effective()
    for gpa in range(0, RAM, PAGE):
        entry = table[gpa // PAGE]
        if not entry["flags"] & 2 or gpa == MONITOR_VMSA:
            continue  # shared with the host, or in use while it was granted
        owner = state.book.owner(gpa)
        for domain in (Domain.SER, Domain.ENC, Domain.UNT):
            made_by_boot = domain is Domain.UNT and options and bench.rmp.is_vmsa(gpa) and owner is Owner.MONITOR
            wanted = state.rows.permissions(owner, domain)
            assert made_by_boot or entry["perms"][domain.vmpl] == wanted, f"{gpa:#x} {owner.name} {domain.name}"


def test_restrictions_only_take_away() -> None:
    rows = Rows()
    rows.restrict(Owner.KERNEL, Domain.UNT, Permission.RW | Permission.UX)
    rows.restrict(Owner.KERNEL, Domain.UNT, Permission.ALL)
    assert rows.permissions(Owner.KERNEL, Domain.UNT) == Permission.RW | Permission.UX
    rows.restrict(Owner.MONITOR, Domain.UNT, Permission.ALL)
    assert rows.permissions(Owner.MONITOR, Domain.UNT) == Permission.NONE
    again = Rows()
    again.load(rows.dump())
    assert [again.permissions(owner, domain) for owner in Owner for domain in Domain] == [
        rows.permissions(owner, domain) for owner in Owner for domain in Domain
    ]


def test_only_what_may_follow_follows() -> None:
    book = PageBook(4)
    book.claim(0, 4 * PAGE, Owner.KERNEL)
    book.move(PAGE, PAGE, Owner.ENCLAVE)
    with pytest.raises(ValueError, match="ENCLAVE never becomes one of KERNEL_CODE"):
        book.move(0, 2 * PAGE, Owner.KERNEL_CODE)
    assert [book.owner(page * PAGE) for page in range(2)] == [Owner.KERNEL, Owner.ENCLAVE]
    assert list(book.runs()) == [
        (Owner.KERNEL, 0, PAGE), (Owner.ENCLAVE, PAGE, PAGE), (Owner.KERNEL, 2 * PAGE, 2 * PAGE)
    ]  # fmt: skip
    assert list(book.ranges(Owner.ENCLAVE)) == [(PAGE, PAGE)]
    assert book.is_kernel(2 * PAGE, 2 * PAGE)
    assert not book.is_kernel(0, 2 * PAGE)


def test_whose_a_range_is() -> None:
    book = PageBook(4)
    book.claim(PAGE, 2 * PAGE, Owner.KERNEL)
    book.claim(3 * PAGE, PAGE, Owner.SERVICE)
    assert book.is_all(Owner.KERNEL, PAGE, 2 * PAGE)
    assert book.is_all(Owner.KERNEL, PAGE + 5, 2 * PAGE - 5)
    assert book.is_all(Owner.SERVICE, 4 * PAGE - 1, 1)
    for owner, gpa, size in (
        (Owner.KERNEL, PAGE, 2 * PAGE + 1), (Owner.SERVICE, PAGE, 2 * PAGE), (Owner.SERVICE, 3 * PAGE, PAGE + 1),
        (Owner.KERNEL, 2 * PAGE, 0), (Owner.NOBODY, 4 * PAGE, PAGE), (Owner.NOBODY, -PAGE, PAGE),
    ):  # fmt: skip
        assert not book.is_all(owner, gpa, size)

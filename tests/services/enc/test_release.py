# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of an enclave below a host that keeps pages: all others are the kernel's again; these, when it gives in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tests.monitor.harness import PAGE
from tests.services.enc.enclave_bench import LAYOUT, EnclaveBench, owners
from veil.formats.enclave_calls import KEPT_PAGES, EnclaveCall, Reclaim, Reclaimed, Released
from veil.formats.enclave_pages import MailboxCall
from veil.formats.enclaves import ARENA, Prot, Record
from veil.formats.page_owners import Owner
from veil.formats.status import Status
from veil.services.context import Asking, MonitorRefused
from veil.services.enc import page_moves
from veil.services.enc.enclave import Enclave, State


def _pages(bench: EnclaveBench, number: int) -> list[int]:
    enclave = bench.enclave(number)
    return [*enclave.owned, *(page for pages in enclave.windows.values() for page in pages)]


def _release(bench: EnclaveBench, number: int) -> Released:
    """As the driver asks, until nothing is left."""
    while True:
        status, answer = bench.destroy(number)
        assert status == Status.OK, (status, answer)
        found = Released.parse(answer)
        if not found.left:
            return found


_KINDS: dict[str, Callable[[Enclave], int]] = {
    "of the pool": lambda enclave: enclave.pool[0],
    "of its content": lambda enclave: list(enclave.owned)[-1],
    "a table": lambda enclave: enclave.tables.root,
    "a window's": lambda enclave: enclave.windows[1][0],
    "a mailbox": lambda enclave: enclave.mailboxes[0],
    "a context": lambda enclave: enclave.contexts[0],
}


@pytest.mark.parametrize("kind", _KINDS)
def test_a_page_that_the_host_has_taken(bench: EnclaveBench, kind: str) -> None:
    number = bench.make()
    assert bench.mail(number, MailboxCall.MAP, ARENA, 2, 3).status == Status.OK
    pages, page = _pages(bench, number), _KINDS[kind](bench.enclave(number))
    bench.host.psmash(page & -(2 << 20))
    bench.host.rmpupdate(page, assigned=False)
    assert _release(bench, number) == Released(0, (page,))
    others = [other for other in pages if other != page]
    assert owners(bench, others) == {Owner.KERNEL}
    assert all(bench.kernel.read(other, PAGE) for other in others)
    # It is nobody's to use: the kernel never gets it, for what it would find there is the host's choice.
    assert _release(bench, number).kept == (page,)
    assert bench.monitor.book.owner(page) is not Owner.KERNEL


def test_a_page_that_the_host_takes_while_it_leaves(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is lost, and does not pass for one of the kernel's when the enclave ends."""
    number = bench.make()
    assert bench.mail(number, MailboxCall.MAP, ARENA, 4, 3).status == Status.OK
    pages, monitor, taken = _pages(bench, number), bench.service.context.monitor, list[int]()
    honest = monitor.move

    def move(ranges: Sequence[tuple[int, int]], source: Owner, target: Owner) -> Asking[None]:
        yield from honest(ranges, source, target)
        if target is Owner.ENCLAVE_LEAVING:
            taken.append(ranges[0][0])
            bench.host.psmash(taken[0] & -(2 << 20))
            bench.host.rmpupdate(taken[0], assigned=False)

    monkeypatch.setattr(monitor, "move", move)
    status, given = bench.enc(EnclaveCall.RECLAIM, Reclaim(number, 4).pack())
    assert (status, len(Reclaimed.parse(given).pages)) == (Status.OK, 3)
    again = Enclave.load(bench.service.context.guest, bench.enclave(number).dump())
    assert again._lost == taken
    assert _release(bench, number) == Released(0, tuple(taken))
    assert owners(bench, [page for page in pages if page not in taken]) == {Owner.KERNEL}
    assert bench.monitor.book.owner(taken[0]) is Owner.ENCLAVE_LEAVING


class _Keeping:
    """A host that does not let some pages go, as long as it likes."""

    def __init__(self, bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch, pages: Sequence[int]) -> None:
        self.keeps = True
        monitor = bench.service.context.monitor
        honest = monitor.move

        def move(ranges: Sequence[tuple[int, int]], source: Owner, target: Owner) -> Asking[None]:
            if self.keeps and any(gpa <= page < gpa + size for page in pages for gpa, size in ranges):
                raise MonitorRefused(Status.UNAVAILABLE, "the host does not split the page")
            yield from honest(ranges, source, target)

        monkeypatch.setattr(monitor, "move", move)


def test_a_host_that_gives_in(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    number = bench.make()
    pages = _pages(bench, number)
    kept = (pages[3], pages[40])
    host = _Keeping(bench, monkeypatch, kept)
    assert set(_release(bench, number).kept) == set(kept)
    assert owners(bench, [page for page in pages if page not in kept]) == {Owner.KERNEL}
    # After a snapshot it is the same.
    again = Enclave.load(bench.service.context.guest, bench.enclave(number).dump())
    assert (again._kept, list(again.owned)) == (set(kept), list(bench.enclave(number).owned))
    host.keeps = False
    assert _release(bench, number) == Released(0)
    assert owners(bench, pages) == {Owner.KERNEL}
    assert all(bench.kernel.read(page, PAGE) == bytes(PAGE) for page in kept)
    assert bench.destroy(number)[0] == Status.NOT_ALLOWED, "there is no such enclave"
    bench.check()


def test_a_host_that_keeps_many(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the answer names: all that is left waits."""
    number = bench.make()
    pages = _pages(bench, number)
    assert len(bench.enclave(number).owned) > KEPT_PAGES
    host = _Keeping(bench, monkeypatch, list(bench.enclave(number).owned))
    assert bench.destroy(number)[0] == Status.UNAVAILABLE
    assert bench.destroy(number)[0] == Status.UNAVAILABLE
    host.keeps = False
    assert _release(bench, number) == Released(0)
    assert owners(bench, pages) == {Owner.KERNEL}


def test_without_a_look_at_single_pages_all_are_lost(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test."""
    monkeypatch.setattr("veil.services.enc.enclave.KEPT_PAGES", 0)
    number = bench.make()
    pages = list(bench.enclave(number).owned)
    _Keeping(bench, monkeypatch, pages[3:4])
    for _ in range(3):
        assert bench.destroy(number)[0] == Status.UNAVAILABLE
    assert len([page for page in pages if bench.monitor.book.owner(page) is Owner.KERNEL]) < len(pages) // 2


_SCATTERED = 40


class _RefusesTheSecond:
    """Of more pages than one request names the host lets go the first ones, not the rest; nor the first ones again."""

    def __init__(self, bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keeps = True
        self.taken: list[int] = []
        monitor = bench.service.context.monitor
        honest = monitor.move

        def move(ranges: Sequence[tuple[int, int]], source: Owner, target: Owner) -> Asking[None]:
            if self.keeps and self.taken:
                raise MonitorRefused(Status.UNAVAILABLE, "the host does not split the page")
            yield from honest(ranges, source, target)
            if self.keeps:
                self.taken += [gpa for gpa, _ in ranges]

        monkeypatch.setattr(monitor, "move", move)


def _scattered(bench: EnclaveBench) -> list[int]:
    """Of which no two follow each other."""
    return bench.frames(2 * _SCATTERED)[::2]


def _donate(bench: EnclaveBench) -> tuple[int, list[int], State]:
    number, _ = bench.create()
    pages = _scattered(bench)
    assert bench.donate(number, pages) == Status.UNAVAILABLE
    return number, pages, State.UNUSABLE


def _donate_to_the_pool(bench: EnclaveBench) -> tuple[int, list[int], State]:
    number = next(iter(bench.service._enclaves))
    pages = _scattered(bench)
    assert bench.donate(number, pages) == Status.UNAVAILABLE
    assert bench.enclave(number).granted == 0
    assert not bench.enclave(number).pool
    return number, pages, State.READY


def _add(bench: EnclaveBench) -> tuple[int, list[int], State]:
    record = Record.content(Prot.R, 0x400000, bytes(_SCATTERED * PAGE))
    number, _ = bench.create(replace(LAYOUT, records=(record, *LAYOUT.records[1:])))
    pages = _scattered(bench)
    assert bench.add(number, 0, 0, pages) == Status.UNAVAILABLE
    return number, pages, State.UNUSABLE


_WAYS: dict[str, Callable[[EnclaveBench], tuple[int, list[int], State]]] = {
    "donated": _donate, "donated to the pool": _donate_to_the_pool, "of its content": _add,
}  # fmt: skip


@pytest.mark.parametrize("way", _WAYS)
def test_pages_that_neither_come_nor_go(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """They are somebody's: the enclave has them until its end, and the driver does not take them for its own."""
    monkeypatch.setattr(page_moves, "MOVE_RANGES", _SCATTERED // 2)
    bench.make(replace(LAYOUT, pool_pages=_SCATTERED))
    host = _RefusesTheSecond(bench, monkeypatch)
    number, pages, state = _WAYS[way](bench)
    enclave = bench.enclave(number)
    assert enclave.state is state
    assert 0 < len(host.taken) < len(pages)
    assert owners(bench, host.taken) == {Owner.ENCLAVE}
    assert owners(bench, [page for page in pages if page not in host.taken]) == {Owner.KERNEL}
    assert enclave.owned.keys() >= set(host.taken)
    # It keeps more of the enclave than an answer names.
    monkeypatch.setattr("veil.services.enc.enclave.KEPT_PAGES", 1)
    assert bench.destroy(number)[0] == Status.UNAVAILABLE
    again = Enclave.load(bench.service.context.guest, enclave.dump())
    assert list(again.owned) == list(enclave.owned)
    host.keeps = False
    assert _release(bench, number) == Released(0)
    assert owners(bench, pages) == {Owner.KERNEL}
    assert all(bench.kernel.read(page, PAGE) == bytes(PAGE) for page in host.taken)
    for other in list(bench.service._enclaves):
        assert _release(bench, other) == Released(0)
    bench.check()

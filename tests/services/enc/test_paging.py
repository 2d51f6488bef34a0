# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that the kernel takes back from an enclave, and what it may return."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest

from tests.monitor.harness import PAGE
from tests.services.enc.enclave_bench import CONTENT, EnclaveBench, Services, owners, translated
from veil.formats.board import C_BIT
from veil.formats.enclave_calls import PAGED_AT_ONCE, EnclaveCall, Reclaim, Reclaimed, Return
from veil.formats.enclave_pages import MailboxCall
from veil.formats.enclaves import ARENA, RUNTIME, TOP, Prot
from veil.formats.page_owners import Owner
from veil.formats.status import Status
from veil.monitor import VeilMon
from veil.services.context import Asking, MonitorClient, MonitorRefused
from veil.services.enc.page_tables import PageTables
from veil.services.enc.paging import AwayPages
from veil.snp import RmpViolation

RW = Prot.R | Prot.W
#: what the test writes into the pages of the arena
TEXTS = [b"%d" % at * 100 for at in range(4)]


class PagingBench(EnclaveBench):
    """An enclave with four pages in its arena, and two of its own records below."""

    def start(self) -> int:
        number = self.make()
        assert self.mail(number, MailboxCall.MAP, ARENA, 4, RW).status == Status.OK
        for at, text in enumerate(TEXTS):
            self.view(2).write(translated(self, number, ARENA + at * PAGE)[1], text)
        return number

    def reclaim(self, number: int, pages: int) -> list[tuple[int, int, bytes]]:
        """(address, page, what is in it)."""
        status, answer = self.enc(EnclaveCall.RECLAIM, Reclaim(number, pages).pack())
        assert status == Status.OK
        return [(va, page, self.kernel.read(page, PAGE)) for va, page in Reclaimed.parse(answer).pages]

    def reclaim_arena(self, number: int, pages: int) -> list[tuple[int, int, bytes]]:
        """The first pages of the arena: the service's hand has passed the others."""
        self.enclave(number)._hand = ARENA
        return self.reclaim(number, pages)

    def reclaim_again(self, number: int, va: int) -> list[tuple[int, int, bytes]]:
        """A page that came back, and was not used."""
        self.enclave(number)._hand = va
        self.use(number, va, used=False)
        return self.reclaim(number, 1)

    def use(self, number: int, *addresses: int, used: bool = True) -> None:
        """As the processor does: it sets "accessed" in the entries of the pages that it uses."""
        for va in addresses:
            entry = self.enclave(number).tables.root
            for shift in (39, 30, 21, 12):
                entry = (entry & (C_BIT - PAGE)) + (va >> shift & 511) * 8
                place, entry = entry, self.view(2).read_u64(entry)
            self.view(2).write_u64(place, entry & ~(1 << 5) | used << 5)

    def give_back(self, number: int, va: int, content: bytes, page: int | None = None) -> Status:
        return self.give_all_back(number, [(va, self.frames(1)[0] if page is None else page, content)])

    def give_all_back(self, number: int, given: Sequence[tuple[int, int, bytes]]) -> Status:
        for _, page, content in given:
            self.kernel.write(page, content)
        body = Return(number, tuple(va for va, _, _ in given)).pack()
        return self.enc(EnclaveCall.RETURN, body, [page for _, page, _ in given])[0]

    def text(self, number: int, at: int) -> bytes:
        return self.view(2).read(translated(self, number, ARENA + at * PAGE)[1], len(TEXTS[at]))

    def fault(self, number: int, address: int) -> bytes:
        """The runtime asks about a page fault; what the kernel is told."""
        self.vmsa(self.enclave(number).contexts[0]).cr2 = address
        self.view(2).write(
            self.enclave(number).mailboxes[0], struct.pack("<II", MailboxCall.FAULT, 0xFFFFFFFF) + bytes(56)
        )
        status, answer = self.enc(EnclaveCall.SERVE, struct.pack("<II", number, 0))
        assert status == Status.OK
        return answer


@pytest.fixture
def bench() -> PagingBench:
    bench = PagingBench()
    bench.boot()
    return bench


def test_away_and_back(bench: PagingBench) -> None:
    number = bench.start()
    before = [translated(bench, number, ARENA + at * PAGE)[1] for at in range(4)]
    given = bench.reclaim_arena(number, 3)
    assert [(va, page) for va, page, _ in given] == [(ARENA + at * PAGE, before[at]) for at in range(3)]
    for va, page, sealed in given:
        assert bench.monitor.book.owner(page) is Owner.KERNEL
        assert translated(bench, number, va) == (0, 0)
        assert not any(text[:16] in sealed for text in TEXTS), "encrypted"
    assert bench.text(number, 3) == TEXTS[3]
    # The runtime asks about the fault, and is answered when the page is there.
    assert bench.fault(number, ARENA + PAGE + 123) == struct.pack("<Q", ARENA + PAGE)
    assert bench.give_back(number, *given[1][::2]) == Status.OK
    assert bench.fault(number, ARENA + PAGE + 123) == b""
    assert bench.text(number, 1) == TEXTS[1]
    assert translated(bench, number, ARENA + PAGE)[0] == 7 | 1 << 63
    for at in (2, 0):
        assert bench.give_back(number, *given[at][::2], page=before[at]) == Status.OK
        assert bench.text(number, at) == TEXTS[at]
    assert bench.destroy(number) == (Status.OK, bytes(8))
    bench.check()


def test_what_is_not_taken(bench: PagingBench) -> None:
    """The runtime's pages, stacks, tables and windows stay; and nothing is taken twice."""
    number = bench.start()
    given = bench.reclaim(number, PAGED_AT_ONCE)
    assert [va for va, _, _ in given] == [0x400000, 0x401000, *(ARENA + at * PAGE for at in range(4))]
    assert bench.reclaim(number, PAGED_AT_ONCE) == []
    assert bench.reclaim_arena(number, 1) == []
    assert bench.view(2).read(translated(bench, number, RUNTIME)[1], PAGE) == CONTENT[:PAGE]


def test_without_the_bound_the_runtime_would_go(bench: PagingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: nobody is there who could handle the fault."""
    honest = PageTables.cold
    monkeypatch.setattr(PageTables, "cold", lambda tables, hand, end, most: honest(tables, hand, TOP, most))
    number = bench.start()
    given = bench.reclaim(number, PAGED_AT_ONCE)
    assert RUNTIME in [va for va, _, _ in given]
    assert translated(bench, number, RUNTIME) == (0, 0)


def test_what_may_not_come_back(bench: PagingBench) -> None:
    """Changed, replayed, exchanged, another enclave's, or never given; what is refused stays the kernel's."""
    number, other = bench.start(), bench.start()
    first = bench.reclaim_arena(number, 2)
    others = bench.reclaim_arena(other, 2)
    assert bench.give_back(number, *first[0][::2]) == Status.OK
    bench.view(2).write(translated(bench, number, ARENA)[1], b"newer")
    second = bench.reclaim_again(number, ARENA)
    assert second[0][2] != first[0][2]
    page = bench.frames(1)[0]
    changed = bytes([second[0][2][0] ^ 1]) + second[0][2][1:]
    attacks: list[Callable[[], Status]] = [
        lambda: bench.give_back(number, ARENA, first[0][2], page),
        lambda: bench.give_back(number, ARENA, changed, page),
        lambda: bench.give_back(number, ARENA, first[1][2], page),
        lambda: bench.give_back(number, ARENA, others[0][2], page),
        lambda: bench.give_back(number, ARENA, bytes(PAGE), page),
        lambda: bench.give_back(number, ARENA + PAGE, second[0][2], page),
    ]
    for attack in attacks:
        assert attack() == Status.NOT_ALLOWED
        assert owners(bench, [page]) == {Owner.KERNEL}
        assert bench.kernel.read(page, PAGE) == bytes(PAGE)
    assert translated(bench, number, ARENA) == (0, 0)
    assert bench.give_back(number, *second[0][::2]) == Status.OK
    assert bench.view(2).read(translated(bench, number, ARENA)[1], 5) == b"newer"


def test_several_at_once(bench: PagingBench) -> None:
    """One that is wrong is enough: none of them comes back, and all can come again."""
    number = bench.start()
    given = bench.reclaim_arena(number, 4)
    (va, page, sealed), *others = given
    assert bench.give_all_back(number, [*others, (va, page, bytes([sealed[0] ^ 1]) + sealed[1:])]) == Status.NOT_ALLOWED
    assert owners(bench, [page for _, page, _ in given]) == {Owner.KERNEL}
    assert all(translated(bench, number, va) == (0, 0) for va, _, _ in given)
    assert bench.give_all_back(number, given) == Status.OK
    assert [bench.text(number, at) for at in range(4)] == TEXTS
    assert bench.destroy(number) == (Status.OK, bytes(8))
    bench.check()


def test_the_coldest_go_first(bench: PagingBench) -> None:
    """What the processor has used since the service looked stays once more, whatever the kernel would like."""
    number = bench.start()
    arena = [ARENA + at * PAGE for at in range(4)]
    assert [va for va, _, _ in bench.reclaim_arena(number, 1)] == arena[:1]
    bench.use(number, arena[1], arena[2])
    assert [va for va, _, _ in bench.reclaim(number, 2)] == [arena[3], 0x400000]
    # Neither was used since.
    assert [va for va, _, _ in bench.reclaim(number, 2)] == [0x401000, arena[1]]
    assert [va for va, _, _ in bench.reclaim(number, 2)] == [arena[2]]


def test_what_is_kept_for_pages_that_are_away_is_bounded(bench: PagingBench) -> None:
    """A page that the enclave gives up while it is away leaves nothing behind, however often."""
    number = bench.start()
    for at in range(4, 20):
        assert bench.mail(number, MailboxCall.MAP, ARENA + at * PAGE, 1, RW).status == Status.OK
        assert len(bench.reclaim_arena(number, PAGED_AT_ONCE)) > 0
        assert bench.mail(number, MailboxCall.UNMAP, ARENA + at * PAGE, 1).result == 1
        if not bench.enclave(number).pool:
            assert bench.donate(number, bench.frames(1)) == Status.OK
    assert len(bench.enclave(number).away) == 6
    assert bench.mail(number, MailboxCall.UNMAP, PAGE, ARENA // PAGE + 2).result == 5
    assert len(bench.enclave(number).away) == 1


def test_without_forgetting_it_would_grow(bench: PagingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: with each page that is given up while it is away there is one entry more."""
    monkeypatch.setattr(AwayPages, "forget", lambda away, va, pages=1: None)
    number = bench.start()
    for at in range(4, 10):
        assert bench.mail(number, MailboxCall.MAP, ARENA + at * PAGE, 1, RW).status == Status.OK
        bench.reclaim_arena(number, PAGED_AT_ONCE)
        assert bench.mail(number, MailboxCall.UNMAP, ARENA + at * PAGE, 1).result == 1
        assert len(bench.enclave(number).away) == at + 3
        if not bench.enclave(number).pool:
            assert bench.donate(number, bench.frames(1)) == Status.OK


def test_the_same_content_is_never_the_same_twice(bench: PagingBench) -> None:
    number = bench.start()
    seen = set()
    for _ in range(5):
        ((va, _, sealed),) = bench.reclaim_again(number, ARENA)
        assert bench.give_back(number, va, sealed) == Status.OK
        seen.add(sealed)
    assert len(seen) == 5


def test_rights_that_change_meanwhile(bench: PagingBench) -> None:
    number = bench.start()
    given = bench.reclaim_arena(number, 4)
    assert bench.mail(number, MailboxCall.PROTECT, ARENA, 1, Prot.R).result == 1
    assert bench.mail(number, MailboxCall.PROTECT, ARENA + PAGE, 1, Prot.NONE).result == 1
    assert bench.mail(number, MailboxCall.UNMAP, ARENA + 2 * PAGE, 1).result == 1
    for at in range(4):
        assert translated(bench, number, ARENA + at * PAGE) == (0, 0)
    pool = len(bench.enclave(number).pool)
    assert [bench.give_back(number, *item[::2]) for item in given] == [Status.OK] * 4
    assert translated(bench, number, ARENA)[0] == 5 | 1 << 63
    assert translated(bench, number, ARENA + PAGE) == (0, 0)
    assert bench.mail(number, MailboxCall.PROTECT, ARENA + PAGE, 1, RW).result == 1
    assert bench.text(number, 1) == TEXTS[1]
    # What the enclave gave up meanwhile is one more page of its pool, and nothing is in it.
    assert len(bench.enclave(number).pool) == pool + 1
    assert bench.mail(number, MailboxCall.MAP, ARENA + 2 * PAGE, 1, RW).status == Status.OK
    assert bench.view(2).read(translated(bench, number, ARENA + 2 * PAGE)[1], PAGE) == bytes(PAGE)
    assert bench.text(number, 3) == TEXTS[3]


def test_no_thread_writes_what_is_encrypted(bench: PagingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time that the service reads a page, the RMP keeps VMPL 2 away: an old translation is of no use."""
    number = bench.start()
    page = translated(bench, number, ARENA)[1]
    away = bench.enclave(number).away
    honest, tried = away.seal, 0

    def seal(va: int, content: bytes) -> bytes:
        nonlocal tried
        with pytest.raises(RmpViolation):
            bench.view(2).write(page, b"too late")
        with pytest.raises(RmpViolation):
            bench.kernel.read(page, 8)
        tried += 1
        return honest(va, content)

    monkeypatch.setattr(away, "seal", seal)
    bench.reclaim_arena(number, 1)
    assert tried == 1


def test_without_a_step_between_what_a_thread_writes_would_be_lost(
    bench: PagingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-test: the page stays ENCLAVE until the kernel has it."""
    honest_move, honest_seal, sealed = MonitorClient.move, AwayPages.seal, b""

    def move(monitor: MonitorClient, ranges: Sequence[tuple[int, int]], source: Owner, target: Owner) -> Asking[None]:
        if target is not Owner.ENCLAVE_LEAVING:
            yield from honest_move(
                monitor, ranges, Owner.ENCLAVE if source is Owner.ENCLAVE_LEAVING else source, target
            )

    def seal(away: AwayPages, va: int, content: bytes) -> bytes:
        nonlocal sealed
        bench.view(2).write(page, b"too late")
        sealed = honest_seal(away, va, content)
        return sealed

    number = bench.start()
    page = translated(bench, number, ARENA)[1]
    monkeypatch.setattr(MonitorClient, "move", move)
    monkeypatch.setattr(AwayPages, "seal", seal)
    bench.reclaim_arena(number, 1)
    assert bench.give_back(number, ARENA, sealed) == Status.OK
    assert bench.text(number, 0) == TEXTS[0], "the thread has written, and it is not there"


@pytest.mark.parametrize(
    "body",
    [b"", Reclaim(1, 0).pack(), Reclaim(1, PAGED_AT_ONCE + 1).pack(), Reclaim(9, 1).pack()],
)
def test_requests_that_are_none(bench: PagingBench, body: bytes) -> None:
    bench.start()
    assert bench.enc(EnclaveCall.RECLAIM, body)[0] in (Status.BAD_REQUEST, Status.NOT_ALLOWED)


@pytest.mark.parametrize("va", [1, 1 << 47, 1 << 63], ids=hex)
def test_places_that_are_none(bench: PagingBench, va: int) -> None:
    number = bench.start()
    assert bench.give_back(number, va, bytes(PAGE)) == Status.BAD_REQUEST
    for body, pages in (
        (Return(number, (ARENA,)).pack(), 0),
        (Return(number, (ARENA,)).pack(), 2),
        (Return(number, (ARENA, ARENA)).pack(), 2),
        (Return(number, ()).pack(), 0),
        (Return(number, (ARENA,)).pack()[:-1], 1),
        (b"", 1),
    ):
        assert bench.enc(EnclaveCall.RETURN, body, bench.frames(pages))[0] == Status.BAD_REQUEST


def test_over_a_snapshot(bench: PagingBench) -> None:
    number = bench.start()
    given = bench.reclaim_arena(number, 2)
    monitor, services = VeilMon(), Services()
    assert bench.services is not None
    monitor.restore(bench.monitor.save())
    services.restore(bench.services.save())
    bench.resume(monitor, services)
    assert [bench.give_back(number, *item[::2]) for item in given] == [Status.OK] * 2
    assert [bench.text(number, at) for at in range(4)] == TEXTS


# A host that refuses in the middle.


def refuse_leaving(monitor: MonitorClient, ranges: Sequence[tuple[int, int]], source: Owner, target: Owner) -> object:
    """In place of `MonitorClient.move`."""
    raise MonitorRefused(Status.UNAVAILABLE, "the host does not do it")


@pytest.mark.parametrize("puts_back", [True, False])
def test_a_host_that_refuses_before_anything_is_encrypted(
    bench: PagingBench, monkeypatch: pytest.MonkeyPatch, puts_back: bool
) -> None:
    """All is as before. The counter-test: a service that does not put back what it took out of the tables loses it."""
    number = bench.start()
    bench.enclave(number)._hand = ARENA
    with monkeypatch.context() as patch:
        patch.setattr(MonitorClient, "move", refuse_leaving)
        if not puts_back:
            patch.setattr(PageTables, "bring_back", lambda tables, addresses, frames: None)
        assert bench.enc(EnclaveCall.RECLAIM, Reclaim(number, 2).pack())[0] == Status.UNAVAILABLE
    if puts_back:
        assert [bench.text(number, at) for at in range(4)] == TEXTS
        return
    assert translated(bench, number, ARENA) == (0, 0)
    assert bench.give_back(number, ARENA, bytes(PAGE)) == Status.NOT_ALLOWED


def test_a_host_that_refuses_what_is_encrypted_already(bench: PagingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not get it, and it is not lost: the next request gives it, in another snapshot too."""
    number = bench.start()
    monitor = bench.service.context.monitor
    honest = monitor.move

    def move(ranges: Sequence[tuple[int, int]], source: Owner, target: Owner) -> Asking[None]:
        if target is Owner.KERNEL:
            raise MonitorRefused(Status.UNAVAILABLE, "the host does not do it")
        yield from honest(ranges, source, target)

    frames = [translated(bench, number, ARENA + at * PAGE)[1] for at in range(2)]
    bench.enclave(number)._hand = ARENA
    with monkeypatch.context() as patch:
        patch.setattr(monitor, "move", move)
        assert bench.enc(EnclaveCall.RECLAIM, Reclaim(number, 2).pack())[0] == Status.UNAVAILABLE
    assert owners(bench, frames) == {Owner.ENCLAVE_LEAVING}
    monitor_again, services = VeilMon(), Services()
    assert bench.services is not None
    monitor_again.restore(bench.monitor.save())
    services.restore(bench.services.save())
    bench.resume(monitor_again, services)
    given = bench.reclaim(number, 1)
    assert [(va, page) for va, page, _ in given] == [(ARENA + at * PAGE, frames[at]) for at in range(2)]
    assert bench.give_all_back(number, given) == Status.OK
    assert [bench.text(number, at) for at in range(4)] == TEXTS


def test_pages_on_their_way_go_back_with_the_enclave(bench: PagingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    number = bench.start()
    enclave, page = bench.enclave(number), translated(bench, number, ARENA)[1]
    enclave._hand = ARENA

    def refused(context: object) -> Asking[None]:
        raise MonitorRefused(Status.UNAVAILABLE, "the host does not do it")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(enclave, "_give_leaving", refused)
        assert bench.enc(EnclaveCall.RECLAIM, Reclaim(number, 1).pack())[0] == Status.UNAVAILABLE
    assert bench.destroy(number) == (Status.OK, bytes(8))
    assert owners(bench, [page]) == {Owner.KERNEL}
    assert not bench.kernel.read(page, PAGE).startswith(TEXTS[0][:16])


def test_a_host_that_takes_the_page_that_comes_back(bench: PagingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its content is known, and not yet written: nothing is lost, and it may come again in another page."""
    number = bench.start()
    ((va, _, sealed),) = bench.reclaim_arena(number, 1)
    away = bench.enclave(number).away
    honest = away.open

    def open_late(at: int, content: bytes) -> bytes:
        found = honest(at, content)
        bench.host.rmpupdate(page, assigned=False)
        return found

    page = bench.frames(1)[0]
    with monkeypatch.context() as patch:
        patch.setattr(away, "open", open_late)
        assert bench.give_back(number, va, sealed, page) == Status.UNAVAILABLE
    assert page in bench.enclave(number).owned, "it goes back with the enclave, if it ever can"
    assert bench.give_back(number, va, sealed) == Status.OK
    assert bench.text(number, 0) == TEXTS[0]


def test_a_host_that_refuses_a_page_with_wrong_content_to_go_back(
    bench: PagingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays the enclave's, unused, instead of being nobody's."""
    number = bench.start()
    ((va, _, sealed),) = bench.reclaim_arena(number, 1)
    page = bench.frames(1)[0]

    monitor = bench.service.context.monitor
    honest = monitor.move

    def move(ranges: Sequence[tuple[int, int]], source: Owner, target: Owner) -> Asking[None]:
        if target is Owner.KERNEL:
            raise MonitorRefused(Status.UNAVAILABLE, "the host does not do it")
        yield from honest(ranges, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "move", move)
        assert bench.give_back(number, va, bytes(PAGE), page) == Status.NOT_ALLOWED
    assert bench.monitor.book.owner(page) is Owner.ENCLAVE
    assert page in bench.enclave(number).owned
    assert bench.give_back(number, va, sealed) == Status.OK
    assert bench.destroy(number) == (Status.OK, bytes(8))
    assert owners(bench, [page]) == {Owner.KERNEL}


def test_a_snapshot_of_one_that_can_only_be_destroyed(bench: PagingBench) -> None:
    """Its content came before there were page tables."""
    number, _ = bench.create()
    assert bench.add(number, 1, 0, bench.frames(1), CONTENT) == Status.FULL
    services = Services()
    assert bench.services is not None
    services.restore(bench.services.save())


def test_without_tags_the_kernel_would_choose(bench: PagingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: what was true once, or of another page, is the enclave's memory again."""
    number = bench.start()
    away = bench.enclave(number).away
    monkeypatch.setattr(away, "seal", lambda va, content: content)
    monkeypatch.setattr(away, "open", lambda va, content: content)
    first = bench.reclaim_arena(number, 2)
    assert bench.give_back(number, *first[0][::2]) == Status.OK
    bench.view(2).write(translated(bench, number, ARENA)[1], b"newer")
    bench.reclaim_again(number, ARENA)
    assert bench.give_back(number, ARENA, first[0][2]) == Status.OK
    assert bench.text(number, 0) == TEXTS[0], "replayed"
    assert bench.give_back(number, ARENA + PAGE, first[0][2]) == Status.OK
    assert bench.view(2).read(translated(bench, number, ARENA + PAGE)[1], PAGE) == first[0][2], "exchanged"

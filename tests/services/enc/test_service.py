# SPDX-License-Identifier: GPL-2.0-or-later
"""How VeilS-ENC makes enclaves, what it refuses a hostile kernel, and how everything goes back."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.monitor.harness import KERNEL, MONITOR, PAGE, SERVICES, SMALL, Bench
from tests.services.enc.enclave_bench import CONTENT, LAYOUT, EnclaveBench, Services, owners, translated
from veil.formats.enclave_calls import ENC_NUMBER, EnclaveCall, Released
from veil.formats.enclave_pages import InfoPage, MailboxCall
from veil.formats.enclave_settings import ENC_NAME
from veil.formats.enclaves import (
    ARENA,
    IDT,
    INFO,
    RUNTIME,
    SYSTEM,
    SYSTEM_STRIDE,
    THREAD_AREAS,
    THREAD_STRIDE,
    THREADS,
    TOP,
    WINDOW,
    WINDOW_STRIDE,
    Prot,
)
from veil.formats.page_owners import Owner
from veil.formats.status import Status
from veil.monitor import VeilMon
from veil.services.context import Asking, MonitorClient, MonitorRefused
from veil.services.enc import page_moves
from veil.services.enc.enclave import Enclave, State
from veil.services.enc.service import EncService
from veil.snp import RmpViolation


def test_an_enclave(bench: EnclaveBench) -> None:
    number = bench.make()
    enclave = bench.enclave(number)
    assert enclave.state is State.READY
    # What it is made of is where its layout says, with these rights.
    for at in range(2):
        rights, page = translated(bench, number, RUNTIME + at * PAGE)
        assert (rights, bench.view(2).read(page, PAGE)) == (5, CONTENT[at * PAGE : (at + 1) * PAGE])
    parts = [THREADS + THREAD_STRIDE + at for area in THREAD_AREAS for at in range(*area, PAGE)]
    for va in (0x400000, 0x401000, RUNTIME + 2 * PAGE, THREADS, *parts):
        rights, page = translated(bench, number, va)
        assert (rights, bench.view(2).read(page, PAGE)) == (7 | 1 << 63, bytes(PAGE))
    rights, page = translated(bench, number, INFO)
    info = InfoPage.from_buffer_copy(bench.view(2).read(page, PAGE))
    assert (rights, bytes(info.measurement), info.enclave) == (5 | 1 << 63, LAYOUT.measurement, number)
    for va in (IDT, SYSTEM, SYSTEM + SYSTEM_STRIDE):
        assert translated(bench, number, va)[0] == 1 | 1 << 63, "the processor's alone, and read-only"
    nothing = (0, PAGE, ARENA, RUNTIME + 3 * PAGE, WINDOW + 2 * PAGE, THREADS + 2 * THREAD_STRIDE, SYSTEM + PAGE)
    below_stacks = [THREADS + THREAD_STRIDE + first - PAGE for first, _ in THREAD_AREAS[1:]]
    assert not set(below_stacks) & set(parts)
    for va in (*nothing, *below_stacks):
        assert translated(bench, number, va) == (0, 0)
    # Windows are the process's too, and data only.
    for slot in range(2):
        rights, page = translated(bench, number, WINDOW + slot * WINDOW_STRIDE)
        assert (rights, page) == (7 | 1 << 63, enclave.windows[slot][0])
        bench.kernel.write(page, b"from the process")
        assert bench.view(2).read(page, 16) == b"from the process"
    assert bench.enclaves == set(enclave.contexts)


def test_contexts(bench: EnclaveBench) -> None:
    number = bench.make()
    enclave = bench.enclave(number)
    for slot, gpa in enumerate(enclave.contexts):
        vmsa = bench.vmsa(gpa)
        assert bench.rmp.is_vmsa(gpa)
        assert (vmsa.vmpl, vmsa.cpl, vmsa.rip, vmsa.rdi) == (2, 3, RUNTIME, slot)
        assert vmsa.rsp == THREADS + slot * THREAD_STRIDE + 0xF000
        assert not vmsa.efer & 1, "SYSCALL is an undefined opcode"
        assert vmsa.cr3 & ~(1 << 51) == enclave.tables.root


def test_what_finish_answers(bench: EnclaveBench) -> None:
    number, needed = bench.create()
    bench.donate(number, bench.frames(needed))
    for slot in range(2):
        bench.window(number, slot, bench.frames(2))
    bench.add(number, 1, 0, bench.frames(2), CONTENT)
    status, answer = bench.finish(number)
    assert status == Status.OK
    assert answer == hashlib.sha384(LAYOUT.pack()).digest() + struct.pack("<2Q", *bench.enclave(number).contexts)


def test_the_kernel_reaches_nothing_of_it(bench: EnclaveBench) -> None:
    enclave = bench.enclave(bench.make())
    for page in enclave.owned:
        with pytest.raises(RmpViolation):
            bench.kernel.read(page, 1)
        with pytest.raises(RmpViolation):
            bench.kernel.write(page, b"x")
        if page not in enclave.contexts:
            assert bench.monitor.book.owner(page) is Owner.ENCLAVE
    for page in enclave.owned:
        assert bench.pvalidate(page)[0] != 0


def test_all_goes_back_and_is_zero(bench: EnclaveBench) -> None:
    number = bench.make()
    enclave = bench.enclave(number)
    pages, windows = list(enclave.owned), [page for some in enclave.windows.values() for page in some]
    bench.kernel.write(windows[0], b"the process wrote this")
    assert bench.destroy(number) == (Status.OK, bytes(8))
    assert owners(bench, pages + windows) == {Owner.KERNEL}
    assert all(bench.kernel.read(page, PAGE) == bytes(PAGE) for page in pages)
    assert bench.enclaves == set()
    assert bench.destroy(number)[0] == Status.NOT_ALLOWED
    bench.check()
    # The same pages again.
    number, needed = bench.create()
    assert bench.donate(number, pages[:needed]) == Status.OK


def test_destroyed_piece_by_piece(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.services.enc.service.RELEASED_PAGES", 16)
    number = bench.make()
    pages, rounds, left = list(bench.enclave(number).owned), 0, len(bench.enclave(number).owned)
    while left:
        status, answer = bench.destroy(number)
        assert status == Status.OK
        assert Released.parse(answer) == Released(max(0, left - 16))
        left, rounds = max(0, left - 16), rounds + 1
        assert len(owners(bench, pages)) == (2 if left else 1)
    assert rounds == -(-len(pages) // 16)


# What a hostile kernel tries.


def test_wrong_content(bench: EnclaveBench) -> None:
    number, needed = bench.create()
    bench.donate(number, bench.frames(needed))
    changed = bytearray(CONTENT)
    changed[5000] ^= 1
    pages = bench.frames(2)
    assert bench.add(number, 1, 0, pages[:1], bytes(changed)) == Status.OK
    assert bench.add(number, 1, 1, pages[1:], bytes(changed[PAGE:])) == Status.NOT_ALLOWED
    assert bench.enclave(number).state is State.UNUSABLE
    assert bench.finish(number)[0] == Status.NOT_ALLOWED
    assert bench.add(number, 1, 0, bench.frames(2), CONTENT) == Status.NOT_ALLOWED
    assert bench.destroy(number)[0] == Status.OK
    assert owners(bench, pages) == {Owner.KERNEL}


def test_without_the_digest_wrong_content_would_run(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Enclave._finish_record
    monkeypatch.setattr(Enclave, "_finish_record", lambda enclave, digest: honest(enclave, enclave._hash.digest()))
    number = bench.make(content=CONTENT[:5000] + b"\xcc" + CONTENT[5001:])
    _, page = translated(bench, number, RUNTIME + PAGE)
    assert bench.view(2).read(page, PAGE)[5000 - PAGE] == 0xCC


@pytest.mark.parametrize(
    ("record", "page", "count"),
    [(0, 0, 1), (1, 1, 1), (1, 0, 3), (2, 0, 1), (3, 0, 1), (1 << 31, 0, 1), (1, 1 << 40, 1)],
)
def test_content_out_of_order(bench: EnclaveBench, record: int, page: int, count: int) -> None:
    number, needed = bench.create()
    bench.donate(number, bench.frames(needed))
    pages = bench.frames(count)
    assert bench.add(number, record, page, pages, CONTENT + CONTENT) == Status.NOT_ALLOWED
    assert owners(bench, pages) == {Owner.KERNEL}
    assert bench.enclave(number).state is State.MAKING


def test_a_page_twice(bench: EnclaveBench) -> None:
    """In one enclave, in two, and one that it gave for something else."""
    first, needed = bench.create()
    stock = bench.frames(needed)
    assert bench.donate(first, stock) == Status.OK
    second, _ = bench.create()
    attempts: list[Callable[[], Status]] = [
        lambda: bench.donate(first, stock[:1]),
        lambda: bench.donate(second, stock[:1]),
        lambda: bench.add(first, 1, 0, stock[:2]),
        lambda: bench.add(second, 1, 0, stock[:2]),
        lambda: bench.window(second, 0, stock[:2]),
    ]
    assert {attempt() for attempt in attempts} == {Status.NOT_ALLOWED}
    twice = bench.frames(1) * 2
    assert bench.add(first, 1, 0, twice) == Status.BAD_REQUEST
    windows = bench.frames(2)
    assert bench.window(first, 0, windows) == Status.OK
    assert bench.window(first, 1, windows) == Status.NOT_ALLOWED
    assert bench.add(first, 1, 0, windows) == Status.NOT_ALLOWED
    assert bench.enclave(first).state is bench.enclave(second).state is State.MAKING


def test_without_the_page_book_two_enclaves_would_share_a_page(
    bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(monitor: MonitorClient, pages: Sequence[int], target: Owner) -> Asking[None]:
        free = [page for page in pages if bench.monitor.book.owner(page) is Owner.KERNEL]
        yield from honest(monitor, free, target)

    honest = page_moves.take
    first = bench.make()
    _, page = translated(bench, first, 0x400000)
    monkeypatch.setattr("veil.services.enc.enclave.take", take)
    second, needed = bench.create()
    own = bench.frames(needed - 1)
    assert bench.donate(second, [page, *own]) == Status.OK
    assert page in bench.enclave(first).owned
    assert page in bench.enclave(second).owned


@pytest.mark.parametrize("page", [MONITOR, SERVICES, 0x40000, 1 << 40, 8 << 20], ids=hex)
def test_pages_that_are_not_the_kernels(bench: EnclaveBench, page: int) -> None:
    number, _ = bench.create()
    mine = bench.frames(1)
    assert bench.donate(number, [*mine, page]) == Status.NOT_ALLOWED
    assert owners(bench, mine) == {Owner.KERNEL}, "all or nothing"
    assert bench.kernel.read(mine[0], 16) == b"the kernel's own"


def test_a_page_that_the_host_shares(bench: EnclaveBench) -> None:
    number, _ = bench.create()
    assert bench.pvalidate(SMALL)[0] == 0
    bench.host.rmpupdate(SMALL, assigned=False)
    assert bench.donate(number, [SMALL]) == Status.UNAVAILABLE


def test_not_finished_too_early(bench: EnclaveBench) -> None:
    number, needed = bench.create()
    steps: list[Callable[[], Status]] = [
        lambda: bench.donate(number, bench.frames(needed - 1)),
        lambda: bench.window(number, 0, bench.frames(2)),
        lambda: bench.add(number, 1, 0, bench.frames(2), CONTENT),
        lambda: bench.window(number, 1, bench.frames(2)),
        lambda: bench.donate(number, bench.frames(1)),
    ]
    for step in steps:
        assert bench.finish(number)[0] == Status.NOT_ALLOWED
        assert step() == Status.OK
    assert bench.donate(number, bench.frames(1)) == Status.NOT_ALLOWED, "no more than it needs"
    assert bench.finish(number)[0] == Status.OK
    assert bench.finish(number)[0] == Status.NOT_ALLOWED


def test_windows_as_they_must_be(bench: EnclaveBench) -> None:
    number, needed = bench.create()
    bench.donate(number, bench.frames(needed))
    assert bench.window(number, 2, bench.frames(2)) == Status.NOT_ALLOWED
    assert bench.window(number, 0, bench.frames(1)) == Status.NOT_ALLOWED
    assert bench.window(number, 0, bench.frames(3)) == Status.NOT_ALLOWED
    assert bench.window(number, 0, bench.frames(2)) == Status.OK
    assert bench.window(number, 0, bench.frames(2)) == Status.NOT_ALLOWED


def test_content_needs_tables(bench: EnclaveBench) -> None:
    """Whose content is moved before there are tables has an enclave that only can be destroyed, and loses nothing."""
    number, _ = bench.create()
    pages = bench.frames(2)
    assert bench.add(number, 1, 0, pages, CONTENT) == Status.FULL
    assert bench.destroy(number) == (Status.OK, bytes(8))
    assert owners(bench, pages) == {Owner.KERNEL}


@pytest.mark.parametrize("call", list(EnclaveCall), ids=lambda call: call.name)
@pytest.mark.parametrize("body", [b"", b"\0", bytes(4), bytes(8), b"\xff" * 16, bytes(100)], ids=len)
def test_requests_that_are_none(bench: EnclaveBench, call: EnclaveCall, body: bytes) -> None:
    bench.make()
    status, _ = bench.enc(call, body, [KERNEL])
    assert status in (Status.BAD_REQUEST, Status.NOT_ALLOWED)
    assert bench.monitor.book.owner(KERNEL) is Owner.KERNEL


def test_no_other_calls(bench: EnclaveBench) -> None:
    assert bench.ask(ENC_NUMBER, 99)[0] == Status.UNKNOWN_CALL


def test_no_more_than_there_may_be() -> None:
    bench = EnclaveBench()
    bench.boot()
    bench.service._settings = replace(bench.service._settings, most=2)
    bench.create()
    number, _ = bench.create()
    assert bench.enc(EnclaveCall.CREATE, LAYOUT.pack())[0] == Status.FULL
    bench.destroy(number)
    bench.create()


def test_off() -> None:
    bench = Bench(services=Services, settings={ENC_NAME: {"mode": "off"}}).boot()
    for call in EnclaveCall:
        assert bench.ask(ENC_NUMBER, call, LAYOUT.pack())[0] == Status.NOT_ALLOWED


def test_a_host_that_does_not_take_contexts(bench: EnclaveBench) -> None:
    number, needed = bench.create()
    bench.donate(number, bench.frames(needed))
    for slot in range(2):
        bench.window(number, slot, bench.frames(2))
    bench.add(number, 1, 0, bench.frames(2), CONTENT)
    bench.takes_enclaves = False
    assert bench.finish(number)[0] == Status.UNAVAILABLE
    bench.takes_enclaves = True
    assert bench.finish(number)[0] == Status.NOT_ALLOWED, "what was begun is not finished"
    assert bench.destroy(number) == (Status.OK, bytes(8))


def test_without_the_hosts_answer_an_enclave_would_be_ready_that_nobody_runs(
    bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-test: what the host did not do is taken for done."""
    honest = MonitorClient.make_vmsa

    def make_vmsa(monitor: MonitorClient, gpa: int) -> Asking[None]:
        with suppress(MonitorRefused):
            yield from honest(monitor, gpa)

    monkeypatch.setattr(MonitorClient, "make_vmsa", make_vmsa)
    bench.takes_enclaves = False
    number = bench.make()
    assert bench.enclave(number).state is State.READY
    assert bench.enclaves == set()


def interrupt(bench: EnclaveBench, number: int, rip: int, slot: int = 0) -> Status:
    """The kernel wants the thread of a slot to come to its runtime; it was left at `rip`."""
    bench.vmsa(bench.enclave(number).contexts[slot]).rip = rip
    return bench.enc(EnclaveCall.INTERRUPT, struct.pack("<II", number, slot))[0]


def test_a_program_is_interrupted_by_a_fault_that_is_none(bench: EnclaveBench) -> None:
    number = bench.make()
    before = translated(bench, number, 0x400000)
    registers = bytes(bench.vmsa(bench.enclave(number).contexts[1]))
    assert interrupt(bench, number, 0x400123, slot=1) == Status.OK
    assert translated(bench, number, 0x400000) == (0, 0)
    bench.vmsa(bench.enclave(number).contexts[1]).cr2 = 0x400123
    assert bench.mail(number, MailboxCall.FAULT, slot=1).result == 0x400123
    assert translated(bench, number, 0x400000) == before
    bench.vmsa(bench.enclave(number).contexts[1]).rip = RUNTIME
    bench.vmsa(bench.enclave(number).contexts[1]).cr2 = 0
    assert bytes(bench.vmsa(bench.enclave(number).contexts[1])) == registers, "no register is the service's to change"


@pytest.mark.parametrize("rip", [RUNTIME, RUNTIME + 0x123, THREADS, WINDOW, ARENA, 0, 0xFFFF_8000_0000_0000])
def test_only_the_program_is_interrupted(bench: EnclaveBench, rip: int) -> None:
    number = bench.make()
    places = [record.va for record in LAYOUT.records] + [THREADS, WINDOW, INFO]
    before = [translated(bench, number, va) for va in places]
    assert interrupt(bench, number, rip) == Status.OK
    assert [translated(bench, number, va) for va in places] == before


def test_without_the_check_the_runtime_would_lose_its_page(
    bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = bench.make()
    monkeypatch.setattr("veil.services.enc.enclave.WINDOW", TOP)
    assert interrupt(bench, number, RUNTIME + 0x123) == Status.OK
    assert translated(bench, number, RUNTIME) == (0, 0)


def test_who_cannot_be_interrupted(bench: EnclaveBench) -> None:
    number = bench.make()
    assert bench.enc(EnclaveCall.INTERRUPT, struct.pack("<II", number, 2))[0] == Status.NOT_ALLOWED
    assert bench.enc(EnclaveCall.INTERRUPT, struct.pack("<II", number + 1, 0))[0] == Status.NOT_ALLOWED
    assert bench.enc(EnclaveCall.INTERRUPT, struct.pack("<I", number))[0] == Status.BAD_REQUEST
    unfinished, _ = bench.create()
    assert bench.enc(EnclaveCall.INTERRUPT, struct.pack("<II", unfinished, 0))[0] == Status.NOT_ALLOWED


# Snapshots


def test_over_a_snapshot(bench: EnclaveBench) -> None:
    number = bench.make()
    making, needed = bench.create()
    bench.donate(making, bench.frames(needed))
    for slot in range(2):
        bench.window(making, slot, bench.frames(2))
    bench.add(making, 1, 0, bench.frames(1), CONTENT)
    key = bytes(bench.mail(number, MailboxCall.KEY, 5, data=b"label").data[:32])
    monitor, services = VeilMon(), Services()
    assert bench.services is not None
    monitor.restore(bench.monitor.save())
    services.restore(bench.services.save())
    bench.resume(monitor, services)
    assert bench.enc(EnclaveCall.SERVE, struct.pack("<II", number, 0))[0] == Status.OK
    assert bytes(bench.mail(number, MailboxCall.KEY, 5, data=b"label").data[:32]) == key
    assert bench.mail(number, MailboxCall.MAP, ARENA, 8, Prot.R | Prot.W).status == Status.OK
    assert bench.add(making, 1, 1, bench.frames(1), CONTENT[PAGE:]) == Status.OK
    assert bench.finish(making)[0] == Status.OK
    for each in (number, making):
        assert bench.destroy(each) == (Status.OK, bytes(8))
    assert bench.create()[0] == 3


def test_it_is_one_of_veils_services() -> None:
    from veil.services.protected import ProtectedServices

    assert EncService in ProtectedServices.service_types

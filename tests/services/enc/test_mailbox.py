# SPDX-License-Identifier: GPL-2.0-or-later
"""What an enclave's runtime asks of VeilS-ENC about its memory, time and faults; what it is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.monitor.harness import PAGE
from tests.services.enc.enclave_bench import CONTENT, LAYOUT, EnclaveBench, translated
from veil.formats.enclave_calls import EnclaveCall
from veil.formats.enclave_pages import Mailbox, MailboxCall
from veil.formats.enclaves import ARENA, IDT, INFO, RUNTIME, SYSTEM, THREADS, WINDOW, Prot
from veil.formats.status import Status
from veil.services.enc import mailbox
from veil.services.enc.page_tables import PageTables

RW = Prot.R | Prot.W


def test_memory_from_the_pool(bench: EnclaveBench) -> None:
    number = bench.make()
    answer = bench.mail(number, MailboxCall.MAP, ARENA, 3, RW)
    assert (answer.status, answer.result) == (Status.OK, 3)
    rights, page = translated(bench, number, ARENA + 2 * PAGE)
    assert (rights, bench.view(2).read(page, PAGE)) == (7 | 1 << 63, bytes(PAGE))
    bench.view(2).write(page, b"private")
    assert bench.mail(number, MailboxCall.PROTECT, ARENA, 3, Prot.NONE).result == 3
    assert translated(bench, number, ARENA + 2 * PAGE) == (0, 0)
    assert bench.mail(number, MailboxCall.PROTECT, ARENA, 3, Prot.R | Prot.X).result == 3
    assert translated(bench, number, ARENA + 2 * PAGE) == (5, page)
    assert bench.view(2).read(page, 7) == b"private"
    assert bench.mail(number, MailboxCall.UNMAP, ARENA, 1024).result == 3
    assert translated(bench, number, ARENA) == (0, 0)
    # All of the pool, and it is zero again.
    assert bench.mail(number, MailboxCall.MAP, ARENA, 8, RW).status == Status.OK
    for at in range(8):
        assert bench.view(2).read(translated(bench, number, ARENA + at * PAGE)[1], PAGE) == bytes(PAGE)
    assert bench.mail(number, MailboxCall.MAP, ARENA + 8 * PAGE, 1, RW).status == Status.FULL


def test_pages_with_a_copy(bench: EnclaveBench) -> None:
    """They have it when a thread can first meet them; the other pages stay what they are."""
    number = bench.make()
    assert bench.mail(number, MailboxCall.FILL, ARENA, 2, Prot.R | Prot.X, RUNTIME).result == 2
    for at in range(2):
        rights, page = translated(bench, number, ARENA + at * PAGE)
        assert (rights, bench.view(2).read(page, PAGE)) == (5, CONTENT[at * PAGE : (at + 1) * PAGE])
        bench.view(2).write(page, b"private")
        assert bench.view(2).read(translated(bench, number, RUNTIME + at * PAGE)[1], PAGE) != b"private"
    assert bench.mail(number, MailboxCall.FILL, ARENA + PAGE, 2, RW, RUNTIME).status == Status.BAD_REQUEST
    assert bench.mail(number, MailboxCall.FILL, ARENA + 2 * PAGE, 7, RW, RUNTIME).status == Status.FULL
    assert bench.mail(number, MailboxCall.UNMAP, ARENA, 2).result == 2
    assert bench.mail(number, MailboxCall.FILL, ARENA, 1, RW, 0x400000).result == 1
    assert bench.view(2).read(translated(bench, number, ARENA)[1], PAGE) == bytes(PAGE)


@pytest.mark.parametrize(
    "source",
    [RUNTIME + 1, RUNTIME + 2 * PAGE, RUNTIME + 16 * PAGE, ARENA, IDT, SYSTEM, 0, 1 << 47, 1 << 63, (1 << 64) - PAGE],
    ids=hex,
)
def test_what_an_enclave_cannot_read_is_not_copied_for_it(bench: EnclaveBench, source: int) -> None:
    number = bench.make()
    assert bench.mail(number, MailboxCall.MAP, ARENA, 1, RW).status == Status.OK
    assert bench.mail(number, MailboxCall.PROTECT, ARENA, 1, Prot.NONE).result == 1
    before = list(bench.enclave(number).pool)
    assert bench.mail(number, MailboxCall.FILL, ARENA + PAGE, 2, RW, source).status == Status.BAD_REQUEST
    assert bench.enclave(number).pool == before
    assert translated(bench, number, ARENA + PAGE) == (0, 0)


@pytest.mark.parametrize(
    "args",
    [
        (ARENA + 1, 1, 3), (ARENA, 0, 3), (ARENA, 1, 0), (ARENA, 1, 2), (ARENA, 1, 8), (0, 1, 3), (ARENA, 1 << 60, 3),
        ((1 << 64) - PAGE, 2, 3), (WINDOW, 1, 3), (WINDOW - PAGE, 2, 3), (THREADS, 1, 3), (IDT, 1, 3), (INFO, 1, 3),
        (RUNTIME, 1, 3), (ARENA + 1023 * PAGE, 2, 3), (1 << 47, 1, 3), (ARENA, 1025, 3),
    ],
)  # fmt: skip
def test_what_no_enclave_can_have_mapped(bench: EnclaveBench, args: tuple[int, ...]) -> None:
    number = bench.make()
    for call in (MailboxCall.MAP, MailboxCall.UNMAP):
        assert bench.mail(number, call, ARENA, 8, RW).status == Status.OK
    before = list(bench.enclave(number).pool)
    assert len(before) == 8
    assert bench.mail(number, MailboxCall.MAP, *args).status in (Status.BAD_REQUEST, Status.FULL)
    assert bench.mail(number, MailboxCall.FILL, *args, RUNTIME).status in (Status.BAD_REQUEST, Status.FULL)
    assert bench.enclave(number).pool == before


def test_the_arena_ends_for_a_range_that_begins_before_it_too(bench: EnclaveBench) -> None:
    number = bench.make(replace(LAYOUT, arena_pages=1))
    assert bench.mail(number, MailboxCall.MAP, ARENA - PAGE, 3, RW).status == Status.BAD_REQUEST
    assert bench.mail(number, MailboxCall.MAP, ARENA - PAGE, 2, RW).status == Status.OK


@pytest.mark.parametrize("call", [MailboxCall.UNMAP, MailboxCall.PROTECT])
@pytest.mark.parametrize("va", [WINDOW, THREADS, SYSTEM, IDT, INFO, INFO - PAGE, 1 << 63], ids=hex)
def test_what_stays_as_it_is(bench: EnclaveBench, call: MailboxCall, va: int) -> None:
    number = bench.make()
    before = translated(bench, number, va) if va < 1 << 47 else None
    assert bench.mail(number, call, va, 2, Prot.R).status == Status.BAD_REQUEST
    assert before is None or translated(bench, number, va) == before


def test_without_the_checks_an_enclave_would_have_gates_of_its_own(
    bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-test: its descriptors become data that ring 3 writes, and its own measurement too."""
    number = bench.make()
    assert {translated(bench, number, va)[0] & 7 for va in (IDT, SYSTEM)} == {1}
    monkeypatch.setattr(mailbox, "fixed_areas", list)
    monkeypatch.setattr(PageTables, "_refuse_fixed", lambda tables, entries: None)
    for va in (IDT, SYSTEM, INFO):
        assert bench.mail(number, MailboxCall.PROTECT, va, 1, RW).result == 1
        assert translated(bench, number, va)[0] & 7 == 7


def test_its_own_pages_are_its_own_to_change(bench: EnclaveBench) -> None:
    number = bench.make()
    assert bench.mail(number, MailboxCall.PROTECT, 0x400000, 1, Prot.R).result == 1
    assert translated(bench, number, 0x400000)[0] == 5 | 1 << 63
    assert bench.mail(number, MailboxCall.UNMAP, 0x400000, 1).result == 1
    assert len(bench.enclave(number).pool) == 1


def test_time_and_the_address_of_a_fault(bench: EnclaveBench) -> None:
    number = bench.make()
    first = bench.mail(number, MailboxCall.TIME).result
    assert bench.mail(number, MailboxCall.TIME).result > first > 0
    bench.vmsa(bench.enclave(number).contexts[1]).cr2 = 0x1234567
    assert bench.mail(number, MailboxCall.FAULT, slot=1).result == 0x1234567
    assert bench.mail(number, 99).status == Status.UNKNOWN_CALL


def test_a_mailbox_without_a_request(bench: EnclaveBench) -> None:
    number = bench.make()
    gpa = bench.enclave(number).mailboxes[0]
    bench.view(2).write(gpa, struct.pack("<II", MailboxCall.TIME, 0))
    before = bench.view(2).read(gpa, PAGE)
    assert bench.enc(EnclaveCall.SERVE, struct.pack("<II", number, 0))[0] == Status.OK
    assert bench.view(2).read(gpa, PAGE) == before
    assert bench.enc(EnclaveCall.SERVE, struct.pack("<II", number, 2))[0] == Status.NOT_ALLOWED


#: Where no enclave has a page.
_NOWHERE = 0


def _made(bench: EnclaveBench, patch: pytest.MonkeyPatch) -> int:
    """An enclave with a full pool, of which another thread changes the mailbox as soon as the service has read it."""
    number = bench.make()
    for call in (MailboxCall.MAP, MailboxCall.UNMAP):
        assert bench.mail(number, call, ARENA, 8, RW).status == Status.OK
    gpa, guest = bench.enclave(number).mailboxes[0], bench.service.context.guest
    read = guest.read

    def read_and_change(place: int, length: int) -> bytes:
        found = read(place, length)
        if place == gpa:
            bench.view(2).write(gpa + Mailbox.args.offset, _NOWHERE.to_bytes(8, "little"))
        return found

    patch.setattr(guest, "read", read_and_change)
    return number


def test_a_mailbox_that_changes_while_it_is_served(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked is what is done: the copy."""
    number = _made(bench, monkeypatch)
    assert bench.mail(number, MailboxCall.MAP, ARENA, 1, RW).status == Status.OK
    assert translated(bench, number, ARENA)[0]
    assert translated(bench, number, _NOWHERE) == (0, 0)
    assert bench.mail(number, MailboxCall.MAP, _NOWHERE, 1, RW).status == Status.BAD_REQUEST


def test_a_mailbox_that_is_read_twice(bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: checked the first time, used the second, a page is mapped where none may be."""
    number = _made(bench, monkeypatch)
    check = mailbox._Request.range

    def check_and_read_again(request: mailbox._Request) -> tuple[int, int]:
        check(request)
        again = request.context.guest.read(request.enclave.mailboxes[0], PAGE)
        return (Mailbox.from_buffer_copy(again).args[0], 1)

    monkeypatch.setattr(mailbox._Request, "range", check_and_read_again)
    bench.mail(number, MailboxCall.MAP, ARENA, 1, RW)
    assert translated(bench, number, _NOWHERE)[0]

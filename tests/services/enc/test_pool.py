# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that come when the runtime needs them: the pool, and what a fault maps."""

from __future__ import annotations

import struct
from dataclasses import replace

from tests.monitor.harness import PAGE
from tests.services.enc.enclave_bench import LAYOUT, EnclaveBench, translated
from veil.formats.enclave_calls import EnclaveCall
from veil.formats.enclave_pages import MAILBOX_DATA, Mailbox, MailboxCall
from veil.formats.enclaves import ARENA, Prot
from veil.formats.status import Status

RW = Prot.R | Prot.W
MAPPED = struct.Struct("<QQ")


def _ask(bench: EnclaveBench, number: int, call: MailboxCall, *args: int) -> bytes:
    """The runtime asks; what the kernel is told, which does nothing more."""
    mailbox = Mailbox(call=int(call), status=0xFFFFFFFF)
    for at, arg in enumerate(args):
        mailbox.args[at] = arg
    bench.view(2).write(bench.enclave(number).mailboxes[0], bytes(mailbox))
    return _serve(bench, number)


def _serve(bench: EnclaveBench, number: int) -> bytes:
    status, answer = bench.enc(EnclaveCall.SERVE, struct.pack("<II", number, 0))
    assert status == Status.OK
    return answer


def _status(bench: EnclaveBench, number: int) -> int:
    return bench.view(2).read_u32(bench.enclave(number).mailboxes[0] + Mailbox.status.offset)


def test_a_request_waits_until_the_kernel_gives_pages(bench: EnclaveBench) -> None:
    number = bench.make(replace(LAYOUT, pool_pages=300))
    wanted = struct.pack("<QQ", 0, 256)
    assert _ask(bench, number, MailboxCall.MAP, ARENA, 3, RW) == wanted
    assert translated(bench, number, ARENA) == (0, 0)
    assert _serve(bench, number) == wanted
    assert _status(bench, number) == 0xFFFFFFFF
    assert bench.donate(number, bench.frames(3)) == Status.OK
    assert _serve(bench, number) == b""
    assert (_status(bench, number), translated(bench, number, ARENA)[0]) == (Status.OK, 7 | 1 << 63)
    # No more than are left, and then none.
    assert _ask(bench, number, MailboxCall.MAP, ARENA + 3 * PAGE, 100, RW) == struct.pack("<QQ", 0, 256)
    assert bench.donate(number, bench.frames(200)) == Status.OK
    assert _serve(bench, number) == b""
    assert _ask(bench, number, MailboxCall.MAP, ARENA + 103 * PAGE, 197, RW) == struct.pack("<QQ", 0, 97)
    assert bench.donate(number, bench.frames(97)) == Status.OK
    assert _serve(bench, number) == b""
    assert _ask(bench, number, MailboxCall.MAP, ARENA + 300 * PAGE, 1, RW) == b""
    assert _status(bench, number) == Status.FULL


def test_a_pool_has_no_more_pages_than_the_layout_says(bench: EnclaveBench) -> None:
    number = bench.make()
    assert bench.donate(number, bench.frames(9)) == Status.NOT_ALLOWED
    assert bench.donate(number, bench.frames(8)) == Status.OK
    assert bench.donate(number, bench.frames(1)) == Status.NOT_ALLOWED
    assert bench.destroy(number) == (Status.OK, bytes(8))
    bench.check()


def test_a_fault_brings_pages_where_the_runtime_thought_it_would_be(bench: EnclaveBench) -> None:
    number = bench.make(replace(LAYOUT, pool_pages=200))
    vmsa = bench.vmsa(bench.enclave(number).contexts[0])
    assert bench.donate(number, bench.frames(200)) == Status.OK

    def fault(address: int, *args: int) -> tuple[int, ...]:
        vmsa.cr2 = address
        answer = bench.mail(number, MailboxCall.FAULT, *args)
        assert (answer.status, answer.result) == (Status.OK, address)
        return MAPPED.unpack(bytes(answer.data[: MAPPED.size]))

    area = (ARENA + 60 * PAGE, 70, RW)
    assert fault(ARENA + 59 * PAGE, *area) == (0, 0)
    assert fault(ARENA + 130 * PAGE, *area) == (0, 0)
    assert fault(ARENA + 61 * PAGE + 5) == (0, 0)
    assert translated(bench, number, ARENA + 61 * PAGE) == (0, 0)
    # The 64 pages around it, as far as the area goes.
    assert fault(ARENA + 61 * PAGE + 5, *area) == (ARENA + 60 * PAGE, 4)
    assert fault(ARENA + 64 * PAGE, ARENA + 64 * PAGE, 66, Prot.R) == (ARENA + 64 * PAGE, 64)
    assert [translated(bench, number, ARENA + at * PAGE)[0] for at in (60, 63, 64, 127, 128)] == [
        7 | 1 << 63, 7 | 1 << 63, 5 | 1 << 63, 5 | 1 << 63, 0,
    ]  # fmt: skip
    # What is mapped already stays; the runtime hears of it when it asks for these pages.
    assert fault(ARENA + 62 * PAGE, *area) == (0, 0)
    assert bench.mail(number, MailboxCall.FAULT, ARENA, 1, 0).status == Status.BAD_REQUEST
    assert Mailbox.data.offset == MAILBOX_DATA


def test_a_fault_brings_no_pages_that_the_pool_does_not_have(bench: EnclaveBench) -> None:
    number = bench.make()
    bench.vmsa(bench.enclave(number).contexts[0]).cr2 = ARENA
    answer = bench.mail(number, MailboxCall.FAULT, ARENA, 9, RW)
    assert (answer.status, bytes(answer.data[:16])) == (Status.OK, bytes(16))
    assert bench.mail(number, MailboxCall.FAULT, ARENA, 8, RW).status == Status.OK
    assert translated(bench, number, ARENA + 7 * PAGE)[0] == 7 | 1 << 63


def test_pages_that_nobody_asked_for_do_not_make_a_pool_smaller(bench: EnclaveBench) -> None:
    """The kernel returns pages that it never had: more than the pool may have, and the enclave maps them as others."""
    number = bench.make(replace(LAYOUT, pool_pages=2))
    for page in bench.frames(6):
        assert bench.enc(EnclaveCall.RETURN, struct.pack("<IIQ", number, 0, ARENA), [page])[0] == Status.OK
    assert _ask(bench, number, MailboxCall.MAP, ARENA, 2, RW) == b""
    assert _status(bench, number) == Status.OK

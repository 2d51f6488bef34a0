# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that makes enclaves, on the bench of VeilMon's tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tests.monitor.harness import FREE, PAGE, Bench
from tests.services.enc.page_walk import walk
from veil.formats.enclave_calls import ENC_NUMBER, PAGES_MISSING, AddContent, EnclaveCall
from veil.formats.enclave_pages import Mailbox, MailboxCall
from veil.formats.enclave_settings import ENC_NAME
from veil.formats.enclaves import RUNTIME, Layout, Prot, Record, RecordKind
from veil.formats.page_owners import Owner
from veil.formats.status import Status
from veil.services import ServiceDomain
from veil.services.enc.enclave import Enclave
from veil.services.enc.service import EncService

__all__ = ["CONTENT", "LAYOUT", "EnclaveBench", "owners", "translated"]

CONTENT = bytes(range(256)) * 16 + b"\x90" * PAGE
LAYOUT = Layout(
    entry=RUNTIME,
    vectors=RUNTIME + PAGE,
    slots=2,
    pool_pages=8,
    arena_pages=1024,
    records=(
        Record(RecordKind.ZERO, Prot.R | Prot.W, 0x400000, 2),
        Record.content(Prot.R | Prot.X, RUNTIME, CONTENT),
        Record(RecordKind.ZERO, Prot.R | Prot.W, RUNTIME + 2 * PAGE, 1),
    ),
    window_pages=2,
)


class Services(ServiceDomain):
    """VeilS-ENC alone."""

    service_types = (EncService,)


class EnclaveBench(Bench):
    """A machine with VeilS-ENC on."""

    def __init__(
        self, services: type[ServiceDomain] = Services, settings: Mapping[str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(services=services, settings={ENC_NAME: {"mode": "on"}, **(settings or {})}, **options)
        self._next = FREE

    @property
    def service(self) -> EncService:
        assert self.services is not None
        (found,) = (service for service in self.services.services if isinstance(service, EncService))
        return found

    def enclave(self, number: int) -> Enclave:
        return self.service._enclaves[number]

    def frames(self, count: int) -> list[int]:
        """Pages of the kernel's that nobody has used yet, with something in them."""
        pages = [self._next + at * PAGE for at in range(count)]
        self._next += count * PAGE
        for page in pages:
            self.kernel.write(page, b"the kernel's own")
        return pages

    def enc(
        self, call: EnclaveCall, body: bytes = b"", pages: Sequence[int] = (), vcpu: int = 0
    ) -> tuple[Status, bytes]:
        return self.ask(ENC_NUMBER, call, body, pages=pages, vcpu=vcpu)

    def create(self, layout: Layout = LAYOUT) -> tuple[int, int]:
        """(number, pages to donate)."""
        status, answer = self.enc(EnclaveCall.CREATE, layout.pack())
        assert status == Status.OK
        number, _, pages = struct.unpack("<IIQ", answer)
        return number, pages

    def donate(self, number: int, pages: Sequence[int]) -> Status:
        return self.enc(EnclaveCall.DONATE, struct.pack("<I", number), pages)[0]

    def window(self, number: int, slot: int, pages: Sequence[int]) -> Status:
        return self.enc(EnclaveCall.WINDOW, struct.pack("<II", number, slot), pages)[0]

    def add(self, number: int, record: int, page: int, pages: Sequence[int], content: bytes = b"") -> Status:
        for at, gpa in enumerate(pages):
            if content:
                self.kernel.write(gpa, content[at * PAGE : (at + 1) * PAGE])
        return self.enc(EnclaveCall.ADD, AddContent(number, record, page).pack(), pages)[0]

    def finish(self, number: int) -> tuple[Status, bytes]:
        return self.enc(EnclaveCall.FINISH, struct.pack("<I", number))

    def destroy(self, number: int) -> tuple[Status, bytes]:
        return self.enc(EnclaveCall.DESTROY, struct.pack("<I", number))

    def make(self, layout: Layout = LAYOUT, content: bytes = CONTENT, most: int = 1024) -> int:
        """A whole enclave, in requests of `most` pages."""
        number, needed = self.create(layout)
        while needed:
            some = min(needed, most)
            assert self.donate(number, self.frames(some)) == Status.OK
            needed -= some
        for slot in range(layout.slots):
            assert self.window(number, slot, self.frames(layout.window_pages)) == Status.OK
        at = 0
        for index, record in enumerate(layout.records):
            if record.kind is not RecordKind.CONTENT:
                continue
            for page in range(0, record.pages, most):
                some = min(record.pages - page, most)
                pages = self.frames(some)
                assert self.add(number, index, page, pages, content[at * PAGE : (at + some) * PAGE]) == Status.OK
                at += some
        status, _ = self.finish(number)
        assert status == Status.OK
        return number

    def mail(self, number: int, call: MailboxCall | int, *args: int, data: bytes = b"", slot: int = 0) -> Mailbox:
        """The runtime asks, and the kernel has it served."""
        gpa = self.enclave(number).mailboxes[slot]
        mailbox = Mailbox(call=int(call), status=0xFFFFFFFF)
        for at, arg in enumerate(args):
            mailbox.args[at] = arg
        mailbox.data[: len(data)] = list(data)
        self.view(2).write(gpa, bytes(mailbox))
        status, wanted = self.enc(EnclaveCall.SERVE, struct.pack("<II", number, slot))
        if len(wanted) == PAGES_MISSING.size:
            # It has to wait for pages: as the driver does it.
            _, count = PAGES_MISSING.unpack(wanted)
            assert self.donate(number, self.frames(count)) == Status.OK
            status, wanted = self.enc(EnclaveCall.SERVE, struct.pack("<II", number, slot))
        assert (status, wanted) == (Status.OK, b"")
        return Mailbox.from_buffer_copy(self.view(2).read(gpa, PAGE))


def translated(bench: EnclaveBench, number: int, va: int) -> tuple[int, int]:
    """(rights, page) by the enclave's tables, read as the enclave's processor reads them."""
    return walk(bench.view(2), bench.enclave(number).tables.root, va)


def owners(bench: Bench, pages: list[int]) -> set[Owner]:
    """Whose the pages are, by VeilMon's book."""
    return {bench.monitor.book.owner(page) for page in pages}

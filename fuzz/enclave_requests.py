# SPDX-License-Identifier: GPL-2.0-or-later
"""A hostile kernel's requests to VeilS-ENC on the real thing: VeilMon, its page book, the RMP, request blocks; and a
host that takes pages away.

`enclave_service` has a model in their place, and knows more of what is in an enclave. Here is what no model can show:
that book, RMP and service agree about each page after each request, whatever it was.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from fuzz.target import Target
from tests.monitor.harness import BLOCK, BLOCK_PAGES, FREE, MONITOR, PAGE, RAM, SERVICES, SMALL
from tests.services.enc.enclave_bench import CONTENT, LAYOUT, EnclaveBench
from veil.formats.enclave_calls import ENC_NUMBER, AddContent, EnclaveCall, Reclaim, Reclaimed, Return
from veil.formats.enclave_pages import Mailbox
from veil.formats.enclaves import ARENA, IDT, INFO, RUNTIME, THREADS, WINDOW
from veil.formats.errors import FormatError
from veil.formats.page_owners import Owner
from veil.formats.request_block import read_answer
from veil.formats.status import Status
from veil.snp import Permission, RmpViolation

__all__ = ["TARGETS"]

_LONGEST, _MOST_STEPS = 300, 24
_RW, _NONE = int(Permission.RW), int(Permission.NONE)
#: What VMPL 1, 2 and 3 may do at most with a page of these owners.
_RIGHTS = {
    Owner.ENCLAVE: (_RW, _RW | int(Permission.UX), _NONE),
    Owner.ENCLAVE_VMSA: (int(Permission.R), _NONE, _NONE),
    Owner.ENCLAVE_LEAVING: (_RW, _NONE, _NONE),
    Owner.ENCLAVE_WINDOW: (_RW, _RW, _RW),
    Owner.KERNEL: (_NONE, _NONE, 15),
}
_ENCLAVES = frozenset(_RIGHTS) - {Owner.KERNEL}
#: No request may have these: VeilMon's and the services', what is shared, what is not there, no page.
_OTHERS = (MONITOR, SERVICES, BLOCK, RAM, 1 << 51, (1 << 64) - PAGE, 0, FREE + 1)
_ADDRESSES = (
    0x400000, 0x401000, ARENA, ARENA + PAGE, RUNTIME, THREADS, WINDOW, IDT, INFO, 0, 1 << 47, (1 << 64) - PAGE,
)  # fmt: skip


class _World:
    """One input's run."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self.bench = EnclaveBench()
        self.bench.boot()
        self._needed: dict[int, int] = {}
        self._away: list[tuple[int, bytes]] = []

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def run(self) -> None:
        steps = (
            self.whole, self.create, self.donate, self.window, self.add, self.finish, self.serve, self.serve,
            self.reclaim, self.give_back, self.interrupt, self.destroy, self.anything, self.block, self.monitor,
            self.host,
        )  # fmt: skip
        for _ in range(_MOST_STEPS):
            if self._at >= len(self._data):
                break
            steps[self.byte() % len(steps)]()
            self.check()

    # What a request is made of

    def number(self) -> int:
        known = list(self.bench.service._enclaves)
        kind = self.byte()
        return known[kind % len(known)] if known and kind % 8 else kind

    def pages(self, count: int) -> list[int]:
        """The kernel's own; among them now and then one of an enclave's or of others, or one twice."""
        if self.bench._next + count * PAGE >= MONITOR:
            return []
        found, kind = self.bench.frames(count), self.byte()
        if found and kind % 4 == 3:
            enclaves = [page for enclave in self.bench.service._enclaves.values() for page in enclave.owned]
            strange = [*_OTHERS, *enclaves, found[0]]
            found[self.byte() % len(found)] = strange[self.byte() % len(strange)]
        return found

    def ask(self, call: int, body: bytes = b"", pages: list[int] | None = None) -> bytes | None:
        """None: refused."""
        try:
            status, answer = self.bench.ask(ENC_NUMBER, call, body, pages=pages or ())
        except FormatError:
            # Too long for the block: the driver would not send it either.
            return None
        return answer if status == Status.OK else None

    # Requests

    def whole(self) -> None:
        # With that host an honest kernel gets none.
        if (
            self.bench.takes_enclaves
            and self.bench._next + 200 * PAGE < MONITOR
            and len(self.bench.service._enclaves) < 4
        ):
            self.bench.make()

    def create(self) -> None:
        layout = bytearray(LAYOUT.pack())
        for _ in range(self.byte() % 4):
            layout[self.byte() % len(layout)] ^= 1 << self.byte() % 8
        answer = self.ask(EnclaveCall.CREATE, bytes(layout))
        if answer is not None:
            number, _, needed = struct.unpack("<IIQ", answer)
            self._needed[number] = needed

    def donate(self) -> None:
        number, kind = self.number(), self.byte()
        count = min(self._needed.get(number, 4), 128) if kind % 2 else kind % 32
        self.ask(EnclaveCall.DONATE, struct.pack("<I", number), self.pages(count))

    def window(self) -> None:
        body = struct.pack("<II", self.number(), self.byte() % 3)
        self.ask(EnclaveCall.WINDOW, body, self.pages(2 if self.byte() % 4 else self.byte() % 5))

    def add(self) -> None:
        number, record, page = self.number(), self.byte() % 4, self.byte() % 3
        pages, wrong = self.pages(self.byte() % 3), self.byte()
        for at, gpa in enumerate(pages):
            if gpa % PAGE == 0 and self.bench.kernel.allows(gpa, 2, PAGE):
                content = bytearray(CONTENT[(page + at) * PAGE :][:PAGE].ljust(PAGE, b"\0"))
                content[wrong] ^= wrong % 2
                self.bench.kernel.write(gpa, bytes(content))
        self.ask(EnclaveCall.ADD, AddContent(number, record, page).pack(), pages)

    def finish(self) -> None:
        self.ask(EnclaveCall.FINISH, struct.pack("<I", self.number()))

    def serve(self) -> None:
        """The enclave asks for anything, and the kernel has it served."""
        number, slot = self.number(), self.byte() % 3
        enclave = self.bench.service._enclaves.get(number)
        if enclave is not None and slot < len(enclave.mailboxes):
            mailbox = Mailbox(call=self.byte() % 11, status=0xFFFFFFFF)
            va = _ADDRESSES[self.byte() % len(_ADDRESSES)]
            mailbox.args[:3] = [va, self.byte() % 12, self.byte() % 9]
            try:
                self.bench.view(2).write(enclave.mailboxes[slot], bytes(mailbox))
            except RmpViolation:
                return
        body = struct.pack("<II", number, slot)
        wanted = self.ask(EnclaveCall.SERVE, body)
        if wanted is not None and len(wanted) == 16:
            self.ask(EnclaveCall.DONATE, body[:4], self.pages(min(struct.unpack("<QQ", wanted)[1], 64)))
            self.ask(EnclaveCall.SERVE, body)

    def reclaim(self) -> None:
        answer = self.ask(EnclaveCall.RECLAIM, Reclaim(self.number(), self.byte() % 20).pack())
        for va, page in Reclaimed.parse(answer).pages if answer is not None else ():
            self._away.append((va, self.bench.kernel.read(page, PAGE)))

    def give_back(self) -> None:
        if not self._away:
            return
        places = [self._away[self.byte() % len(self._away)] for _ in range(self.byte() % 3 + 1)]
        pages, wrong = self.pages(len(places)), self.byte()
        for gpa, (_, sealed) in zip(pages, places, strict=False):
            if gpa % PAGE == 0 and self.bench.kernel.allows(gpa, 2, PAGE):
                self.bench.kernel.write(gpa, bytes([sealed[0] ^ (wrong % 4 == 3)]) + sealed[1:])
        self.ask(EnclaveCall.RETURN, Return(self.number(), tuple(va for va, _ in places)).pack(), pages)

    def interrupt(self) -> None:
        self.ask(EnclaveCall.INTERRUPT, struct.pack("<II", self.number(), self.byte() % 3))

    def destroy(self) -> None:
        self.ask(EnclaveCall.DESTROY, struct.pack("<I", self.number()))

    def anything(self) -> None:
        call, length = self.byte() % 12, self.byte() % 60
        self.ask(call, bytes(self.byte() for _ in range(length)), self.pages(self.byte() % 4))

    def block(self) -> None:
        """What is in the block is no request at all, or half of one."""
        bench = self.bench
        gpa = bench.monitor.state.blocks[0][0] if 0 in bench.monitor.state.blocks else bench.register()
        data = bytes(self.byte() for _ in range(80))
        bench.kernel.write(gpa, b"\1" + data[1:4] + struct.pack("<H", ENC_NUMBER) + data[6:] if data[0] % 2 else data)
        bench.enter(0, vmpl=1)
        if not bench.kernel.read(gpa, 1)[0]:
            # Whatever was asked, what stands there now is an answer.
            read_answer(bench.kernel, gpa, BLOCK_PAGES * PAGE)

    # VeilMon and the host

    def _some_page(self) -> int:
        enclaves = [page for enclave in self.bench.service._enclaves.values() for page in enclave.owned]
        # Not the block: a kernel that gives that away asks no more.
        pages = [*enclaves, MONITOR, SERVICES, SMALL]
        return pages[(self.byte() << 8 | self.byte()) % len(pages)]

    def monitor(self) -> None:
        """VeilMon is asked about an enclave's page."""
        page, kind = self._some_page(), self.byte() % 4
        if kind == 0:
            self.bench.pvalidate(page | self.byte() % 2 << 2)
        else:
            self.bench.call(*((0, 0), (0, 2), (16, 0))[kind - 1], page, 0 if kind == 2 else 1)

    def host(self) -> None:
        """It takes a page away, or does not take contexts any more."""
        if self.byte() % 2:
            self.bench.takes_enclaves = not self.bench.takes_enclaves
            return
        enclaves = [page for enclave in self.bench.service._enclaves.values() for page in enclave.owned]
        if enclaves:
            page = enclaves[(self.byte() << 8 | self.byte()) % len(enclaves)]
            self.bench.host.psmash(page & -(2 << 20))
            self.bench.host.rmpupdate(page, assigned=False)

    # What holds

    def check(self) -> None:
        """Book, RMP and service agree about each page."""
        bench, book = self.bench, self.bench.monitor.book
        table = bench.rmp.effective()
        perms = table["perms"]
        in_book: dict[int, Owner] = {}
        for owner, gpa, size in book.runs():
            if owner not in _RIGHTS:
                continue
            first, end = gpa // PAGE, min(gpa + size, RAM) // PAGE
            for vmpl, most in zip((1, 2, 3), _RIGHTS[owner], strict=True):
                assert not (perms[first:end, vmpl] & ~np.uint8(most)).any(), f"VMPL {vmpl} has too much of {owner.name}"
            if owner in _ENCLAVES:
                in_book |= dict.fromkeys(range(gpa, gpa + size, PAGE), owner)
        held: dict[int, int] = {}
        for enclave in bench.service._enclaves.values():
            leaving = [*enclave._lost, *(page for _, page in enclave._leaving)]
            for page in (*enclave.owned, *leaving, *(page for pages in enclave.windows.values() for page in pages)):
                assert page not in held, "a page of two enclaves, or twice"
                held[page] = enclave.number
        assert held.keys() == in_book.keys(), "service and book do not agree"
        for enclave in bench.service._enclaves.values():
            for context in enclave.contexts:
                assert in_book[context] is Owner.ENCLAVE_VMSA


def _run(data: bytes) -> None:
    _World(data).run()


def _seeds() -> Iterator[bytes]:
    # What is made once is not an input's time.
    _run(bytes([0]))
    whole, served = bytes([0]), bytes([6, 1, 0, 1, 2, 4, 3, 0])
    yield whole + served + bytes([8, 1, 9, 0, 9, 0, 1, 0, 1, 0])
    yield whole + whole + served + bytes([8, 1, 9, 0, 9, 0, 1, 0, 2, 0, 11, 1, 0, 11, 1, 0])
    yield bytes([1, 0, 0, 2, 1, 1, 0, 0, 3, 1, 0, 1, 0, 0, 3, 1, 1, 1, 0, 0, 4, 1, 1, 0, 2, 0, 0, 0, 5, 1, 0])
    yield whole + bytes([2, 1, 4, 3, 1, 9, 0, 3, 1, 0, 1, 3, 1, 8, 0, 12, 2, 8, 1, 0, 0, 0, 1, 0, 0, 0, 1, 3, 0, 9])
    yield whole + bytes([14, 0, 5, 0, 0, 14, 0, 7, 1, 14, 0, 9, 2, 14, 0, 2, 3, 13, 1]) + bytes(80)
    yield whole + bytes([15, 0, 0, 9, 8, 1, 9, 0, 11, 1, 0, 15, 1, 1, 0, 0, 2, 1, 1, 0])


TARGETS = (Target("enclave-requests", _run, _seeds, max_bytes=_LONGEST, slow=True),)

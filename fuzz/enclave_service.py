# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-ENC with a hostile kernel, a host that refuses, and enclaves that ask for what is not theirs.

The model around it (`tests/services/enc/model_machine.py`) has books of its own: who has each page, for which enclave,
and what every enclave has written. After each step they must agree with what the processor would find.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from fuzz.target import Target
from tests.services.enc.model_machine import FRAMES, ModelMachine
from veil.formats.enclave_calls import AddContent, EnclaveCall, Reclaim, Reclaimed, Return
from veil.formats.enclave_pages import Mailbox, MailboxCall
from veil.formats.enclaves import ARENA, RUNTIME, THREADS, WINDOW, Layout, Prot, Record, RecordKind, ThreadPart
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.status import Status
from veil.services import Refused

__all__ = ["TARGETS"]

_CONTENT = bytes(range(256)) * 16 + b"\x90" * PAGE_SIZE
_LAYOUT = Layout(
    entry=RUNTIME, vectors=RUNTIME + PAGE_SIZE, slots=1, pool_pages=4, arena_pages=16, window_pages=2,
    records=(
        Record(RecordKind.ZERO, Prot.R | Prot.W, 0x400000, 1),
        Record.content(Prot.R | Prot.X, RUNTIME, _CONTENT),
    ),
)  # fmt: skip
_MAX_BYTES, _MOST_STEPS = 400, 24
_ADDRESSES = (
    0x400000, ARENA, ARENA + PAGE_SIZE, ARENA + 2 * PAGE_SIZE, ARENA + 15 * PAGE_SIZE, ARENA + 16 * PAGE_SIZE,
    RUNTIME, THREADS, WINDOW, 0x7200_0000_0000, 0x7300_0000_0000, 0, 1 << 47, (1 << 64) - PAGE_SIZE,
)  # fmt: skip
_REFUSED_FRAMES = (0, 0x1000, 1 << 40)


class _Bytes:
    """The input, byte by byte; zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self) -> int:
        kind = self.byte()
        if kind < 128:
            return kind
        return int.from_bytes(bytes(self.byte() for _ in range(8)), "little")

    def address(self) -> int:
        kind = self.byte()
        return _ADDRESSES[kind % 32] if kind % 32 < len(_ADDRESSES) else self.number()


class _Enclave:
    """What the kernel knows of one, and what was written into it."""

    def __init__(self, number: int, pages: int) -> None:
        self.number = number
        self.needed = pages
        self.contexts: tuple[int, ...] = ()
        self.texts: dict[int, bytes] = {}
        """By address: a page's first bytes."""
        self.away: dict[int, list[bytes]] = {}
        """What was given for an address, the last at the end."""


class _World:
    """One input's run."""

    def __init__(self, data: bytes) -> None:
        self.input = _Bytes(data)
        self.machine = ModelMachine()
        self.enclaves: list[_Enclave] = []
        self._texts = 0

    def run(self) -> None:
        steps = (
            self.whole, self.create, self.donate, self.window, self.add, self.finish, self.mail, self.write,
            self.reclaim, self.give_back, self.destroy, self.anything, self.refuse, self.restart, self.mail, self.write,
        )  # fmt: skip
        for _ in range(_MOST_STEPS):
            if not self.input:
                break
            steps[self.input.byte() % len(steps)]()
        self.machine.refusals = 0
        for enclave in list(self.enclaves):
            self.end(enclave)
        assert not self.machine.owners, "an enclave that is gone has pages"

    # Which

    def one(self) -> _Enclave | None:
        return self.enclaves[self.input.byte() % len(self.enclaves)] if self.enclaves else None

    def number(self, enclave: _Enclave | None) -> int:
        return enclave.number if enclave is not None else self.input.byte()

    def frames(self, count: int, *, mixed: bool = False) -> list[int]:
        """Pages of the kernel's; `mixed`: some that are not."""
        found = list(islice((gpa for gpa in FRAMES if gpa not in self.machine.owners), count))
        if mixed and self.input.byte() % 4 == 0 and found:
            taken = [*self.machine.owners, *_REFUSED_FRAMES]
            other = taken[self.input.byte() % len(taken)]
            found = [*[gpa for gpa in found if gpa != other][:-1], other]
        return found

    def ask(self, call: int, body: bytes, pages: list[int] | None = None) -> bytes | None:
        """None: it was refused."""
        machine = self.machine
        before = dict(machine.owners)
        try:
            return machine.ask(call, body, pages or ())
        except Refused:
            lost = [gpa for gpa in before if gpa not in machine.owners]
            if call != EnclaveCall.DESTROY:
                assert not lost, "a request that was refused gave pages away"
            return None

    # The kernel's requests

    def whole(self) -> None:
        """A whole enclave, as an honest kernel makes it."""
        enclave = self.create(_LAYOUT.pack())
        if enclave is None:
            return
        number = struct.pack("<I", enclave.number)
        frames = self.frames(enclave.needed)
        if len(frames) < enclave.needed:
            return
        self.ask(EnclaveCall.DONATE, number, frames)
        self.ask(EnclaveCall.WINDOW, number + bytes(4), self.frames(2))
        frames = self.frames(2)
        for at, gpa in enumerate(frames):
            self.machine.page(gpa)[:] = _CONTENT[at * PAGE_SIZE :][:PAGE_SIZE]
        self.ask(EnclaveCall.ADD, AddContent(enclave.number, 1, 0).pack(), frames)
        self.finish(enclave)

    def create(self, layout: bytes | None = None) -> _Enclave | None:
        if layout is None:
            changed = bytearray(_LAYOUT.pack())
            for _ in range(self.input.byte() % 4):
                changed[self.input.byte() % len(changed)] ^= 1 << self.input.byte() % 8
            layout = bytes(changed)
        answer = self.ask(EnclaveCall.CREATE, layout)
        if answer is None:
            return None
        number, _, pages = struct.unpack("<IIQ", answer)
        assert number not in [enclave.number for enclave in self.enclaves]
        self.enclaves.append(_Enclave(number, pages))
        return self.enclaves[-1]

    def donate(self) -> None:
        enclave = self.one()
        count = self.input.byte() if enclave is None or self.input.byte() % 2 else min(enclave.needed, 200)
        self.ask(EnclaveCall.DONATE, struct.pack("<I", self.number(enclave)), self.frames(count, mixed=True))

    def window(self) -> None:
        body = struct.pack("<II", self.number(self.one()), self.input.byte() % 3)
        self.ask(EnclaveCall.WINDOW, body, self.frames(self.input.byte() % 2 + 2, mixed=True))

    def add(self) -> None:
        number, record, page = self.number(self.one()), self.input.byte() % 3, self.input.byte() % 3
        pages = self.frames(self.input.byte() % 3, mixed=True)
        wrong = self.input.byte()
        for at, gpa in enumerate(pages):
            if self.machine.is_kernels(gpa):
                self.machine.page(gpa)[:] = _CONTENT[(page + at) * PAGE_SIZE :][:PAGE_SIZE].ljust(PAGE_SIZE, b"\0")
                self.machine.page(gpa)[wrong] ^= wrong % 2
        self.ask(EnclaveCall.ADD, AddContent(number, record, page).pack(), pages)

    def finish(self, enclave: _Enclave | None = None) -> None:
        enclave = enclave or self.one()
        answer = self.ask(EnclaveCall.FINISH, struct.pack("<I", self.number(enclave)))
        if answer is None or enclave is None:
            return
        enclave.contexts = struct.unpack(f"<{(len(answer) - 48) // 8}Q", answer[48:])
        content = bytearray()
        mapped = self.machine.mappings(enclave.contexts[0])
        for at in range(2):
            content += self.machine.page(mapped[RUNTIME + at * PAGE_SIZE].frame)
        assert bytes(content) == _CONTENT, "content that was not measured"
        for context in enclave.contexts:
            assert self.machine.owners[context] is Owner.ENCLAVE_VMSA
            vmsa = self.machine.context(context)
            assert (vmsa.vmpl, vmsa.cpl, vmsa.rip) == (2, 3, RUNTIME)

    def reclaim(self) -> None:
        enclave = self.one()
        asked = Reclaim(self.number(enclave), self.input.byte() % 17)
        answer = self.ask(EnclaveCall.RECLAIM, asked.pack())
        if answer is None or enclave is None:
            return
        for va, frame in Reclaimed.parse(answer).pages:
            assert self.machine.is_kernels(frame), "the kernel does not get what it is told"
            sealed = bytes(self.machine.page(frame))
            text = enclave.texts.get(va)
            assert text is None or text not in sealed, "what leaves is not encrypted"
            enclave.away.setdefault(va, []).append(sealed)
        self.check(enclave)

    def give_back(self) -> None:
        enclave, other = self.one(), self.one()
        if enclave is None or other is None or not other.away:
            return
        count = self.input.byte() % 3 + 1
        places = dict(self._returned(other) for _ in range(count))
        frames = self.frames(len(places))
        if len(frames) < len(places):
            return
        for frame, sealed in zip(frames, places.values(), strict=True):
            self.machine.page(frame)[:] = sealed
        waiting = self._away_now(enclave) & places.keys()
        answer = self.ask(EnclaveCall.RETURN, Return(enclave.number, tuple(places)).pack(), frames)
        if answer is not None:
            for va in waiting:
                last = enclave.away.get(va, [b""])[-1]
                assert last == places[va], "what comes back is not what was given last"
        self.check(enclave)

    def _returned(self, enclave: _Enclave) -> tuple[int, bytes]:
        """An address, and what a kernel might bring there."""
        va = list(enclave.away)[self.input.byte() % len(enclave.away)]
        states, kind = enclave.away[va], self.input.byte()
        sealed = bytearray(states[-1] if kind % 4 else states[kind % len(states)])
        if kind % 8 == 5:
            sealed[self.input.byte()] ^= 1
        return (self.input.address() % (1 << 64) if kind % 8 == 6 else va), bytes(sealed)

    def _away_now(self, enclave: _Enclave) -> set[int]:
        mapped = self.machine.mappings(enclave.contexts[0]) if enclave.contexts else {}
        return {va for va in enclave.texts if va in enclave.away and va not in mapped}

    def destroy(self) -> None:
        enclave = self.one()
        answer = self.ask(EnclaveCall.DESTROY, struct.pack("<I", self.number(enclave)))
        if enclave is not None:
            enclave.contexts, enclave.texts, enclave.away = (), {}, {}
            if answer == bytes(8):
                self.enclaves.remove(enclave)
                assert enclave.number not in self._holders(), "an enclave that is gone has pages"

    def end(self, enclave: _Enclave) -> None:
        """At last all of it goes back."""
        for _ in range(100):
            answer = self.ask(EnclaveCall.DESTROY, struct.pack("<I", enclave.number))
            assert answer is not None, "an enclave cannot be destroyed"
            if answer == bytes(8):
                break
        self.enclaves.remove(enclave)

    def _holders(self) -> set[int]:
        return set(self.machine.holders.values())

    def anything(self) -> None:
        call, length, count = self.input.byte() % 12, self.input.byte() % 40, self.input.byte() % 3
        self.ask(call, bytes(self.input.byte() for _ in range(length)), self.frames(count, mixed=True))
        for enclave in self.enclaves:
            if enclave.contexts and self.machine.owners.get(enclave.contexts[0]) is not Owner.ENCLAVE_VMSA:
                enclave.contexts, enclave.texts, enclave.away = (), {}, {}

    def refuse(self) -> None:
        self.machine.refusals = self.input.byte() % 3

    def restart(self) -> None:
        self.machine.restart()

    # The enclave

    def mail(self) -> None:
        enclave = self.one()
        if enclave is None or not enclave.contexts:
            return
        machine = self.machine
        mapped = machine.mappings(enclave.contexts[0])
        place = mapped[THREADS + ThreadPart.MAILBOX].frame
        call = self.input.byte() % 11
        args = [self.input.address(), self.input.byte() % 20, self.input.byte() % 9]
        if call == MailboxCall.FILL:
            args.append(self.input.address())
        elif call >= MailboxCall.LOG:
            args = [self.input.number()]
        mailbox = Mailbox(call=call, status=0xFFFFFFFF)
        mailbox.args[: len(args)] = args
        machine.page(place)[:] = bytes(mailbox)
        machine.context(enclave.contexts[0]).cr2 = self.input.address() if call == MailboxCall.FAULT else 0
        serve = struct.pack("<II", enclave.number, 0)
        wanted = self.ask(EnclaveCall.SERVE, serve)
        if wanted is not None and len(wanted) == 16 and self.input.byte() % 4:
            # As the driver does it.
            frames = self.frames(struct.unpack("<QQ", wanted)[1])
            self.ask(EnclaveCall.DONATE, serve[:4], frames)
            wanted = self.ask(EnclaveCall.SERVE, serve)
        if wanted is None:
            return
        assert machine.reads.count(place) == 1, "a mailbox is read once: its enclave may write meanwhile"
        answer = Mailbox.from_buffer_copy(machine.page(place))
        done = self.check(enclave)
        if answer.status == Status.OK and call in (MailboxCall.MAP, MailboxCall.UNMAP, MailboxCall.FILL):
            touched = {args[0] + at * PAGE_SIZE for at in range(args[1])}
            for va in touched & done.keys():
                assert call != MailboxCall.UNMAP, "a page that was given up is there still"
                given = bytes(PAGE_SIZE)
                if call == MailboxCall.FILL:
                    given = bytes(machine.page(done[args[3] + va - args[0]]))
                assert machine.page(done[va]) == given, "another's content in a new page"
            for va in touched:
                enclave.texts.pop(va, None)

    def write(self) -> None:
        enclave, va = self.one(), self.input.address()
        if enclave is None or not enclave.contexts:
            return
        mapping = self.machine.mappings(enclave.contexts[0]).get(va)
        if mapping is None or not mapping.writable or va >= ARENA + 16 * PAGE_SIZE:
            return
        self._texts += 1
        text = f"enclave {enclave.number} wrote {self._texts:08}".encode()
        self.machine.page(mapping.frame)[: len(text)] = text
        enclave.texts[va] = text

    def check(self, enclave: _Enclave) -> dict[int, int]:
        """What it wrote is there, or nothing is; returns the frames of its own pages."""
        if not enclave.contexts:
            return {}
        mapped = self.machine.mappings(enclave.contexts[0])
        for va, text in enclave.texts.items():
            if va in mapped:
                found = bytes(self.machine.page(mapped[va].frame)[: len(text)])
                assert found == text, "an enclave's memory is not what it wrote"
        return {va: mapping.frame for va, mapping in mapped.items()}


def _run(data: bytes) -> None:
    _World(data).run()


def _mail(call: MailboxCall, at: int, pages: int, prot: int = 3) -> bytes:
    return bytes([6, 0, call, at, pages, prot])


def _seeds() -> Iterator[bytes]:
    one, two = bytes([0]), bytes([0, 0])
    mapped = _mail(MailboxCall.MAP, 1, 3)
    written = b"".join(bytes([7, 0, at]) for at in (0, 1, 2, 3))
    taken, back = bytes([8, 0, 4, 1]), bytes([9, 0, 0, 0, 1])
    yield one + mapped + written + taken + back + bytes([9, 0, 0, 1, 1])
    yield two + mapped + written + taken + back + written + taken + bytes([9, 0, 0, 0, 0, 9, 1, 0, 0, 1])
    yield one + mapped + _mail(MailboxCall.PROTECT, 1, 2, 0) + _mail(MailboxCall.UNMAP, 2, 1) + taken + bytes([13])
    yield one + mapped + bytes([12, 1]) + taken + bytes([12, 2]) + back + bytes([10, 0, 10, 0, 13])
    yield bytes([1, 0, 2, 0, 0, 1, 3, 0, 0, 0, 1, 4, 0, 1, 0, 2, 1, 0, 5, 0])
    yield one + bytes([11, 8, 12, 0, *bytes(12), 6, 1, 9, 1, 1, 1, 12, 1, 10, 1])


TARGETS = (Target("enclave-service", _run, _seeds, max_bytes=_MAX_BYTES),)

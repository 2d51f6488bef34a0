# SPDX-License-Identifier: GPL-2.0-or-later
"""What an enclave's runtime asks, in the mailbox of one of its slots.

The kernel decides when the service looks into a mailbox, and can neither read nor write it. A slot that runs meanwhile
can change its own, so it is copied once; whatever it asks for concerns its own enclave alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from veil.formats.enclave_pages import MAILBOX_DATA, MAILBOX_PENDING, Mailbox, MailboxCall
from veil.formats.enclave_reports import STATEMENT_DATA, Speaker
from veil.formats.enclaves import ARENA, TOP, Prot, fixed_areas
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.status import Status
from veil.services.enc.errors import EnclaveError, NoFrames
from veil.services.interface import Refused
from veil.snp.layouts import Vmsa

if TYPE_CHECKING:
    from veil.services.context import ServiceContext
    from veil.services.enc.enclave import Enclave
    from veil.services.enc.keys import EnclaveKeys
    from veil.services.enc.ledger import EnclaveLedger

__all__ = ["serve"]

#: Pages that one MAP may name, so that its work is bounded: 16 MiB.
_MAP_PAGES = 4096
#: What one FAULT maps at most, in bytes, from a multiple of it on: `AT_ONCE` of the runtime.
_FAULT_SIZE = 64 * PAGE_SIZE
#: The answer to FAULT: first address and pages that were mapped.
_MAPPED = struct.Struct("<QQ")
_ALL = int(Prot.R | Prot.W | Prot.X)
_ROOM = PAGE_SIZE - MAILBOX_DATA
_ZEROS = bytes(PAGE_SIZE)


class _Answer(NamedTuple):
    result: int = 0
    data: bytes = b""


class _Request(NamedTuple):
    """The copy, and whom it is from."""

    context: ServiceContext
    keys: EnclaveKeys
    ledger: EnclaveLedger
    enclave: Enclave
    slot: int
    args: tuple[int, ...]
    data: bytes

    def text(self) -> bytes:
        """args[0] bytes of the data."""
        if not 0 < self.args[0] <= _ROOM:
            raise EnclaveError(f"a text has 1 to {_ROOM} bytes, not {self.args[0]}")
        return self.data[: self.args[0]]

    def range(self) -> tuple[int, int]:
        """Address and pages of args[0:2]: whole pages that are not in an area of the service's."""
        va, pages = self.args[:2]
        end = va + pages * PAGE_SIZE
        if va % PAGE_SIZE or not pages or not PAGE_SIZE <= va < end <= TOP:
            raise EnclaveError(f"{pages} pages at {va:#x} are no part of an enclave's addresses")
        if any(va < behind and first < end for first, behind in fixed_areas()):
            raise EnclaveError(f"{pages} pages at {va:#x} are not the enclave's to change")
        return va, pages

    def prot(self, least: Prot) -> Prot:
        """args[2]."""
        if self.args[2] > _ALL or self.args[2] & least != least:
            raise EnclaveError(f"{self.args[2]:#x} is no protection")
        return Prot(self.args[2])


def serve(context: ServiceContext, keys: EnclaveKeys, ledger: EnclaveLedger, enclave: Enclave, slot: int) -> int | None:
    """Answer the request in a slot's mailbox, if there is one.

    An address: the kernel must return the page there first, and the request waits. Raises NeedsPages if it waits for
    pages of the kernel's.
    """
    gpa = enclave.mailboxes[slot]
    asked = Mailbox.from_buffer_copy(context.guest.read(gpa, PAGE_SIZE))
    if asked.status != MAILBOX_PENDING:
        return None
    if asked.call == MailboxCall.FAULT:
        missing = _fault_address(context, enclave, slot) & -PAGE_SIZE
        if missing < TOP and enclave.tables.is_away(missing):
            return missing
        if missing < TOP:
            enclave.tables.reach(missing)
    request = _Request(context, keys, ledger, enclave, slot, tuple(asked.args), bytes(asked.data))
    try:
        status, answer = Status.OK, _CALLS.get(asked.call, _unknown)(request)
    except NoFrames:
        status, answer = Status.FULL, _Answer()
    except EnclaveError:
        status, answer = Status.BAD_REQUEST, _Answer()
    except Refused as refused:
        status, answer = refused.status, _Answer()
    if answer.data:
        context.guest.write(gpa + MAILBOX_DATA, answer.data)
    context.guest.write(gpa + Mailbox.result.offset, answer.result.to_bytes(8, "little"))
    # Last: what the runtime looks at first.
    context.guest.write(gpa + Mailbox.status.offset, int(status).to_bytes(4, "little"))
    return None


def _unknown(request: _Request) -> _Answer:
    raise Refused(Status.UNKNOWN_CALL, "the mailbox has no such call")


def _map(request: _Request) -> _Answer:
    (va, pages), prot = request.range(), request.prot(Prot.R)
    if pages > _MAP_PAGES:
        raise EnclaveError(f"{_MAP_PAGES} pages at most are mapped at once, not {pages}")
    _map_pages(request, va, pages, prot)
    return _Answer(pages)


def _fill(request: _Request) -> _Answer:
    (va, pages), prot = request.range(), request.prot(Prot.R)
    if pages > _MAP_PAGES:
        raise EnclaveError(f"{_MAP_PAGES} pages at most are filled at once, not {pages}")
    _map_pages(request, va, pages, prot, request.args[3])
    return _Answer(pages)


def _map_pages(request: _Request, va: int, pages: int, prot: Prot, source: int | None = None) -> None:
    """`source`: the address of what is to be in them; without it they are zero."""
    enclave, guest = request.enclave, request.context.guest
    if va + pages * PAGE_SIZE > ARENA + enclave.layout.arena_pages * PAGE_SIZE:
        raise EnclaveError(f"{pages} pages at {va:#x} reach behind the arena")
    enclave.require_pool(pages)
    contents: Iterable[bytes] = repeat(_ZEROS, pages)
    if source is not None:
        contents = (guest.read(gpa, PAGE_SIZE) for gpa in enclave.tables.readable(source, pages))
    frames = enclave.pool[-pages:]
    # Written first: what another part of the program had there is nobody's to find.
    for gpa, content in zip(frames, contents, strict=True):
        guest.write(gpa, content)
    enclave.tables.map(va, frames, prot)
    del enclave.pool[-pages:]


def _unmap(request: _Request) -> _Answer:
    return _Answer(request.enclave.unmap(*request.range()))


def _protect(request: _Request) -> _Answer:
    va, pages = request.range()
    return _Answer(request.enclave.tables.protect(va, pages, request.prot(Prot.NONE)))


def _log(request: _Request) -> _Answer:
    request.ledger.say(request.enclave, request.text())
    return _Answer()


def _secret(request: _Request) -> _Answer:
    secret = request.keys.secret(request.enclave.measurement, request.text())
    if secret is None:
        raise Refused(Status.UNAVAILABLE, "there is no secret of this name")
    return _Answer(len(secret), secret)


def _report(request: _Request) -> _Answer:
    statement = request.keys.statement(Speaker.ENCLAVE, request.enclave, request.data[:STATEMENT_DATA])
    return _Answer(len(statement), statement)


def _key(request: _Request) -> _Answer:
    key = request.keys.derive(request.enclave.measurement, request.text())
    if key is None:
        raise Refused(Status.UNAVAILABLE, "there is no key")
    return _Answer(len(key), key)


def _time(request: _Request) -> _Answer:
    return _Answer(request.context.now())


def _fault(request: _Request) -> _Answer:
    address = _fault_address(request.context, request.enclave, request.slot)
    return _Answer(address, _MAPPED.pack(*_bring(request, address)))


def _bring(request: _Request, address: int) -> tuple[int, int]:
    """(address, pages) of what is mapped around a fault, if it is where the runtime thought."""
    if not request.args[1]:
        return 0, 0
    (va, pages), prot = request.range(), request.prot(Prot.R)
    around = address & -_FAULT_SIZE
    first, end = max(va, around), min(va + pages * PAGE_SIZE, around + _FAULT_SIZE)
    if not first <= address < end:
        return 0, 0
    count = (end - first) // PAGE_SIZE
    try:
        _map_pages(request, first, count, prot)
    except EnclaveError:
        # The runtime asks for what it needs, and hears why not.
        return 0, 0
    return first, count


def _fault_address(context: ServiceContext, enclave: Enclave, slot: int) -> int:
    return int.from_bytes(context.guest.read(enclave.contexts[slot] + Vmsa.cr2.offset, 8), "little")


_CALLS: dict[int, Callable[[_Request], _Answer]] = {
    MailboxCall.MAP: _map,
    MailboxCall.UNMAP: _unmap,
    MailboxCall.PROTECT: _protect,
    MailboxCall.LOG: _log,
    MailboxCall.SECRET: _secret,
    MailboxCall.REPORT: _report,
    MailboxCall.KEY: _key,
    MailboxCall.TIME: _time,
    MailboxCall.FAULT: _fault,
    MailboxCall.FILL: _fill,
}

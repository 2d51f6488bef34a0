# SPDX-License-Identifier: GPL-2.0-or-later
"""A module whose code VMPL 3 may execute, and whose read-only data it may not write: how it gets there, and what is
known of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from veil.formats.kci import MemoryType, ModulePrepared
from veil.formats.kci_status import ModuleStatus
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import Change
from veil.services.context import Asking, GuestMemory, MonitorRefused, ServiceContext
from veil.services.kci.explain_code import Configuration
from veil.services.kci.guarded_code import GuardedCode, leave_pages, move_pages
from veil.services.kci.guarded_data import GuardedData, pages_around
from veil.services.kci.guarded_pages import read_pages
from veil.services.kci.kernel_data import KernelData
from veil.services.kci.kernel_image import AddressRange
from veil.services.kci.measured_kernel import MeasuredKernel
from veil.services.kci.module_code import ModuleCode
from veil.services.kci.modules import ModuleRefused, Prepared

__all__ = [
    "INIT",
    "GuardedModule",
    "check_module",
    "checked_pages",
    "code_again",
    "frames_of",
    "give_back",
    "numbered",
    "take_pages",
]

#: What goes back to the kernel when the init function has returned.
INIT = (MemoryType.INIT_TEXT, MemoryType.INIT_RODATA)
#: What is another module's memory by then, perhaps.
_FREED = (*INIT, MemoryType.INIT_DATA)
_CODE = (MemoryType.TEXT, MemoryType.INIT_TEXT)
_READ_ONLY = (MemoryType.RODATA, MemoryType.INIT_RODATA)
#: Characters of a version, and of a signer's name, in the status.
_MAX_TOLD = 128


@dataclass
class GuardedModule:
    """A module whose code VMPL 3 may execute."""

    number: int
    prepared: Prepared
    told: ModulePrepared
    """Where it lies, as the driver said; what it said about pages is in `code`."""
    rules: ModuleCode
    """Those of all its code, as it came."""
    body: bytes
    """Its file, without signature: from which all of this follows again."""
    code: dict[MemoryType, GuardedCode] = field(default_factory=dict)
    read_only: dict[MemoryType, dict[int, int]] = field(default_factory=dict)
    """Pages of its data that nobody can write, each with its number in that type of memory."""
    writable: Sequence[AddressRange] = ()
    """Read-only data of it that the policy lets the kernel write."""
    late: Sequence[int] = ()
    """Pages of what is read-only once its init function has returned."""
    live: bool = False
    leaving: dict[int, Owner] = field(default_factory=dict)
    """Pages that are to be the kernel's again, and are not yet, with their owners. No rules decide about them."""

    def leave(self, kinds: Iterable[MemoryType]) -> None:
        """These types of memory are neither code nor read-only data of it any more."""
        for kind in kinds:
            if kind in self.code:
                self.leaving.update(dict.fromkeys(self.code.pop(kind).pages, Owner.MODULE_CODE))
            if kind in self.read_only:
                self.leaving.update(dict.fromkeys(self.read_only.pop(kind), Owner.KERNEL_RODATA))

    def leaving_from(self, owner: Owner) -> list[int]:
        """Those that this owner still has."""
        return [gpa for gpa, mine in self.leaving.items() if mine is owner]

    def moved(self, change: Change) -> None:
        """VeilMon made this change to pages of it."""
        pages = [page for gpa, size in change.ranges for page in range(gpa, gpa + size, PAGE_SIZE)]
        if change.target is Owner.KERNEL:
            for page in pages:
                del self.leaving[page]
        else:
            # What is read-only late; all of it in one piece, but for pages that the host keeps.
            known = {*self.read_only.get(MemoryType.RO_AFTER_INIT, ()), *pages}
            self.read_only[MemoryType.RO_AFTER_INIT] = {
                gpa: number for gpa, number in numbered(self.late).items() if gpa in known
            }

    def address_of(self, gpa: int) -> int | None:
        """Where in the module a page is that is guarded; None if it has no such page."""
        for code in self.code.values():
            if (address := code.address_of(gpa)) is not None:
                return address
        for kind, pages in self.read_only.items():
            if (number := pages.get(gpa - gpa % PAGE_SIZE)) is not None:
                return self.prepared.memory[kind].address + number * PAGE_SIZE + gpa % PAGE_SIZE
        return None

    def data(self, guest: GuestMemory) -> Iterator[GuardedData]:
        """What of its read-only data the kernel may write, as far as it is read-only now."""
        if not self.writable:
            return
        pages = {
            self.prepared.memory[kind].address + number * PAGE_SIZE: gpa
            for kind, found in self.read_only.items()
            for gpa, number in found.items()
        }
        for place in self.writable:
            around = pages_around(place)
            needed = [pages.get(at) for at in range(around.start, around.end, PAGE_SIZE)]
            if None not in needed:
                yield GuardedData(place, [gpa for gpa in needed if gpa is not None], guest)

    def describe(self, address: int) -> str | None:
        """`module:symbol+0x12` for an address in its memory; without a symbol `module:RODATA+0x12`."""
        for kind, place in self.prepared.memory.items():
            if place.address <= address < place.end and not (self.live and kind in _FREED):
                before = ((at, name) for name, at in self.prepared.symbols.items() if place.address <= at <= address)
                at, name = max(before, default=(place.address, kind.name))
                return f"{self.prepared.name}:{name}+{address - at:#x}"
        return None

    @property
    def status(self) -> ModuleStatus:
        """For users."""
        prepared = self.prepared
        return ModuleStatus(
            self.number,
            prepared.name,
            prepared.version[:_MAX_TOLD],
            prepared.signer.name[:_MAX_TOLD] if prepared.signer is not None else "",
            prepared.digest.hex(),
            sum(piece.size for piece in self.code.values()),
            self.live,
        )


def frames_of(told: ModulePrepared, pages: Sequence[int]) -> dict[MemoryType, Sequence[int]]:
    """The pages of each type of memory. Raises ModuleRefused unless they are as many as the memory has, each once."""
    if len(set(pages)) != len(pages):
        raise ModuleRefused("a page of the module is named twice")
    found, at = {}, 0
    for kind in sorted(told.memory):
        count = told.memory[kind].size // PAGE_SIZE
        found[kind] = pages[at : at + count]
        at += count
    if at != len(pages):
        raise ModuleRefused(f"the module has {at} pages of memory, and {len(pages)} were named")
    return found


def numbered(pages: Iterable[int]) -> dict[int, int]:
    """Each page with its number."""
    return {gpa: number for number, gpa in enumerate(pages)}


def checked_pages(frames: Mapping[MemoryType, Sequence[int]], *, live: bool) -> list[int]:
    """What nobody may write while it is looked at, nor execute."""
    kinds = (*_CODE, *_READ_ONLY, MemoryType.RO_AFTER_INIT) if live else (*_CODE, *_READ_ONLY)
    return [gpa for kind in kinds for gpa in frames.get(kind, ())]


def take_pages(
    context: ServiceContext, pages: Sequence[int], copy: tuple[Sequence[int], int, int] | None = None
) -> Asking[None]:
    """From the kernel, before they are looked at; its file may be copied with them (`move_pages`). Raises
    ModuleRefused."""
    return _take(context, (pages, Owner.KERNEL, Owner.KERNEL_RODATA), copy)


def give_back(context: ServiceContext, pages: Sequence[int]) -> Asking[None]:
    """Its pages are the kernel's as before, but for those that the host keeps."""
    return leave_pages(context.monitor, (pages, Owner.KERNEL_RODATA, Owner.KERNEL))


def check_module(
    context: ServiceContext,
    measured: MeasuredKernel,
    module: GuardedModule,
    frames: Mapping[MemoryType, Sequence[int]],
    rules: ModuleCode,
    configuration: Configuration,
) -> Asking[None]:
    """Make its code executable, if that and its read-only data are what they must be.

    Its `checked_pages` were taken: what is compared is what will run. Raises KciError or ModuleRefused.
    """
    code = {
        kind: GuardedCode(piece, module.prepared.memory[kind].address, frames[kind], context.guest)
        for kind, piece in rules.rules.items()
        if kind in frames
    }
    read_only = {kind: numbered(frames[kind]) for kind in _READ_ONLY if kind in frames}
    _check_read_only(context.guest, module.prepared, read_only)
    data = KernelData(context, measured)
    if variables := {address for piece in code.values() for address in piece.rules.variables}:
        yield from data.fetch(variables)
    for kind, piece in code.items():
        wrong = rules.unexplained(kind, read_pages(context.guest, piece.pages), data.read, configuration)
        if wrong is not None:
            first, count = wrong
            raise ModuleRefused(
                f"{count} bytes of its code are not explained, the first at "
                f"{first.address:#x}: {first.found:#04x} in place of {first.expected:#04x}"
            )
    executable = [gpa for piece in code.values() for gpa in piece.pages]
    yield from _take(context, (executable, Owner.KERNEL_RODATA, Owner.MODULE_CODE))
    late = frames.get(MemoryType.RO_AFTER_INIT, ())
    if not module.live:
        module.late = late
    elif late:
        read_only[MemoryType.RO_AFTER_INIT] = numbered(late)
    module.code, module.read_only = code, read_only


def _take(
    context: ServiceContext,
    move: tuple[Sequence[int], Owner, Owner],
    copy: tuple[Sequence[int], int, int] | None = None,
) -> Asking[None]:
    try:
        yield from move_pages(context.monitor, move, copy=copy)
    except MonitorRefused as error:
        raise ModuleRefused(f"its pages cannot be taken: {error}") from error


def _check_read_only(guest: GuestMemory, prepared: Prepared, pages: Mapping[MemoryType, Iterable[int]]) -> None:
    """As its file says, its exception table with it."""
    for kind in pages:
        found = read_pages(guest, pages[kind])
        address = prepared.memory[kind].address
        wrong = _first_difference(found, prepared.images[kind], address, prepared.unordered)
        if wrong is not None:
            raise ModuleRefused(f"its read-only data is not what its file makes of it, at {wrong:#x} first")


def _first_difference(found: bytes, expected: bytes, address: int, anything: Sequence[range]) -> int | None:
    """Where two contents of memory at an address differ, but for the addresses of which nothing is said."""
    known = bytearray(found)
    for piece in anything:
        start, end = max(piece.start - address, 0), max(piece.stop - address, 0)
        known[start:end] = expected[start:end]
    if known == expected:
        return None
    return address + next(at for at, (one, other) in enumerate(zip(known, expected, strict=True)) if one != other)


def code_again(
    guest: GuestMemory, prepared: Prepared, pages: Mapping[MemoryType, Sequence[int]], rules: ModuleCode
) -> dict[MemoryType, GuardedCode]:
    """The code of a module that was admitted before a snapshot."""
    return {
        kind: GuardedCode(rules.rules[kind], prepared.memory[kind].address, found, guest)
        for kind, found in pages.items()
    }

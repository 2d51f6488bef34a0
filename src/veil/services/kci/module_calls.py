# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver calls for a module, from the file that it hands over until the module is gone.

The driver is the kernel's: what it says is checked, or binds nobody but itself. A module that it does not tell of
has no code that can be executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veil.formats.kci import FilePart, MemoryType, ModulePrepared
from veil.formats.kci_settings import KciSettings
from veil.formats.kci_status import CodeEvent
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import Asking, MonitorRefused, ServiceContext
from veil.services.kci.errors import KciError, reason, undo
from veil.services.kci.explain_code import Configuration
from veil.services.kci.guarded_code import GuardedCode, leave_pages
from veil.services.kci.guarded_data import GuardedData, module_data
from veil.services.kci.guarded_module import (
    INIT,
    GuardedModule,
    check_module,
    checked_pages,
    code_again,
    frames_of,
    give_back,
    take_pages,
)
from veil.services.kci.kernel_image import AddressRange
from veil.services.kci.ledger import Ledger
from veil.services.kci.measured_kernel import MeasuredKernel
from veil.services.kci.module_code import ModuleCode
from veil.services.kci.modules import (
    AdmittedFile,
    ExportedSymbols,
    Exports,
    ModuleRefused,
    Prepared,
    Signer,
    prepare,
)
from veil.services.kci.recent_modules import RecentModules

__all__ = ["ModuleCalls"]

_MAX_MODULES = 1024
_ALL = tuple(MemoryType)
#: Bytes of all files that are kept, of modules that run or wait for lock-down.
_MAX_FILES = 128 << 20
#: Modules that are loaded before lock-down wait for it with their files.
_MAX_EARLY = 64
#: modules that a refused lock-down tries to give back though the host keeps pages of them
_MAX_KEPT = 2


@dataclass
class _Early:
    admitted: AdmittedFile
    told: ModulePrepared
    pages: Sequence[int]
    live: bool = False


class ModuleCalls:
    """All modules of one kernel. The service's memory has the private copy of a file."""

    def __init__(
        self, context: ServiceContext, settings: KciSettings, measured: MeasuredKernel, ledger: Ledger
    ) -> None:
        self._context = context
        self._settings = settings
        self._measured = measured
        self._ledger = ledger
        self._length = self._received = 0
        self._digest = b""
        """SHA-256 of the file that came last."""
        self._next = 1
        self._kept = 0
        """Bytes of the files of all modules, early ones too."""
        self._early: dict[int, _Early] = {}
        self._exported: ExportedSymbols | None = None
        self._text: GuardedCode | None = None
        self._saved: list[dict[str, Any]] = []
        self._recent = RecentModules(measured)
        self.modules: dict[int, GuardedModule] = {}

    def codes(self) -> Iterator[GuardedCode]:
        """The code of all modules, with rules that know what is around now."""
        for module in self.modules.values():
            for code in module.code.values():
                assert self._text is not None
                code.rules.admit(self._text.rules.near)
                yield code

    def data(self) -> Iterator[GuardedData]:
        """Read-only data of modules that the kernel may write."""
        for module in self.modules.values():
            yield from module.data(self._context.guest)

    def address_of(self, gpa: int) -> int | None:
        """Where the kernel's image or a module has a page that is guarded."""
        found = (module.address_of(gpa) for module in self.modules.values())
        return next((at for at in found if at is not None), None) or self._measured.address_of(gpa)

    def describe(self, address: int) -> str:
        """`symbol+0x12` for an address of the kernel's, `module:symbol+0x12` for one of a module's."""
        found = (module.describe(address) for module in self.modules.values())
        return next((words for words in found if words is not None), None) or self._measured.image.symbols.describe(
            address
        )

    # Files

    def take_file(self, part: FilePart, pages: Sequence[int]) -> Asking[bytes]:
        """A part of a module's file, copied once; parts come in order. Raises KciError, MonitorRefused."""
        self._check_next(part)
        length = min(part.length - part.offset, len(pages) * PAGE_SIZE)
        if length <= 0 or len(pages) != -(-length // PAGE_SIZE):
            raise KciError(f"{len(pages)} pages are not a part of the {part.length - part.offset} bytes that are left")
        yield from self._context.monitor.copy_in(pages, length, part.offset)
        self._received = part.offset + length
        return b""

    def _check_next(self, part: FilePart) -> None:
        length, offset = part
        if not 0 < length <= self._settings.largest_module:
            raise KciError(f"a module's file has 1 to {self._settings.largest_module} bytes, not {length}")
        if offset == 0:
            self._length, self._received = length, 0
        if length != self._length or offset != self._received or (offset % PAGE_SIZE and offset < length):
            raise KciError(f"the part of a module's file at {offset:#x} is not the next one")

    def _admitted(self) -> AdmittedFile:
        """The file that came. Raises ModuleRefused."""
        if self._kept + self._length > _MAX_FILES:
            raise ModuleRefused(f"the files of modules that run have more than {_MAX_FILES} bytes with this one")
        file = self._context.memory.read(0, self._length)
        self._digest = hashlib.sha256(file).digest()
        return self._recent.admit(file, self._digest)

    # Life

    def take(
        self,
        rest: FilePart,
        told: ModulePrepared,
        pages: Sequence[int],
        configuration: Configuration | None,
        text: GuardedCode | None,
    ) -> Asking[int]:
        """A module whose file has its rest in the first of these pages lies in the others; returns its number. Raises
        ModuleRefused, KciError, MonitorRefused."""
        number, self._digest = self._next, b""
        try:
            if len(self.modules) + len(self._early) >= _MAX_MODULES:
                raise ModuleRefused(f"there are {_MAX_MODULES} modules already")
            self._check_next(rest)
            count = rest.pages
            if len(pages) < count:
                raise ModuleRefused(f"{len(pages)} pages do not have its file's last {count}")
            copy = (pages[:count], rest.length - rest.offset, rest.offset) if count else None
            pages = pages[count:]
            if configuration is None or text is None:
                if len(self._early) >= _MAX_EARLY:
                    raise ModuleRefused(f"{_MAX_EARLY} modules wait for lock-down already")
                if copy is not None:
                    yield from self._context.monitor.copy_in(*copy)
                self._wait(number, _Early(self._admitted(), told, pages))
            else:
                frames = frames_of(told, pages)
                yield from take_pages(self._context, checked_pages(frames, live=False), copy)
                yield from self._admit(number, None, told, frames, configuration, text)
        except Exception as error:
            why = f"a module is refused: {reason(error)}"
            self._ledger.tell(CodeEvent.MODULE_REFUSED, why, hash=self._digest.hex() or None)
            raise
        finally:
            # A file is used once.
            self._length = 0
        self._next += 1
        return number

    def admit_early(self, configuration: Configuration, text: GuardedCode) -> Asking[None]:
        """Those that were loaded before lock-down. Raises what `take` raises."""
        for number, early in sorted(self._early.items()):
            frames = frames_of(early.told, early.pages)
            if early.live:
                # The kernel's memory again, and nobody's code.
                for kind in INIT:
                    frames.pop(kind, None)
            yield from take_pages(self._context, checked_pages(frames, live=early.live))
            yield from self._admit(number, early.admitted, early.told, frames, configuration, text, live=early.live)
            self._wait_no_more(number)

    def _wait(self, number: int, early: _Early) -> None:
        self._early[number] = early
        self._kept += len(early.admitted.body)

    def _wait_no_more(self, number: int) -> bool:
        """False for a module that does not wait."""
        early = self._early.pop(number, None)
        if early is not None:
            self._kept -= len(early.admitted.body)
        return early is not None

    def _admit(
        self,
        number: int,
        admitted: AdmittedFile | None,
        told: ModulePrepared,
        frames: Mapping[MemoryType, Sequence[int]],
        configuration: Configuration,
        text: GuardedCode,
        *,
        live: bool = False,
    ) -> Asking[None]:
        """Its pages were taken: if it is refused, they are given back. `admitted`: None is the file that came."""
        self._text = text
        exported: str | None = None
        try:
            admitted = admitted or self._admitted()
            prepared, code = self._recent.derive(admitted, told, self._exports, text.rules.near)
            self._exports.add(prepared.name, prepared.exports)
            exported = prepared.name
            # Only now: if the same file runs already, these rules are its own, and its init code may be gone.
            code.admit(text.rules.near)
            module = GuardedModule(number, prepared, told, code, admitted.body, live=live)
            module.writable = self._writable(admitted, prepared)
            yield from check_module(self._context, self._measured, module, frames, code, configuration)
        except Exception as error:
            if exported is not None:
                self._exports.remove(exported)
            yield from undo(error, give_back(self._context, checked_pages(frames, live=live)))
            raise
        self._know(module)
        self._ledger.tell(
            CodeEvent.MODULE_ADMITTED,
            f"the module {prepared.name} {prepared.version}".rstrip() + f" is admitted, {_vouched(prepared)}",
            name=prepared.name,
            version=prepared.version,
            hash=prepared.digest.hex(),
            signer=prepared.signer.name if prepared.signer is not None else None,
        )

    def _writable(self, admitted: AdmittedFile, prepared: Prepared) -> Sequence[AddressRange]:
        symbols = self._settings.writable_of(prepared.name) if self._settings.writable else ()
        return module_data(admitted.body, prepared, symbols) if symbols else ()

    @property
    def _exports(self) -> ExportedSymbols:
        if self._exported is None:
            self._exported = self._measured.exported()
        return self._exported

    def _know(self, module: GuardedModule) -> None:
        self.modules[module.number] = module
        self._kept += len(module.body)
        assert self._text is not None
        near = module.rules.around(self._text.rules.near)
        for kind in module.rules.rules:
            if kind not in module.code:
                # Its init function returned before: what was there is the kernel's memory, and nothing leads there.
                near = module.rules.without(kind, near)
        self._text.rules.admit(near)

    def live(self, number: int) -> Asking[None]:
        """Its init code is not code any more, and what only that writes is read-only. Raises KciError, ModuleRefused,
        MonitorRefused."""
        if number in self._early:
            self._early[number].live = True
            return
        module = self._module(number)
        module.live = True
        try:
            yield from self._release(module, *INIT, late=module.late)
        except MonitorRefused as error:
            # The kernel gets its init memory back all the same.
            yield from self._release(module, *INIT)
            raise ModuleRefused(f"its read-only pages cannot be taken: {error}") from error
        finally:
            module.late = ()

    def gone(self, number: int) -> Asking[None]:
        """None of its code is code any more."""
        if self._wait_no_more(number):
            return
        module = self._module(number)
        yield from self._release(module, *_ALL)
        del self.modules[number]
        self._kept -= len(module.body)
        self._exports.remove(module.prepared.name)
        self._ledger.tell(
            CodeEvent.MODULE_GONE,
            f"the module {module.prepared.name} is gone",
            name=module.prepared.name,
            hash=module.prepared.digest.hex(),
        )

    def release(self) -> Asking[None]:
        """Lock-down is refused: all modules are the kernel's own affair. A module that the host keeps pages of does not
        keep the others, but for those after the second such one. Raises the first MonitorRefused."""
        refused: list[MonitorRefused] = []
        for number in list(self.modules):
            if len(refused) == _MAX_KEPT:
                break
            try:
                yield from self.gone(number)
            except MonitorRefused as error:
                refused.append(error)
        if refused:
            raise refused[0]

    def _module(self, number: int) -> GuardedModule:
        module = self.modules.get(number)
        if module is None:
            raise KciError(f"there is no module {number}")
        return module

    def _release(self, module: GuardedModule, *kinds: MemoryType, late: Sequence[int] = ()) -> Asking[None]:
        """These types of memory are the kernel's again, and what is read-only `late` is taken from it."""
        assert self._text is not None
        near = self._text.rules.near
        for kind in kinds:
            if kind in module.code:
                # Nothing leads there from here on; then the pages are data.
                near = module.rules.without(kind, near)
        self._text.rules.admit(near)
        # Before VeilMon is asked: it may be several requests, and the host can make a later one fail. By then the
        # first pages are the kernel's, which may be another module's code next: these rules must not patch that.
        module.leave(kinds)
        yield from leave_pages(
            self._context.monitor,
            (module.leaving_from(Owner.MODULE_CODE), Owner.MODULE_CODE, Owner.KERNEL),
            (module.leaving_from(Owner.KERNEL_RODATA), Owner.KERNEL_RODATA, Owner.KERNEL),
            (late, Owner.KERNEL, Owner.KERNEL_RODATA),
            moved=module.moved,
        )

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """The modules' files, and where they lie."""
        return {
            "next": self._next,
            "part": [self._length, self._received],
            "early": [
                {
                    "number": number,
                    **_dump_file(early.admitted),
                    "told": early.told.pack().hex(),
                    "pages": list(early.pages),
                    "live": early.live,
                }
                for number, early in self._early.items()
            ],
            "modules": [
                # Those of the last snapshot that nobody has asked about since.
                *self._saved,
                *(
                    {
                        "number": module.number,
                        **_dump_file(AdmittedFile(module.body, module.prepared.digest, module.prepared.signer)),
                        "told": module.told.pack().hex(),
                        "live": module.live,
                        "pages": {int(kind): list(code.pages) for kind, code in module.code.items()},
                        "read_only": {int(kind): list(pages.items()) for kind, pages in module.read_only.items()},
                        "late": list(module.late),
                        "leaving": {gpa: int(owner) for gpa, owner in module.leaving.items()},
                        # Who exported it may be gone by now, if the kernel says so.
                        "external": dict(module.prepared.external),
                    }
                    for module in self.modules.values()
                ),
            ],
        }

    def load(self, state: dict[str, Any]) -> None:
        """From `dump`; `rebuild` makes the rest when it is needed."""
        self._next, self._saved = state["next"], state["modules"]
        self._length, self._received = state["part"]
        for item in state["early"]:
            told = ModulePrepared.parse(bytes.fromhex(item["told"]))
            self._wait(item["number"], _Early(_load_file(item), told, item["pages"], live=item["live"]))

    def rebuild(self, text: GuardedCode) -> None:
        """The modules of a snapshot again, with their rules."""
        self._text = text
        while self._saved:
            self._rebuild(self._saved[0], text)
            del self._saved[0]

    def _rebuild(self, item: Mapping[str, Any], text: GuardedCode) -> None:
        admitted, told = _load_file(item), ModulePrepared.parse(bytes.fromhex(item["told"]))
        linked = ExportedSymbols(Exports(item["external"]))
        prepared = prepare(admitted, told.memory, told.percpu, linked, self._measured.module_space)
        rules = ModuleCode(prepared, text.rules.near)
        self._exports.add(prepared.name, prepared.exports)
        module = GuardedModule(item["number"], prepared, told, rules, admitted.body, live=item["live"])
        pages = {MemoryType(int(kind)): found for kind, found in item["pages"].items()}
        module.code = code_again(self._context.guest, prepared, pages, rules)
        module.read_only = {MemoryType(int(kind)): dict(found) for kind, found in item["read_only"].items()}
        module.writable = self._writable(admitted, prepared)
        module.late = item["late"]
        module.leaving = {int(gpa): Owner(owner) for gpa, owner in item["leaving"].items()}
        self._know(module)


def _dump_file(admitted: AdmittedFile) -> dict[str, Any]:
    signer = admitted.signer
    return {
        "body": admitted.body.hex(),
        "digest": admitted.digest.hex(),
        "signer": None if signer is None else [signer.name, signer.fingerprint.hex()],
    }


def _load_file(state: Mapping[str, Any]) -> AdmittedFile:
    signer = None if state["signer"] is None else Signer(state["signer"][0], bytes.fromhex(state["signer"][1]))
    return AdmittedFile(bytes.fromhex(state["body"]), bytes.fromhex(state["digest"]), signer)


def _vouched(prepared: Prepared) -> str:
    return "its hash is allowed" if prepared.signer is None else f"signed by {prepared.signer.name}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver calls for a module, from the file that it hands over until the module is gone.

The driver is the kernel's: what it says is checked, or binds nobody but itself. A module that it does not tell of
has no code that can be executed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veil.formats.kci import MemoryType, ModulePrepared
from veil.formats.kci_settings import KciSettings
from veil.formats.kci_status import CodeEvent
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import Asking, MonitorRefused, ServiceContext
from veil.services.kci.code_rules import Configuration
from veil.services.kci.errors import KciError
from veil.services.kci.guarded_code import GuardedCode, move_pages
from veil.services.kci.guarded_module import (
    INIT,
    GuardedModule,
    code_again,
    frames_of,
    take_code,
    take_late_data,
    take_read_only,
)
from veil.services.kci.kernel_image import AddressRange
from veil.services.kci.ledger import Ledger
from veil.services.kci.measured_kernel import MeasuredKernel
from veil.services.kci.module_code import ModuleCode
from veil.services.kci.modules import AdmittedFile, ExportedSymbols, ModuleRefused, Prepared, Signer
from veil.services.kci.recent_modules import RecentModules
from veil.services.kci.surroundings import Surroundings

__all__ = ["ModuleCalls"]

_FILE = struct.Struct("<QQ")
_MAX_MODULES = 1024
#: Modules that are loaded before lock-down wait for it with their files.
_MAX_EARLY = 64


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
        self._next = 1
        self._early: dict[int, _Early] = {}
        self._exported: ExportedSymbols | None = None
        self._text: GuardedCode | None = None
        self._saved: list[dict[str, Any]] = []
        self._recent = RecentModules(measured)
        self.modules: dict[int, GuardedModule] = {}

    def codes(self) -> Iterator[GuardedCode]:
        """The code of all modules."""
        for module in self.modules.values():
            yield from module.code.values()

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

    def take_file(self, body: bytes, pages: Sequence[int]) -> Asking[bytes]:
        """A part of a module's file, copied once; parts come in order. Raises KciError, MonitorRefused."""
        if len(body) != _FILE.size:
            raise KciError("a part of a module's file comes with its length and offset")
        length, offset = _FILE.unpack(body)
        if not 0 < length <= self._settings.largest_module:
            raise KciError(f"a module's file has 1 to {self._settings.largest_module} bytes, not {length}")
        if offset == 0:
            self._length, self._received = length, 0
        if length != self._length or offset != self._received or offset % PAGE_SIZE:
            raise KciError(f"the part of a module's file at {offset:#x} is not the next one")
        part = min(length - offset, len(pages) * PAGE_SIZE)
        if part <= 0 or len(pages) != -(-part // PAGE_SIZE):
            raise KciError(f"{len(pages)} pages are not a part of the {length - offset} bytes that are left")
        yield from self._context.monitor.copy_in(pages, part, offset)
        self._received = offset + part
        return b""

    def _file(self) -> bytes:
        """The file that came last; it is used once."""
        length, self._length = self._length, 0
        if not length or self._received != length:
            raise ModuleRefused("its file did not come before it")
        return self._context.memory.read(0, length)

    # Life

    def take(
        self,
        told: ModulePrepared,
        pages: Sequence[int],
        configuration: Configuration | None,
        text: GuardedCode | None,
    ) -> Asking[int]:
        """The module whose file came last lies in these pages; returns its number. Raises ModuleRefused, KciError,
        MonitorRefused."""
        number, digest = self._next, None
        try:
            if len(self.modules) + len(self._early) >= _MAX_MODULES:
                raise ModuleRefused(f"there are {_MAX_MODULES} modules already")
            file = self._file()
            digest = hashlib.sha256(file).hexdigest()
            admitted = self._recent.admit(file)
            if configuration is None or text is None:
                if len(self._early) >= _MAX_EARLY:
                    raise ModuleRefused(f"{_MAX_EARLY} modules wait for lock-down already")
                self._early[number] = _Early(admitted, told, pages)
            else:
                yield from self._admit(number, admitted, told, pages, configuration, text)
        except (KciError, MonitorRefused) as error:
            self._ledger.tell(CodeEvent.MODULE_REFUSED, f"a module is refused: {error}", hash=digest)
            raise
        self._next += 1
        return number

    def admit_early(self, configuration: Configuration, text: GuardedCode) -> Asking[None]:
        """Those that were loaded before lock-down. Raises what `take` raises."""
        for number, early in sorted(self._early.items()):
            yield from self._admit(
                number, early.admitted, early.told, early.pages, configuration, text, live=early.live
            )
            del self._early[number]

    def _admit(
        self,
        number: int,
        admitted: AdmittedFile,
        told: ModulePrepared,
        pages: Sequence[int],
        configuration: Configuration,
        text: GuardedCode,
        *,
        live: bool = False,
    ) -> Asking[None]:
        self._text = text
        prepared, code = self._recent.derive(admitted, told, self._exports, text.rules.near)
        self._exports.add(prepared.name, prepared.exports)
        # Only now: if the same file runs already, these rules are its own, and its init code may be gone.
        code.admit(text.rules.near)
        try:
            frames = frames_of(told, pages)
            if live:
                # The kernel's memory again, and nobody's code.
                for kind in INIT:
                    frames.pop(kind, None)
            module = GuardedModule(number, prepared, told, code.targets, admitted.body, live=live)
            module.late = frames.get(MemoryType.RO_AFTER_INIT, ())
            module.read_only = yield from take_read_only(self._context, prepared, frames)
            try:
                if live:
                    yield from take_late_data(self._context, module)
                module.code = yield from take_code(
                    self._context,
                    self._measured,
                    prepared,
                    frames,
                    code,
                    configuration,
                )
            except Exception:
                yield from self._release_data(module, *MemoryType)
                raise
        except Exception:
            self._exports.remove(prepared.name)
            raise
        self._know(module, code)
        self._ledger.tell(
            CodeEvent.MODULE_ADMITTED,
            f"the module {prepared.name} {prepared.version}".rstrip() + f" is admitted, {_vouched(prepared)}",
            name=prepared.name,
            version=prepared.version,
            hash=prepared.digest.hex(),
            signer=prepared.signer.name if prepared.signer is not None else None,
        )

    @property
    def _exports(self) -> ExportedSymbols:
        if self._exported is None:
            self._exported = self._measured.exported()
        return self._exported

    def _know(self, module: GuardedModule, code: ModuleCode) -> None:
        self.modules[module.number] = module
        assert self._text is not None
        near = code.around(self._text.rules.near)
        for kind, rules in code.rules.items():
            if kind not in module.code:
                # Its init function returned before: what was there is the kernel's memory, and nothing leads there.
                near = near.retire(rules.range)
        self._surround(near)

    def _surround(self, near: Surroundings) -> None:
        assert self._text is not None
        for code in (self._text, *self.codes()):
            code.rules.admit(near)

    def live(self, number: int) -> Asking[None]:
        """Its init code is not code any more, and what only that writes is read-only. Raises KciError, ModuleRefused,
        MonitorRefused."""
        if number in self._early:
            self._early[number].live = True
            return
        module = self._module(number)
        module.live = True
        yield from self._release(module, *INIT)
        yield from take_late_data(self._context, module)

    def gone(self, number: int) -> Asking[None]:
        """None of its code is code any more."""
        if self._early.pop(number, None) is not None:
            return
        module = self._module(number)
        yield from self._release(module, *MemoryType)
        del self.modules[number]
        self._exports.remove(module.prepared.name)
        self._ledger.tell(
            CodeEvent.MODULE_GONE, f"the module {module.prepared.name} is gone", name=module.prepared.name
        )

    def release(self) -> Asking[None]:
        """Lock-down is refused: all modules are the kernel's own affair."""
        for number in list(self.modules):
            yield from self.gone(number)

    def _module(self, number: int) -> GuardedModule:
        module = self.modules.get(number)
        if module is None:
            raise KciError(f"there is no module {number}")
        return module

    def _release(self, module: GuardedModule, *kinds: MemoryType) -> Asking[None]:
        for kind in kinds:
            code = module.code.get(kind)
            if code is None:
                continue
            # Nothing leads there from here on; then the pages are data.
            assert self._text is not None
            self._surround(self._text.rules.near.retire(AddressRange(code.address, code.address + code.size)))
            yield from move_pages(self._context.monitor, code.pages, Owner.MODULE_CODE, Owner.KERNEL)
            del module.code[kind]
        yield from self._release_data(module, *kinds)

    def _release_data(self, module: GuardedModule, *kinds: MemoryType) -> Asking[None]:
        for kind in kinds:
            pages = module.read_only.get(kind)
            if pages is not None:
                yield from move_pages(self._context.monitor, pages, Owner.KERNEL_RODATA, Owner.KERNEL)
                del module.read_only[kind]

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """The modules' files, and where they lie."""
        return {
            "next": self._next,
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
                {
                    "number": module.number,
                    **_dump_file(AdmittedFile(module.body, module.prepared.digest, module.prepared.signer)),
                    "told": module.told.pack().hex(),
                    "live": module.live,
                    "pages": {int(kind): list(code.pages) for kind, code in module.code.items()},
                    "read_only": {int(kind): list(pages) for kind, pages in module.read_only.items()},
                    "late": list(module.late),
                }
                for module in self.modules.values()
            ],
        }

    def load(self, state: dict[str, Any]) -> None:
        """From `dump`; `rebuild` makes the rest when it is needed."""
        self._next, self._saved = state["next"], state["modules"]
        self._early = {
            item["number"]: _Early(
                _load_file(item), ModulePrepared.parse(bytes.fromhex(item["told"])), item["pages"], live=item["live"]
            )
            for item in state["early"]
        }

    def rebuild(self, text: GuardedCode) -> None:
        """The modules of a snapshot again, with their rules."""
        self._text = text
        for item in self._saved:
            admitted = _load_file(item)
            told = ModulePrepared.parse(bytes.fromhex(item["told"]))
            prepared, rules = self._recent.derive(admitted, told, self._exports, text.rules.near)
            self._exports.add(prepared.name, prepared.exports)
            module = GuardedModule(item["number"], prepared, told, rules.targets, admitted.body, live=item["live"])
            pages = {MemoryType(int(kind)): found for kind, found in item["pages"].items()}
            module.code = code_again(self._context.guest, prepared, pages, rules)
            module.read_only = {MemoryType(int(kind)): found for kind, found in item["read_only"].items()}
            module.late = item["late"]
            self._know(module, rules)
        self._saved = []


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

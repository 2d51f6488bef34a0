# SPDX-License-Identifier: GPL-2.0-or-later
"""A module whose code VMPL 3 may execute: how it gets there, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from veil.formats.kci import MemoryType, ModulePrepared
from veil.formats.kci_status import ModuleStatus
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import Asking, GuestMemory, MonitorRefused, ServiceContext
from veil.services.kci.code_rules import Configuration
from veil.services.kci.guarded_code import GuardedCode, move_pages
from veil.services.kci.kernel_data import KernelData
from veil.services.kci.measured import MeasuredKernel
from veil.services.kci.module_code import ModuleCode
from veil.services.kci.modules import ModuleRefused, Prepared

__all__ = ["LoadedModule", "code_again", "frames_of", "take_code"]


@dataclass
class LoadedModule:
    """A module whose code VMPL 3 may execute."""

    number: int
    prepared: Prepared
    told: ModulePrepared
    """Where it lies, as the driver said; what it said about pages is in `code`."""
    targets: Sequence[int]
    """Functions of it that may be called through a pointer."""
    body: bytes
    """Its file, without signature: from which all of this follows again."""
    code: dict[MemoryType, GuardedCode] = field(default_factory=dict)
    live: bool = False

    @property
    def status(self) -> ModuleStatus:
        """For users."""
        prepared = self.prepared
        return ModuleStatus(
            self.number,
            prepared.name,
            prepared.version,
            prepared.signer.name if prepared.signer is not None else "",
            prepared.digest.hex(),
            sum(piece.size for piece in self.code.values()),
            self.live,
        )


def frames_of(told: ModulePrepared, pages: Sequence[int]) -> dict[MemoryType, Sequence[int]]:
    """The pages of each type of memory. Raises ModuleRefused unless they are as many as the memory has."""
    found, at = {}, 0
    for kind in sorted(told.memory):
        count = told.memory[kind].size // PAGE_SIZE
        found[kind] = pages[at : at + count]
        at += count
    if at != len(pages):
        raise ModuleRefused(f"the module has {at} pages of memory, and {len(pages)} were named")
    return found


def take_code(
    context: ServiceContext,
    measured: MeasuredKernel,
    prepared: Prepared,
    frames: Mapping[MemoryType, Sequence[int]],
    code: ModuleCode,
    configuration: Configuration,
) -> Asking[dict[MemoryType, GuardedCode]]:
    """Make its code executable and no more writable, if it is what it must be: in this order, so that what is compared
    is what will run. Raises KciError or ModuleRefused; then its pages are the kernel's as before."""
    rules = {kind: piece for kind, piece in code.rules.items() if kind in frames}
    pages = [gpa for kind in rules for gpa in frames[kind]]
    if len(set(pages)) != len(pages):
        raise ModuleRefused("a page of the module is named twice")
    try:
        yield from move_pages(context.monitor, pages, Owner.KERNEL, Owner.MODULE_CODE)
    except MonitorRefused as error:
        raise ModuleRefused(f"its pages cannot be taken: {error}") from error
    try:
        data = KernelData(context, measured)
        yield from data.fetch({address for piece in rules.values() for address in piece.variables})
        found = {}
        for kind in rules:
            piece = GuardedCode(rules[kind], prepared.memory[kind].address, frames[kind], context.guest)
            explanation = piece.rules.explain(piece.read(piece.address, piece.size), data.read, configuration)
            if not explanation.sound:
                first = explanation.unexplained[0]
                raise ModuleRefused(
                    f"{explanation.unexplained_bytes} bytes of its code are not explained, the first at "
                    f"{first.address:#x}: {first.found:#04x} in place of {first.expected:#04x}"
                )
            found[kind] = piece
    except Exception:
        yield from move_pages(context.monitor, pages, Owner.MODULE_CODE, Owner.KERNEL)
        raise
    return found


def code_again(
    guest: GuestMemory, prepared: Prepared, pages: Mapping[MemoryType, Sequence[int]], rules: ModuleCode
) -> dict[MemoryType, GuardedCode]:
    """The code of a module that was admitted before a snapshot."""
    return {
        kind: GuardedCode(rules.rules[kind], prepared.memory[kind].address, found, guest)
        for kind, found in pages.items()
    }

# SPDX-License-Identifier: GPL-2.0-or-later
"""A CVM of which nothing runs yet: its configuration, and what a launch of it would measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from veil.cache import Cache
from veil.cvm.assembly import Assembly
from veil.cvm.configuration import Configuration
from veil.errors import VeilError
from veil.formats.page_sizes import PAGE_SIZE_2M
from veil.snp import Machine, SnpError, build_engine

if TYPE_CHECKING:
    from veil.image.launch_image import LaunchImage

__all__ = ["MeasuredCvm"]


class MeasuredCvm:
    """What `ConfidentialVM` knows before it is started."""

    def __init__(self, configuration: Configuration, cache: Cache, say: Callable[[str], None]) -> None:
        self.configuration = configuration
        self._say = say
        self._maker = Assembly(configuration, cache, say)
        #: the snapshot's file, if the configuration came from one that anybody may have made
        self._restored_from: str | None = None

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.configuration.memory

    @property
    def vcpus(self) -> int:
        """How many."""
        return self.configuration.vcpus

    @property
    def _assembly(self) -> Assembly:
        """What makes the image. Raises VeilError for files that somebody else's snapshot names."""
        # They are whatever lies there now, and beside a kernel lie the Makefiles of its headers, which are run.
        if self._restored_from is not None and self.configuration.named_files:
            named = ", ".join(f"{name!r:.100}" for name in self.configuration.named_files)
            raise VeilError(
                f"the snapshot {self._restored_from} names files of its maker's computer, which are not taken from "
                f"this one: {named}. If they are yours: ConfidentialVM(vm.configuration)"
            )
        return self._maker

    @property
    def has_monitor(self) -> bool:
        """Is VeilMon at VMPL 0? Without it the kernel is."""
        return self.configuration.monitor

    def build_image(self) -> LaunchImage:
        """What a launch would measure, without launching: for anyone who wants to know the digest beforehand."""
        try:
            build_engine(self._say)
            with Machine(PAGE_SIZE_2M, cpu_features=self.configuration.features) as machine:
                return self._build_image(machine)
        except SnpError as error:
            raise VeilError(str(error)) from error

    def ingredients(self) -> dict[str, str] | None:
        """Name and checksum of the kernel, packages and programs that go into the image; None until all are at hand."""
        return self._assembly.ingredients()

    def compilers(self) -> dict[str, str]:
        """Which compiler and linker made the programs that are compiled, in words by the names of `ingredients`."""
        return self._assembly.compilers()

    def build_intruder(self) -> bytes:
        """A kernel module for this guest that does what one would who took its kernel over; for demonstrations."""
        return self._assembly.intruder()

    def kernel_modules(self, names: Sequence[str]) -> list[tuple[str, bytes]]:
        """(name, file) of modules of this guest's kernel and of all they need, each after what it needs. Raises
        VeilError."""
        return self._assembly.kernel_modules(names)

    def _build_image(self, machine: Machine) -> LaunchImage:
        return self._assembly.image(machine)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosted code: domains whose program is Python out of the measured image.

A VMSA at VMPL 0 or 1 whose RIP is the address of a page that starts with a `HostedHeader` is run by Python instead of
the CPU engine.  The header names the program and the archive of its sources, both in guest memory that the launch
measured; the machine runs what that archive holds, so a host that changes one byte changes the launch digest and the
code, never the code alone.

A program is a class without constructor arguments.  `run(cpu)` is a generator: each `yield` is a VMGEXIT, and the
next VMRUN of that VMSA resumes after it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import sys
import tarfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from veil.snp.errors import LaunchError, RmpViolation, SnapshotError

if TYPE_CHECKING:
    from veil.snp.layouts import Vmcb
    from veil.snp.view import View

__all__ = ["HOSTED_MAGIC", "HostedCpu", "HostedHeader", "HostedProgram", "hosted_header", "pack_sources"]

HOSTED_MAGIC = b"VEILHOST"
_VERSION = 1
_ENTRY_BYTES = 128


class HostedHeader(ctypes.LittleEndianStructure):
    """The start of a hosted program's first page."""

    _pack_ = 1
    _fields_ = [
        ("magic", ctypes.c_char * 8),
        ("version", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("archive_gpa", ctypes.c_uint64),
        ("archive_length", ctypes.c_uint64),
        ("parameters_gpa", ctypes.c_uint64),
        ("parameters_length", ctypes.c_uint64),
        ("entry", ctypes.c_char * _ENTRY_BYTES),
    ]

    magic: bytes
    version: int
    reserved: int
    archive_gpa: int
    archive_length: int
    parameters_gpa: int
    parameters_length: int
    entry: bytes


def hosted_header(entry: str, *, archive: tuple[int, int], parameters: tuple[int, int]) -> bytes:
    """The header for a program "package.module:Class"; archive and parameters are (GPA, length)."""
    name = entry.encode("ascii")
    if len(name) >= _ENTRY_BYTES:
        raise LaunchError(f"the hosted program's name is too long: {entry}")
    return bytes(HostedHeader(HOSTED_MAGIC, _VERSION, 0, *archive, *parameters, name))


class HostedCpu:
    """What a hosted program sees of the VCPU it runs on."""

    __slots__ = ("_header", "_vmcb", "fault", "start_argument", "tsc", "view", "vmpl", "vmsa_gpa")

    def __init__(
        self,
        view: View,
        vmsa_gpa: int,
        start_argument: int,
        header: HostedHeader,
        vmcb: Vmcb,
        tsc: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.view = view
        self.vmpl = view.vmpl
        self.vmsa_gpa = vmsa_gpa
        self.start_argument = start_argument
        #: RDTSC, in nanoseconds: the machine's, which the host cannot set
        self.tsc = tsc
        self.fault: RmpViolation | None = None
        self._header = header
        self._vmcb = vmcb

    def nested_fault(self, violation: RmpViolation) -> None:
        """Make the next `yield` a nested page fault instead of a VMGEXIT.

        For a refusal that the host can resolve, such as a 4 KiB instruction on a 2 MiB RMP entry: machine code would be
        restarted after the host's PSMASH, hosted code repeats the operation after the `yield`.
        """
        self.fault = violation

    @property
    def ghcb_msr(self) -> int:
        """MSR C001_0130."""
        return self._vmcb.ghcb_gpa

    @ghcb_msr.setter
    def ghcb_msr(self, value: int) -> None:
        self._vmcb.ghcb_gpa = value

    @property
    def parameters(self) -> bytes:
        """The measured parameters of the program."""
        return self.view.read(self._header.parameters_gpa, self._header.parameters_length)


class HostedProgram(Protocol):
    """What the machine asks of a program. One object serves all VMSAs that start at the same header."""

    def run(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Start on a VCPU."""

    def resume(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Go on after a snapshot: from where the program waits for its next VMRUN."""

    def save(self) -> bytes:
        """All state that is not in guest memory."""

    def restore(self, data: bytes) -> None:
        """Take back what `save` gave."""


def pack_sources(packages: Iterable[str]) -> bytes:
    """An archive of the Python sources of packages, the same bytes for the same sources."""
    archive = bytearray()
    for package in sorted(packages):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise LaunchError(f"no sources of {package}")
        for names, path in sorted(_sources_below(os.path.dirname(spec.origin))):
            with open(path, "rb") as file:
                content = file.read()
            info = tarfile.TarInfo("/".join((*package.split("."), *names)))
            info.size = len(content)
            archive += info.tobuf(tarfile.USTAR_FORMAT)
            archive += content + bytes(-len(content) % tarfile.BLOCKSIZE)
    archive += bytes(2 * tarfile.BLOCKSIZE)
    return bytes(archive) + bytes(-len(archive) % tarfile.RECORDSIZE)


def _sources_below(root: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Names and path of each. Every CVM that is resumed goes this way, and `Path` objects take twice as long."""
    for folder, _, files in os.walk(root):
        names = () if folder == root else tuple(folder[len(root) + 1 :].split(os.sep))
        for name in files:
            if name.endswith(".py"):
                yield (*names, name), os.path.join(folder, name)


def load_program(archive: bytes, entry: str) -> HostedProgram:
    """An instance of the class `entry`, as the archive's sources define it."""
    module_name, _, class_name = entry.partition(":")
    sources = _read_sources(archive)
    if module_name not in sources:
        raise LaunchError(f"the image holds no source of {module_name}")
    if all(_installed_source(name) == source for name, (source, _) in sources.items()):
        module = importlib.import_module(module_name)
    else:
        module = _import_from(sources, module_name)
    program: HostedProgram = getattr(module, class_name)()
    return program


def load_installed(archive: bytes, entry: str, programs: Mapping[str, Sequence[str]]) -> InstalledProgram:
    """The same for a snapshot's archive: nothing of it is run, only what is installed, and only if it is the same; it
    is imported when it runs.

    A snapshot comes from a file. Its launch digest is as much a claim as its memory, so neither vouches for the other:
    what may run are the sources of this installation. `programs` has what they may be: entry -> packages. An archive
    that differs in one module, or has one too many or too few, is refused with a SnapshotError that names it.
    """
    if entry not in programs:
        raise SnapshotError(f"the snapshot wants to run {entry!r}, which may not be resumed here")
    installed = pack_sources(programs[entry])
    # The same sources are the same bytes: what differs is only looked for where something does.
    if archive != installed:
        _require_same(entry, archive, installed)
    return InstalledProgram(entry)


class InstalledProgram:
    """A snapshot's program, imported with its state when a VMSA of it runs: a guest that is resumed for a command
    mostly needs none, and their modules are most of what there is to import."""

    def __init__(self, entry: str) -> None:
        self._entry = entry
        self._saved: bytes | None = None

    @functools.cached_property
    def program(self) -> HostedProgram:
        """What runs. Raises what its `restore` makes of a state that is nonsense."""
        module_name, _, class_name = self._entry.partition(":")
        program: HostedProgram = getattr(importlib.import_module(module_name), class_name)()
        if self._saved is not None:
            program.restore(self._saved)
        return program

    def run(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """As `HostedProgram`."""
        yield from self.program.run(cpu)

    def resume(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """As `HostedProgram`."""
        yield from self.program.resume(cpu)

    def save(self) -> bytes:
        """As `HostedProgram`; what did not run is as it was."""
        if "program" in self.__dict__ or self._saved is None:
            return self.program.save()
        return self._saved

    def restore(self, data: bytes) -> None:
        """As `HostedProgram`."""
        self._saved = data


def _require_same(entry: str, archive: bytes, installed: bytes) -> None:
    try:
        sources, own = _read_sources(archive), _read_sources(installed)
    except LaunchError as error:
        raise SnapshotError(f"the snapshot's copy of {entry} is damaged: {error}") from error
    differing = sorted(name for name in sources.keys() | own.keys() if sources.get(name) != own.get(name))
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise SnapshotError(
            f"the snapshot's {differing[0][:80]!r}{more} is not the one that is installed here: it was made by another "
            "version of Veil, or changed; boot afresh"
        )


def _read_sources(archive: bytes) -> dict[str, tuple[bytes, bool]]:
    """Module name -> (source, is a package)."""
    sources: dict[str, tuple[bytes, bool]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is None or not member.name.endswith(".py"):
                    continue
                parts = member.name.removesuffix(".py").split("/")
                package = parts[-1] == "__init__"
                sources[".".join(parts[:-1] if package else parts)] = (stream.read(), package)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise LaunchError(f"the hosted program's archive is damaged: {error}") from error
    return sources


def _installed_source(name: str) -> bytes | None:
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return None
    if spec is None or spec.origin is None:
        return None
    try:
        return Path(spec.origin).read_bytes()
    except OSError:
        return None


class _ArchiveImporter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the archive's modules, and only them."""

    def __init__(self, sources: dict[str, tuple[bytes, bool]]) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for a module of the archive."""
        if fullname not in self._sources:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, self, origin="measured image", is_package=self._sources[fullname][1]
        )

    def exec_module(self, module: ModuleType) -> None:
        """Run the archive's source."""
        source, _ = self._sources[module.__name__]
        exec(compile(source, f"<measured image>/{module.__name__}", "exec"), module.__dict__)


def _import_from(sources: dict[str, tuple[bytes, bool]], module_name: str) -> ModuleType:
    """Import altered sources beside the installed ones, which come back into `sys.modules` afterwards."""
    installed = {name: sys.modules.pop(name) for name in sources if name in sys.modules}
    importer = _ArchiveImporter(sources)
    sys.meta_path.insert(0, importer)
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        raise LaunchError(f"the hosted program cannot start: {error}") from error
    finally:
        sys.meta_path.remove(importer)
        for name in sources:
            sys.modules.pop(name, None)
        sys.modules.update(installed)
        for name in sources:
            # An import also leaves the module as an attribute of its package.
            package, _, child = name.rpartition(".")
            if package in sys.modules and package not in sources:
                if name in installed:
                    setattr(sys.modules[package], child, installed[name])
                elif hasattr(sys.modules[package], child):
                    delattr(sys.modules[package], child)

# SPDX-License-Identifier: GPL-2.0-or-later
"""From a program and its manifest to an enclave."""

from __future__ import annotations

from collections.abc import Mapping

from veil.cache import Cache
from veil.formats.enclaves import ARENA, RUNTIME, WINDOW, Layout, Prot
from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE, page_up
from veil.guest.elf import ElfProgram, parse_program
from veil.guest.enclaves.config import CONFIG_PLACE, Config, TrustedFile
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.libraries import collect_trusted
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.pages import EnclavePages
from veil.guest.enclaves.rules import Rules, brk_end
from veil.guest.enclaves.runtime.build import Runtime, build_runtime
from veil.guest.enclaves.trusted_files import FileSource
from veil.guest.errors import GuestImageError

__all__ = ["build_enclave", "has_our_runtime"]

_HEAP = RUNTIME + 0x200A_0000
#: Of the runtime's own memory: for open files, areas, what is read of trusted files.
_HEAP_BYTES = 1 << 20
#: Beside that, if there are sealed files: for the tags of their blocks, 16 bytes of each 4 KiB.
_HEAP_FOR_SEALED = 1 << 20
#: Below the arena, so that brk has room behind it.
_PROGRAM_BASE = 0x0555_5555_0000
_INTERPRETER_END = 0x7F00_0000_0000
_ARENA_PAGES = (WINDOW - ARENA) // PAGE_SIZE


def build_enclave(cache: Cache, source: FileSource, program: str, manifest: Manifest) -> EnclaveImage:
    """The image of a program, by its path or, if the source is of packages, by its name. Raises GuestImageError."""
    path, data = source.program(program)
    elf = parse_program(data, path)
    runtime = build_runtime(cache)
    trusted = collect_trusted(source, data, path, manifest.trusted, manifest.directory)
    _check_paths(path, trusted, manifest)
    pages = EnclavePages()
    base = _PROGRAM_BASE if elf.movable else 0
    pages.add_program(elf, base, path)
    loader, loader_base = _add_loader(pages, source, elf)
    brk_start = page_up(base + elf.end)
    config = Config(
        entry=loader_base + loader.entry if loader is not None else base + elf.entry,
        program_entry=base + elf.entry, headers=base + elf.headers, header_count=elf.header_count,
        interpreter=loader_base, brk_start=brk_start, brk_end=brk_end(brk_start, manifest),
        heap_bytes=_HEAP_BYTES + (_HEAP_FOR_SEALED if manifest.sealed else 0), program=path, rules=Rules.of(manifest),
        areas=pages.areas(),
        files={name: TrustedFile.of(content) for name, content in trusted.items()}, manifest=manifest.text(),
    )  # fmt: skip
    _add_runtime(pages, runtime, config)
    records, content = pages.records()
    try:
        layout = Layout(
            runtime.entry, runtime.vectors, manifest.threads, manifest.memory // PAGE_SIZE, _ARENA_PAGES, tuple(records)
        )
    except FormatError as error:
        raise GuestImageError(f"{path}: {error}") from error
    return EnclaveImage(layout, content, manifest.text(), trusted)


def has_our_runtime(cache: Cache, image: EnclaveImage) -> bool:
    """Whether its runtime is the one that this computer builds; another compiler makes another. Raises GuestImageError.

    The runtime keeps the rules: in an image with another one they are as good as whoever made that.
    """
    runtime, pages = build_runtime(cache), EnclavePages()
    pages.add_runtime(runtime.elf)
    found = [record for record in image.layout.records if RUNTIME <= record.va < CONFIG_PLACE]
    entries = (image.layout.entry, image.layout.vectors)
    return found == pages.records()[0] and entries == (runtime.entry, runtime.vectors)


def _check_paths(program: str, trusted: Mapping[str, bytes], manifest: Manifest) -> None:
    for path in (program, *trusted):
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise GuestImageError(f"{path!r}: the path of a file of an enclave is not UTF-8") from error
    for key, paths in (("read", manifest.read), ("pass", manifest.passed), ("sealed", manifest.sealed)):
        for path in paths:
            # What is trusted is that: the rule would never apply.
            if path in trusted:
                raise GuestImageError(f"manifest: {path!r} is in files.{key} and is a trusted file: which is it?")


def _add_loader(pages: EnclavePages, source: FileSource, program: ElfProgram) -> tuple[ElfProgram | None, int]:
    if program.interpreter is None:
        return None, 0
    loader = parse_program(source.file(program.interpreter), program.interpreter)
    if not loader.movable:
        raise GuestImageError(f"{program.interpreter}: a loader that is not position independent")
    base = _INTERPRETER_END - page_up(loader.end)
    pages.add_program(loader, base, program.interpreter)
    return loader, base


def _add_runtime(pages: EnclavePages, runtime: Runtime, config: Config) -> None:
    pages.add_runtime(runtime.elf)
    pages.add_content(CONFIG_PLACE, config.pack(), Prot.R)
    pages.add_zeros(_HEAP, config.heap_bytes)

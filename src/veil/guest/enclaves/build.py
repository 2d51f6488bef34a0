# SPDX-License-Identifier: GPL-2.0-or-later
"""From a program and its manifest to an enclave."""

from __future__ import annotations

from veil.cache import Cache
from veil.formats.enclaves import ARENA, RUNTIME, WINDOW, Layout, Prot
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.elf import ElfProgram, parse_program
from veil.guest.enclaves.calls import allowed_numbers
from veil.guest.enclaves.config import CONFIG_PLACE, Config, ConfigFlag, ConfigRule, RuleKind
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import SIGNALS, Manifest, secret_path
from veil.guest.enclaves.pages import EnclavePages
from veil.guest.enclaves.runtime.build import Runtime, build_runtime
from veil.guest.enclaves.trusted_files import FileSource, collect_trusted
from veil.guest.errors import GuestImageError

__all__ = ["build_enclave"]

_HEAP = RUNTIME + 0x2000_0000
#: Of the runtime's own memory: for open files, areas, what is read of trusted files.
_HEAP_BYTES = 1 << 20
#: Below the arena, so that brk has room behind it.
_PROGRAM_BASE = 0x0555_5555_0000
_INTERPRETER_END = 0x7F00_0000_0000
_ARENA_PAGES = (WINDOW - ARENA) // PAGE_SIZE


def build_enclave(cache: Cache, source: FileSource, program: str, manifest: Manifest) -> EnclaveImage:
    """The image of a program, by its path or, if the source is of packages, by its name. Raises GuestImageError."""
    path, data = source.program(program)
    elf = parse_program(data, path)
    runtime = build_runtime(cache)
    trusted = collect_trusted(source, data, path, manifest.trusted)
    pages = EnclavePages()
    base = _PROGRAM_BASE if elf.movable else 0
    pages.add_program(elf, base, path)
    loader, loader_base = _add_loader(pages, source, elf)
    brk_start = _page_up(base + elf.end)
    config = Config(
        entry=loader_base + loader.entry if loader is not None else base + elf.entry,
        program_entry=base + elf.entry, headers=base + elf.headers, header_count=elf.header_count,
        interpreter=loader_base, brk_start=brk_start, brk_end=_brk_end(brk_start, manifest),
        stack_bytes=_page_up(manifest.stack), heap_bytes=_HEAP_BYTES, pool_pages=manifest.memory // PAGE_SIZE,
        slots=manifest.threads, program=path, flags=_flags(manifest), directory=manifest.directory,
        calls=allowed_numbers(manifest.allow, manifest.deny),
        signals=frozenset(SIGNALS[name] for name in manifest.signals), areas=pages.areas(),
        rules=_rules(manifest), files=trusted, arguments=manifest.arguments,
        environment=[f"{name}={value}" for name, value in sorted(manifest.environment.items())],
        passed=manifest.environment_outside, started=manifest.programs, manifest=manifest.text(),
    )  # fmt: skip
    _add_runtime(pages, runtime, config)
    records, content = pages.records()
    layout = Layout(
        runtime.entry, runtime.vectors, manifest.threads, manifest.memory // PAGE_SIZE, _ARENA_PAGES, tuple(records)
    )
    return EnclaveImage(layout, content, manifest.text(), trusted)


def _add_loader(pages: EnclavePages, source: FileSource, program: ElfProgram) -> tuple[ElfProgram | None, int]:
    if program.interpreter is None:
        return None, 0
    loader = parse_program(source.file(program.interpreter), program.interpreter)
    if not loader.movable:
        raise GuestImageError(f"{program.interpreter}: a loader that is not position independent")
    base = _INTERPRETER_END - _page_up(loader.end)
    pages.add_program(loader, base, program.interpreter)
    return loader, base


def _add_runtime(pages: EnclavePages, runtime: Runtime, config: Config) -> None:
    pages.add_program(runtime.elf, 0, "the runtime")
    pages.add_content(CONFIG_PLACE, config.pack(), Prot.R)
    pages.add_zeros(_HEAP, config.heap_bytes)


def _brk_end(start: int, manifest: Manifest) -> int:
    # Behind the arena's start there is no room for it: such a program has no brk, and its C library uses mmap.
    return max(start, min(start + manifest.memory, ARENA))


def _flags(manifest: Manifest) -> ConfigFlag:
    flags = ConfigFlag.NONE
    flags |= ConfigFlag.ARGUMENTS_OUTSIDE if manifest.arguments_outside else ConfigFlag.NONE
    flags |= ConfigFlag.END_ON_UNSUPPORTED if manifest.end_on_unsupported else ConfigFlag.NONE
    flags |= ConfigFlag.SIGNALS_OUTSIDE if manifest.signals else ConfigFlag.NONE
    return flags


def _rules(manifest: Manifest) -> list[ConfigRule]:
    kinds = {RuleKind.READ: manifest.read, RuleKind.PASS: manifest.passed, RuleKind.SEALED: manifest.sealed}
    rules = [
        ConfigRule(kind, path.rstrip("/") or "/", path.endswith("/")) for kind, paths in kinds.items() for path in paths
    ]
    # Last: of two rules for one path the later one holds.
    return rules + [ConfigRule(RuleKind.SECRET, secret_path(name), False) for name in manifest.secrets]


def _page_up(address: int) -> int:
    return (address + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE

# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the driver, veil.ko, for one of Debian's kernels: headers out of the archive, unpacked into the cache."""

import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from veil.cache import Cache, cache_key
from veil.disk import refuse_full_disk
from veil.guest.driver.compilers import COMPILER_AT_HAND, BuildTools, build_tools
from veil.guest.driver.headers import HEADERS, KernelHeaders, kernel_headers
from veil.guest.errors import GuestImageError, NoDriverError
from veil.guest.linux.btf import btf_section, member_offsets
from veil.guest.linux.kernel import Kernel
from veil.guest.toolchain import at_hand, built, find_program, run_tool
from veil.private_files import copy_file, make_folder, write_new

__all__ = [
    "build_driver",
    "build_intruder",
    "build_module",
    "driver_at_hand",
    "driver_compiler",
    "driver_sources",
]

_DRIVER = "driver"
_NAME = "veil"
#: folders of the headers with programs in them
_PROGRAMS = ("scripts", "tools")
_COMPILER = "compiler"
#: what is in an entry, and by which rules it was made
_ENTRY = "2"
# A file of the driver's that is made, and what is in it: offsets of members of structures for which there is no header.
_LAYOUT = "kci/layout.h"
_LAYOUTS = {"load_info": ("hdr", "len")}
# And one in each folder that is all others there: each time something is compiled the kernel's headers are read first,
# which takes longer than all of the driver.
_WHOLE = "whole.c"
# What the driver shares with those outside of the kernel who use enclaves.
_ENCLAVE_HEADERS = ("abi.h", "device.h")
# No path of the building machine in the module, so that the same source and compiler give the same bytes. Debug
# information would be stripped anyway, but has paths in it, from which the linker's build ID would be computed.
_FLAGS = (
    "-g0 -ffile-prefix-map={place}=. -ffile-prefix-map={headers}=/usr -Werror -Wextra -Wno-unused-parameter "
    "-Wno-sign-compare -Wno-missing-field-initializers -Wno-cast-function-type"
)


def driver_sources() -> dict[str, bytes]:
    """The driver's files by path in its folder: each service has a folder of its own."""
    shared = {f"enc/{name}": files("veil.guest.enclaves").joinpath(name).read_bytes() for name in _ENCLAVE_HEADERS}
    return _sources(files("veil.guest").joinpath("driver/src")) | shared


def _sources(place: Traversable, prefix: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for item in place.iterdir():
        if item.is_dir():
            found |= _sources(item, f"{prefix}{item.name}/")
        elif item.name.endswith((".c", ".h", "Kbuild")):
            found[prefix + item.name] = item.read_bytes()
    return found


def build_driver(cache: Cache, kernel: Kernel, progress: Callable[[str], None] | None = None) -> bytes:
    """veil.ko for this kernel. Raises GuestImageError, NoDriverError if it cannot be had for this kernel."""
    return build_module(cache, kernel, _NAME, driver_sources(), progress)


def driver_at_hand(cache: Cache, release: str) -> Path | None:
    """veil.ko for the kernel of this release, if it need not be built."""
    place = at_hand(cache, _DRIVER, _key(release, _NAME, driver_sources()))
    return place / f"{_NAME}.ko" if place is not None else None


def driver_compiler(cache: Cache, release: str) -> str:
    """Compiler and linker, in words, that made the driver at hand."""
    place = driver_at_hand(cache, release)
    return (place.parent / _COMPILER).read_text() if place is not None else "none"


def build_intruder(cache: Cache, kernel: Kernel, progress: Callable[[str], None] | None = None) -> bytes:
    """intruder.ko: what the demonstration compromises the guest's kernel with. Raises GuestImageError."""
    # It knows the driver's own structures, as the kernel does.
    shared = {name: data for name, data in driver_sources().items() if name.endswith(".h")}
    return build_module(
        cache, kernel, "intruder", shared | _sources(files("veil.guest").joinpath("intruder")), progress
    )


def build_module(
    cache: Cache,
    kernel: Kernel,
    name: str,
    sources: Mapping[str, bytes],
    progress: Callable[[str], None] | None = None,
) -> bytes:
    """`name`.ko for this kernel from its files by path, of which one is Kbuild. Raises GuestImageError."""
    say = progress or (lambda _: None)

    def build(directory: Path) -> Iterable[Path]:
        headers = kernel_headers(cache, kernel, say)
        work = directory / "source"
        tools = build_tools(cache, kernel, headers, work / ".tools", say)
        say(f"building {'the driver' if name == _NAME else name} for {kernel.release}")
        make_folder(work)
        made = {_LAYOUT: _layout(headers), **_wholes(sources)} if name == _NAME else {}
        for file, data in {**sources, **made}.items():
            make_folder((work / file).parent)
            write_new(work / file, data)
        _make(headers, tools, work, name)
        copy_file(work / f"{name}.ko", directory / f"{name}.ko")
        write_new(directory / _COMPILER, tools.description())
        shutil.rmtree(work)
        known = headers.tree / "Module.symvers" if kernel.headers else cache.manifest(HEADERS, kernel.release)
        return [*tools.files, *map(Path, filter(None, [find_program("make")])), known]

    place = built(cache, _DRIVER, _key(kernel.release, name, sources), build)
    return (place / f"{name}.ko").read_bytes()


def _key(release: str, name: str, sources: Mapping[str, bytes]) -> str:
    parts = (part for source in sorted(sources.items()) for part in source)
    return cache_key(_ENTRY, release, _FLAGS, find_program(COMPILER_AT_HAND) or "", name, repr(_LAYOUTS), *parts)


def _layout(headers: KernelHeaders) -> bytes:
    """STRUCTURE_MEMBER for each, in bytes."""
    btf = btf_section((headers.tree / "vmlinux").read_bytes())
    lines = ["/* SPDX-License-Identifier: GPL-2.0 */"]
    for structure, members in _LAYOUTS.items():
        offsets = zip(members, member_offsets(btf, structure, members), strict=True)
        lines += [f"#define {structure.upper()}_{member.upper()} {offset}" for member, offset in offsets]
    return "".join(f"{line}\n" for line in lines).encode()


def _wholes(sources: Iterable[str]) -> dict[str, bytes]:
    """For each folder a file that includes those of C there, in the order of their names."""
    wholes: dict[str, bytes] = {}
    for folder, _, name in sorted(source.rpartition("/") for source in sources if source.endswith(".c")):
        place = f"{folder}/{_WHOLE}".lstrip("/")
        wholes[place] = wholes.get(place, b"// SPDX-License-Identifier: GPL-2.0\n") + f'#include "{name}"\n'.encode()
    return wholes


def _make(headers: KernelHeaders, tools: BuildTools, work: Path, module: str) -> None:
    """The headers' Makefiles name each other by absolute paths below /usr/src: one is changed, the rest are links."""
    folder = headers.folder
    if any(character in f"{folder}{work}" for character in " \t:#$%"):
        raise GuestImageError(f"cannot build the driver in {work}: make knows no paths with spaces or one of :#$% "
                              "(set XDG_CACHE_HOME)")  # fmt: skip
    tree, given = work / ".headers", headers.tree
    make_folder(tree)
    for item in given.iterdir():
        if item.name not in ("Makefile", *_PROGRAMS):
            (tree / item.name).symlink_to(item)
    for name in _PROGRAMS:
        if tools.loader is None:
            (tree / name).symlink_to(headers.kbuild / name)
        else:
            tools.loader.folder(tree / name, headers.kbuild / name)
    makefile = (given / "Makefile").read_text()
    # Newer ones name their own folder, too.
    makefile = makefile.replace(f"/usr/src/linux-headers-{headers.release}\n", f"{tree}\n")
    write_new(tree / "Makefile", makefile.replace("/usr/src/", f"{folder / 'src'}/"))
    command = [
        "make", "-s", "-C", str(tree), f"M={work}", "ARCH=x86_64",
        *(f"{name}={program}" for name, program in tools.commands.items()),
        "CONFIG_DEBUG_INFO_BTF_MODULES=", "LDFLAGS_MODULE=--build-id=none",
        f"KCFLAGS={_FLAGS.format(place=work, headers=folder)}", "modules",
    ]  # fmt: skip
    done = _run(command, work, libraries=headers.libraries if tools.loader is None else None)
    if done.returncode or not (work / f"{module}.ko").exists():
        refuse_full_disk(done.stdout + done.stderr, work)
        # What went wrong, rather than what make says of it.
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "rror" in line or "not found" in line]
        lines.sort(key=lambda line: line.startswith("make"))
        reason = (lines or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise NoDriverError(f"cannot build the driver for {headers.release}: {reason}")
    strip = _run([tools.commands["STRIP"], "--strip-debug", str(work / f"{module}.ko")], work)
    if strip.returncode:
        refuse_full_disk(strip.stderr, work)
        raise GuestImageError(f"cannot build the driver: strip: {strip.stderr.strip()}")


def _run(
    command: list[str], work: Path | None = None, *, libraries: Path | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return run_tool(command, scratch=work, libraries=libraries)
    except OSError as error:
        raise GuestImageError(
            f"cannot build the driver: cannot run {command[0]} (Debian: apt install make gcc binutils)"
        ) from error

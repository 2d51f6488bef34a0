# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the driver, veil.ko, for one of Debian's kernels: headers out of the archive, unpacked into the cache."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from veil.cache import Cache, cache_key
from veil.disk import refuse_full_disk
from veil.guest.apt import Apt
from veil.guest.errors import GuestImageError
from veil.guest.linux.btf import btf_section, member_offsets
from veil.guest.linux.kernel import Kernel
from veil.guest.toolchain import at_hand, built, find_program, programs_of, run_tool
from veil.private_files import copy_file, make_folder, write_new

__all__ = [
    "DRIVER_COMPILER",
    "build_driver",
    "build_intruder",
    "build_module",
    "driver_at_hand",
    "driver_sources",
    "has_headers",
]

_HEADERS = "headers"
_DRIVER = "driver"
_NAME = "veil"
_LIBELF = "libelf1"
_DEBIAN_RELEASE = re.compile(r"(?P<version>\d+\.\d+\.\d+[\w.+~]*(?:-\d+)?)(?:-cloud)?-amd64")
DRIVER_COMPILER = "gcc"
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
# Options of newer compilers, which a kernel that such a one made has in its configuration.
_NEWER_OPTIONS = {"CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT": "-fmin-function-alignment=16"}


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


def has_headers(release: str) -> bool:
    """Is it (as `uname -r` says it) a kernel for which Debian has headers?"""
    return _DEBIAN_RELEASE.fullmatch(release) is not None


def build_driver(cache: Cache, kernel: Kernel, progress: Callable[[str], None] | None = None) -> bytes:
    """veil.ko for this kernel. Raises GuestImageError."""
    return build_module(cache, kernel, _NAME, driver_sources(), progress)


def driver_at_hand(cache: Cache, release: str) -> Path | None:
    """veil.ko for the kernel of this release, if it need not be built."""
    place = at_hand(cache, _DRIVER, _key(release, _NAME, driver_sources()))
    return place / f"{_NAME}.ko" if place is not None else None


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
        headers = _headers(cache, kernel, say)
        say(f"building {'the driver' if name == _NAME else name} for {kernel.release}")
        work = directory / "source"
        make_folder(work)
        version = _debian_version(kernel.release)
        made = {_LAYOUT: _layout(headers, kernel.release), **_wholes(sources)} if name == _NAME else {}
        for file, data in {**sources, **made}.items():
            make_folder((work / file).parent)
            write_new(work / file, data)
        _make(headers, work, kernel.release, version, name)
        copy_file(work / f"{name}.ko", directory / f"{name}.ko")
        shutil.rmtree(work)
        known = _tree(headers, kernel.release) / "Module.symvers" if kernel.headers is not None else None
        return [*programs_of([DRIVER_COMPILER]), *_tools(), known or cache.manifest(_HEADERS, kernel.release)]

    place = built(cache, _DRIVER, _key(kernel.release, name, sources), build)
    return (place / f"{name}.ko").read_bytes()


def _key(release: str, name: str, sources: Mapping[str, bytes]) -> str:
    parts = (part for source in sorted(sources.items()) for part in source)
    return cache_key(release, _FLAGS, find_program(DRIVER_COMPILER) or "", name, repr(_LAYOUTS), *parts)


def _layout(headers: Path, release: str) -> bytes:
    """STRUCTURE_MEMBER for each, in bytes."""
    btf = btf_section((_tree(headers, release) / "vmlinux").read_bytes())
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


def _tools() -> list[Path]:
    """What takes part besides the compiler."""
    return [Path(path) for path in map(find_program, ("make", "strip", "objcopy")) if path is not None]


def _debian_version(release: str) -> str:
    """As it stands in the names of packages that all kernels of a version share. Raises GuestImageError."""
    match = _DEBIAN_RELEASE.fullmatch(release)
    if match is None:
        raise GuestImageError(f"Linux {release} is not one of Debian's kernels for amd64: there are no headers for it")
    return match["version"]


def _headers(cache: Cache, kernel: Kernel, say: Callable[[str], None]) -> Path:
    """The folder with the unpacked headers of exactly this kernel: what lies beside it, or Debian's."""
    version = _debian_version(kernel.release)
    if kernel.headers is not None:
        return kernel.headers
    kbuild = f"linux-kbuild-{version}"
    packages = [f"linux-headers-{kernel.release}", f"linux-headers-{version}-common", kbuild]

    def build(directory: Path) -> None:
        say(f"fetching {packages[0]}")
        apt = Apt(cache)
        # What one of the headers' own tools (objtool) stands on; a small system may not have it.
        library = [name for name in apt.dependencies(kbuild) if name.startswith(_LIBELF)]
        for package in (*packages, *library[:1]):
            apt.unpack(package, directory)

    return cache.entry(_HEADERS, kernel.release, build) / "usr"


def _tree(headers: Path, release: str) -> Path:
    return headers / "src" / f"linux-headers-{release}"


def _make(headers: Path, work: Path, release: str, version: str, module: str) -> None:
    """The headers' Makefiles name each other by absolute paths below /usr/src: one is changed, the rest are links."""
    if any(character in f"{headers}{work}" for character in " \t:#$%"):
        raise GuestImageError(f"cannot build the driver in {work}: make knows no paths with spaces or one of :#$% "
                              "(set XDG_CACHE_HOME)")  # fmt: skip
    tree, given = work / ".headers", _tree(headers, release)
    make_folder(tree)
    places = {item.name: item for item in given.iterdir() if item.name != "Makefile"}
    places |= {name: headers / "lib" / f"linux-kbuild-{version}" / name for name in ("scripts", "tools")}
    for name, place in places.items():
        (tree / name).symlink_to(place)
    makefile = (given / "Makefile").read_text()
    # Newer ones name their own folder, too.
    makefile = makefile.replace(f"/usr/src/linux-headers-{release}\n", f"{tree}\n")
    write_new(tree / "Makefile", makefile.replace("/usr/src/", f"{headers / 'src'}/"))
    command = [
        "make", "-s", "-C", str(tree), f"M={work}", "ARCH=x86_64", f"CC={DRIVER_COMPILER}",
        "CONFIG_DEBUG_INFO_BTF_MODULES=", *(f"{name}=" for name in _unknown_options(work)),
        "LDFLAGS_MODULE=--build-id=none", f"KCFLAGS={_FLAGS.format(place=work, headers=headers)}", "modules",
    ]  # fmt: skip
    done = _run(command, work, libraries=headers / "lib" / "x86_64-linux-gnu")
    if done.returncode or not (work / f"{module}.ko").exists():
        refuse_full_disk(done.stdout + done.stderr, work)
        # What went wrong, rather than what make says of it.
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "rror" in line or "not found" in line]
        lines.sort(key=lambda line: line.startswith("make"))
        reason = (lines or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise GuestImageError(f"cannot build the driver: {reason}")
    strip = _run(["strip", "--strip-debug", str(work / f"{module}.ko")], work)
    if strip.returncode:
        refuse_full_disk(strip.stderr, work)
        raise GuestImageError(f"cannot build the driver: strip: {strip.stderr.strip()}")


def _unknown_options(work: Path) -> list[str]:
    """Of the newer options those that the compiler at hand has not, by their names in the configuration."""
    check = [DRIVER_COMPILER, "-fsyntax-only", "-x", "c", "/dev/null"]
    return [name for name, option in _NEWER_OPTIONS.items() if _run([*check, option], work).returncode]


def _run(
    command: list[str], work: Path | None = None, *, libraries: Path | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return run_tool(command, scratch=work, libraries=libraries)
    except OSError as error:
        raise GuestImageError(
            f"cannot build the driver: cannot run {command[0]} (Debian: apt install make gcc binutils)"
        ) from error

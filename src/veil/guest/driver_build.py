# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the driver, veil.ko, for one of Debian's kernels: headers out of the archive, unpacked into the cache."""

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from veil.cache import Cache, CacheError, cache_key
from veil.disk import full_disk_words, says_full, tool_environment
from veil.guest.debian import Apt
from veil.guest.errors import GuestImageError
from veil.guest.kernel import Kernel

__all__ = ["build_driver", "build_intruder", "build_module", "driver_sources", "has_headers"]

_HEADERS = "headers"
_DRIVER = "driver"
_NAME = "veil"
_DEBIAN_RELEASE = re.compile(r"(?P<version>\d+\.\d+\.\d+\S*?)-cloud-amd64")
# No path of the building machine in the module, so that the same source and compiler give the same bytes.
_FLAGS = (
    "-ffile-prefix-map={place}=. -Werror -Wextra -Wno-unused-parameter -Wno-sign-compare "
    "-Wno-missing-field-initializers -Wno-cast-function-type"
)


def driver_sources() -> dict[str, bytes]:
    """The driver's files by name."""
    return _sources("driver")


def _sources(folder: str) -> dict[str, bytes]:
    place = files("veil.guest").joinpath(folder)
    return {item.name: item.read_bytes() for item in place.iterdir() if item.name.endswith((".c", ".h", "Kbuild"))}


def has_headers(kernel: Kernel) -> bool:
    """Is it a kernel for which Debian has headers?"""
    return _DEBIAN_RELEASE.fullmatch(kernel.release) is not None


def build_driver(cache: Cache, kernel: Kernel, progress: Callable[[str], None] | None = None) -> bytes:
    """veil.ko for this kernel. Raises GuestImageError."""
    return build_module(cache, kernel, _NAME, driver_sources(), progress)


def build_intruder(cache: Cache, kernel: Kernel, progress: Callable[[str], None] | None = None) -> bytes:
    """intruder.ko: what the demonstration compromises the guest's kernel with. Raises GuestImageError."""
    return build_module(cache, kernel, "intruder", _sources("intruder"), progress)


def build_module(
    cache: Cache,
    kernel: Kernel,
    name: str,
    sources: Mapping[str, bytes],
    progress: Callable[[str], None] | None = None,
) -> bytes:
    """`name`.ko for this kernel from its files by name, of which one is Kbuild. Raises GuestImageError."""
    say = progress or (lambda _: None)
    ordered = sorted(sources.items())

    def build(directory: Path) -> None:
        headers = _headers(cache, kernel, say)
        say(f"building {'the driver' if name == _NAME else name} for {kernel.release}")
        work = directory / "source"
        work.mkdir()
        for file, data in ordered:
            (work / file).write_bytes(data)
        _make(headers, work, kernel.release, name)
        shutil.copy(work / f"{name}.ko", directory / f"{name}.ko")
        shutil.rmtree(work)

    key = cache_key(kernel.release, _FLAGS, _compiler(), name, *(part for source in ordered for part in source))
    return (cache.entry(_DRIVER, key, build) / f"{name}.ko").read_bytes()


def _headers(cache: Cache, kernel: Kernel, say: Callable[[str], None]) -> Path:
    """The folder with the unpacked headers of exactly this kernel."""
    match = _DEBIAN_RELEASE.fullmatch(kernel.release)
    if match is None:
        raise GuestImageError(f"Linux {kernel.release} is no cloud kernel of Debian's: there are no headers for it")
    version = match["version"]
    # The last is what one of the headers' own tools (objtool) stands on; a small system may not have it.
    packages = (
        f"linux-headers-{kernel.release}", f"linux-headers-{version}-common", f"linux-kbuild-{version}", "libelf1",
    )  # fmt: skip

    def build(directory: Path) -> None:
        say(f"fetching {packages[0]}")
        apt = Apt(cache)
        for package in packages:
            apt.unpack(package, directory)

    return cache.entry(_HEADERS, kernel.release, build) / "usr"


def _make(headers: Path, work: Path, release: str, name: str) -> None:
    """The headers' Makefiles name each other by absolute paths below /usr/src: a copy with links mends that."""
    version = release.removesuffix("-cloud-amd64")
    tree = work / ".headers"
    shutil.copytree(headers / "src" / f"linux-headers-{release}", tree, symlinks=True)
    for link, target in (("scripts", "scripts"), ("tools", "tools")):
        place = tree / link
        place.unlink(missing_ok=True)
        place.symlink_to(headers / "lib" / f"linux-kbuild-{version}" / target)
    (tree / "Makefile").write_text(f"include {headers / 'src' / f'linux-headers-{version}-common' / 'Makefile'}\n")
    command = [
        "make", "-s", "-C", str(tree), f"M={work}", f"CC={_CC}", "CONFIG_DEBUG_INFO_BTF_MODULES=",
        f"KCFLAGS={_FLAGS.format(place=work)}", "modules",
    ]  # fmt: skip
    done = _run(command, work, libraries=headers / "lib" / "x86_64-linux-gnu")
    if done.returncode or not (work / f"{name}.ko").exists():
        _refuse_full_disk(done, work)
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "rror" in line]
        reason = (lines or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise GuestImageError(f"cannot build the driver: {reason}")
    strip = _run(["strip", "--strip-debug", str(work / f"{name}.ko")], work)
    if strip.returncode:
        _refuse_full_disk(strip, work)
        raise GuestImageError(f"cannot build the driver: strip: {strip.stderr.strip()}")


_CC = "gcc"


def _compiler() -> str:
    return _run([_CC, "--version"]).stdout


def _refuse_full_disk(done: subprocess.CompletedProcess[str], work: Path) -> None:
    if says_full(done.stdout + done.stderr, work):
        raise CacheError(full_disk_words("the driver", work))


def _run(
    command: list[str], work: Path | None = None, *, libraries: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = tool_environment(work, {} if libraries is None else {"LD_LIBRARY_PATH": str(libraries)})
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env=environment
        )
    except OSError as error:
        raise GuestImageError(
            f"cannot build the driver: cannot run {command[0]} (Debian: apt install make gcc binutils)"
        ) from error

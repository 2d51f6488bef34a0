# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules out of a kernel's module tree, with what they depend on, decompressed."""

import gzip
import lzma
import re
from collections.abc import Sequence
from pathlib import Path

import zstandard

from veil.guest.errors import GuestImageError

_SUFFIX = re.compile(r"\.ko(\.(xz|gz|zst))?$")
_DEPENDS = re.compile(rb"\x00depends=([\x20-\x7e]*)\x00")


def collect_modules(tree: Path, names: list[str]) -> list[tuple[str, bytes]]:
    """(name, contents) of the named modules and all they depend on, each after its dependencies.

    Dependencies are read from the modules themselves (.modinfo 'depends'): a kernel package has no modules.dep.
    Algorithms that a module asks the kernel's crypto API for at run time stand in no 'depends': name them too.
    """
    index = _index(tree)
    builtin = _builtin(tree)
    done: dict[str, bytes] = {}
    for name in names:
        _visit(name.replace("-", "_"), index, builtin, done, ())
    return list(done.items())


def present_modules(tree: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are modules in this tree, and not built in or left out."""
    index = _index(tree)
    return [name for name in names if name in index]


def _index(tree: Path) -> dict[str, Path]:
    return {_name(path): path for path in sorted(tree.rglob("*.ko*")) if _SUFFIX.search(path.name)}


def _visit(
    name: str, index: dict[str, Path], builtin: set[str], done: dict[str, bytes], above: tuple[str, ...]
) -> None:
    if name in done or name in builtin or name in above:
        return
    path = index.get(name)
    if path is None:
        wanted = f" (needed by {above[-1]})" if above else ""
        raise GuestImageError(f"the kernel has no module {name}{wanted}")
    data = _decompress(path)
    match = _DEPENDS.search(data)
    for other in match[1].decode().split(",") if match else ():
        if other:
            _visit(other.replace("-", "_"), index, builtin, done, (*above, name))
    done[name] = data


def _builtin(tree: Path) -> set[str]:
    try:
        lines = (tree / "modules.builtin").read_text().splitlines()
    except OSError:
        return set()
    return {_name(Path(line)) for line in lines if line}


def _name(path: Path) -> str:
    return _SUFFIX.sub("", path.name).replace("-", "_")


def _decompress(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(data)
        if path.suffix == ".gz":
            return gzip.decompress(data)
        if path.suffix == ".zst":
            with zstandard.ZstdDecompressor(max_window_size=1 << 30).stream_reader(data) as stream:
                return stream.read()
        return data
    except (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise GuestImageError(f"{path}: damaged kernel module: {error}") from error

# SPDX-License-Identifier: GPL-2.0-or-later
"""veil enclave build"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from veil.cli.files import read_file
from veil.cli.output import emit_json, say, tell
from veil.errors import VeilError, describe

if TYPE_CHECKING:
    from veil.guest.enclaves.manifest import Manifest

__all__ = ["build"]


@click.command()
@click.argument("program", metavar="PROGRAM")
@click.option("-o", "--output", metavar="FILE", help="The image; by default the program's name with .enclave.")
@click.option("--manifest", "manifest_file", metavar="FILE", help="TOML (docs/enclaves.md). Without it: the defaults.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One key of the manifest, in TOML.")
@click.option("--package", "packages", multiple=True, metavar="NAME", help="Take the files from Debian's packages.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(
    program: str,
    output: str | None,
    manifest_file: str | None,
    settings: tuple[str, ...],
    packages: tuple[str, ...],
    as_json: bool,
) -> int:
    """Make an enclave of an x86-64 Linux program as it is, and print its measurement.

    \b
      veil enclave build /bin/busybox --set arguments.outside=true
      veil enclave build sqlite3 --package sqlite3 --manifest sqlite3.toml -o sqlite3.enclave

    PROGRAM is a path on this computer, or with --package a path or a name in Debian's packages, which are fetched. Its
    loader and its libraries become trusted files, by their hashes. What the manifest does not allow is refused. The
    same files, manifest and compiler give the same measurement.
    """
    from veil.cache import Cache
    from veil.guest.enclaves.build import build_enclave
    from veil.guest.enclaves.trusted_files import ComputerFiles, DebianFiles
    from veil.private_files import write_private

    cache = Cache()
    source = DebianFiles(cache, packages) if packages else ComputerFiles()
    image = build_enclave(cache, source, program, _manifest(manifest_file, settings))
    place = Path(output or f"{Path(program).name}.enclave")
    try:
        write_private(place, image.pack())
    except OSError as error:
        raise VeilError(f"cannot write {place}: {describe(error)}") from error
    if as_json:
        emit_json({"measurement": image.measurement.hex(), "file": str(place), "trusted_files": sorted(image.files)})
    else:
        say(image.measurement.hex())
        tell(f"  {place}: {len(image.content) >> 10} KiB of content, {len(image.files)} trusted files")
    return 0


def _manifest(manifest_file: str | None, settings: tuple[str, ...]) -> Manifest:
    from veil.guest.enclaves.manifest import Manifest, parse_toml

    values: dict[str, Any] = {}
    if manifest_file is not None:
        try:
            values = parse_toml(read_file(manifest_file).decode(), manifest_file)
        except UnicodeDecodeError as error:
            raise VeilError(f"cannot read the manifest {manifest_file}: it is not UTF-8") from error
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise VeilError(f"--set {setting}: write KEY=VALUE, as in arguments.outside=true")
        parsed = parse_toml(f"value = {text}", f"--set {key}: write KEY=VALUE as in a manifest")
        if len(parsed) > 1:
            raise VeilError(f"--set {key}: more than one value")
        table, _, inner = key.rpartition(".")
        place = values.setdefault(table, {}) if table else values
        if not isinstance(place, dict):
            raise VeilError(f"--set {setting}: {table} is no table of the manifest")
        place[inner] = parsed["value"]
    return Manifest.of(values)

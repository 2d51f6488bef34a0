# SPDX-License-Identifier: GPL-2.0-or-later
"""veil cache"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from veil.cli.output import emit_json, say

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """What Veil keeps under $XDG_CACHE_HOME/veil. All of it can be made again, and deleted at any time."""


def _allocated(path: Path) -> int:
    return sum(item.lstat().st_blocks * 512 for item in path.rglob("*") if item.is_file())


@cache.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Show what is there, and how much disk it takes."""
    from veil.cache import cache_directory

    root = cache_directory()
    entries = sorted(item for item in root.iterdir() if item.is_dir()) if root.is_dir() else []
    sizes = {item.name: _allocated(item) for item in entries}
    if as_json:
        emit_json({"directory": str(root), "bytes": sizes})
        return
    say(str(root))
    for name, size in sizes.items():
        say(f"  {size / (1 << 20):8.1f} MiB  {name}")


@cache.command()
def clear() -> None:
    """Delete all of it."""
    from veil.cache import cache_directory

    shutil.rmtree(cache_directory(), ignore_errors=True)

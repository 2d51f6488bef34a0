# SPDX-License-Identifier: GPL-2.0-or-later
"""Where Veil keeps what it can make again (XDG Base Directory Specification)."""

import os
from pathlib import Path

__all__ = ["NO_PLACE", "cache_place"]

NO_PLACE = "no place for the cache: neither XDG_CACHE_HOME nor a home directory is set"


def cache_place() -> Path | None:
    """`$XDG_CACHE_HOME/veil`, or `~/.cache/veil`; a relative XDG_CACHE_HOME counts as unset. None: `NO_PLACE`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "veil"
    try:
        return Path.home() / ".cache" / "veil"
    except RuntimeError:
        return None

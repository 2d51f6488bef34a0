# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to this installation and is no cache: the software machine's chip, the user's own key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from veil.snp import MODEL_TCB

if TYPE_CHECKING:
    from veil.snp.endorsement import Endorsement

__all__ = ["data_directory", "endorsement"]


def data_directory() -> Path:
    """`$XDG_DATA_HOME/veil` (XDG Base Directory Specification); may not exist yet."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".local" / "share") / "veil"


def endorsement() -> Endorsement:
    """The chip of this installation's machines, made at the first call (a second or two)."""
    from veil.snp.endorsement import Endorsement

    return Endorsement.load(data_directory() / "machine", MODEL_TCB)

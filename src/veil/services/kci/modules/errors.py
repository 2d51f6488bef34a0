# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a module may not run."""

from __future__ import annotations

__all__ = ["ModuleRefused"]


class ModuleRefused(Exception):
    """A module's file, or where the kernel put it, is not as it must be; one line says what and where."""

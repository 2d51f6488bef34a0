# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a module may not run."""

from __future__ import annotations

from veil.services.kci.errors import KciError

__all__ = ["ModuleRefused"]


class ModuleRefused(KciError):
    """A module's file, or where the kernel put it, is not as it must be; one line says what and where."""

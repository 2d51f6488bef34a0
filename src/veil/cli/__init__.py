# SPDX-License-Identifier: GPL-2.0-or-later
"""The `veil` command."""

from veil.cli.main import main

__all__ = ["main"]

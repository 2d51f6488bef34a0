# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong with bytes from elsewhere."""

from __future__ import annotations

__all__ = ["FormatError"]


class FormatError(Exception):
    """The bytes are not what they should be; one line says what and where."""

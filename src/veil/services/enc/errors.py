# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-ENC refuses."""

from __future__ import annotations

__all__ = ["EnclaveError", "NoFrames"]


class EnclaveError(Exception):
    """An enclave cannot be made or used in this way; one line why. Nothing was done."""


class NoFrames(EnclaveError):
    """It has too few pages left for this."""

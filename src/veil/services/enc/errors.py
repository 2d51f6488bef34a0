# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-ENC refuses."""

from __future__ import annotations

__all__ = ["EnclaveError", "NeedsPages", "NoFrames"]


class EnclaveError(Exception):
    """An enclave cannot be made or used in this way; one line why. Nothing was done."""


class NoFrames(EnclaveError):
    """It has too few pages left for this."""


class NeedsPages(Exception):
    """The pool has to grow first, by this many pages, and may. Nothing was done."""

    def __init__(self, pages: int) -> None:
        super().__init__(f"the pool has to grow by {pages} pages")
        self.pages = pages

# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose runtime an image has: it keeps the manifest's rules, or does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.cli.output import tell

if TYPE_CHECKING:
    from veil.guest.enclaves.image import EnclaveImage

__all__ = ["compare_runtime", "warn_of_runtime"]


def compare_runtime(image: EnclaveImage) -> tuple[bool | None, str]:
    """Whether it is the one that this Veil builds here (None: it could not be built), and that in words."""
    from veil.cache import Cache
    from veil.guest.enclaves.build import has_our_runtime
    from veil.guest.errors import GuestImageError

    try:
        ours = has_our_runtime(Cache(), image)
    except GuestImageError as error:
        return None, f"not compared: {error}"
    if ours:
        return True, "the one that this Veil builds here"
    return False, "ANOTHER than this Veil builds here; whether it keeps the manifest's rules only its builder knows"


def warn_of_runtime(image: EnclaveImage, file: str) -> None:
    """Who sends a secret looks at the manifest, which says what is kept with Veil's own runtime alone."""
    ours, words = compare_runtime(image)
    if not ours:
        tell(f"veil: {file}: runtime: {words}")

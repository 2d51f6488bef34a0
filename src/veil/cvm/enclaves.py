# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves in a guest: who starts them, and where their images are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from veil.guest.enclaves.starter.build import STARTER_FILE

__all__ = ["enclave_command", "image_place"]


def image_place(image: Path) -> str:
    """Where the image is to be in the guest: the program is called by its name without the ending."""
    return f"/tmp/{image.name}"


def enclave_command(image: Path, arguments: Sequence[str]) -> tuple[str, ...]:
    """What makes and runs the enclave there."""
    return (f"/{STARTER_FILE}", image_place(image), *arguments)

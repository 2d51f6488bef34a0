# SPDX-License-Identifier: GPL-2.0-or-later
"""Which programs of an image Python runs, by name: what a snapshot's may be, without importing any."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veil.image.services_image import ServicesImage

__all__ = ["MONITOR_ENTRY", "MONITOR_PACKAGES", "hosted_programs"]

MONITOR_ENTRY = "veil.monitor:VeilMon"
MONITOR_PACKAGES = ("veil.formats", "veil.monitor")


def hosted_programs(services: ServicesImage | None) -> dict[str, tuple[str, ...]]:
    """Entry -> packages of the programs in an image: what may be resumed of a snapshot (`Machine.restore`)."""
    return {MONITOR_ENTRY: MONITOR_PACKAGES} | ({services.entry: services.packages} if services is not None else {})

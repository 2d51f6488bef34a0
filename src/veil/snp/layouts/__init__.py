# SPDX-License-Identifier: GPL-2.0-or-later
"""Data structures of the specifications, each declared once, with its offsets asserted."""

from __future__ import annotations

from veil.formats.offsets import check_offsets
from veil.snp.layouts.vmcb import Vmcb
from veil.snp.layouts.vmsa import Vmsa, VmsaSegment

__all__ = ["Vmcb", "Vmsa", "VmsaSegment", "check_offsets"]

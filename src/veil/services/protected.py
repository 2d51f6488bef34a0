# SPDX-License-Identifier: GPL-2.0-or-later
"""The domain with all of Veil's own services."""

from __future__ import annotations

from veil.services.enc.service import EncService
from veil.services.kci.service import KciService
from veil.services.log import LogService
from veil.services.program import ServiceDomain

__all__ = ["ProtectedServices"]


class ProtectedServices(ServiceDomain):
    """What runs at VMPL 1 unless somebody chooses otherwise."""

    service_types = (LogService, KciService, EncService)

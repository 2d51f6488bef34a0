# SPDX-License-Identifier: GPL-2.0-or-later
"""The domain with all of Veil's own services."""

from __future__ import annotations

import importlib

from veil.formats.service_catalogue import SERVICES
from veil.services.interface import Service
from veil.services.program import ServiceDomain

__all__ = ["ProtectedServices"]


def _service(place: str) -> type[Service]:
    module, _, name = place.partition(":")
    found: type[Service] = getattr(importlib.import_module(module), name)
    return found


class ProtectedServices(ServiceDomain):
    """What runs at VMPL 1 unless somebody chooses otherwise."""

    service_types = tuple(_service(service.place) for service in SERVICES.values())

# SPDX-License-Identifier: GPL-2.0-or-later
"""Veil's own services by name: what a launch image needs to know of them, which does not run them.

Their code takes as long to import as everything else, and a guest that is resumed for a command mostly calls none.
"""

from __future__ import annotations

from typing import NamedTuple

from veil.formats.enclave_settings import ENC_NAME, EncSettings
from veil.formats.kci import KCI_NAME
from veil.formats.kci_settings import KciSettings
from veil.formats.log_settings import LogSettings
from veil.formats.service_settings import ServiceSettings

__all__ = ["SERVICES", "CataloguedService"]


class CataloguedService(NamedTuple):
    """A service."""

    place: str
    """Its class, "module:Class"."""
    settings_type: type[ServiceSettings]


SERVICES = {
    "log": CataloguedService("veil.services.log:LogService", LogSettings),
    KCI_NAME: CataloguedService("veil.services.kci.service:KciService", KciSettings),
    ENC_NAME: CataloguedService("veil.services.enc.service:EncService", EncSettings),
}

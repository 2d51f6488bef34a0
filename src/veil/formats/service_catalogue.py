# SPDX-License-Identifier: GPL-2.0-or-later
"""Veil's own services by name: what a launch image needs to know of them, which does not run them.

Their code takes as long to import as everything else, and a guest that is resumed for a command mostly calls none.
"""

from __future__ import annotations

from typing import NamedTuple

from veil.formats.enclave_settings import ENC_NAME, ENC_NUMBER, EncSettings
from veil.formats.kci import KCI_NAME, KCI_NUMBER
from veil.formats.kci_settings import KciSettings
from veil.formats.log_settings import LOG_NUMBER, LogSettings
from veil.formats.service_settings import ServiceSettings

__all__ = ["SERVICES", "CataloguedService"]


class CataloguedService(NamedTuple):
    """A service."""

    place: str
    """Its class, "module:Class"."""
    settings_type: type[ServiceSettings]
    number: int
    """By which the kernel calls it."""
    kernel_calls: str
    """What the kernel may call, an enumeration: "module:Class"."""


SERVICES = {
    "log": CataloguedService("veil.services.log:LogService", LogSettings, LOG_NUMBER, "veil.formats.log:KernelCall"),
    KCI_NAME: CataloguedService(
        "veil.services.kci.service:KciService", KciSettings, KCI_NUMBER, "veil.formats.kci:KernelCall"
    ),
    ENC_NAME: CataloguedService(
        "veil.services.enc.service:EncService", EncSettings, ENC_NUMBER, "veil.formats.enclave_calls:EnclaveCall"
    ),
}

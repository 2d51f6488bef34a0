# SPDX-License-Identifier: GPL-2.0-or-later
"""Protected services: hosted code at VMPL 1 (domain DomSER), one package for each service."""

from veil.services.context import Asking, MonitorRefused, ServiceContext, ServiceMemory
from veil.services.interface import KernelRequest, Refused, Service, User, UserHandler
from veil.services.program import ServiceDomain

__all__ = [
    "Asking",
    "KernelRequest",
    "MonitorRefused",
    "Refused",
    "Service",
    "ServiceContext",
    "ServiceDomain",
    "ServiceMemory",
    "User",
    "UserHandler",
]

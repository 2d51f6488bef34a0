# SPDX-License-Identifier: GPL-2.0-or-later
"""Protected services: hosted code at VMPL 1 (domain DomSER), one package for each service."""

from veil.services.interface import Refused, Service, ServiceMemory, User, UserHandler
from veil.services.program import ServiceDomain

__all__ = ["Refused", "Service", "ServiceDomain", "ServiceMemory", "User", "UserHandler"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon, the security monitor: hosted code at VMPL 0 (domain DomMON)."""

from veil.monitor.errors import MonitorError
from veil.monitor.page_book import Owner
from veil.monitor.parameters import MonitorParameters, Option
from veil.monitor.veilmon import VeilMon

__all__ = ["MonitorError", "MonitorParameters", "Option", "Owner", "VeilMon"]

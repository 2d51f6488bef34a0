# SPDX-License-Identifier: GPL-2.0-or-later
"""The face of Veil: silicon, host, monitor and guest tied together for users, tests and the command line."""

from veil.cvm.commands import Result
from veil.cvm.configuration import QUIET, Configuration, parse_size
from veil.cvm.disks import Disk
from veil.cvm.errors import BootTimeout, CommandTimeout
from veil.cvm.networks import Network
from veil.cvm.vm import ConfidentialVM

__all__ = [
    "QUIET",
    "BootTimeout",
    "CommandTimeout",
    "ConfidentialVM",
    "Configuration",
    "Disk",
    "Network",
    "Result",
    "parse_size",
]

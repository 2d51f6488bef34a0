# SPDX-License-Identifier: GPL-2.0-or-later
"""The face of Veil: silicon, host, monitor and guest tied together for users, tests and the command line."""

from veil.cvm.vm import QUIET, BootTimeout, CommandTimeout, ConfidentialVM, Result, parse_size

__all__ = ["QUIET", "BootTimeout", "CommandTimeout", "ConfidentialVM", "Result", "parse_size"]

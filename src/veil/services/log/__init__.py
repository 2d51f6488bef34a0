# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG: audit records that a compromised kernel cannot change, remove or delay."""

from veil.services.log.service import LogService

__all__ = ["LogService"]

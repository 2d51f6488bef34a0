# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's remote protocol for a machine: what runs at every VMPL, stopped and looked at from outside.

The machine is stopped within VMRUN, between two instructions: neither the guest nor its host can see it.
"""

from __future__ import annotations

from veil.debugger.contexts import Context
from veil.debugger.debugger import Debugger
from veil.debugger.place import Place
from veil.debugger.target import Killed

__all__ = ["Context", "Debugger", "Killed", "Place"]

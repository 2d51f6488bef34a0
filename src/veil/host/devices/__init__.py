# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's devices. They belong to the untrusted side, and guard themselves against the guest."""

from veil.host.devices.platform import AGENT_PORT, Platform
from veil.host.devices.virtio_console import ConsolePort, VirtioConsole

__all__ = ["AGENT_PORT", "ConsolePort", "Platform", "VirtioConsole"]

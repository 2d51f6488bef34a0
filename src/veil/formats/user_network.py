# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is where on a guest's network in user mode: the host has it so, and the guest's initramfs takes it as given."""

from __future__ import annotations

__all__ = ["GATEWAY", "GUEST", "MAC", "NAME_SERVER", "NETWORK", "PREFIX_LENGTH"]

NETWORK, PREFIX_LENGTH = "10.0.2.0", 24
#: the way out; and, to the guest, this computer's own address 127.0.0.1
GATEWAY = "10.0.2.2"
#: passes queries on to this computer's name server
NAME_SERVER = "10.0.2.3"
#: the guest's, which DHCP gives it, and to which forwarded ports lead
GUEST = "10.0.2.15"
#: the guest's; nobody else is on its network, so all guests have the same one
MAC = bytes.fromhex("525400123456")

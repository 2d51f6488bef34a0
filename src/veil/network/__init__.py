# SPDX-License-Identifier: GPL-2.0-or-later
"""A network in user mode: libslirp ends the guest's connections with sockets of this computer's user, in a process of
its own.

It is a library in C, and what it reads a hostile guest has written: so it is not in the process that has the machine,
with its keys and open files. Between the two are Ethernet frames.
"""

from __future__ import annotations

from veil.network.link import Card, Forward, LibraryMissing, NetworkError, UserNetwork

__all__ = ["Card", "Forward", "LibraryMissing", "NetworkError", "UserNetwork"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong with the guest's image and its agent, each as one line for the user."""

from veil.errors import VeilError


class GuestImageError(VeilError):
    """The kernel, the initramfs or the boot data cannot be made; the message says which and why."""


class AgentError(VeilError):
    """The guest agent broke its protocol or refused a request."""

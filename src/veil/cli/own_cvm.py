# SPDX-License-Identifier: GPL-2.0-or-later
"""A CVM that this command runs itself, as its user meets it: over the channel, and attested first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM
    from veil.formats.launch_digest import LaunchLog
    from veil.remote import ChannelClient, Trust

__all__ = ["own_client"]


@contextmanager
def own_client(vm: ConfidentialVM, expected: LaunchLog) -> Iterator[tuple[ChannelClient, Trust]]:
    """This installation's user, and what they believe: this software machine, and the digest of this image."""
    from veil import installation
    from veil.remote import ChannelClient, Policy, Trust, TrustedRoots

    roots = TrustedRoots.amd().with_software_root(installation.software_root())
    with ChannelClient(vm.user_transport(), identity=installation.user_key()) as client:
        yield client, Trust(Policy(), roots=roots, expected=expected)

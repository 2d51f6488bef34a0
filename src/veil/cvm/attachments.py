# SPDX-License-Identifier: GPL-2.0-or-later
"""What a CVM has of this computer while it runs: opened images of its disks, and its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from veil.cache import Cache
from veil.cvm.configuration import Configuration
from veil.cvm.disks import Disks
from veil.cvm.networks import open_network
from veil.host.devices import Backend
from veil.network import UserNetwork

__all__ = ["Attachments"]


class Attachments:
    """From `open` to `close`, and again."""

    def __init__(self, configuration: Configuration, cache: Cache, say: Callable[[str], None]) -> None:
        self._configuration = configuration
        self._cache = cache
        self._say = say
        self._disks: Disks | None = None
        #: None if there is none, or it is not open
        self.network: UserNetwork | None = None

    def open(self) -> tuple[Sequence[Backend], UserNetwork | None]:
        """The disks and the network, opened if they are not. Raises VeilError."""
        chosen = self._configuration
        try:
            if self._disks is None:
                self._disks = Disks(chosen.disks)
            if self.network is None and chosen.network is not None:
                self.network = open_network(chosen.network, self._cache, self._say)
        except BaseException:
            self.close()
            raise
        return self._disks.backends, self.network

    def close(self) -> None:
        """Give all back. It comes before the machine's end: the network has things done by the machine's thread."""
        network, self.network = self.network, None
        if network is not None:
            network.close()
        disks, self._disks = self._disks, None
        if disks is not None:
            disks.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m bench.owner PORT: an owner who comes again and again, in a process of its own; a line for each time.

The line has the seconds from the first packet to the answer to the first request, or what went wrong.
"""

from __future__ import annotations

import sys
import time

from veil import installation
from veil.formats.services_manifest import CHANNEL_SERVICE
from veil.remote import ChannelClient, RemoteError

_PING = 0
_PAUSE = 0.1


def main() -> None:
    """Until it is killed."""
    port, identity = int(sys.argv[1]), installation.user_key()
    while True:
        begin = time.monotonic()
        try:
            with ChannelClient.connect("127.0.0.1", port, timeout=10, identity=identity) as client:
                client.request(CHANNEL_SERVICE, _PING, b"here I am")
            print(f"{time.monotonic() - begin:.4f}", flush=True)
        except RemoteError as error:
            print(error, flush=True)
        time.sleep(_PAUSE)


main()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The secure channel between a remote user and VeilMon, outside in.

1. Rings (`rings`): two byte streams in pages that VeilMon shares with the host (`RingWriter`, `RingReader`).
2. Frames (`frames`) on them: many connections on one pair of streams, each direction of each with a window, so that
   one that is slow holds up no other. (Between the user and the host a connection is a TCP connection.)
3. TLS 1.3 on each connection, ending in VeilMon: `veil.monitor.channel.tls` and `veil.remote.channel` have its two
   ends. All that follows is for these two alone.
4. Messages (`messages`) in TLS: requests to VeilMon or to a service, and their responses.

Anything here may have been written by somebody hostile: everything is checked, FormatError otherwise.
"""

from __future__ import annotations

from veil.formats.channel.frames import (
    MAX_FRAME_DATA,
    STRANGER_WINDOW,
    WINDOW,
    Frame,
    FrameKind,
    FrameReader,
    pack_frame,
)
from veil.formats.channel.messages import (
    MAX_MESSAGE,
    MAX_STRANGER_MESSAGE,
    MessageReader,
    Request,
    Response,
    pack_request,
    pack_response,
)
from veil.formats.channel.rings import (
    AREA_HEADER,
    DOORBELL_DATA,
    DOORBELL_MORE,
    DOORBELL_PORT,
    DOORBELL_SPOILT,
    ChannelArea,
    Generations,
    RingMemory,
    RingReader,
    RingWriter,
    look_at_counters,
)

__all__ = [
    "AREA_HEADER",
    "DOORBELL_DATA",
    "DOORBELL_MORE",
    "DOORBELL_PORT",
    "DOORBELL_SPOILT",
    "MAX_FRAME_DATA",
    "MAX_MESSAGE",
    "MAX_STRANGER_MESSAGE",
    "STRANGER_WINDOW",
    "WINDOW",
    "ChannelArea",
    "Frame",
    "FrameKind",
    "FrameReader",
    "Generations",
    "MessageReader",
    "Request",
    "Response",
    "RingMemory",
    "RingReader",
    "RingWriter",
    "look_at_counters",
    "pack_frame",
    "pack_request",
    "pack_response",
]

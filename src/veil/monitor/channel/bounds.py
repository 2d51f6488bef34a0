# SPDX-License-Identifier: GPL-2.0-or-later
"""What users of the channel may have of VeilMon: connections, time in a handshake, bytes, steps at each entry.

Users whom the launch names with a key are known; all others, and all in their handshakes, are strangers. Anyone can be
a stranger, so each bound holds for all of them together, or is small enough for each.
"""

from __future__ import annotations

__all__ = [
    "MAX_BACKLOG",
    "MAX_CREDIT_NS",
    "MAX_ENTRY_NS",
    "MAX_EXPECTED",
    "MAX_FRAMES",
    "MAX_HANDSHAKES",
    "MAX_HANDSHAKE_BYTES",
    "MAX_HANDSHAKE_NS",
    "MAX_KNOWN",
    "MAX_PIECE",
    "MAX_STEPS",
    "MAX_STRANGERS",
    "MAX_STRANGER_BACKLOG",
    "MAX_STRANGER_PIECE",
    "MAX_STRANGER_STEPS",
    "MAX_UNSENT",
    "MIN_HANDSHAKE_STEP",
]

#: Connections of users whom the launch does not name, or whose handshakes are not done.
MAX_STRANGERS = 256
#: Connections of users whom it names.
MAX_KNOWN = 64
#: Handshakes of those whom the host expects to be such users.
MAX_EXPECTED = 64
#: A handshake takes no longer.
MAX_HANDSHAKE_NS = 5_000_000_000
#: Frames that wait for room in the ring, in bytes: with more, no further frame is taken from it.
MAX_UNSENT = 64 << 10
#: Input of a handshake: room for a ClientHello with post-quantum key shares, and a certificate with RSA of 8192 bits.
MAX_HANDSHAKE_BYTES = 8 << 10
#: A step in a handshake counts as at least this many bytes, so that there are few.
MIN_HANDSHAKE_STEP = 512
#: Ciphertext that is decrypted in one step. Records may be tiny: a stranger's piece has less than a hundred of them.
MAX_PIECE = 16 << 10
MAX_STRANGER_PIECE = 2 << 10
#: While more than this many bytes of answers are queued, no further request is read.
MAX_BACKLOG = 256 << 10
MAX_STRANGER_BACKLOG = 16 << 10
#: At most, each time that VeilMon is entered: frames of the host that are taken,
MAX_FRAMES = 128
#: steps on all connections (a request answered, or a piece of input decrypted),
MAX_STEPS = 64
#: of them steps in handshakes, which take the longest (and as many in those that the host expects),
MAX_HANDSHAKES = 8
#: of them steps for strangers,
MAX_STRANGER_STEPS = 16
#: and time: no step begins after this.
MAX_ENTRY_NS = 2_000_000
#: Of handshakes and strangers' requests, those that had less time come first; more than this they do not make up for.
MAX_CREDIT_NS = 20_000_000

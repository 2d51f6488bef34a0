# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the kernel has not called, and whether the machine was run meanwhile.

A kernel that says nothing may be silent, or not run: a computer that sleeps, a host with other work. The services know
of their own runs: an honest host runs them each second even if nobody asks anything. What they were run in, the kernel
could have called in.
"""

from __future__ import annotations

from veil.formats.log import SILENCE_TOLD_NS, Silence

__all__ = ["Ear"]

_NS = 1_000_000_000
#: Between two runs of the services with more time between them the machine stood still.
_AWAKE_NS = 3 * _NS
#: The first word in the middle of a silence; the next ones come when that time has doubled.
_FIRST_NS = 5 * _NS


class Ear:
    """`heard` for each call of the kernel, `ran` for each other run of the services; both say what is worth telling.

    Nothing is told before the kernel's first sign of life: a driver may be configured to give none.
    """

    def __init__(self, now: int, *, beats: bool = False) -> None:
        """`beats`: there were signs of life, before a snapshot."""
        self.beats = beats
        self._last = self._seen = now
        self._awake = 0
        self._next = _FIRST_NS

    def ran(self, now: int) -> Silence | None:
        """The services run, and the kernel has not called."""
        gap, self._seen = now - self._seen, now
        if 0 < gap <= _AWAKE_NS:
            self._awake += gap
        if not self.beats or self._awake < self._next:
            return None
        self._next = 2 * self._awake
        return Silence(now - self._last, self._awake)

    def heard(self, now: int, *, beat: bool) -> Silence | None:
        """The kernel calls; `beat`: with a sign of life."""
        self.ran(now)
        silence = Silence(now - self._last, self._awake)
        told = self.beats and silence.quiet_ns >= SILENCE_TOLD_NS
        self._last, self._awake, self._next = now, 0, _FIRST_NS
        self.beats |= beat
        return silence if told else None

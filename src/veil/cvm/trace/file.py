# SPDX-License-Identifier: GPL-2.0-or-later
"""A file of Perfetto's: one message after the other, so that it is a whole trace wherever it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto

from veil.errors import VeilError, describe
from veil.private_files import open_own

__all__ = ["TraceFile", "now_ns"]

#: Messages, and nanoseconds, that are held back at most until the next one.
_MANY = 500
_LONG_NS = 200_000_000
#: The only writer of the file.
_SEQUENCE = 1


def now_ns() -> int:
    """The clock of timestamps: Perfetto's own when none is named."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class TraceFile:
    """Writes whole messages only. Names are written once and then called by number."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """`say` is told, once, if it cannot be written any more. Raises VeilError if it cannot be made."""
        self._path = path
        self._say = say
        try:
            self._descriptor = open_own(path, os.O_WRONLY | os.O_CREAT)
            os.truncate(self._descriptor, 0)
        except OSError as error:
            raise VeilError(f"cannot write the trace {path}: {describe(error)}") from error
        self._length = 0
        self._waiting = perfetto.Trace()
        self._count = 0
        self._due_ns = 0
        self._names: dict[tuple[str, str], int] = {}
        first = self._packet(now_ns())
        first.sequence_flags = perfetto.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        first.trace_packet_defaults.timestamp_clock_id = perfetto.BUILTIN_CLOCK_BOOTTIME

    def track(self, uuid: int, name: str, *, parent: int = 0, rank: int = 0) -> None:
        """Declare a track; `rank` orders those of one parent."""
        descriptor = self._packet(now_ns()).track_descriptor
        descriptor.uuid = uuid
        descriptor.name = name
        if parent:
            descriptor.parent_uuid = parent
        descriptor.sibling_order_rank = rank
        descriptor.child_ordering = perfetto.TrackDescriptor.EXPLICIT

    def begin(self, when: int, track: int, category: str, name: str, **values: int | str) -> None:
        """A slice begins."""
        self._event(perfetto.TrackEvent.TYPE_SLICE_BEGIN, when, track, category, name, values)

    def end(self, when: int, track: int, **values: int | str) -> None:
        """The innermost slice of a track ends."""
        self._event(perfetto.TrackEvent.TYPE_SLICE_END, when, track, "", "", values)

    def instant(self, when: int, track: int, category: str, name: str, **values: int | str) -> None:
        """Something happened."""
        self._event(perfetto.TrackEvent.TYPE_INSTANT, when, track, category, name, values)

    def close(self) -> None:
        """Write what is held back, and give the file back."""
        self._write()
        self._give_up()

    def _packet(self, when: int) -> Any:
        packet = self._waiting.packet.add()
        packet.timestamp = when
        packet.trusted_packet_sequence_id = _SEQUENCE
        self._count += 1
        return packet

    def _event(self, kind: int, when: int, track: int, category: str, name: str, values: dict[str, int | str]) -> None:
        if self._descriptor < 0:
            return
        if self._count >= _MANY or when >= self._due_ns:
            self._write()
            self._due_ns = when + _LONG_NS
        packet = self._packet(when)
        packet.sequence_flags = perfetto.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        event = packet.track_event
        event.type = kind
        event.track_uuid = track
        if name:
            event.category_iids.append(self._number(packet, "event_categories", category))
            event.name_iid = self._number(packet, "event_names", name)
        for key, value in values.items():
            annotation = event.debug_annotations.add()
            annotation.name_iid = self._number(packet, "debug_annotation_names", key)
            if isinstance(value, str):
                annotation.string_value = value
            else:
                annotation.uint_value = value

    def _number(self, packet: Any, kind: str, name: str) -> int:
        number = self._names.get((kind, name))
        if number is None:
            number = self._names[kind, name] = len(self._names) + 1
            entry = getattr(packet.interned_data, kind).add()
            entry.iid, entry.name = number, name
        return number

    def _write(self) -> None:
        if self._descriptor < 0:
            return
        data = memoryview(self._waiting.SerializeToString())
        self._waiting.Clear()
        self._count = 0
        end = self._length + len(data)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            # A part of a message would make the rest unreadable.
            os.truncate(self._descriptor, self._length)
            self._give_up()
            self._say(f"the trace {self._path} ends here: {describe(error)}")
        self._length = end

    def _give_up(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a trace as Perfetto's viewer does, by Perfetto's own schema."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto

__all__ = ["Entry", "read_trace"]

_INSTANT = "instant"


@dataclass(frozen=True)
class Entry:
    """A slice or an instant. `track`: its name and those of its parents, outermost first."""

    track: tuple[str, ...]
    category: str
    name: str
    begin: int
    end: int | None
    """None: it had not ended when the file did"""
    values: dict[str, int]


def read_trace(path: Path) -> list[Entry]:
    """What is in a file, in the order of its ends. Fails unless it is whole and sound: names known before they are
    used, slices that nest, time that does not run back on a track."""
    trace = perfetto.Trace()
    trace.ParseFromString(path.read_bytes())
    tracks: dict[int, tuple[str, ...]] = {}
    names: dict[str, dict[int, str]] = {"event_names": {}, "event_categories": {}, "debug_annotation_names": {}}
    open_slices: dict[int, list[Entry]] = {}
    last: dict[int, int] = {}
    done: list[Entry] = []
    for index, packet in enumerate(trace.packet):
        assert packet.trusted_packet_sequence_id
        assert bool(packet.sequence_flags & perfetto.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED) == (index == 0)
        for kind, known in names.items():
            for entry in getattr(packet.interned_data, kind):
                assert known.setdefault(entry.iid, entry.name) == entry.name
        if packet.HasField("track_descriptor"):
            descriptor = packet.track_descriptor
            parent = tracks[descriptor.parent_uuid] if descriptor.HasField("parent_uuid") else ()
            assert descriptor.uuid not in tracks
            tracks[descriptor.uuid] = (*parent, descriptor.name)
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        track, now = event.track_uuid, packet.timestamp
        assert now >= last.get(track, 0)
        last[track] = now
        values = {names["debug_annotation_names"][item.name_iid]: item.uint_value for item in event.debug_annotations}
        if event.type == perfetto.TrackEvent.TYPE_SLICE_END:
            begun = open_slices[track].pop()
            done.append(Entry(begun.track, begun.category, begun.name, begun.begin, now, begun.values | values))
            continue
        category = names["event_categories"][event.category_iids[0]]
        name = names["event_names"][event.name_iid]
        if event.type == perfetto.TrackEvent.TYPE_SLICE_BEGIN:
            open_slices.setdefault(track, []).append(Entry(tracks[track], category, name, now, None, values))
        else:
            assert event.type == perfetto.TrackEvent.TYPE_INSTANT
            done.append(Entry(tracks[track], category, name, now, now, values))
    return done + [begun for stack in open_slices.values() for begun in stack]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Verified entries to an OpenTelemetry collector (OTLP over HTTP): a log record for each audit record.

This module needs the extra `otlp`. What OpenTelemetry's own environment variables say (headers, certificates,
compression, timeout) holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import requests
from google.protobuf.message import DecodeError
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from veil.errors import describe
from veil.formats.audit_types import type_name
from veil.formats.errors import FormatError
from veil.formats.kci import KCI_NUMBER
from veil.formats.kci_status import CodeWord
from veil.formats.log import EntryKind, Heartbeat, LogEntry, ServiceWord, Silence, parse_records
from veil.formats.printable import printable
from veil.remote.errors import RemoteError
from veil.remote.log.export import Position, read_position
from veil.remote.log.folder import LogFolder, locked, replace_file

__all__ = ["OtlpSink"]

_STAMP = re.compile(rb"audit\((\d{1,12})\.(\d{3}):(\d{1,10})\)")
_LOGS_PATH = "/v1/logs"
#: OTLP's times have 64 bits
_LAST_NS = (1 << 64) - 1


class _Words(logging.Handler):
    """What the library says on its loggers, for our one line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = printable(record.getMessage())


class _Session(requests.Session):
    """Keeps what the library does not pass on: why nobody could be reached, and what the collector threw away."""

    words = ""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        try:
            response = super().send(request, **options)
        except requests.RequestException as error:
            self.words = printable(str(error))
            raise
        self.words = ""
        if response.ok:
            self._look(response.content)
        return response

    def _look(self, answer: bytes) -> None:
        try:
            found = ExportLogsServiceResponse.FromString(answer).partial_success
        except DecodeError:
            return
        # The library takes status 200 for success all the same.
        if found.rejected_log_records:
            self.words = f"it rejected {found.rejected_log_records} records: '{printable(found.error_message)}'"


class OtlpSink:
    """A collector. Where to go on is remembered beside the log, for each address."""

    def __init__(self, folder: LogFolder, url: str) -> None:
        """`url`: http or https, host and port; the path is /v1/logs unless it says another. Raises RemoteError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RemoteError(f"{url!r} is not a collector's address: write http://HOST:PORT")
        self._url = url if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}{_LOGS_PATH}"
        self._place = folder.path / f"otlp-{hashlib.sha256(self._url.encode()).hexdigest()[:16]}.json"
        self._session = _Session()
        self._exporter = OTLPLogExporter(endpoint=self._url, session=self._session)
        self._scope = InstrumentationScope("veil.log", version("veil"))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """For those who export. Raises RemoteError."""
        with locked(self._place.with_suffix(".lock"), f"somebody else is exporting to {self._url}"):
            yield

    def close(self) -> None:
        """No more."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def position(self) -> Position:
        """Where to go on. Raises RemoteError."""
        return read_position(self._place)

    def put(self, log: str, entries: Sequence[LogEntry], offset: int) -> None:
        """See `Sink`; the library tries again for some seconds before it gives up."""
        resource = Resource({"service.name": "veil-log", "veil.log": log})
        observed = time.time_ns()
        batch = [
            ReadableLogRecord(record, resource, self._scope)
            for entry in entries
            for record in _records(log, entry, observed)
        ]
        self._session.words = ""
        said = _Words()
        logger = logging.getLogger("opentelemetry")
        propagated, logger.propagate = logger.propagate, False
        logger.addHandler(said)
        try:
            result = self._exporter.export(batch)
        finally:
            logger.removeHandler(said)
            logger.propagate = propagated
        if result is not LogRecordExportResult.SUCCESS or self._session.words:
            numbers = f"{entries[0].sequence} to {entries[-1].sequence}"
            why = self._session.words or said.last or "no reason given"
            raise RemoteError(f"{self._url} did not take entries {numbers}: {why}")
        try:
            done = Position(log, entries[-1].sequence + 1, offset)
            replace_file(self._place, json.dumps(asdict(done)).encode())
        except OSError as error:
            raise RemoteError(f"cannot write {self._place}: {describe(error)}") from error


def _records(log: str, entry: LogEntry, observed: int) -> Iterator[LogRecord]:
    attributes: dict[str, str | int] = {
        "veil.log": log,
        "veil.log.sequence": entry.sequence,
        "veil.log.time_ns": entry.time_ns,
        "veil.log.kind": entry.kind.name,
    }
    records = []
    severity, words = SeverityNumber.INFO, entry.kind.name.lower()
    try:
        if entry.kind in (EntryKind.RECORDS, EntryKind.INTENT):
            records = parse_records(entry.body)
        elif entry.kind == EntryKind.HEARTBEAT and entry.body:
            audit, rules, ticks = Heartbeat.parse(entry.body)
            words = f"heartbeat: audit {audit.name.lower()}, rules {rules}, {ticks} timer interrupts"
        elif entry.kind == EntryKind.SILENCE:
            quiet, awake = Silence.parse(entry.body)
            words = f"silence of {quiet / 1e9:.1f} s, the services ran for {awake / 1e9:.1f} s of it"
        elif entry.kind == EntryKind.WORD:
            severity, words = _word(ServiceWord.parse(entry.body))
    except FormatError:
        severity, words = SeverityNumber.WARN, f"unreadable: {entry.body.hex()}"
    if entry.kind == EntryKind.DROPPED:
        severity, words = SeverityNumber.WARN, f"dropped {entry.dropped}"
    elif entry.kind == EntryKind.RULES:
        words = f"rules of {entry.body[:32].hex()}: {entry.body[32:].decode(errors='backslashreplace')}"
    if not records:
        yield LogRecord(
            observed_timestamp=observed,
            severity_number=severity,
            body=words,
            attributes={**attributes, "veil.log.record": 0},
        )
    for number, record in enumerate(records):
        found = _STAMP.match(record.text)
        more: dict[str, str | int] = {"veil.log.record": number, "audit.type": type_name(record.type)}
        if found is not None:
            more["audit.serial"] = int(found[3])
        yield LogRecord(
            timestamp=_time_ns(found) if found is not None else None,
            observed_timestamp=observed,
            severity_number=SeverityNumber.INFO,
            body=record.text.decode(errors="backslashreplace"),
            attributes={**attributes, **more},
        )


def _time_ns(stamp: re.Match[bytes]) -> int | None:
    """The kernel's word; none if OTLP has no room for it, which is for times after the year 2554."""
    claimed = int(stamp[1] + stamp[2]) * 1_000_000
    return claimed if claimed <= _LAST_NS else None


def _word(word: ServiceWord) -> tuple[SeverityNumber, str]:
    """Another service's."""
    if word.service != KCI_NUMBER:
        return SeverityNumber.INFO, f"service {word.service}: {word.body.hex()}"
    said = CodeWord.parse(word.body)
    return SeverityNumber.WARN if said.trouble else SeverityNumber.INFO, f"code integrity: {said.words}"

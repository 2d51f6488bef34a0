# SPDX-License-Identifier: GPL-2.0-or-later
"""Verified entries in other systems: a directory of JSON lines, a collector that speaks OTLP over HTTP."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from tests.remote.log.killing import Killed, killing
from tests.services.log.desk import Desk
from veil.formats.log import AuditRecord, EntryKind, KernelCall, pack_records
from veil.remote.errors import RemoteError
from veil.remote.log.export import DirectorySink, entry_value, export, log_name
from veil.remote.log.folder import LogFolder
from veil.remote.log.otlp import OtlpSink


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def folder(tmp_path: Path) -> LogFolder:
    return LogFolder(tmp_path / "evidence")


def fetch(desk: Desk, folder: LogFolder) -> None:
    reader = desk.reader(folder.known())
    with folder.lock():
        folder.add(list(reader.fetch()), reader.state)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for name in sorted(path.glob("*.jsonl")) for line in name.read_text().splitlines()]


def numbers(path: Path) -> list[int]:
    return [line["sequence"] for line in lines(path)]


# A directory


def test_directory(desk: Desk, folder: LogFolder, tmp_path: Path) -> None:
    desk.log(7)
    desk.kernel(KernelCall.HEARTBEAT, b"")
    desk.kernel(KernelCall.RECORDS, b"nonsense")
    fetch(desk, folder)
    sink = DirectorySink(tmp_path / "out")
    with sink.lock():
        assert export(folder, sink) == 4
        assert export(folder, sink) == 0
        desk.log(8)
        fetch(desk, folder)
        assert export(folder, sink) == 1
    found = lines(tmp_path / "out")
    assert numbers(tmp_path / "out") == [0, 1, 2, 3, 4]
    state = folder.known()
    assert state is not None
    assert {line["log"] for line in found} == {log_name(state.key)}
    assert [line["kind"] for line in found] == ["STARTED", "RECORDS", "HEARTBEAT", "RECORDS", "RECORDS"]
    assert found[1]["records"][1]["type"] == "CWD"
    assert found[1]["records"][1]["text"].endswith(':7): cwd="/root"')
    assert found[3]["unreadable"] == b"nonsense".hex()


def test_files_are_bounded(desk: Desk, folder: LogFolder, tmp_path: Path) -> None:
    sink = DirectorySink(tmp_path / "out", file_bytes=1000)
    with sink.lock():
        for number in range(30):
            desk.log(number)
            fetch(desk, folder)
            export(folder, sink)
    names = sorted((tmp_path / "out").glob("*.jsonl"))
    assert len(names) > 5
    assert all(name.stat().st_size < 2000 for name in names)
    assert numbers(tmp_path / "out") == list(range(31))
    assert names[0].name == "veil-log-00000000000000000000.jsonl"


def test_another_log_is_not_mixed_in(desk: Desk, folder: LogFolder, tmp_path: Path) -> None:
    fetch(desk, folder)
    sink = DirectorySink(tmp_path / "out")
    with sink.lock():
        export(folder, sink)
        other = LogFolder(tmp_path / "other")
        fetch(Desk(), other)
        with pytest.raises(RemoteError, match="another log"):
            export(other, sink)


def test_two_exporters(tmp_path: Path) -> None:
    with (
        DirectorySink(tmp_path / "out").lock(),
        pytest.raises(RemoteError, match="somebody else is exporting"),
        DirectorySink(tmp_path / "out").lock(),
    ):
        pass


def test_killed_between_any_two_steps(
    desk: Desk, folder: LogFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        desk.log(number)
    fetch(desk, folder)
    calls, killed = 0, True
    while killed:
        calls += 1
        sink = DirectorySink(tmp_path / str(calls), file_bytes=1500)
        with sink.lock():
            with monkeypatch.context() as patch:
                killing(patch, calls)
                patch.setattr("veil.remote.log.export._BATCH_ENTRIES", 4)
                try:
                    export(folder, sink)
                    killed = False
                except Killed:
                    pass
            export(folder, sink)
        assert numbers(tmp_path / str(calls)) == list(range(21))
    assert calls > 20


def test_a_position_that_cannot_be(folder: LogFolder, tmp_path: Path) -> None:
    text_as_number = '{"log": "", "next": "1", "offset": 0, "file": "", "size": 0}'
    number = '{"log": "", "next": 0, "offset": %s, "file": "", "size": 0}'
    name = '{"log": "", "next": 0, "offset": 0, "file": "%s", "size": 0}'
    out_of_range = [number % value for value in ("-1", "9" * 30, "9" * 5000, "1e999", "true")]
    elsewhere = [name % value for value in ("/etc/passwd", "../x", "veil-log-1.jsonl/../../x")]
    for text in ("[]", "{", '{"log": 1}', text_as_number, "[" * 100_000, *out_of_range, *elsewhere):
        (tmp_path / "export.json").write_text(text)
        with pytest.raises(RemoteError, match="unusable"):
            DirectorySink(tmp_path).position()


def test_a_position_behind_the_end(desk: Desk, folder: LogFolder, tmp_path: Path) -> None:
    desk.log(1)
    fetch(desk, folder)
    value = {"log": "", "next": 0, "offset": (1 << 63) - 1, "file": "", "size": 0}
    (tmp_path / "export.json").write_text(json.dumps(value))
    export(folder, DirectorySink(tmp_path))


def test_no_log(folder: LogFolder, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="no log"):
        export(folder, DirectorySink(tmp_path))


# A collector


class Collector(http.server.ThreadingHTTPServer):
    """Keeps what it gets; answers with `status`, and closes without an answer after taking it if `mute`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[ExportLogsServiceRequest] = []
        self.paths: list[str] = []
        self.status = 200
        self.rejects = 0
        self.fail_after = -1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def records(self) -> list[dict[str, Any]]:
        found = []
        for request in self.requests:
            for resource in request.resource_logs:
                for scope in resource.scope_logs:
                    for record in scope.log_records:
                        values = {item.key: item.value for item in record.attributes}
                        plain = {key: item.string_value or item.int_value for key, item in values.items()}
                        found.append({**plain, "body": record.body.string_value, "time": record.time_unix_nano})
        return found


class Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        request = ExportLogsServiceRequest()
        request.ParseFromString(data)
        self.server.paths.append(self.path)
        status = self.server.status
        if len(self.server.requests) == self.server.fail_after:
            status = 400
        if status == 200:
            self.server.requests.append(request)
        answer = ExportLogsServiceResponse()
        answer.partial_success.rejected_log_records = self.server.rejects
        answer.partial_success.error_message = "too old"
        data = answer.SerializeToString()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_otlp(desk: Desk, folder: LogFolder, collector: Collector) -> None:
    desk.log(7)
    desk.kernel(KernelCall.RECORDS, b"nonsense")
    desk.kernel(KernelCall.HEARTBEAT, b"")
    fetch(desk, folder)
    sink = OtlpSink(folder, collector.url)
    with sink.lock():
        assert export(folder, sink) == 4
        assert export(folder, sink) == 0
    sink.close()
    assert collector.paths == ["/v1/logs"]
    found = collector.records()
    assert [(item["veil.log.sequence"], item["veil.log.record"]) for item in found] == [
        (0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0),
    ]  # fmt: skip
    state = folder.known()
    assert state is not None
    assert {item["veil.log"] for item in found} == {log_name(state.key)}
    assert [item.get("audit.type") for item in found] == [None, "SYSCALL", "CWD", "EOE", None, None]
    assert found[1]["audit.serial"] == 7
    assert found[1]["body"].startswith("audit(17000000")
    assert found[1]["time"] == int(found[1]["body"][6:16]) * 10**9 + int(found[1]["body"][17:20]) * 10**6
    assert found[4]["body"] == f"unreadable: {b'nonsense'.hex()}"
    assert found[0]["body"] == "started"
    assert (found[5]["veil.log.kind"], found[5]["time"]) == ("HEARTBEAT", 0)


def test_otlp_has_no_room_for_a_time(desk: Desk, folder: LogFolder, collector: Collector) -> None:
    """A record's time is the kernel's word: one that OTLP cannot say is left out, and stops nothing."""
    for stamp in (b"audit(999999999999.999:4294967295): x", b"audit(18446744073.709:1): x"):
        desk.kernel(KernelCall.RECORDS, pack_records([AuditRecord(1300, stamp)]))
    fetch(desk, folder)
    assert export(folder, OtlpSink(folder, collector.url)) == 3
    assert [record["time"] for record in collector.records()[1:]] == [0, 18_446_744_073_709_000_000]


def test_otlp_goes_on_where_it_failed(
    desk: Desk, folder: LogFolder, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("veil.remote.log.export._BATCH_ENTRIES", 3)
    for number in range(10):
        desk.log(number)
    fetch(desk, folder)
    collector.fail_after = 2
    sink = OtlpSink(folder, collector.url)
    with sink.lock():
        with pytest.raises(RemoteError, match=r"did not take entries 6 to 8: .*400"):
            export(folder, sink)
        collector.fail_after = -1
        assert export(folder, sink) == 5
    sink.close()
    assert sorted({item["veil.log.sequence"] for item in collector.records()}) == list(range(11))


def test_otlp_sends_again_what_may_not_have_come(
    desk: Desk, folder: LogFolder, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the collector took it, before that was remembered: it comes twice, and can be recognised."""
    desk.log(7)
    fetch(desk, folder)
    sink = OtlpSink(folder, collector.url)
    with monkeypatch.context() as patch:
        killing(patch, 1)
        with pytest.raises(Killed):
            export(folder, sink)
    export(folder, sink)
    sink.close()
    names = [(item["veil.log"], item["veil.log.sequence"], item["veil.log.record"]) for item in collector.records()]
    assert len(names) == 2 * len(set(names)) == 8


def test_otlp_records_that_a_collector_throws_away(desk: Desk, folder: LogFolder, collector: Collector) -> None:
    """It answers 200 all the same: nothing is taken for exported."""
    desk.log(7)
    fetch(desk, folder)
    sink = OtlpSink(folder, collector.url)
    collector.rejects = 2
    with pytest.raises(RemoteError, match="did not take entries 0 to 1: it rejected 2 records: 'too old'"):
        export(folder, sink)
    collector.rejects = 0
    assert export(folder, sink) == 2
    sink.close()


def test_otlp_each_collector_gets_all(desk: Desk, folder: LogFolder, collector: Collector) -> None:
    fetch(desk, folder)
    for url in (collector.url, f"{collector.url}/other/path"):
        sink = OtlpSink(folder, url)
        assert export(folder, sink) == 1
        sink.close()
    assert collector.paths == ["/v1/logs", "/other/path"]


def test_nobody_listens(desk: Desk, folder: LogFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    fetch(desk, folder)
    sink = OtlpSink(folder, "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"did not take entries 0 to 0: .*refused"):
        export(folder, sink)
    sink.close()


@pytest.mark.parametrize("url", ["localhost:4318", "ftp://x", "http://", ""])
def test_no_address(folder: LogFolder, url: str) -> None:
    with pytest.raises(RemoteError, match="not a collector's address"):
        OtlpSink(folder, url)


def test_values_say_what_was_dropped() -> None:
    desk = Desk(full="drop")
    number = 0
    while not desk.service.writer.dropped:
        desk.log(number := number + 1)
    reader = desk.reader()
    list(reader.fetch())
    reader.acknowledge()
    desk.log(number + 1)
    values = [entry_value(entry) for entry in reader.fetch() if entry.kind == EntryKind.DROPPED]
    assert [value["dropped"] for value in values] == [1]

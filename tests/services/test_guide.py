# SPDX-License-Identifier: GPL-2.0-or-later
"""The service that docs/writing-a-service.md shows, as it stands there."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.monitor.faults import CODE_AT, IDT, REFUSED, fault, gate, stopped, tables
from tests.monitor.harness import SERVICE_MEMORY, SMALL, Bench
from tests.monitor.wire import Wire
from veil.formats.errors import FormatError
from veil.formats.request_block import BlockRequest, write_request
from veil.formats.status import Status
from veil.image.services_image import ServicesImage
from veil.monitor import Option, VeilMon
from veil.remote.channel.client import ChannelClient, RequestFailed
from veil.remote.channel.identity import UserKey
from veil.snp import RmpViolation
from veil.snp.hosted import load_program, pack_sources

OWNER, READER = UserKey.generate(), UserKey.generate()
_GUIDE = Path(__file__).parents[2] / "docs" / "writing-a-service.md"


def _sources() -> list[str]:
    return re.findall(r"```python\n(.*?)```", _GUIDE.read_text(), re.DOTALL)


@pytest.fixture
def notary() -> Any:
    module = ModuleType("notary")
    exec(compile(_sources()[0], str(_GUIDE), "exec"), module.__dict__)
    return module


@pytest.fixture
def bench(notary: Any) -> Bench:
    return Bench(services=notary.Services, owners=[OWNER.fingerprint], readers=[READER.fingerprint]).boot()


def _add(notary: Any, bench: Bench, message: bytes) -> int:
    status, body = bench.ask(notary.Notary.number, notary.ADD, message)
    assert status == Status.OK
    return int.from_bytes(body, "little")


def _state(notary: Any, bench: Bench) -> tuple[int, bytes]:
    with ChannelClient(Wire(bench), identity=READER) as user:
        count, chain = notary.STATE.unpack(user.request(notary.Notary.guid, notary.READ))
        return count, chain


def _chain(*messages: bytes) -> bytes:
    value = bytes(32)
    for message in messages:
        value = hashlib.sha256(value + hashlib.sha256(message).digest()).digest()
    return value


def test_the_chain_grows(notary: Any, bench: Bench) -> None:
    assert [_add(notary, bench, b"first"), _add(notary, bench, b"second")] == [1, 2]
    assert _state(notary, bench) == (2, _chain(b"first", b"second"))


def test_who_may_ask_what(notary: Any, bench: Bench) -> None:
    guid = notary.Notary.guid
    _add(notary, bench, b"first")
    with ChannelClient(Wire(bench)) as stranger, ChannelClient(Wire(bench), identity=READER) as reader:
        for user, call in ((stranger, notary.READ), (stranger, notary.BEGIN_ANEW), (reader, notary.BEGIN_ANEW)):
            with pytest.raises(RequestFailed) as caught:
                user.request(guid, call)
            assert caught.value.status == Status.NOT_ALLOWED
        with pytest.raises(RequestFailed) as caught:
            reader.request(guid, 2)
        assert caught.value.status == Status.UNKNOWN_CALL
    assert _state(notary, bench)[0] == 1
    with ChannelClient(Wire(bench), identity=OWNER) as owner:
        owner.request(guid, notary.BEGIN_ANEW)
    assert _state(notary, bench) == (0, bytes(32))


def test_the_other_examples(notary: Any) -> None:
    names = {**vars(notary), "Bench": Bench, "ServicesImage": ServicesImage}
    for source in _sources()[1:]:
        exec(compile(source, str(_GUIDE), "exec", dont_inherit=True), names)
    assert names["services"].entry == "notary:Services"


@pytest.mark.parametrize(("call", "length"), [(0, 0), (0, 4097), (1, 5)])
def test_refused(notary: Any, bench: Bench, call: int, length: int) -> None:
    status = Status.UNKNOWN_CALL if call else Status.BAD_REQUEST
    assert bench.ask(notary.Notary.number, call, bytes(length)) == (status, b"")
    assert _state(notary, bench)[0] == 0


def test_the_kernel_cannot_rewrite_the_chain(notary: Any, bench: Bench) -> None:
    _add(notary, bench, b"evidence")
    with pytest.raises(RmpViolation):
        bench.kernel.write(SERVICE_MEMORY, bytes(40))
    assert _state(notary, bench) == (1, _chain(b"evidence"))

    open_to_all = Bench(services=notary.Services, options=Option.UNPROTECTED, readers=[READER.fingerprint]).boot()
    _add(notary, open_to_all, b"evidence")
    open_to_all.kernel.write(SERVICE_MEMORY, bytes(40))
    assert _state(notary, open_to_all) == (0, bytes(32))


def test_a_snapshot_keeps_it(notary: Any, bench: Bench) -> None:
    _add(notary, bench, b"first")
    monitor, services = VeilMon(), notary.Services()
    monitor.restore(bench.monitor.save())
    assert bench.services is not None
    services.restore(bench.services.save())
    bench.resume(monitor, services)
    assert _add(notary, bench, b"second") == 2
    assert _state(notary, bench) == (2, _chain(b"first", b"second"))


def test_in_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry and packages as the guide gives them; what runs comes out of the archive."""
    package = tmp_path / "notary"
    package.mkdir()
    (package / "__init__.py").write_text(_sources()[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {"ServicesImage": ServicesImage}
    exec(next(text for text in _sources() if text.startswith("services = ")), names)
    services = names["services"]
    try:
        program = load_program(pack_sources(services.packages), services.entry)
        assert [service.name for service in program.services] == ["notary"]  # type: ignore[attr-defined]
    finally:
        sys.modules.pop("notary", None)


def test_the_keeper(notary: Any) -> None:
    names: dict[str, Any] = dict(vars(notary))
    (source,) = (text for text in _sources() if "class Keeper" in text)
    exec(compile(source, str(_GUIDE), "exec", dont_inherit=True), names)
    bench = Bench(services=names["Keepers"]).boot()
    tables(bench)
    block = bench.register()
    keep = BlockRequest(101, 0, b"", pages=(SMALL,))
    write_request(bench.kernel, block, 4096, keep)
    bench.enter(0, vmpl=1)
    with pytest.raises(RmpViolation):
        bench.kernel.write(SMALL, b"evil")
    vmsa = fault(bench)
    assert (vmsa.rip, bench.kernel.read_u64(SMALL)) == (CODE_AT + 3, vmsa.rax)
    bench.kernel.write(IDT + 13 * 16, gate(0x5000))
    assert fault(bench, code="8907").rip == 0x5000
    assert stopped(fault(bench, info=REFUSED | 1 << 4))
    assert bench.pvalidate(SMALL + 4096, SMALL + 8192)[0] == 0
    assert bench.ask(101, 1) == (Status.OK, (2).to_bytes(8, "little") + (3).to_bytes(8, "little"))


def test_settings() -> None:
    names: dict[str, Any] = {"__name__": "notary_settings"}
    (source,) = (text for text in _sources() if "class NotarySettings" in text)
    exec(compile(source, str(_GUIDE), "exec", dont_inherit=True), names)
    settings = names["NotarySettings"]
    assert settings.parse("longest=4K").measured() == {"longest": 4096}
    assert settings.of({}) == settings()
    with pytest.raises(FormatError, match="longest message"):
        settings.parse("longest=1M")


def test_the_lists_that_name_a_service() -> None:
    """The log is in each list that the guide names, in the way that the guide says, and has each folder."""
    root = _GUIDE.parents[1]
    guide = _GUIDE.read_text()
    for file, line in (
        (
            "src/veil/formats/service_catalogue.py",
            '"log": CataloguedService("veil.services.log:LogService", LogSettings, LOG_NUMBER, ',
        ),
        ("src/veil/guest/driver/src/main.c", '{ "log", veil_log_begin, veil_log_end, veil_log_state },'),
        ("src/veil/cli/main.py", "logs"),
    ):
        assert f"`{file}`" in guide
        assert line in (root / file).read_text()
    for folder in ("services", "guest/driver/src", "remote", "cli"):
        assert f"`src/veil/{folder}/NAME`" in guide
        assert (root / "src/veil" / folder / "log").is_dir()

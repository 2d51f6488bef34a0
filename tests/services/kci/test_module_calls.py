# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hostile driver may tell of modules: in any order, of any size, twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.kci import FilePart, MemoryType, ModuleMemory, ModulePrepared
from veil.formats.kci_settings import ON, KciSettings
from veil.formats.kci_status import CodeEvent, CodeWord
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.kci.errors import KciError
from veil.services.kci.ledger import Ledger
from veil.services.kci.module_calls import ModuleCalls
from veil.services.kci.modules import Keyring, ModulePolicy, ModuleRefused

LARGEST = 1 << 20
FILE = bytes(range(256)) * 40
NOTHING_LEFT = FilePart(len(FILE), len(FILE))
TOLD = ModulePrepared(0, {MemoryType.TEXT: ModuleMemory(0xFFFFFFFFC0000000, PAGE_SIZE)})


class _Driver:
    """The kernel's pages, and a loader that is told of them."""

    def __init__(self, *allowed: bytes) -> None:
        self.words: list[CodeWord] = []
        self.memory = bytearray(LARGEST)
        self.pages: dict[int, bytes] = {}
        hashes = frozenset(hashlib.sha256(file).digest() for file in allowed)
        context: Any = SimpleNamespace(
            memory=SimpleNamespace(read=lambda at, size: bytes(self.memory[at : at + size])), monitor=self, guest=None
        )
        measured: Any = SimpleNamespace(policy=ModulePolicy(Keyring([]), hashes))
        ledger = Ledger(lambda word, *, urgent=False: self.words.append(CodeWord.parse(word)))
        self.loader = ModuleCalls(context, KciSettings(mode=ON, largest_module=LARGEST), measured, ledger)

    def copy_in(self, pages: list[int], length: int, offset: int) -> Generator[Any, Any, None]:
        """As VeilMon does."""
        content = b"".join(self.pages[page] for page in pages)[:length]
        assert len(content) == length
        assert offset + length <= LARGEST
        self.memory[offset : offset + length] = content
        return
        yield

    def put(self, data: bytes) -> list[int]:
        pages = [PAGE_SIZE * (100 + number) for number in range(-(-len(data) // PAGE_SIZE))]
        for number, page in enumerate(pages):
            self.pages[page] = data[number * PAGE_SIZE :][:PAGE_SIZE].ljust(PAGE_SIZE, b"\0")
        return pages

    def send(self, file: bytes) -> None:
        self.run(self.loader.take_file(FilePart(len(file), 0), self.put(file)))

    def take(self, rest: FilePart = NOTHING_LEFT, pages: Sequence[int] = ()) -> int:
        return int(self.run(self.loader.take(rest, TOLD, [*pages, 0], None, None)))

    @staticmethod
    def run(work: Generator[Any, Any, Any]) -> Any:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value
        raise AssertionError("nobody is asked here")


def test_a_file_is_used_once() -> None:
    driver = _Driver(FILE)
    driver.send(FILE)
    assert driver.take() == 1
    with pytest.raises(KciError, match="is not the next one"):
        driver.take()
    driver.send(FILE)
    assert driver.take() == 2


def test_files_have_a_common_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.services.kci.module_calls._MAX_FILES", 2 * len(FILE))
    driver = _Driver(FILE)
    for number in (1, 2):
        driver.send(FILE)
        assert driver.take() == number
    driver.send(FILE)
    with pytest.raises(ModuleRefused, match="have more than"):
        driver.take()
    driver.run(driver.loader.gone(1))
    driver.send(FILE)
    assert driver.take() == 3


def test_the_files_rest_comes_with_the_module() -> None:
    driver = _Driver(FILE)
    pages = driver.put(FILE)
    assert driver.take(FilePart(len(FILE), 0), pages) == 1
    driver.run(driver.loader.take_file(FilePart(len(FILE), 0), pages[:1]))
    assert driver.take(FilePart(len(FILE), PAGE_SIZE), pages[1:]) == 2
    for rest, some in (
        (FilePart(len(FILE), PAGE_SIZE), pages[1:]),
        (FilePart(len(FILE), 0), pages[:1]),
        (FilePart(1 << 63, 0), pages),
        (FilePart(len(FILE), len(FILE) + 1), []),
        (FilePart(len(FILE), 1 << 63), []),
    ):
        with pytest.raises(KciError):
            driver.take(rest, some)


def test_parts_come_in_order() -> None:
    driver = _Driver(FILE)
    pages = driver.put(FILE)

    def part(offset: int, *some: int, length: int = len(FILE)) -> None:
        driver.run(driver.loader.take_file(FilePart(length, offset), some))

    part(0, pages[0])
    with pytest.raises(KciError, match="is not the next one"):
        driver.take()
    part(0, pages[0])
    part(PAGE_SIZE, *pages[1:])
    driver.take()
    part(0, pages[0])
    for offset, some, length in (
        (0, (), len(FILE)),
        (PAGE_SIZE, (), len(FILE)),
        (2 * PAGE_SIZE, pages[2:], len(FILE)),
        (PAGE_SIZE, pages[1:], len(FILE) + 1),
        (PAGE_SIZE, [*pages[1:], 0], len(FILE)),
        (1, pages[1:], len(FILE)),
        (0, pages, 0),
        (0, pages, LARGEST + 1),
        (0, pages, 1 << 63),
        (1 << 63, pages, len(FILE)),
    ):
        with pytest.raises(KciError):
            part(offset, *some, length=length)


def test_nobody_vouches() -> None:
    driver = _Driver()
    driver.send(FILE)
    with pytest.raises(ModuleRefused, match="not signed"):
        driver.take()
    assert [word.event for word in driver.words] == [CodeEvent.MODULE_REFUSED]
    assert driver.words[0].detail["hash"] == hashlib.sha256(FILE).hexdigest()


def test_before_lock_down_modules_wait_and_are_bounded() -> None:
    driver = _Driver(FILE)
    for _ in range(64):
        driver.send(FILE)
        driver.take()
    driver.send(FILE)
    with pytest.raises(ModuleRefused, match="wait for lock-down"):
        driver.take()
    driver.run(driver.loader.live(1))
    driver.run(driver.loader.gone(1))
    driver.send(FILE)
    assert driver.take() == 65


def test_modules_that_there_are_not() -> None:
    driver = _Driver(FILE)
    for number in (0, 1, 1 << 31):
        for change in (driver.loader.live, driver.loader.gone):
            with pytest.raises(KciError, match="no module"):
                driver.run(change(number))


@given(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.lists(st.integers(0, 3).map(lambda number: PAGE_SIZE * number), max_size=4),
)
def test_any_part(length: int, offset: int, pages: list[int]) -> None:
    driver = _Driver(FILE)
    driver.pages = {PAGE_SIZE * number: bytes(PAGE_SIZE) for number in range(4)}
    with pytest.raises(KciError):
        driver.take(FilePart(length, offset), pages)
    try:
        driver.run(driver.loader.take_file(FilePart(length, offset), pages))
    except KciError:
        return
    assert pages


def test_modules_that_wait_for_lock_down_are_in_a_snapshot() -> None:
    driver = _Driver(FILE)
    driver.send(FILE)
    number = driver.take()
    driver.run(driver.loader.live(number))
    again = _Driver(FILE)
    again.loader.load(json.loads(json.dumps(driver.loader.dump())))
    assert again.loader.dump() == driver.loader.dump()
    (waiting,) = again.loader.dump()["early"]
    assert (waiting["number"], waiting["body"], waiting["live"]) == (number, FILE.hex(), True)
    again.send(FILE)
    assert again.take() == number + 1
    again.run(again.loader.gone(number))
    assert [item["number"] for item in again.loader.dump()["early"]] == [number + 1]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Single stores to verified text: the steps of text_poke_bp(), and what is not one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.services.kci.small_kernel import BASE, DATA, FENTRY, FTRACE_CALLER, NOP5, SmallKernel, call, jump
from veil.services.kci import Configuration, KernelCode, PatchRefused, Step, decide

LABEL, TARGET, SHORT, STATIC, TRACED, LOCK = (BASE + 0x100 * number for number in range(1, 7))
FUNCTION = BASE + 0x1000


class Text:
    """Text that is written to as a service would: a store is decided on, then made."""

    def __init__(self) -> None:
        kernel = SmallKernel()
        kernel.entry("__start___jump_table", kernel.put(LABEL, NOP5), TARGET, DATA)
        kernel.entry("__start___jump_table", kernel.put(SHORT, b"\x66\x90"), SHORT + 0x20, DATA)
        trampoline = BASE + 0x800
        kernel.symbols["__SCT__small"] = kernel.put(trampoline, jump(trampoline, FUNCTION) + b"\x0f\xb9\xcc")
        kernel.entry("__start_static_call_sites", kernel.put(STATIC, call(STATIC, trampoline)), DATA + 0x100)
        kernel.entry("__start_mcount_loc", kernel.put(TRACED, call(TRACED, FENTRY)))
        kernel.entry("__smp_locks", kernel.put(LOCK, b"\xf0\x48\xff\x07"))
        self.rules = KernelCode(kernel.image())
        self.memory = bytearray(kernel.text)
        self.configuration = Configuration("ret", "indirect", "kept", False, {})

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.memory[address - BASE : address - BASE + length])

    def store(self, address: int, new: bytes) -> Step:
        patch = decide(self.rules, self.configuration, address, new, self.read)
        self.memory[address - BASE : address - BASE + len(new)] = new
        return patch.step

    def patch(self, site: int, content: bytes) -> list[Step]:
        """As text_poke_bp() does it."""
        return [self.store(site, b"\xcc"), self.store(site + 1, content[1:]), self.store(site, content[:1])]


@pytest.fixture
def text() -> Text:
    return Text()


@pytest.mark.parametrize(
    ("site", "content"),
    [
        (LABEL, jump(LABEL, TARGET)),
        (SHORT, b"\xeb\x1e"),
        (STATIC, call(STATIC, FUNCTION)),
        (STATIC, NOP5),
        (STATIC, bytes.fromhex("2e2e2e31c0")),
        (BASE + 0x800, bytes.fromhex("c3cccccccc")),
        (TRACED, NOP5),
        (TRACED, call(TRACED, FTRACE_CALLER)),
    ],
)
def test_the_kernels_own_steps(text: Text, site: int, content: bytes) -> None:
    before = text.read(site, len(content))
    assert text.patch(site, content) == [Step.ARM, Step.REST, Step.FINISH]
    assert text.read(site, len(content)) == content
    # And back.
    assert text.patch(site, before) == [Step.ARM, Step.REST, Step.FINISH]


def test_a_tail_that_stays_is_written_all_the_same(text: Text) -> None:
    assert text.store(LABEL, b"\xcc") is Step.ARM
    assert text.store(LABEL + 1, NOP5[1:]) is Step.SAME
    assert text.store(LABEL, NOP5[:1]) is Step.FINISH


def test_a_tail_written_twice(text: Text) -> None:
    text.store(LABEL, b"\xcc")
    assert text.store(LABEL + 1, jump(LABEL, TARGET)[1:]) is Step.REST
    assert text.store(LABEL + 1, jump(LABEL, TARGET)[1:]) is Step.SAME


@pytest.mark.parametrize(
    ("address", "new", "reason"),
    [
        (BASE + 0x50, b"\xcc", "nothing is patched"),
        (BASE + 0x50, b"\x90", "nothing is patched"),
        (LABEL - 1, b"\xcc\xcc", "nothing is patched"),
        (LABEL, jump(LABEL, TARGET), "wrong step"),
        (LABEL, b"\xe9", "wrong step"),
        (LABEL + 1, jump(LABEL, TARGET)[1:], "wrong step"),
        (LABEL + 1, b"\xcc", "wrong step"),
        (LABEL + 2, b"\x00\x00\x00\x00", "reaches beyond"),
        (LABEL, b"\xcc" * 8, "reaches beyond"),
        (SHORT, b"\xeb", "wrong step"),
        (LOCK, b"\x3e", "nothing is patched"),
        (LOCK + 1, b"\xf0", "nothing is patched"),
        (BASE - 1, b"\xcc", "not one to the code"),
        (BASE + 0x1FFF, b"\xcc\xcc", "not one to the code"),
        (LABEL, b"", "not one to the code"),
        (LABEL, b"\xcc" * 4096, "not one to the code"),
    ],
)
def test_stores_that_are_no_step(text: Text, address: int, new: bytes, reason: str) -> None:
    with pytest.raises(PatchRefused, match=reason):
        text.store(address, new)


@pytest.mark.parametrize(
    ("site", "rest"),
    [
        (LABEL, jump(LABEL, TARGET + 1)[1:]),
        (LABEL, b"\x90" * 4),
        (SHORT, b"\x1f"),
        (STATIC, call(STATIC, FUNCTION + 1)[1:]),
        (STATIC, call(STATIC, BASE + 0x1040)[1:]),
        (TRACED, call(TRACED, FUNCTION)[1:]),
    ],
)
def test_a_tail_of_no_legal_content(text: Text, site: int, rest: bytes) -> None:
    text.store(site, b"\xcc")
    with pytest.raises(PatchRefused, match="no content"):
        text.store(site + 1, rest)


@pytest.mark.parametrize("first", [0x0F, 0xE8, 0xEB, 0x90, 0xC3])
def test_a_first_byte_that_does_not_fit_its_tail(text: Text, first: int) -> None:
    text.store(LABEL, b"\xcc")
    text.store(LABEL + 1, jump(LABEL, TARGET)[1:])
    with pytest.raises(PatchRefused, match="is no content"):
        text.store(LABEL, bytes([first]))


def test_parts_of_a_tail_are_no_step(text: Text) -> None:
    text.store(LABEL, b"\xcc")
    for start, end in ((1, 2), (1, 4), (2, 5), (4, 5)):
        with pytest.raises(PatchRefused, match="wrong step"):
            text.store(LABEL + start, b"\x11" * (end - start))


def test_a_site_that_holds_something_else_is_not_armed_twice(text: Text) -> None:
    text.store(LABEL, b"\xcc")
    assert text.store(LABEL, b"\xcc") is Step.SAME


def test_lock_prefixes_come_back_and_stay(text: Text) -> None:
    text.memory[LOCK - BASE] = 0x3E
    assert text.store(LOCK, b"\xf0") is Step.WHOLE
    with pytest.raises(PatchRefused):
        text.store(LOCK, b"\x3e")


_SITES = {LABEL: 5, SHORT: 2, STATIC: 5, TRACED: 5, BASE + 0x800: 5}
_PIECES = [NOP5, b"\x66\x90", jump(LABEL, TARGET), b"\xeb\x1e", call(STATIC, FUNCTION), call(TRACED, FTRACE_CALLER),
           bytes.fromhex("c3cccccccc"), jump(BASE + 0x800, FUNCTION), b"\xcc", b"\x90\x90\x90\x90"]  # fmt: skip
_STORE = st.tuples(
    st.sampled_from([*_SITES, LOCK, BASE + 0x40]), st.integers(-1, 5),
    st.one_of(st.sampled_from(_PIECES), st.sampled_from(_PIECES).map(lambda piece: piece[1:]),
              st.sampled_from(_PIECES).map(lambda piece: piece[:1]), st.binary(min_size=1, max_size=5)),
)  # fmt: skip

_texts: list[Text] = []


@settings(max_examples=examples(100))
@given(stores=st.lists(_STORE, max_size=30))
def test_whatever_is_stored_each_site_is_whole_or_traps(stores: list[tuple[int, int, bytes]]) -> None:
    """The invariant on which everything stands, for any stores in any order."""
    if not _texts:
        _texts.append(Text())
    text = _texts[0]
    pristine = bytes(text.memory)
    try:
        for site, offset, new in stores:
            with contextlib.suppress(PatchRefused):
                text.store(site + offset, new)
        whole = bytearray(text.memory)
        for site, length in _SITES.items():
            at = site - BASE
            if whole[at] == 0xCC:
                whole[at : at + length] = pristine[at : at + length]
        # ENDBR is not sealed in this text, whose configuration says so.
        explanation = text.rules.explain(bytes(whole), lambda address, length: bytes(length), text.configuration)
        assert explanation.unexplained == ()
    finally:
        text.memory[:] = pristine

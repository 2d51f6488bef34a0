# SPDX-License-Identifier: GPL-2.0-or-later
"""The builder's configuration is the structure that the runtime reads."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import struct
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.c_declarations import Declarations
from veil.formats.errors import FormatError
from veil.guest.enclaves.config import CHUNK, Config, ConfigHeader, TrustedFile
from veil.guest.enclaves.rules import ConfigFlag, ConfigRule, RuleKind, Rules


def _declarations() -> Declarations:
    text = files("veil.guest.enclaves.runtime").joinpath("src", "config.h").read_text()
    return Declarations.of([text.replace("CALL_NUMBERS / 64", "8")])


def test_the_header_is_the_runtimes() -> None:
    members = _declarations().structs["config"]
    fields = {field[0]: getattr(ConfigHeader, field[0]) for field in ConfigHeader._fields_}
    assert {name: (item.offset, item.size) for name, item in fields.items()} == {
        name: (member.offset, member.size) for name, member in members.items()
    }


def test_numbers_are_the_runtimes() -> None:
    found = _declarations()
    assert found.numbers["CHUNK"] == CHUNK
    assert {f"RULE_{kind.name}": kind.value for kind in RuleKind} == found.enums["rule_kind"]
    assert {f"FLAG_{flag.name}": flag.value for flag in ConfigFlag} == found.enums["config_flags"]
    sizes = {name: found.sizes[name] for name in ("config_rule", "config_file", "config_area")}
    assert sizes == {"config_rule": 16, "config_file": 24, "config_area": 24}


def _config(**more: object) -> Config:
    numbers = dict.fromkeys(
        ("entry", "program_entry", "headers", "header_count", "interpreter", "brk_start", "brk_end",
         "heap_bytes"), 0,
    )  # fmt: skip
    return Config(**numbers, program="/bin/p", **more)  # type: ignore[arg-type]


def test_trusted_files_are_sorted_and_hashed_in_chunks() -> None:
    data = bytes(range(256)) * 300
    packed = _config(
        files={path: TrustedFile.of(text) for path, text in {"/b": b"", "/a/b": data, "/a": b"x"}.items()}
    ).pack()
    header = ConfigHeader.from_buffer_copy(packed)
    found = []
    for index in range(header.file_count):
        path, length, size, hashes = struct.unpack_from("<2I2Q", packed, header.files + 24 * index)
        digests = [packed[at : at + 32] for at in range(hashes, hashes + 32 * -(-size // CHUNK), 32)]
        found.append((packed[path : path + length], size, digests))
    assert [name for name, _, _ in found] == [b"/a", b"/a/b", b"/b"]
    assert found[1][1:] == (
        len(data),
        [hashlib.blake2b(part, digest_size=32).digest() for part in (data[:CHUNK], data[CHUNK:])],
    )
    assert found[2][1:] == (0, [])


def test_texts_and_calls_are_where_the_header_says() -> None:
    rule = ConfigRule(RuleKind.SEALED, "/data", True)
    rules = Rules(calls=frozenset({0, 63, 64, 300}), environment=("A=b", "C="), files=(rule,))
    packed = _config(rules=rules).pack()
    header = ConfigHeader.from_buffer_copy(packed)
    assert len(packed) % 4096 == 0
    assert header.size <= len(packed)
    assert [word for word in range(8) if header.calls[word]] == [0, 1, 4]
    assert packed[header.environment :].split(b"\0", 2)[:2] == [b"A=b", b"C="]
    kind, tree, path, length = struct.unpack_from("<4I", packed, header.rules)
    assert (kind, tree, packed[path : path + length]) == (RuleKind.SEALED, 1, b"/data")


_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
_RULES = st.builds(
    Rules,
    flags=st.sampled_from(ConfigFlag),
    slots=st.integers(0, 1 << 63),
    directory=_TEXTS,
    calls=st.frozensets(st.integers(0, 511), max_size=4),
    signals=st.frozensets(st.integers(1, 64), max_size=4),
    files=st.lists(st.builds(ConfigRule, st.sampled_from(RuleKind), _TEXTS, st.booleans()), max_size=3).map(tuple),
    arguments=st.lists(_TEXTS, max_size=3).map(tuple),
    environment=st.lists(_TEXTS, max_size=3).map(tuple),
    passed=st.lists(_TEXTS, max_size=2).map(tuple),
    started=st.lists(_TEXTS, max_size=2).map(tuple),
)
_FILES = st.dictionaries(_TEXTS, st.sampled_from([b"", b"x", bytes(CHUNK + 1)]).map(TrustedFile.of), max_size=3)


@given(_RULES, _FILES, _TEXTS)
def test_what_is_packed_is_parsed(rules: Rules, trusted: dict[str, TrustedFile], manifest: str) -> None:
    config = _config(rules=rules, files=trusted, manifest=manifest)
    assert Config.parse(config.pack()) == dataclasses.replace(config, areas=())


@given(st.data())
def test_nothing_else_is_parsed(data: st.DataObject) -> None:
    """Else there could be a reader who takes it for another one than the runtime does."""
    packed = bytearray(_config(rules=data.draw(_RULES), files=data.draw(_FILES)).pack())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, ctypes.sizeof(ConfigHeader) - 1), st.integers(0, len(packed) - 1)))
        packed[at] = data.draw(st.integers(0, 255))
    try:
        config = Config.parse(bytes(packed))
    except FormatError:
        return
    assert config.pack() == packed


def test_pieces_that_lie_in_each_other_cost_nothing() -> None:
    """A table of as many files as there is room for, each with all of the configuration for its hashes."""
    packed = bytearray(_config(manifest="x" * 400_000).pack())
    header = ConfigHeader.from_buffer(packed)
    header.files, header.file_count = header.manifest, header.manifest_length // 24
    entry = struct.pack("<2I2Q", 0, 0, len(packed) // 32 * CHUNK, 0)
    packed[header.files : header.files + 24 * header.file_count] = entry * header.file_count
    with pytest.raises(FormatError, match="damaged"):
        Config.parse(bytes(packed))

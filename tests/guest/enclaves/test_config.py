# SPDX-License-Identifier: GPL-2.0-or-later
"""The builder's configuration is the structure that the runtime reads."""

from __future__ import annotations

import hashlib
import struct
from importlib.resources import files

from tests.c_declarations import Declarations
from veil.guest.enclaves.config import CHUNK, Config, ConfigFlag, ConfigHeader, ConfigRule, RuleKind


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
        ("entry", "program_entry", "headers", "header_count", "interpreter", "brk_start", "brk_end", "stack_bytes",
         "heap_bytes", "pool_pages", "slots"), 0,
    )  # fmt: skip
    return Config(**numbers, program="/bin/p", **more)  # type: ignore[arg-type]


def test_trusted_files_are_sorted_and_hashed_in_chunks() -> None:
    data = bytes(range(256)) * 300
    packed = _config(files={"/b": b"", "/a/b": data, "/a": b"x"}).pack()
    header = ConfigHeader.from_buffer_copy(packed)
    found = []
    for index in range(header.file_count):
        path, length, size, hashes = struct.unpack_from("<2I2Q", packed, header.files + 24 * index)
        digests = [packed[at : at + 32] for at in range(hashes, hashes + 32 * -(-size // CHUNK), 32)]
        found.append((packed[path : path + length], size, digests))
    assert [name for name, _, _ in found] == [b"/a", b"/a/b", b"/b"]
    assert found[1][1:] == (
        len(data),
        [hashlib.sha256(data[:CHUNK]).digest(), hashlib.sha256(data[CHUNK:]).digest()],
    )
    assert found[2][1:] == (0, [])


def test_texts_and_calls_are_where_the_header_says() -> None:
    rule = ConfigRule(RuleKind.SEALED, "/data", True)
    packed = _config(calls=frozenset({0, 63, 64, 300}), environment=("A=b", "C="), rules=(rule,)).pack()
    header = ConfigHeader.from_buffer_copy(packed)
    assert len(packed) % 4096 == 0
    assert header.size <= len(packed)
    assert [word for word in range(8) if header.calls[word]] == [0, 1, 4]
    assert packed[header.environment :].split(b"\0", 2)[:2] == [b"A=b", b"C="]
    kind, tree, path, length = struct.unpack_from("<4I", packed, header.rules)
    assert (kind, tree, packed[path : path + length]) == (RuleKind.SEALED, 1, b"/data")

# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI's formats and settings."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.errors import FormatError
from veil.formats.kci import MAX_MODULE_MEMORY, MemoryType, ModuleMemory, ModulePrepared
from veil.formats.kci_settings import KciSettings

_TEXT, _DATA = ModuleMemory(0xFFFFFFFFC0000000, 0x3000), ModuleMemory(0xFFFFFFFFC0003000, 0x1000)


def test_prepared_modules_survive_the_wire() -> None:
    told = ModulePrepared(0x39000, {MemoryType.TEXT: _TEXT, MemoryType.DATA: _DATA})
    assert ModulePrepared.parse(told.pack()) == told


@pytest.mark.parametrize(
    ("memory", "why"),
    [
        ({MemoryType.TEXT: _TEXT, MemoryType.DATA: ModuleMemory(_TEXT.end - 0x1000, 0x1000)}, "overlaps"),
        ({MemoryType.TEXT: ModuleMemory(0xFFFFFFFFC0000800, 0x1000)}, "not whole pages"),
        ({MemoryType.TEXT: ModuleMemory(0xFFFFFFFFC0000000, 0x800)}, "not whole pages"),
        ({MemoryType.TEXT: ModuleMemory(0xFFFFFFFFC0000000, 0)}, "not whole pages"),
        ({MemoryType.TEXT: ModuleMemory((1 << 64) - 0x1000, 0x2000)}, "not whole pages"),
        ({MemoryType.TEXT: ModuleMemory(0xFFFFFFFFC0000000, MAX_MODULE_MEMORY + 0x1000)}, "more than"),
    ],
)
def test_memory_that_no_module_has(memory: dict[MemoryType, ModuleMemory], why: str) -> None:
    with pytest.raises(FormatError, match=why):
        ModulePrepared.parse(ModulePrepared(0, memory).pack())


@given(st.binary(max_size=130) | st.binary(min_size=120, max_size=120))
def test_any_bytes_as_prepared_modules(data: bytes) -> None:
    try:
        told = ModulePrepared.parse(data)
    except FormatError:
        return
    assert told.pack() == data


def test_settings_in_text_and_measured() -> None:
    settings = KciSettings.parse(f"mode=halt,keys=none,hashes={'ab' * 32}:{'CD' * 32}")
    assert (settings.mode, settings.keys) == ("halt", "none")
    assert settings.allowed_hashes == {b"\xab" * 32, b"\xcd" * 32}
    assert KciSettings.of(json.loads(json.dumps(settings.measured()))) == settings

    der = bytes(range(200, 250))
    settings = KciSettings.parse(f"certificates={base64.urlsafe_b64encode(der).decode()}")
    assert settings.allowed_certificates == (der,)


def test_exceptions_of_the_kernel_and_of_modules() -> None:
    settings = KciSettings.parse("mode=on,writable=sys_call_table:loop/lo_fops:full_fops")
    assert settings.writable_of() == ["sys_call_table", "full_fops"]
    assert settings.writable_of("loop") == ["lo_fops"]
    assert settings.writable_of("lo_fops") == []
    assert KciSettings.of(settings.measured()) == settings


def test_the_default_policy() -> None:
    settings = KciSettings()
    assert (settings.mode, settings.keys, settings.memory_size) == ("off", "build", 0)
    assert not settings.allowed_hashes
    assert not settings.allowed_certificates
    assert KciSettings(mode="off").memory_size == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mode=maybe", "'mode' must be off, on or halt"),
        ("keys=all", "'keys' must be build or none"),
        ("hashes=abcd", "not a SHA-256"),
        ("hashes=xyz", "not a hash in hex"),
        ("certificates=MII!", "not base64"),
        ("exceptions=bpf-jit", "not one of the service's settings"),
        ("largest_module=4K", "1 MiB to 256 MiB"),
        ("writable=sys_call_table:dm-mod/x", "'dm-mod/x' is neither SYMBOL nor MODULE/SYMBOL"),
        ("writable=a/b/c", "neither SYMBOL nor MODULE/SYMBOL"),
        ("writable=/x", "neither SYMBOL nor MODULE/SYMBOL"),
        ("largest_module=1G", "1 MiB to 256 MiB"),
        ("colour=red", "not one of the service's settings"),
    ],
)
def test_settings_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        KciSettings.parse(text)


@pytest.mark.parametrize(
    "measured",
    [
        {"hashes": "ab"},
        {"hashes": [1]},
        {"hashes": ["00" * 32] * 65},
        {"writable": ["x"] * 65},
        {"largest_module": 1.5e7},
    ],
)
def test_measured_settings_that_are_refused(measured: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        KciSettings.of(measured)

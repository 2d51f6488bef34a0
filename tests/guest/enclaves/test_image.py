# SPDX-License-Identifier: GPL-2.0-or-later
"""Images: reproducible, measured, and read back only if the content is what the layout says."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import compile_program
from veil.cache import Cache
from veil.formats.enclaves import RUNTIME, Prot, Record, RecordKind
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.enclaves.build import build_enclave, has_our_runtime
from veil.guest.enclaves.config import CONFIG_PLACE, Config, TrustedFile
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.rules import ConfigFlag, ConfigRule, RuleKind, Rules
from veil.guest.enclaves.trusted_files import ComputerFiles
from veil.guest.errors import GuestImageError

_TEXT = "int main(void) { return 0; }"


def _build(program: Path, **more: object) -> EnclaveImage:
    return build_enclave(Cache(), ComputerFiles(), str(program), Manifest.of(more))


@pytest.fixture(scope="module", params=["-static", "-static-pie", "-pie", "-no-pie"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(tmp_path_factory.mktemp("program"), _TEXT, request.param)


def test_an_image_is_reproducible_and_read_back(program: Path) -> None:
    image = _build(program)
    packed = image.pack()
    assert packed == _build(program).pack()
    assert EnclaveImage.parse(packed, "x") == image
    assert image.measurement == hashlib.sha384(image.layout.pack()).digest()


def test_the_manifest_is_measured(program: Path) -> None:
    first = _build(program)
    assert _build(program, threads=9).measurement != first.measurement
    assert _build(program, calls={"deny": ["getrandom"]}).measurement != first.measurement
    assert _build(program, environment={"fixed": {"A": "1"}}).measurement != first.measurement


def test_no_page_can_be_written_and_executed(program: Path) -> None:
    for record in _build(program).layout.records:
        assert not (record.prot & Prot.W and record.prot & Prot.X), record


def test_the_runtime_is_the_same_in_each(program: Path, tmp_path: Path) -> None:
    def runtime(image: EnclaveImage) -> list[bytes]:
        records = image.layout.records
        return [record.digest for record in records if RUNTIME <= record.va < RUNTIME + (1 << 28)]

    other = compile_program(tmp_path, "int main(void) { return 7; }", "-static")
    assert runtime(_build(program)) == runtime(_build(other)) != []


def test_libraries_of_a_dynamic_program_are_trusted(tmp_path: Path) -> None:
    image = _build(compile_program(tmp_path, _TEXT, "-pie"))
    assert list(image.files) == ["/lib/x86_64-linux-gnu/libc.so.6"]
    # Its loader is in the enclave itself.
    assert any(0x7E00_0000_0000 < record.va < 0x7F00_0000_0000 for record in image.layout.records)


def test_another_content_is_refused(program: Path) -> None:
    image = _build(program)
    content = bytearray(image.content)
    content[5000] ^= 1
    with pytest.raises(GuestImageError, match="not what the layout says"):
        EnclaveImage.parse(EnclaveImage(image.layout, bytes(content), image.manifest).pack(), "x")
    longer = EnclaveImage(image.layout, image.content + bytes(4096), image.manifest)
    with pytest.raises(GuestImageError, match="more content"):
        EnclaveImage.parse(longer.pack(), "x")


@pytest.mark.parametrize("data", [b"", b"x" * 2000, b"\0" * 10240])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(GuestImageError, match="not an enclave's image"):
        EnclaveImage.parse(data, "x")


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(GuestImageError, match="not an ELF program"):
        _build(script)
    with pytest.raises(GuestImageError, match="cannot read"):
        _build(tmp_path / "nothing")


def test_zero_pages_are_not_content(program: Path) -> None:
    image = _build(program)
    kinds = {record.kind for record in image.layout.records}
    assert kinds == {RecordKind.CONTENT, RecordKind.ZERO}
    pages = sum(record.pages for record in image.layout.records if record.kind is RecordKind.CONTENT)
    assert len(image.content) == pages * 4096


def test_what_readers_see_is_what_is_measured(program: Path, tmp_path: Path) -> None:
    """Manifest and files beside the measured content: who decides by them about a secret must not be told lies."""
    secret = tmp_path / "trusted"
    secret.write_bytes(b"x" * 70_000)
    image = _build(program, files={"pass": ["/"], "trusted": [str(secret)]})
    harmless = dataclasses.replace(image, manifest=Manifest.of({}).text())
    with pytest.raises(GuestImageError, match="its manifest is not the one that is measured"):
        EnclaveImage.parse(harmless.pack(), "x")
    changed = {**image.files, str(secret): b"y" * 70_000}
    for files in (changed, {**image.files, "/etc/more": b""}, {}):
        with pytest.raises(GuestImageError, match="is measured"):
            EnclaveImage.parse(dataclasses.replace(image, files=files).pack(), "x")


def config_of(image: EnclaveImage) -> tuple[Config, int, int]:
    """With the number of its record, and where that is in the content."""
    at = 0
    for number, record in enumerate(image.layout.records):
        length = record.pages * PAGE_SIZE if record.kind is RecordKind.CONTENT else 0
        if record.va == CONFIG_PLACE:
            return Config.parse(image.content[at : at + length]), number, at
        at += length
    raise AssertionError("no configuration")


def with_config(image: EnclaveImage, packed: bytes) -> EnclaveImage:
    """Another image, in which everything is measured as it is: somebody's who builds images of their own."""
    _, number, at = config_of(image)
    records = list(image.layout.records)
    behind = at + records[number].pages * PAGE_SIZE
    records[number] = Record.content(Prot.R, CONFIG_PLACE, packed)
    content = image.content[:at] + packed + image.content[behind:]
    return dataclasses.replace(image, layout=dataclasses.replace(image.layout, records=tuple(records)), content=content)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> EnclaveImage:
    program = compile_program(tmp_path_factory.mktemp("small"), _TEXT, "-static")
    return _build(program, files={"read": ["/data/"], "secrets": ["key"]}, arguments={"fixed": ["p", "x"]})


_LIES: dict[str, tuple[dict[str, object], str]] = {
    "flags": (
        {"flags": ConfigFlag.ARGUMENTS_OUTSIDE},
        "what comes from outside, and what a call that is not supported ends: 'ARGUMENTS_OUTSIDE' more",
    ),
    "an unknown flag": ({"flags": ConfigFlag(1 << 40)}, "what comes from outside"),
    "stack": ({"stack_bytes": 4096}, "the bytes of the stack: '4096' more, '1048576' missing"),
    "memory": ({"pool_pages": 1}, "the pages of memory"),
    "threads": ({"slots": 64}, "the number of threads"),
    "directory": ({"directory": "/data"}, "the directory: '/data' more, '/' missing"),
    "calls": ({"calls": frozenset({0, 41})}, "the system calls that are allowed: 'socket' more"),
    "signals": ({"signals": frozenset({2})}, "the signals from outside: 'INT' more"),
    "a rule": (
        {"files": (ConfigRule(RuleKind.PASS, "/data", True), ConfigRule(RuleKind.SECRET, "/run/secrets/key", False))},
        "the rules for files: 'pass /data and all below' more, 'read /data and all below' missing",
    ),
    "one rule more": ({"files": (ConfigRule(RuleKind.PASS, "/", True),)}, "the rules for files: 'pass / and all"),
    "arguments": ({"arguments": ("p", "x", "--debug")}, "the arguments: '--debug' more"),
    "arguments' order": ({"arguments": ("x", "p")}, "the arguments: others"),
    "environment": ({"environment": ("LD_PRELOAD=/data/x",)}, "the environment: 'LD_PRELOAD=/data/x' more"),
    "variables": ({"passed": ("*",)}, "the variables from outside: '*' more"),
    "programs": ({"started": ("/bin/sh",)}, "the programs outside: '/bin/sh' more"),
}


@pytest.mark.parametrize("name", _LIES)
def test_rules_are_those_of_the_manifest(small: EnclaveImage, name: str) -> None:
    """An image whose measured manifest says less than its runtime is told."""
    change, words = _LIES[name]
    config = config_of(small)[0]
    rules = dataclasses.replace(config.rules, **change)  # type: ignore[arg-type]
    lying = with_config(small, dataclasses.replace(config, rules=rules).pack())
    with pytest.raises(GuestImageError, match=re.escape(f"its rules are not those of its manifest: {words}")) as caught:
        EnclaveImage.parse(lying.pack(), "x")
    assert "\n" not in str(caught.value)


def test_a_rule_for_every_word_of_a_manifest() -> None:
    """None can be added that no image is compared by."""
    compared = {key for change, _ in _LIES.values() for key in change}
    assert compared == {item.name for item in dataclasses.fields(Rules)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"manifest": "threads = "}, "its manifest: "),
        ({"manifest": "memory = '2M'"}, "its rules are not those of its manifest: the bytes|the pages of memory"),
        ({"brk_end": 1 << 46}, "its break may go elsewhere"),
        ({"files": {"/more": TrustedFile.of(b"x")}}, "'/more' is not the one that is measured"),
    ],
)
def test_what_else_a_configuration_says(small: EnclaveImage, change: dict[str, object], words: str) -> None:
    config = dataclasses.replace(config_of(small)[0], **change)  # type: ignore[arg-type]
    lying = dataclasses.replace(with_config(small, config.pack()), manifest=config.manifest)
    with pytest.raises(GuestImageError, match=words):
        EnclaveImage.parse(lying.pack(), "x")


def test_the_layout_has_the_manifests_threads_and_memory(small: EnclaveImage) -> None:
    for change in ({"slots": 64}, {"pool_pages": 1 << 20}):
        lying = dataclasses.replace(small, layout=dataclasses.replace(small.layout, **change))  # type: ignore[arg-type]
        with pytest.raises(GuestImageError, match="its layout has other threads or another memory"):
            EnclaveImage.parse(lying.pack(), "x")


def test_a_trusted_file_that_a_manifest_names_is_there(tmp_path: Path, small: EnclaveImage) -> None:
    config = config_of(small)[0]
    for text in ("/data/file", "/data/"):
        manifest = dataclasses.replace(Manifest.parse(config.manifest), trusted=(text,)).text()
        lying = with_config(small, dataclasses.replace(config, manifest=manifest).pack())
        with pytest.raises(GuestImageError, match=f"it trusts '{text}', which it does not have"):
            EnclaveImage.parse(dataclasses.replace(lying, manifest=manifest).pack(), "x")


def test_another_runtime_is_seen(small: EnclaveImage) -> None:
    """The rules are as good as the runtime that keeps them."""
    assert has_our_runtime(Cache(), small)
    first = next(number for number, record in enumerate(small.layout.records) if record.va == RUNTIME)
    records = list(small.layout.records)
    records[first] = records[first]._replace(digest=bytes(48))
    assert not has_our_runtime(
        Cache(), dataclasses.replace(small, layout=dataclasses.replace(small.layout, records=tuple(records)))
    )
    elsewhere = dataclasses.replace(small.layout, entry=small.layout.entry + 1)
    assert not has_our_runtime(Cache(), dataclasses.replace(small, layout=elsewhere))

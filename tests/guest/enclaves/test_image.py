# SPDX-License-Identifier: GPL-2.0-or-later
"""Images: reproducible, measured, and read back only if the content is what the layout says."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import compile_program
from veil.cache import Cache
from veil.formats.enclaves import RUNTIME, Prot, RecordKind
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
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


def test_a_library_that_the_manifest_names_is_where_the_manifest_says(tmp_path: Path) -> None:
    """As of programs that look beside themselves (RUNPATH): not a second time where the loader looks first."""
    library = tmp_path / "libown.so"
    subprocess.run(["cc", "-shared", "-o", library, "-x", "c", "-"], input=b"int own;", check=True)
    words = ("-Wl,--no-as-needed", f"-L{tmp_path}", "-lown", f"-Wl,-rpath,{tmp_path}")
    program = compile_program(tmp_path, _TEXT, "-pie", *words)
    with pytest.raises(GuestImageError, match=r"there is no library libown\.so"):
        _build(program)
    image = _build(program, files={"trusted": [str(library)]})
    assert sorted(image.files) == sorted(["/lib/x86_64-linux-gnu/libc.so.6", str(library)])


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

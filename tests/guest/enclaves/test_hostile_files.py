# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs and images that somebody has made up: each is refused in one line, without a hang or all of the memory."""

from __future__ import annotations

import dataclasses
import io
import struct
import tarfile
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guest.enclaves.native_runtime import compile_program
from veil.cache import Cache
from veil.formats.enclaves import ARENA, MAX_RECORDS, RUNTIME, THREADS, WINDOW
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.errors import GuestImageError

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_R, _W, _X = 4, 2, 1
_CODE = 0x400000
_PROGRAM = struct.Struct("<IIQQQQQQ")


class OneFile:
    """A program, and nothing beside it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def program(self, name: str) -> tuple[str, bytes]:
        return name, self._data

    def file(self, path: str) -> bytes:
        raise GuestImageError(f"cannot read {path}: it is not there")

    def find(self, path: str) -> bytes | None:
        return None

    def tree(self, path: str) -> Mapping[str, bytes]:
        raise GuestImageError(f"{path}: it is not there")

    def library(self, name: str) -> bytes:
        raise GuestImageError(f"there is no library {name}")


def segment(
    kind: int = _LOAD, flags: int = _R, address: int = 0, filesz: int = 0, memsz: int = 0x1000, offset: int = 0
) -> bytes:
    return _PROGRAM.pack(kind, flags, offset, address, address, filesz, memsz, 0x1000)


def elf(*segments: bytes, entry: int = _CODE, kind: int = 2, behind: bytes = b"", code: bool = True) -> bytes:
    """A program of these headers, with a page of code before them."""
    headers = [segment(flags=_R | _X, address=_CODE)] if code else []
    headers += segments
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", kind, 62, 1, entry, 64, 0, 0, 64, 56, len(headers), 0, 0, 0
    )
    return header + b"".join(headers) + behind


def build(data: bytes, manifest: Manifest | None = None) -> EnclaveImage:
    return build_enclave(Cache(), OneFile(data), "/program", manifest or Manifest())


def test_the_plain_one_is_built() -> None:
    assert EnclaveImage.parse(build(elf()).pack(), "x")


_PAGE = 0x1000
_MANY = [segment(address=0x10000000 + at * 2 * _PAGE) for at in range(MAX_RECORDS)]
_PROGRAMS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not an ELF program"),
    "a header alone": (elf()[:64], "program headers lie outside the file"),
    "no segment": (elf(code=False), "without loadable segments"),
    "segments of nothing": (elf(segment(memsz=0), code=False), "without loadable segments"),
    "in the arena": (elf(segment(address=ARENA + _PAGE)), f"segment at {ARENA + _PAGE:#x} .* has something else"),
    "across the arena's end": (elf(segment(address=WINDOW - _PAGE, memsz=2 * _PAGE)), "has something else"),
    "in a window": (elf(segment(address=WINDOW)), "has something else"),
    "where the runtime is": (elf(segment(address=RUNTIME)), "has something else"),
    "beside the runtime": (elf(segment(address=RUNTIME + 0x3000_0000)), "has something else"),
    "in a slot": (elf(segment(address=THREADS)), "has something else"),
    "at a null pointer": (elf(segment(address=0)), "has something else"),
    "at the top": (elf(segment(address=(1 << 47) - _PAGE)), "has something else"),
    "beyond": (elf(segment(address=(1 << 64) - _PAGE)), "outside the address space"),
    "8 GiB of zeros": (elf(segment(flags=_R | _W, address=1 << 32, memsz=8 << 30)), r"take 8\.0 GiB, and an"),
    "1 TiB of zeros": (elf(segment(flags=_R | _W, address=1 << 40, memsz=1 << 40)), "an enclave begins with 4G"),
    "many pieces": (elf(*_MANY), f"{MAX_RECORDS} at most"),
    "the same bytes in each": (
        elf(*(segment(address=1 << 28 | at << 20, filesz=1 << 15, memsz=1 << 15) for at in range(512)),
            behind=bytes(1 << 15)), "the same bytes of the file again and again",
    ),
    "overlapping": (elf(segment(address=_CODE + 8)), "segments overlap"),
    "no code where it begins": (elf(entry=0), "entry point 0x0 lies in no segment of code"),
    "an interpreter without a name": (elf(segment(_INTERP, filesz=0)), "its interpreter, which loads it, is ''"),
    "an interpreter with a name of zeros": (elf(segment(_INTERP, offset=7, filesz=8)), "its interpreter.*is ''"),
    "an interpreter elsewhere": (
        elf(segment(_INTERP, offset=176, filesz=5), behind=b"ld.so"), "its interpreter.*is 'ld.so', and no absolute",
    ),
    "an interpreter that ends twice": (
        elf(segment(_INTERP, offset=176, filesz=6), behind=b"/a\0/b\0"), "its interpreter",
    ),
    "an interpreter that is not there": (
        elf(segment(_INTERP, offset=176, filesz=6), behind=b"/ld.so"), "cannot read /ld.so",
    ),
    "a dynamic section without an end": (
        elf(segment(_DYNAMIC, offset=176, filesz=1 << 20), behind=bytes(1 << 20)), "not an ELF program or library",
    ),
    "a name without an end": (
        elf(segment(_DYNAMIC, offset=176, filesz=16), behind=struct.pack("<qQ", 1, 192) + b"x" * 5000),
        "not an ELF program or library",
    ),
    "a name before the file": (
        elf(segment(_DYNAMIC, offset=176, filesz=32), behind=struct.pack("<qQqQ", 1, 0, 5, (1 << 64) - 1)),
        "not an ELF program or library",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _PROGRAMS)
def test_a_program_that_cannot_be(name: str) -> None:
    data, words = _PROGRAMS[name]
    with pytest.raises(GuestImageError, match=words) as caught:
        build(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["read", "pass", "sealed"])
def test_a_rule_for_a_file_that_is_trusted(kind: str) -> None:
    """It would never apply: what is trusted is that, whatever a rule says."""

    class WithFolder(OneFile):
        def tree(self, path: str) -> Mapping[str, bytes]:
            return {f"{path}file": b"x"}

    def made(rule: str) -> EnclaveImage:
        manifest = Manifest.of({"files": {"trusted": ["/data/"], kind: [rule]}})
        return build_enclave(Cache(), WithFolder(elf()), "/program", manifest)

    with pytest.raises(GuestImageError, match=f"'/data/file' is in files.{kind} and is a trusted file: which is it"):
        made("/data/file")
    assert made("/data/other")
    assert made("/data/")


def test_a_path_that_is_no_text() -> None:
    with pytest.raises(GuestImageError, match="is not UTF-8"):
        build_enclave(Cache(), OneFile(elf()), "/a\udcff", Manifest())
    image = dataclasses.replace(build(elf()), files={"/" + "x" * 300: b""})
    with pytest.raises(GuestImageError, match=r"cannot hold the file '/xxx.*: its path is too long"):
        image.pack()


def test_a_file_with_holes_is_one_piece_if_it_has_to_be() -> None:
    """More runs of zeros in it than there are records."""
    data = b"".join(b"x".ljust(_PAGE, b"\0") + bytes(_PAGE) for _ in range(MAX_RECORDS))
    program = elf(segment(flags=_R | _W, address=1 << 28, offset=_PAGE, filesz=len(data), memsz=len(data) + _PAGE))
    image = build(program.ljust(_PAGE, b"\0") + data)
    assert data in image.content
    (record,) = (record for record in image.layout.records if record.va == 1 << 28)
    assert record.pages == 2 * MAX_RECORDS
    few = build(elf(segment(flags=_R | _W, address=1 << 28, filesz=64, memsz=2 * _PAGE)))
    assert [record.pages for record in few.layout.records if record.va >> 28 == 1] == [1, 1]


_NUMBERS = st.one_of(
    st.sampled_from([0, 1, 7, 8, 56, 64, 176, _PAGE, _CODE, ARENA, WINDOW, RUNTIME, 1 << 32, 1 << 40, (1 << 47) - 1]),
    st.integers(0, 1 << 16),
    st.integers(0, (1 << 64) - 1),
)
_SEGMENTS = st.builds(
    lambda *values: _PROGRAM.pack(*values),
    st.sampled_from([_LOAD, _LOAD, _DYNAMIC, _INTERP, 6]), st.integers(0, 7), _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS,
    _NUMBERS, _NUMBERS,
)  # fmt: skip


@given(st.lists(_SEGMENTS, max_size=4), _NUMBERS, st.sampled_from([2, 3]), st.binary(max_size=64), st.booleans())
def test_any_headers(segments: list[bytes], entry: int, kind: int, behind: bytes, code: bool) -> None:
    try:
        image = build(elf(*segments, entry=entry, kind=kind, behind=behind, code=code))
    except GuestImageError:
        return
    assert EnclaveImage.parse(image.pack(), "x") == image


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_program(tmp_path_factory.mktemp("any"), "int main(void) { return 0; }", "-pie").read_bytes()


@given(st.data())
def test_any_bytes_of_a_program(program: bytes, data: st.DataObject) -> None:
    changed = bytearray(program)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 64 + 13 * 56), st.integers(0, len(program) - 8)))
        value = data.draw(_NUMBERS)
        changed[at : at + 8] = struct.pack("<Q", value)
    with pytest.raises(GuestImageError):
        # Its loader is not there, whatever it is.
        build(bytes(changed[: data.draw(st.sampled_from([len(program), 64, 1000]))]), Manifest(trusted=("/more",)))


# images


def archive(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mode = len(data), kind, link, 0o644
    return info, data


@pytest.fixture(scope="module")
def image() -> EnclaveImage:
    return build(elf())


@pytest.fixture(scope="module")
def parts(image: EnclaveImage) -> list[tuple[tarfile.TarInfo, bytes]]:
    members = {"layout": image.layout.pack(), "content": image.content, "manifest.toml": image.manifest.encode()}
    return [member(name, data) for name, data in members.items()]


_MORE: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "a path that leads elsewhere": ([member("files/../../etc/passwd", b"x")], "is not a file that an image has"),
    "a path with a dot": ([member("files/./x", b"x")], "is not a file that an image has"),
    "no path": ([member("files/", b"x")], "is not a file that an image has"),
    "an absolute path": ([member("/etc/passwd", b"x")], "is not a file that an image has"),
    "another file": ([member("more", b"x")], "is not a file that an image has"),
    "a link": ([member("files/x", kind=tarfile.SYMTYPE, link="/etc/passwd")], "no ordinary file"),
    "a link to itself": ([member("files/x", kind=tarfile.LNKTYPE, link="files/x")], "no ordinary file"),
    "links to each other": (
        [member("files/a", kind=tarfile.SYMTYPE, link="b"), member("files/b", kind=tarfile.SYMTYPE, link="a")],
        "no ordinary file",
    ),
    "a device": ([member("files/x", kind=tarfile.CHRTYPE)], "no ordinary file"),
    "a pipe": ([member("files/x", kind=tarfile.FIFOTYPE)], "no ordinary file"),
    "a folder": ([member("files/x", kind=tarfile.DIRTYPE)], "no ordinary file"),
    "a file with holes": ([member("files/x", kind=tarfile.GNUTYPE_SPARSE)], "no ordinary file"),
    "a name for the next": ([member("@LongLink", b"y" * 200, kind=tarfile.GNUTYPE_LONGNAME)], "no ordinary file"),
    "two of one name": ([member("layout", b"x")], "'layout' is there twice"),
    "two files of one name": ([member("files/x", b"x"), member("files/x", b"y")], "'files/x' is there twice"),
    "a file that is not measured": ([member("files/x", b"x")], "'/x' is no trusted file of what is measured"),
}


@pytest.mark.parametrize("name", _MORE)
def test_an_archive_that_cannot_be(parts: list[tuple[tarfile.TarInfo, bytes]], name: str) -> None:
    more, words = _MORE[name]
    with pytest.raises(GuestImageError, match=words) as caught:
        EnclaveImage.parse(archive(*parts, *more), "x")
    assert "\n" not in str(caught.value)


def test_extended_headers_in_each_other(parts: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    long = tarfile.TarInfo("././@LongLink")
    long.type = tarfile.GNUTYPE_LONGNAME
    with pytest.raises(GuestImageError, match="no ordinary file"):
        EnclaveImage.parse(long.tobuf() * 5000 + archive(*parts), "x")


def test_sizes_that_are_none(image: EnclaveImage) -> None:
    packed = image.pack()
    for size in (b"77777777777", b"-0000000001", b"\x80" + bytes(10), b"           ", b"0000000000x"):
        with pytest.raises(GuestImageError, match="'layout' is longer than the image"):
            EnclaveImage.parse(packed[:124] + size + packed[135:], "x")
    with pytest.raises(GuestImageError, match="'content' is longer than the image"):
        EnclaveImage.parse(packed[: len(packed) // 2], "x")


def test_there_is_one_archive_for_an_image(image: EnclaveImage, parts: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    assert archive(*parts) == image.pack()
    other = dataclasses.replace(image)
    assert EnclaveImage.parse(archive(*parts), "x") == other
    packed = image.pack()
    for data in (
        archive(*reversed(parts)), packed + b"x", packed + bytes(512), packed[:100] + b"1" + packed[101:],
        archive(*parts, form=tarfile.PAX_FORMAT)[:-1],
    ):  # fmt: skip
        with pytest.raises(GuestImageError, match="its archive is not as `veil enclave build` writes it"):
            EnclaveImage.parse(data, "x")


@given(st.data())
def test_any_bytes_of_an_image(image: EnclaveImage, data: st.DataObject) -> None:
    """No other archive is read."""
    changed = bytearray(image.pack())
    headers = [at for at in range(0, len(changed), 512) if changed[at + 257 : at + 262] == b"ustar"]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.sampled_from(headers))
        at = data.draw(st.one_of(st.integers(start, start + 511), st.integers(0, len(changed) - 1)))
        changed[at] = data.draw(st.integers(0, 255))
    if changed == image.pack():
        return
    with pytest.raises(GuestImageError):
        EnclaveImage.parse(bytes(changed[: data.draw(st.sampled_from([len(changed), 512, 700]))]), "x")

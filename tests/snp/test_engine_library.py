# SPDX-License-Identifier: GPL-2.0-or-later
"""The C part: built once, repaired when damaged, and clean under sanitizers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from veil.snp import _engine_library
from veil.snp._engine_core import run_tool
from veil.snp.errors import EngineBuildError

DRIVER = Path(__file__).parent / "rmp_driver.c"

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small C file in the engine's place, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "number.h").write_text("#define NUMBER 42\n")
    path = engine / "answer.c"
    path.write_text(
        '#include "number.h"\n__attribute__((visibility("default"))) int answer(void);\n'
        "int answer(void)\n{\n    return NUMBER;\n}\n"
    )

    def compile_engine(place: Path, sources: Path, work: Path, progress: object, *, counting: bool) -> Path:
        built = work / "small.so"
        run_tool(["cc", "-shared", "-fPIC", "-o", str(built), str(place / "answer.c")], work)
        return built

    monkeypatch.setattr(_engine_library, "ENGINE_DIR", engine)
    monkeypatch.setattr(_engine_library, "compile_engine", compile_engine)
    return path


@pytest.fixture
def no_library() -> Iterator[None]:
    """A process loads its library once: not what a test makes of it."""
    _engine_library.library.cache_clear()
    yield
    _engine_library.library.cache_clear()


def answer_of(path: Path) -> int:
    """Ask a library in a fresh process: this one keeps what it has loaded."""
    code = f"import ctypes; print(ctypes.CDLL({str(path)!r}).answer())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


@needs_compiler
class TestBuild:
    def test_once(self, source: Path) -> None:
        path = _engine_library.build_engine()
        stamp = path.stat().st_mtime_ns
        assert path.is_relative_to(_engine_library.cache_dir())
        assert answer_of(path) == 42
        assert _engine_library.build_engine() == path
        assert path.stat().st_mtime_ns == stamp

    def test_headers_count(self, source: Path) -> None:
        first = _engine_library.build_engine()
        (source.parent / "number.h").write_text("#define NUMBER 43\n")
        second = _engine_library.build_engine()
        assert second != first
        assert answer_of(second) == 43

    @pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "no checksum", "bad checksum"])
    def test_repairs_itself(self, source: Path, damage: str) -> None:
        path = _engine_library.build_engine()
        content = path.read_bytes()
        checksum = path.with_name(path.name + ".sha256")
        match damage:
            case "truncate":
                path.write_bytes(content[: len(content) // 2])
            case "flip":
                path.write_bytes(content[:100] + bytes((content[100] ^ 1,)) + content[101:])
            case "empty":
                path.write_bytes(b"")
            case "no checksum":
                checksum.unlink()
            case _:
                checksum.write_bytes(b"\xff\xfe")
        assert _engine_library.build_engine() == path
        assert answer_of(path) == 42
        assert sorted(file.name for file in path.parent.iterdir()) == sorted((path.name, checksum.name, "lock"))

    def test_load_builds_what_the_loader_refuses(self, source: Path, no_library: None) -> None:
        """A file that is whole by its checksum and yet no library, as after a build on another system."""
        path = _engine_library.build_engine()
        path.write_bytes(b"not a library")
        checksum = path.with_name(path.name + ".sha256")
        digest = subprocess.run(["sha256sum", str(path)], capture_output=True, check=True, text=True).stdout.split()[0]
        checksum.write_text(digest + "\n")
        library = _engine_library.library()
        library.answer.restype = ctypes.c_int
        assert library.answer() == 42

    def test_compiler_error_is_one_line(self, source: Path) -> None:
        source.write_text("int answer(void) { return nonsense; }\n")
        with pytest.raises(EngineBuildError, match="nonsense") as caught:
            _engine_library.build_engine()
        assert "\n" not in str(caught.value)

    def test_cache_cannot_be_written(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (source.parent / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(source.parent / "file"))
        with pytest.raises(EngineBuildError, match="cannot build"):
            _engine_library.build_engine()


def test_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert _engine_library.cache_dir() == tmp_path / ".cache" / "veil"


@needs_compiler
def test_rmp_under_sanitizers(tmp_path: Path) -> None:
    """Random and hostile instructions on tables of exact size, with AddressSanitizer and UBSan watching."""
    flags = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover=all", f"-I{_engine_library.ENGINE_DIR}"]
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void)\n{\n    return 0;\n}\n")
    if subprocess.run(
        ["cc", *flags, str(probe), "-o", str(tmp_path / "probe")], check=False, capture_output=True
    ).returncode:
        pytest.skip("the C compiler has no sanitizer runtime (Debian: libasan, libubsan)")
    binary = tmp_path / "driver"
    sources = [str(DRIVER), str(_engine_library.ENGINE_DIR / "rmp.c")]
    subprocess.run(["cc", *flags, *sources, "-o", str(binary)], check=True)
    result = subprocess.run([str(binary), "3000"], capture_output=True, check=False, text=True)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr

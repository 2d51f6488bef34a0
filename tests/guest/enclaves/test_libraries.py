# SPDX-License-Identifier: GPL-2.0-or-later
"""Which libraries are trusted, and where: there the loader finds them, in the enclave as outside of it (ld.so(8))."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, NativeRuntime
from veil.guest.enclaves import trusted_files
from veil.guest.enclaves.libraries import collect_trusted
from veil.guest.enclaves.trusted_files import ComputerFiles, DebianFiles
from veil.guest.errors import GuestImageError
from veil.guest.initramfs.debian_programs import PackageFiles

_LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
_MAIN = '#include <stdio.h>\nint own(void);\nint main(void) { printf("%d\\n", own()); return 0; }'
_OWN = "int own(void) { return 42; }"


def _library(path: Path, *flags: str, text: str = _OWN, soname: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = [f"-Wl,-soname,{path.name}"] if soname else []
    subprocess.run(["cc", "-shared", "-fPIC", *name, "-o", path, "-x", "c", "-", "-x", "none", *flags],
                   input=text.encode(), check=True)  # fmt: skip
    return path


def _program(path: Path, *flags: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-o", path, "-x", "c", "-", "-x", "none", *flags], input=_MAIN.encode(), check=True)
    return path


def _files(program: Path, *trusted: str, directory: str = "/") -> list[str]:
    found = collect_trusted(ComputerFiles(), program.read_bytes(), str(program), trusted, directory)
    return sorted(set(found) - {_LIBC})


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("TOP/lib", "lib"),
        ("$ORIGIN", "bin"),
        ("$ORIGIN/../lib", "lib"),
        ("${ORIGIN}/../lib", "lib"),
        ("/nothing:$ORIGIN/../$LIB", "lib/x86_64-linux-gnu"),
        ("$ORIGIN/../$PLATFORM", "x86_64"),
    ],
)
def test_a_library_is_where_its_program_looks(native: NativeRuntime, tmp_path: Path, path: str, folder: str) -> None:
    library = _library(tmp_path / folder / "libown.so")
    words = f"-Wl,-rpath,{path.replace('TOP', str(tmp_path))}"
    program = _program(tmp_path / "bin" / "program", str(library), words)
    assert _files(program) == [str(library)]
    # As it is on this computer the loader finds it in both.
    done = native.run(native.build(program, {**ANYTHING, "files": {}}), "program")
    if folder != "x86_64" or subprocess.run([program], capture_output=True, check=False).returncode == 0:
        assert (done.stdout, done.returncode) == (b"42\n", 0), done


def test_a_librarys_own_libraries(native: NativeRuntime, tmp_path: Path) -> None:
    """RUNPATH is for what has it alone; RPATH of the program is for what it loads, too."""
    inner = _library(tmp_path / "inner" / "libinner.so", text="int inner(void) { return 42; }")
    outer = "int inner(void); int own(void) { return inner(); }"
    plain = _library(tmp_path / "lib" / "libown.so", str(inner), text=outer)
    paths = f"-Wl,-rpath,{tmp_path}/lib:{tmp_path}/inner,--allow-shlib-undefined"
    with pytest.raises(GuestImageError, match=r"there is no library libinner\.so .*libown\.so needs it"):
        _files(_program(tmp_path / "runpath", str(plain), paths, "-Wl,--enable-new-dtags"))
    program = _program(tmp_path / "rpath", str(plain), paths, "-Wl,--disable-new-dtags")
    assert _files(program) == sorted([str(plain), str(inner)])
    assert native.run(native.build(program, {**ANYTHING, "files": {}}), "p").stdout == b"42\n"
    own = _library(tmp_path / "own" / "libown.so", str(inner), "-Wl,-rpath,$ORIGIN/../inner", text=outer)
    program = _program(tmp_path / "both", str(own), f"-Wl,-rpath,{tmp_path}/own")
    assert _files(program) == sorted([str(own), str(inner)])
    assert native.run(native.build(program, {**ANYTHING, "files": {}}), "p").stdout == b"42\n"


def test_a_name_with_a_slash(native: NativeRuntime, tmp_path: Path) -> None:
    """No folder is searched: the name is a path, from the working directory if it is not absolute."""
    library = _library(tmp_path / "lib" / "libown.so", soname=False)
    program = _program(tmp_path / "absolute", str(library))
    assert _files(program) == [str(library)]
    assert native.run(native.build(program, {**ANYTHING, "files": {}}), "p").stdout == b"42\n"
    subprocess.run(["cc", "-o", "relative", "-x", "c", "-", "-x", "none", "lib/libown.so"],
                   input=_MAIN.encode(), cwd=tmp_path, check=True)  # fmt: skip
    program = tmp_path / "relative"
    assert _files(program, directory=str(tmp_path)) == [str(library)]
    with pytest.raises(GuestImageError, match=r"there is no library lib/libown\.so .*relative needs it"):
        _files(program, directory="/")
    manifest = {**ANYTHING, "files": {}, "directory": str(tmp_path)}
    assert native.run(native.build(program, manifest), "p").stdout == b"42\n"


def test_a_folder_of_the_loaders_configuration(
    native: NativeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /usr/lib/x86_64-linux-gnu/libfakeroot is: in the enclave, where there is no cache of them, it is moved."""
    library = _library(tmp_path / "far" / "libown.so")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf").write_text(f"# words\ninclude conf.d/*.conf\ninclude {tmp_path}/conf\n/nothing\n")
    (tmp_path / "conf.d" / "far.conf").write_text(f"{library.parent}  # here\n")
    program = _program(tmp_path / "program", str(library))
    with pytest.raises(GuestImageError, match=r"there is no library libown\.so"):
        _files(program)
    monkeypatch.setattr(trusted_files, "_LOADER_CONFIGURATION", str(tmp_path / "conf"))
    assert _files(program) == ["/lib/x86_64-linux-gnu/libown.so"]


def test_what_is_no_library_for_this_processor_is_passed_by(tmp_path: Path) -> None:
    library = _library(tmp_path / "second" / "libown.so")
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "libown.so").write_bytes(library.read_bytes()[:4] + b"\x01" + library.read_bytes()[5:])
    program = _program(tmp_path / "program", str(library), f"-Wl,-rpath,{tmp_path}/first:{tmp_path}/second")
    assert _files(program) == [str(library)]


def test_a_library_that_the_manifest_names_is_where_the_manifest_says(tmp_path: Path) -> None:
    """As of programs that know where theirs are: not a second time where the loader looks first."""
    library = _library(tmp_path / "libown.so")
    program = _program(tmp_path / "program", str(library))
    with pytest.raises(GuestImageError, match=r"there is no library libown\.so"):
        _files(program)
    assert _files(program, str(library)) == [str(library)]


def test_libraries_of_what_is_loaded_later(tmp_path: Path) -> None:
    """Those of a plugin's, by its own RUNPATH."""
    inner = _library(tmp_path / "plugins" / "libs" / "libinner.so", text="int inner;")
    plugin = _library(tmp_path / "plugins" / "plugin.so", "-Wl,--no-as-needed,-rpath,$ORIGIN/libs", str(inner))
    program = _program(tmp_path / "program", str(_library(tmp_path / "libown.so")), f"-Wl,-rpath,{tmp_path}")
    assert set(_files(program, str(plugin))) == {str(plugin), str(inner), str(tmp_path / "libown.so")}


def test_what_is_no_ordinary_file_is_not_read(tmp_path: Path) -> None:
    """Nobody waits for a pipe, or reads a device without an end."""
    source = ComputerFiles()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "long").touch()
    os.truncate(tmp_path / "long", 1 << 40)
    for path, words in {
        "/dev/zero": "no ordinary file", str(tmp_path / "pipe"): "no ordinary file",
        str(tmp_path): "no ordinary file|Is a directory", str(tmp_path / "loop"): "cannot read .*symbolic links",
        str(tmp_path / "long"): "more than 4G",
    }.items():  # fmt: skip
        with pytest.raises(GuestImageError, match=words):
            source.program(path)
    (tmp_path / "long").unlink()
    with pytest.raises(GuestImageError, match="there is no file in that folder"):
        source.tree(f"{tmp_path}/")
    with pytest.raises(GuestImageError, match="cannot read"):
        source.tree(f"{tmp_path}/none/")


def test_a_folder_that_is_deep(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1050):
            os.mkdir("d")
            os.chdir("d")
        Path("file").write_bytes(b"x")
        assert list(ComputerFiles().tree(f"{tmp_path}/").values()) == [b"x"]
    finally:
        os.chdir(here)
        # Whoever cleans up after tests goes no deeper than Python's stack.
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_library_below_the_usual_folders_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /usr/lib/x86_64-linux-gnu/blas/libblas.so.3, to which a link leads once the package is installed."""
    library = tmp_path / "usr" / "lib" / "x86_64-linux-gnu" / "own" / "libown[1].so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"own")
    files = object.__new__(PackageFiles)
    monkeypatch.setattr(files, "_roots", [tmp_path], raising=False)
    monkeypatch.setattr(files, "_packages", ["own"], raising=False)
    monkeypatch.setattr(files, "_rest", [], raising=False)
    monkeypatch.setattr(files, "remember", lambda: None)
    source = object.__new__(DebianFiles)
    monkeypatch.setattr(source, "_files", files, raising=False)
    assert source.library("libown[1].so") == b"own"
    with pytest.raises(GuestImageError, match=r"has libother\.so"):
        source.library("libother.so")

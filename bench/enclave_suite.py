# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m bench.enclave_suite [MODULE ...]: Python's own tests of what it asks of a kernel, shielded and outside.

Prints the table of docs/enclaves-suite.md: of each module how many tests ran, and which failed in the enclave and not
outside of it.
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.enclave_settings import ON, EncSettings
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.manifest import SIGNALS, Manifest
from veil.guest.enclaves.trusted_files import DebianFiles
from veil.image.services_image import protected_services

_PACKAGES = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libpython3.11-testsuite")
_LIBRARY = "/usr/lib/python3.11"
_LOADER = "/lib64/ld-linux-x86-64.so.2"
_MANIFEST = {
    "memory": "192M",
    "threads": 48,
    "arguments": {"outside": True},
    "environment": {"outside": ["*"]},
    "files": {"trusted": [f"{_LIBRARY}/lib-dynload/"], "pass": ["/"]},
    "calls": {"allow": ["network", "identity"]},
    "signals": sorted(SIGNALS),
}
#: What they test is done by system calls, or by processor and memory alone.
MODULES = (
    "test_builtin", "test_epoll", "test_fcntl", "test_file", "test_fileio", "test_float", "test_gc",
    "test_genericpath", "test_hashlib", "test_ioctl", "test_json", "test_largefile", "test_math",
    "test_memoryview", "test_mmap", "test_openpty", "test_os", "test_pathlib", "test_pipes", "test_poll",
    "test_posix", "test_posixpath", "test_pty", "test_queue", "test_resource", "test_sched", "test_select",
    "test_selectors", "test_shutil", "test_signal", "test_socket", "test_socketserver", "test_stat",
    "test_struct", "test_tempfile", "test_thread", "test_threading", "test_threading_local",
    "test_threadsignals", "test_time", "test_zlib",
)  # fmt: skip
#: They have no end outside either.
_LEFT_OUT = ("test_sendall_interrupted",)
#: As `unittest -v MODULE...`, without these.
_RUNNER = f"""
import sys, unittest
def each(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from each(test)
        elif not test.id().split(".")[-1].startswith({_LEFT_OUT!r}):
            yield test
tests = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[1:])
sys.exit(not unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(each(tests))).wasSuccessful())
"""
_TEST = re.compile(r"^(\w+) \(test\.(\w+)\.([\w.]+)\)")
_VERDICT = re.compile(r"(?:^| \.\.\. )(ok|FAIL|ERROR|skipped|expected failure|unexpected success)\b")
_WHY = re.compile(r"^(?:FAIL|ERROR): .*?\((?:test\.)?(\S+)\).*?\n-{10,}\n(.*?)\n\n(?:=|-|\n)", re.M | re.S)


@dataclass
class Outcome:
    """Of a module's tests, one way."""

    passed: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def ran(self) -> int:
        """Those that were skipped are not among them."""
        return self.passed + len(self.failed)


def outcomes_of(text: str) -> dict[str, Outcome]:
    """Module -> outcome, from what `unittest -v` printed."""
    found: dict[str, Outcome] = {}
    waiting = None
    for line in text.splitlines():
        if match := _TEST.match(line):
            waiting = match[2], match[3]
        if waiting is None or not (verdict := _VERDICT.search(line)):
            continue
        outcome = found.setdefault(waiting[0], Outcome())
        if verdict[1] == "skipped":
            outcome.skipped += 1
        elif verdict[1] in ("FAIL", "ERROR"):
            outcome.failed.append(".".join(waiting))
        else:
            outcome.passed += 1
        waiting = None
    if waiting is not None:
        found.setdefault(waiting[0], Outcome()).failed.append(".".join(waiting) + " (the program ended here)")
    return found


def reasons_of(text: str) -> dict[str, str]:
    """Test -> the last line of what went wrong."""
    return {match[1]: match[2].strip().splitlines()[-1][:160] for match in _WHY.finditer(text)}


def _library() -> bytes:
    files = DebianFiles(Cache(), _PACKAGES)
    stream = io.BytesIO()
    members = {**files.tree(_LIBRARY), _LOADER: files.file(_LOADER)}
    path, program = files.program("python3.11")
    members[path] = program
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name.lstrip("/"))
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _prepare(vm: ConfidentialVM, folder: Path) -> dict[str, Sequence[str]]:
    image = build_enclave(Cache(), DebianFiles(Cache(), _PACKAGES), "python3.11", Manifest.of(_MANIFEST))
    place, library = folder / "python3.11.enclave", folder / "library.tar"
    place.write_bytes(image.pack())
    library.write_bytes(_library())
    vm.copy_in(place, image_place(place))
    vm.copy_in(library, "/tmp/library.tar")
    vm.run(["sh", "-c", "tar -C / -xf /tmp/library.tar; rm /tmp/library.tar; ip link set lo up"])
    return {"shielded": enclave_command(place, ()), "outside": ("/usr/bin/python3.11",)}


def _run(vm: ConfidentialVM, start: Sequence[str], modules: Sequence[str], seconds: int) -> str:
    # busybox's timeout ends what has hung, and the guest goes on.
    command = shlex.join([*start, "-c", _RUNNER, *(f"test.{module}" for module in modules)])
    script = f"mkdir -p /tmp/work; cd /tmp/work; timeout -s KILL {seconds} {command} 2>&1 </dev/null; echo status $?"
    done = vm.run(["sh", "-c", script], timeout=seconds + 120, env={"TMPDIR": "/tmp"})
    return done.stdout.decode(errors="replace")


def _print(texts: Mapping[str, str], modules: Iterable[str]) -> None:
    shielded, outside = outcomes_of(texts["shielded"]), outcomes_of(texts["outside"])
    why = reasons_of(texts["shielded"])
    for module in modules:
        inside, other = shielded.get(module, Outcome()), outside.get(module, Outcome())
        only = [name for name in inside.failed if name not in other.failed]
        print(
            f"| {module} | {inside.ran} | {inside.passed} | {len(only)} | {inside.skipped} | "
            f"{other.passed} of {other.ran} |"
        )
        for name in only:
            print(f"    {name}: {why.get(name, '')}")
    sys.stdout.flush()


def main(arguments: Iterable[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.enclave_suite", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", default=MODULES)
    parser.add_argument("--seconds", type=int, default=600, help="for the modules of one process, one way")
    parser.add_argument("--together", type=int, default=6, help="modules in one process")
    parser.add_argument("--keep", metavar="FOLDER", help="where what the tests print is kept")
    options = parser.parse_args(None if arguments is None else list(arguments))
    services = protected_services(EncSettings(mode=ON))
    with tempfile.TemporaryDirectory() as folder, ConfidentialVM(memory="1536M", services=services) as vm:
        starts = _prepare(vm, Path(folder))
        print("| Module | Ran | Passed | Failed, and not outside | Skipped | Passed outside |\n" + "|---" * 6 + "|")
        for at in range(0, len(options.modules), options.together):
            modules = options.modules[at : at + options.together]
            texts = {way: _run(vm, start, modules, options.seconds) for way, start in starts.items()}
            for way, text in texts.items():
                if options.keep:
                    Path(options.keep, f"{modules[0]}-{way}.txt").write_text(text)
            _print(texts, modules)


if __name__ == "__main__":
    main()

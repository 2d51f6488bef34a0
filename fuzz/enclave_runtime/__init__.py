# SPDX-License-Identifier: GPL-2.0-or-later
"""The runtime of enclaves, as C under sanitizers, with system calls that a hostile kernel answers."""

from __future__ import annotations

import atexit
import functools
import random
import re
import struct
import subprocess
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from fuzz.target import Target
from fuzz.world import fuzz_directory
from veil.cache import cache_key
from veil.guest.enclaves.calls import system_calls
from veil.guest.enclaves.config import Config, TrustedFile
from veil.guest.enclaves.manifest import secret_path
from veil.guest.enclaves.rules import ConfigFlag, ConfigRule, RuleKind, Rules

__all__ = ["TARGETS"]

_HARNESS = Path(__file__).parent / "harness.c"
#: Of the runtime's sources; abi.h is two folders above.
_SOURCE = Path(str(files("veil.guest.enclaves.runtime"))) / "src"
_FLAGS = (
    "-std=gnu11", "-O1", "-g1", "-pthread", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all", "-fsanitize-coverage=trace-pc", "-Wall", "-Wextra",
    "-Wno-builtin-declaration-mismatch", "-Wno-unused-result",
)  # fmt: skip
#: What touches the machine or the program's memory, and the heap, are the harness's.
_LEFT_OUT = ("floating_point.c", "heap.c", "user_memory.c")
_LONGEST = 1024
_ANSWER = struct.Struct("<cI")
_reached = 0
"""Ways through the runtime that inputs have gone so far."""


def _config() -> bytes:
    """All calls are allowed, and there is a path of each kind."""
    rules = Rules(
        flags=ConfigFlag.ARGUMENTS_OUTSIDE | ConfigFlag.SIGNALS_OUTSIDE, stack_bytes=1 << 16, pool_pages=1 << 16,
        slots=2, calls=frozenset(call.number for call in system_calls()), signals=frozenset({2, 10, 15}),
        files=(
            ConfigRule(RuleKind.PASS, "/pass", True), ConfigRule(RuleKind.READ, "/read", True),
            ConfigRule(RuleKind.SEALED, "/sealed", True), ConfigRule(RuleKind.SECRET, secret_path("key"), False),
        ),
        started=("/pass/file", "/bin/echo"),
    )  # fmt: skip
    files = {"/trusted/file": bytes(range(256)) * 600, "/trusted/small": b"words"}
    return Config(
        entry=0, program_entry=0, headers=0, header_count=0, interpreter=0, brk_start=0x10000000,
        brk_end=0x20000000, heap_bytes=1 << 20, program="/program", rules=rules,
        files={path: TrustedFile.of(data) for path, data in files.items()},
    ).pack()  # fmt: skip


def _texts() -> list[Path]:
    shared = _SOURCE.parents[1].glob("*.h")
    return sorted(path for path in (*_SOURCE.iterdir(), *shared) if path.suffix in (".c", ".h", ".def"))


def _build() -> Path:
    """The program that runs inputs, made the first time. Raises AssertionError if it cannot be."""
    folder = fuzz_directory() / "enclave_runtime"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [(path.name, path.read_bytes()) for path in (_HARNESS, *_texts())]
    program = folder / f"harness-{cache_key(*_FLAGS, *(part for item in sources for part in item))}"
    if not program.exists():
        units = [str(path) for path in sorted(_SOURCE.glob("*.c")) if path.name not in _LEFT_OUT]
        work = program.with_suffix(".new")
        command = ["cc", *_FLAGS, f"-I{_SOURCE}", "-o", str(work), str(_HARNESS), *units]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        work.rename(program)
    return program


@functools.cache
def _harness() -> subprocess.Popen[bytes]:
    """Its process."""
    program = _build()
    folder = program.parent
    config = folder / "config"
    config.write_bytes(_config())
    errors = _errors().open("wb")
    process = subprocess.Popen(
        [str(program), str(config)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        env={"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:handle_abort=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )  # fmt: skip
    atexit.register(process.kill)
    return process


def _run(data: bytes) -> None:
    process = _harness()
    assert process.stdin is not None
    assert process.stdout is not None
    data = data[:_LONGEST]
    before = _errors().stat().st_size
    process.stdin.write(struct.pack("<I", len(data)) + data)
    process.stdin.flush()
    answer = process.stdout.read(_ANSWER.size)
    assert len(answer) == _ANSWER.size, _said_since(before)
    letter, ways = _ANSWER.unpack(answer)
    global _reached
    _reached += ways
    assert letter in (b".", b"a", b"s"), _said_since(before)


def _errors() -> Path:
    return fuzz_directory() / "enclave_runtime" / "errors"


def _said_since(before: int) -> str:
    """What the newest input's process said. Without its number and addresses, which are others each time: the same
    mistake has the same name.
    """
    text = _errors().read_bytes()[before:].decode(errors="replace")
    lines = [line for line in text.splitlines() if "ERROR" in line or "runtime error" in line or "invariant" in line]
    line = lines[-1] if lines else "an input's process ended without a word, or was at work for too long"
    return re.sub(r"==\d+==|\b0x[0-9a-f]+\b|\bT\d+\b", "-", line)


def _seeds() -> Iterable[bytes]:
    """Each system call, with a kernel's answers of some kinds."""
    # Whoever asks for seeds has the time for it; an input has not.
    _build()
    random_bytes = random.Random(1)
    for call in system_calls():
        number = bytes([1, call.number]) if call.number < 200 else bytes([0, call.number - 200])
        yield b"\x01" + number + bytes([0, 0, 0, 130, 0, 130]) + random_bytes.randbytes(60)


TARGETS = (Target("enclave-runtime", _run, _seeds, max_bytes=_LONGEST, reached=lambda: _reached),)

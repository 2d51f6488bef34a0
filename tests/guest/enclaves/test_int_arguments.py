# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments that are int in Linux: the kernel looks at the lower half of the register, and so does the runtime.

What a program leaves in the upper half is whatever was there before, and the kernel does not notice.
"""

from __future__ import annotations

import re

import pytest

from tests.guest.enclaves.call_table import ROWS, described
from tests.guest.enclaves.hostile_answers import ATTACKS, INSIDE, PATH, WAITING
from tests.guest.enclaves.native_runtime import NativeRuntime
from tests.services.enc.believing import looks_at_whole_registers
from veil.cache import Cache
from veil.guest.driver.headers import kernel_headers
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.linux.kernel import debian_kernel

_ROWS = {row.number: row for row in ROWS}
_ETC = "@16:x2f65746300"
#: /tmp/nowhere/x: the calls are really made, and /tmp is everybody's
_NOWHERE = "@16:x2f746d702f6e6f77686572652f7800"
_GARBAGE = 0x5A5A5A5A << 32


def _words() -> dict[str, str]:
    """For the caller: each call that has such an argument, as a program may make it."""
    found = {call.name: f"{call.number} {' '.join(call.arguments)}" for call in described()}
    changing = {row.name for row in ROWS if any(kind.startswith("WRITE_") for kind, _ in row.arguments)}
    found |= {name: found[name].replace(PATH, _NOWHERE) for name in changing & found.keys()}
    for attack in ATTACKS.values():
        words = attack.words.replace("! ", "")
        for call in words.split(" / "):
            found.setdefault(_ROWS[int(call.split()[0].partition("*")[0])].name, words)
    found |= {name: f"102 @8192 / {words.replace('&', '&0')}" for name, words in INSIDE.items()}
    found |= WAITING
    found |= {
        "clone": "56 17 0 0 0 0", "exit": "60 3", "exit_group": "231 3", "close": "3 2", "fchdir": "81 1",
        "getdents": f"2 {_ETC} 0 0 / 78 3 @512 512", "getdents64": f"2 {_ETC} 0 0 / 217 3 @512 512",
        "wait4": "61 -1 @4 1 @144", "waitid": "247 0 0 @128 5 @144",
    }  # fmt: skip
    return {row.name: found[row.name] for row in ROWS if row.has_ints}


_WORDS = _words()
#: What they write is another thing each time.
_CHANGES = {
    "getrusage",
    "statx",
    "getrandom",
    "getcpu",
    "clock_gettime",
    "newfstatat",
    "fstat",
    "fstatfs",
    "getdents",
    "getdents64",
}


def _garbled(words: str) -> list[str]:
    """The same calls, with something in the upper half of each register whose lower half counts."""
    found = []
    for call in words.split(" / "):
        number, *arguments = call.split()
        plain, _, times = number.partition("*")
        row = _ROWS[int(plain)]
        found.append(str(_GARBAGE | int(plain)) + (f"*{times}" if times else ""))
        for at, word in enumerate(arguments):
            found.append(str(_GARBAGE | (int(word) & 0xFFFFFFFF)) if row.is_int(at) else word)
        found.append("/")
    return found[:-1]


def _done(runtime: NativeRuntime, image: EnclaveImage, name: str, words: list[str]) -> tuple[int, list[bytes], bytes]:
    done = runtime.run(image, "p", *words)
    lines = done.stdout.splitlines()
    # Descriptors' numbers and results are the same; places of what was written too, but for what changes by itself.
    return done.returncode, lines if name not in _CHANGES else lines[: " ".join(words).count("/") + 1], done.stderr


@pytest.mark.parametrize("name", _WORDS)
def test_the_upper_half_says_nothing(native: NativeRuntime, image: EnclaveImage, name: str) -> None:
    words = _WORDS[name]
    assert _done(native, image, name, _garbled(words)) == _done(native, image, name, words.split())


def test_a_runtime_that_looks_at_all_of_it(native: NativeRuntime, image: EnclaveImage) -> None:
    """The counter-test: the program's call is refused, or does something else than the kernel would do."""
    runtime = NativeRuntime(native.place, looks_at_whole_registers())
    differ = {
        name for name in ("getdents64", "getdents", "select", "fcntl", "prctl", "lseek", "setitimer")
        if _done(runtime, image, name, _garbled(_WORDS[name])) != _done(runtime, image, name, _WORDS[name].split())
    }  # fmt: skip
    assert differ == {"getdents64", "getdents", "select", "fcntl", "prctl", "lseek", "setitimer"}


# The table, as the kernel's own headers have it

#: What these names of the table are called there.
_NAMES = {"stat": "newstat", "lstat": "newlstat", "fstat": "newfstat", "uname": "newuname", "sendfile": "sendfile64"}
#: Prototypes that are of each architecture, or say long where the kernel takes the lower half: descriptors of mmap,
#: readv and their like, clone's flags.
_OTHERS = {"mmap", "arch_prctl", "rt_sigreturn", "clone", "readv", "writev", "preadv", "pwritev", "fork", "vfork"}
_INT_TYPES = re.compile(
    r"(?:unsigned|(?:unsigned )?int|u32|uint32_t|u?id_t|[pug]id_t|umode_t|clockid_t|timer_t|(?:__)?s32)(?: \w+)?"
)


def test_the_table_says_what_linux_says() -> None:
    header = kernel_headers(Cache(), debian_kernel(Cache()), lambda _: None)
    (place,) = header.folder.glob("src/*-common/include/linux/syscalls.h")
    prototypes = {
        name: [" ".join(part.split()) for part in text.split(",")]
        for name, text in re.findall(r"asmlinkage long sys_(\w+)\(([^;]*)\);", place.read_text())
    }
    for row in ROWS:
        if row.name in _OTHERS:
            continue
        arguments = prototypes[_NAMES.get(row.name, row.name)]
        ints = [bool(_INT_TYPES.fullmatch(argument)) for argument in arguments]
        assert ints == [row.is_int(at) for at in range(len(ints))], (row, arguments)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver of a booted guest, with a process that does anything to /dev/veil-enclave, and the real service behind it.

The kernel looks for its own mistakes (freed objects are poisoned, and checked when they are used again). What counts is
what is left when the process is gone: no enclave in the driver nor in the service, no page of theirs in VeilMon's book,
no context at the host, and a kernel that complains of nothing.
"""

from __future__ import annotations

import atexit
import functools
import io
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fuzz.target import Target
from fuzz.world import fuzz_directory
from tests.e2e.enclave_images import DATA, SERVE, call_window, enclave_image
from veil.cache import cache_key
from veil.cvm import ConfidentialVM
from veil.cvm.configuration import QUIET
from veil.errors import VeilError
from veil.formats.enclave_pages import MailboxCall
from veil.formats.enclave_settings import ON, EncSettings
from veil.formats.enclaves import ARENA, RUNTIME
from veil.formats.page_owners import Owner
from veil.image.services_image import protected_services
from veil.monitor import VeilMon
from veil.services.enc.service import EncService
from veil.services.program import ServiceDomain

__all__ = ["TARGETS"]

_CALLER = Path(__file__).parent / "caller.c"
_HEADERS = Path(__file__).parents[2] / "src" / "veil" / "guest" / "enclaves"
_FLAGS = ("-O1", "-static", "-pthread", "-Wall", "-Wextra", "-Werror")
_LONGEST = 1024
_SECONDS = 120
#: SLUB: consistency checks, red zones, poison.
_KERNEL = (*QUIET, "slub_debug=FZP", "page_poison=1")
_COMPLAINTS = re.compile(
    r"BUG|WARNING|Oops|general protection|refcount|Redzone|Poison|hung task|blocked for more|stall|"
    r"veil: enclave \d+ (?:keeps|never)"
)
_LEFT = re.compile(r"\benclaves (\d+) made \d+ entries \d+ pages (-?\d+)")
_OWNERS = (Owner.ENCLAVE, Owner.ENCLAVE_VMSA, Owner.ENCLAVE_WINDOW, Owner.ENCLAVE_LEAVING)
_ALARM = 142
_ASKS, _WRITES = 0x800, 0x840
#: Asks its service for what the window says, writes where the window says, leaves, and again. R15: where it goes on
#: when a page does not come.
_PROGRAM = f"""
    mov r14, {DATA}
    lea r15, [rip + 5f]
6:  mov eax, [rbx + {_ASKS}]
    test eax, eax
    jz 7f
    lea rsi, [rbx + {_ASKS + 8}]
    lea rdi, [r12 + 0xf008]
    mov ecx, 6
    rep movsq
    mov [r12 + 0xf000], eax
    mov dword ptr [r12 + 0xf004], -1
    {call_window(2)}
7:  mov rax, [rbx + {_WRITES}]
    test rax, rax
    jz 5f
    mov [rax], rax
5:  {call_window(1)}
    jmp 6b
"""
_EVENT = f"""
    push rax
    {SERVE(MailboxCall.FAULT, 0, 0, 0)}
    inc qword ptr [r14]
    test qword ptr [r14], 3
    jnz 3f
    mov [rsp + 16], r15
3:  pop rax
    add rsp, 8
    iretq
"""


def _build() -> Path:
    folder = fuzz_directory() / "enclave_ioctls"
    folder.mkdir(parents=True, exist_ok=True)
    headers = [path.read_bytes() for path in sorted(_HEADERS.glob("*.h"))]
    program = folder / f"caller-{cache_key(*_FLAGS, _CALLER.read_bytes(), *headers)}"
    if not program.exists():
        work = program.with_suffix(".new")
        command = ["cc", *_FLAGS, f"-I{_HEADERS}", "-o", str(work), str(_CALLER)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        work.rename(program)
    image = enclave_image(_PROGRAM, event=_EVENT, slots=2, pool_pages=64, arena_pages=256, window_pages=4)
    with tarfile.open(fileobj=io.BytesIO(image)) as archive:
        for name in ("layout", "content"):
            found = archive.extractfile(name)
            assert found is not None
            (folder / name).write_bytes(found.read())
    return program


class _Guest:
    """One that lives until something is found in it."""

    def __init__(self) -> None:
        program = _build()
        services = protected_services(EncSettings(mode=ON))
        self.vm = ConfidentialVM(memory="256M", vcpus=2, services=services, kernel_options=_KERNEL)
        self.vm.start()
        for path, place in ((program, "caller"), (program.parent / "layout", "layout")):
            self.vm.copy_in(path, f"/root/{place}")
        self.vm.copy_in(program.parent / "content", "/root/content")
        # Once as the input's processes do it: what else there is to read of the kernel's words is from the boot.
        self.vm.run(["sh", "-c", "dmesg -c >/dev/null; echo 5 >/proc/sys/kernel/hung_task_timeout_secs"])

    def close(self) -> None:
        self.vm.close()

    def run(self, data: bytes) -> None:
        """One input; AssertionError if something is left."""
        # A limit of the input before.
        limit = "echo 0 >/sys/module/veil/parameters/enc_limit"
        script = f"{limit}; /root/caller /root/layout /root/content; echo status $?; cat /dev/veil; dmesg -c"
        try:
            done = self.vm.run(["sh", "-c", script], stdin=data, timeout=_SECONDS)
        except VeilError as error:
            raise AssertionError(f"the guest ends: {error}") from error
        said = done.stdout.decode(errors="replace")
        complaint = _COMPLAINTS.search(said)
        assert complaint is None, f"the kernel complains: {said[complaint.start() :][:200] if complaint else ''}"
        status, left = re.search(r"status (\d+)", said), _LEFT.search(said)
        assert status is not None, "the process has no end"
        assert int(status[1]) in (0, _ALARM), f"the process ends with {status[1]}: {said[:200]}"
        assert left is not None, f"the driver says nothing of enclaves: {said[:200]}"
        assert left.groups() == ("0", "0"), f"the driver has {left[1]} enclaves and {left[2]} pages"
        self._look()

    def _look(self) -> None:
        first = self.vm.hypervisor.vcpus[0]
        services = self.vm.machine.hosted_program(first.contexts[1].vmcb.vmsa_pa)
        veilmon = self.vm.machine.hosted_program(first.contexts[0].vmcb.vmsa_pa)
        assert isinstance(services, ServiceDomain)
        assert isinstance(veilmon, VeilMon)
        (enc,) = (service for service in services.services if isinstance(service, EncService))
        # Services come back from a snapshot when they are entered first.
        assert not getattr(enc, "_enclaves", {}), "the service has an enclave that nobody has"
        owned = {owner.name: veilmon.book.count(owner) for owner in _OWNERS}
        assert not any(owned.values()), f"VeilMon's book has pages of nobody's: {owned}"
        assert not self.vm.hypervisor.enclaves, "the host has a context of nobody's"


@functools.cache
def _guest() -> _Guest:
    guest = _Guest()
    atexit.register(guest.close)
    return guest


def _run(data: bytes) -> None:
    guest = _guest()
    try:
        guest.run(data[:_LONGEST])
    except BaseException:
        # Whatever it was: the next input begins with a guest to which nothing has happened.
        atexit.unregister(guest.close)
        guest.close()
        _guest.cache_clear()
        raise


def _number(value: int) -> bytes:
    return bytes([value]) if value < 64 else b"\xff" + value.to_bytes(8, "big")


def _ask(call: MailboxCall, *args: int) -> bytes:
    """The first enclave's first window: this call, and it runs."""
    numbers = [*args, *([0] * (6 - len(args)))]
    return bytes([7, 0, 0, 2]) + b"".join(map(_number, numbers)) + bytes([call, 9, 0, 0])


def _write(va: int) -> bytes:
    return bytes([7, 0, 0, 4]) + _number(va) + bytes([9, 0, 0])


def _seeds() -> Iterable[bytes]:
    """An enclave that lives, and what happens to it."""
    # Whoever asks for seeds has the time for it; an input has not.
    _guest()
    return _inputs()


def _inputs() -> Iterator[bytes]:
    one, run, end = bytes([0, 0]), bytes([9, 0, 0]), bytes([1, 0])
    mapped = _ask(MailboxCall.MAP, ARENA, 8, 3)
    written = b"".join(_write(ARENA + at * 4096) for at in range(3))
    taken, limited = bytes([11, 0, 1, 200]), bytes([15, 0, 1])
    yield b"\0" + one + run + mapped + written + taken + run + written + run + end
    yield b"\0" + one + limited + run + mapped + written + bytes([0, 1, 9, 1, 0]) + written + bytes([0, 2]) + end
    yield b"\0" + one + mapped + _ask(MailboxCall.UNMAP, RUNTIME + 0x20000, 1) + run + taken + run
    yield b"\0" + one + bytes([13, 0, 1, 0, 13, 0, 3, 0, 5, 0, 1, 1, 7, 14, 0, 0, 1, 0, 0, 0]) + run
    yield b"\0" + bytes([2, 0, 0, 9, 1, 9, 2, 0, 1, 7, 8, 3, 9, 1, 9, 3, 0, 9, 1, 1, 1, 9, 4, 0, 9, 5, 0, 0, 0, 9])
    # Three threads: one makes and runs, one changes windows, one takes pages and closes.
    parts = [one + mapped + run * 8, bytes([8, 0, 0, 0, 2, 2, 8, 0, 0, 1, 1]) * 3, (taken + end + one) * 4]
    length = max(map(len, parts))
    yield b"\x02" + b"".join(part.ljust(length, b"\x09") for part in parts)


TARGETS = (Target("enclave-ioctls", _run, _seeds, max_bytes=_LONGEST, slow=True),)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that run the same commands: a CVM, and QEMU with the same kernel and initramfs."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bench.programs import build_program
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.guest.agent_protocol import AgentConnection, Event, Exited, Failed, Output
from veil.guest.cmdline import command_line
from veil.guest.initramfs import build_initramfs
from veil.guest.kernel import debian_kernel

__all__ = ["QEMU", "Guest", "QemuFailed", "QemuGuest", "QemuImage", "VeilGuest", "qemu_version"]

MEMORY = 512 << 20
QEMU = "qemu-system-x86_64"
_BOOT_SECONDS = 120.0
_COMMAND_SECONDS = 300.0
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
# What tells the kernel the rate of Veil's TSC; QEMU's runs at the rate of the computer's.
_TSC_OPTIONS = ("tsc_early_khz=", "lpj=")


class QemuFailed(Exception):
    """QEMU or its guest did not do what it should."""


class Guest(Protocol):
    """A booted guest."""

    name: str
    #: from the start to the exit of a first `true`
    boot_seconds: float

    def run(self, argv: Sequence[str]) -> float:
        """Run a command; seconds from sending it to its exit, which must be with status 0."""

    def put(self, source: Path, target: str) -> None:
        """Copy a program in."""

    def close(self) -> None:
        """End the guest."""


class VeilGuest:
    """A CVM, booted afresh."""

    def __init__(self, *, monitor: bool) -> None:
        self.name = "veil" if monitor else "no monitor"
        start = time.perf_counter()
        self.vm = ConfidentialVM(MEMORY, monitor=monitor, fresh=True)
        self.vm.start()
        self.run(["true"])
        self.boot_seconds = time.perf_counter() - start

    def run(self, argv: Sequence[str]) -> float:
        """See `Guest`."""
        start = time.perf_counter()
        result = self.vm.run(argv, env=_ENVIRONMENT, timeout=_COMMAND_SECONDS)
        seconds = time.perf_counter() - start
        if result.exit_status:
            raise RuntimeError(f"{argv} ended with status {result.exit_status}: {result.stderr!r}")
        return seconds

    def put(self, source: Path, target: str) -> None:
        """See `Guest`."""
        self.vm.copy_in(source, target)

    def close(self) -> None:
        """See `Guest`."""
        self.vm.close()


class QemuImage:
    """What QEMU loads: the files that Veil's guest has in its image."""

    def __init__(self, directory: Path) -> None:
        cache = Cache()
        kernel = debian_kernel(cache)
        self.release = kernel.release
        self.kernel = kernel.vmlinux
        self.initramfs = directory / "initramfs"
        self.initramfs.write_bytes(build_initramfs(cache, module_tree=kernel.modules))
        words = command_line(["quiet", "loglevel=4"]).split()
        rate = int(subprocess.check_output([build_program("tsc", directory)]))
        self.options = " ".join(
            [word for word in words if not word.startswith(_TSC_OPTIONS)]
            + [f"tsc_early_khz={rate}", f"lpj={rate * 1000 // 250}"]
        )


class QemuGuest:
    """QEMU's software CPU, one thread, without any encryption; four levels of page tables, as Veil's guests have."""

    name = "qemu"

    def __init__(self, image: QemuImage, *, cpu: str = "max,la57=off") -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="veil-bench-")
        path = Path(self._directory.name) / "agent"
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [
                QEMU, "-accel", "tcg,thread=single", "-machine", "pc", "-cpu", cpu, "-nodefaults", "-no-reboot",
                "-m", f"{MEMORY >> 20}M", "-display", "none", "-serial", "null",
                "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", image.options,
                "-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={path},server=on,wait=off",
                "-device", "virtserialport,chardev=agent,name=veil.agent",
            ],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            self._socket = self._connect(path)
            self._connection = AgentConnection()
            self._events: list[Event] = []
            self._unsent = b""
            self._connection.hello(1, realtime_ns=time.time_ns())
            self._until(lambda: self._connection.ready, _BOOT_SECONDS)
            self.run(["true"])
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.perf_counter() - start

    def _connect(self, path: Path) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                connection.connect(str(path))
                connection.setblocking(False)
                return connection
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                raise QemuFailed(f"QEMU did not start: {self._process.stderr.read().decode(errors='replace').strip()}")
            time.sleep(0.002)
        raise QemuFailed("QEMU does not answer")

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            left = end - time.monotonic()
            if left < 0:
                raise QemuFailed(f"the guest in QEMU was not done after {seconds:g} seconds")
            self._unsent += self._connection.take()
            readable, writable, _ = select.select([self._socket], [self._socket] if self._unsent else [], [], left)
            if writable:
                with contextlib.suppress(BlockingIOError):
                    self._unsent = self._unsent[self._socket.send(self._unsent) :]
            if readable:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise QemuFailed("QEMU ended")
                for event in self._connection.feed(data):
                    self._events.append(event)
                    if isinstance(event, Output):
                        self._connection.acknowledge(event)

    def _finish(self, job: int) -> None:
        ends: list[Exited | Failed] = []

        def done() -> bool:
            for event in self._events:
                if isinstance(event, Exited | Failed) and event.job == job:
                    ends.append(event)
            self._events.clear()
            return bool(ends)

        self._until(done, _COMMAND_SECONDS)
        end = ends[0]
        if isinstance(end, Failed) or end.status:
            raise QemuFailed(f"a command in QEMU failed: {end}")

    def run(self, argv: Sequence[str]) -> float:
        """See `Guest`."""
        start = time.perf_counter()
        job = self._connection.run(argv, environment=_ENVIRONMENT, directory="/root")
        self._connection.end(job)
        self._finish(job)
        return time.perf_counter() - start

    def put(self, source: Path, target: str) -> None:
        """See `Guest`."""
        job = self._connection.put(target, 0o755)
        self._connection.write(job, source.read_bytes())
        self._connection.end(job)
        self._finish(job)

    def close(self) -> None:
        """See `Guest`."""
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        if hasattr(self, "_socket"):
            self._socket.close()
        self._directory.cleanup()


def qemu_version() -> str | None:
    """The version's number, or None if QEMU is not installed."""
    if shutil.which(QEMU) is None:
        return None
    words = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return words[3] if len(words) > 3 else "?"

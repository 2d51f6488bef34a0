# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that run the same commands: a CVM, and QEMU with the same kernel and initramfs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Unpack

from bench.programs import build_program
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.cvm.configuration import Settings
from veil.guest.agent.protocol import AgentConnection, Event, Exited, Failed, Output
from veil.guest.initramfs.contents import build_initramfs
from veil.guest.linux.cmdline import command_line
from veil.guest.linux.kernel import debian_kernel

__all__ = [
    "ENVIRONMENT",
    "QEMU",
    "Cost",
    "Guest",
    "ProcessGuest",
    "QemuFailed",
    "QemuGuest",
    "QemuImage",
    "VeilGuest",
    "WorkerFailed",
    "domain_switches",
    "qemu_version",
]

MEMORY = 512 << 20
QEMU = "qemu-system-x86_64"
_BOOT_SECONDS = 120.0
_COMMAND_SECONDS = 300.0
#: of commands
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


class QemuFailed(Exception):
    """QEMU or its guest did not do what it should."""


class WorkerFailed(Exception):
    """The process of a guest of Veil's ended; what it said is on stderr."""


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock; seconds of processor time (user and system) of the process that runs the guest; and of the
    seconds by the clock those in which VeilMon and services ran."""

    wall: float
    processor: float
    hosted: float = 0


class Guest(Protocol):
    """A booted guest."""

    name: str
    #: from the start to the exit of a first `true`
    boot: Cost

    def run(self, argv: Sequence[str]) -> Cost:
        """Run a command; the cost from sending it to its exit, which must be with status 0."""

    def put(self, source: Path, target: str) -> None:
        """Copy a program in."""

    def close(self) -> None:
        """End the guest."""


def _stopwatch(
    processor_seconds: Callable[[], float], hosted_seconds: Callable[[], float] = lambda: 0.0
) -> Callable[[], Cost]:
    wall, processor, hosted = time.perf_counter(), processor_seconds(), hosted_seconds()
    return lambda: Cost(time.perf_counter() - wall, processor_seconds() - processor, hosted_seconds() - hosted)


def domain_switches(vm: ConfidentialVM) -> int:
    """One way each, since the launch."""
    return vm.hypervisor.counters().get("msr RUN_VMPL", 0)


class VeilGuest:
    """A CVM, booted afresh."""

    def __init__(self, name: str, **settings: Unpack[Settings]) -> None:
        self.name = name
        spent = _stopwatch(time.process_time)
        self.vm = ConfidentialVM(MEMORY, fresh=True, **settings)
        self.vm.start()
        self.run(["true"])
        self.boot = replace(spent(), hosted=self._hosted_seconds())

    def _hosted_seconds(self) -> float:
        return self.vm.machine.hosted_ns / 1e9

    def run(self, argv: Sequence[str]) -> Cost:
        """See `Guest`."""
        spent = _stopwatch(time.process_time, self._hosted_seconds)
        result = self.vm.run(argv, env=ENVIRONMENT, timeout=_COMMAND_SECONDS)
        cost = spent()
        if result.exit_status:
            raise RuntimeError(f"{argv} ended with status {result.exit_status}: {result.stderr!r}")
        return cost

    def put(self, source: Path, target: str) -> None:
        """See `Guest`."""
        self.vm.copy_in(source, target)

    def close(self) -> None:
        """See `Guest`."""
        self.vm.close()


class ProcessGuest:
    """A CVM, booted afresh in a process of its own (`bench.worker`)."""

    def __init__(self, name: str, *, count_instructions: bool = False) -> None:
        """`name`: "veil" or "no monitor"."""
        self.name = name
        environment = dict(os.environ)
        if count_instructions:
            environment["VEIL_ENGINE_COUNTS"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        #: totals of the engine and the host when it last answered
        self.counts: dict[str, int] = {}
        try:
            self.boot = self._answer()
        except BaseException:
            self.close()
            raise

    def _answer(self) -> Cost:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"the process of the guest {self.name!r} ended with {self._process.wait()}")
        answer = json.loads(line)
        self.counts = answer["counts"]
        return Cost(answer["wall"], answer["processor"], answer["hosted"])

    def _ask(self, **request: object) -> Cost:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def run(self, argv: Sequence[str]) -> Cost:
        """See `Guest`."""
        return self._ask(run=list(argv))

    def put(self, source: Path, target: str) -> None:
        """See `Guest`."""
        self._ask(put=str(source), target=target)

    def close(self) -> None:
        """See `Guest`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class QemuImage:
    """What QEMU loads: the files that Veil's guest has in its image."""

    def __init__(self, directory: Path) -> None:
        cache = Cache()
        kernel = debian_kernel(cache)
        self.release = kernel.release
        self.kernel = kernel.vmlinux
        self.initramfs = directory / "initramfs"
        self.initramfs.write_bytes(build_initramfs(cache, module_tree=kernel.modules))
        # QEMU's TSC runs at the rate of the computer's.
        rate = int(subprocess.check_output([build_program("tsc", directory)]))
        self.options = command_line(["quiet", "loglevel=4"], tsc_khz=rate)


class QemuGuest:
    """QEMU's software CPU, one thread, without any encryption; four levels of page tables, as Veil's guests have."""

    name = "qemu"

    def __init__(self, image: QemuImage, *, cpu: str = "max,la57=off") -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="veil-bench-")
        path = Path(self._directory.name) / "agent"
        spent = _stopwatch(self._processor_seconds)
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
        self.boot = spent()

    def _processor_seconds(self) -> float:
        if not hasattr(self, "_process"):
            return 0.0
        # After the name, which may have spaces in it: utime and stime are fields 14 and 15 (proc(5)).
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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

    def run(self, argv: Sequence[str]) -> Cost:
        """See `Guest`."""
        spent = _stopwatch(self._processor_seconds)
        job = self._connection.run(argv, environment=ENVIRONMENT, directory="/root")
        self._connection.end(job)
        self._finish(job)
        return spent()

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

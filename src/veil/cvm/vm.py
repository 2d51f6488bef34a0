# SPDX-License-Identifier: GPL-2.0-or-later
"""`ConfidentialVM`: silicon, host, monitor and guest tied together for users, tests and the command line.

with ConfidentialVM(memory="512M") as vm:
    print(vm.run(["uname", "-a"]).stdout.decode())
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from veil.cache import Cache, cache_key
from veil.cvm.plain_values import from_json, to_json
from veil.cvm.session import AgentSession
from veil.cvm.transport import VmTransport
from veil.errors import VeilError
from veil.guest.driver.build import build_driver, build_intruder, has_headers
from veil.guest.ingredients import ingredients_at_hand
from veil.guest.initramfs.archive import Node, build_initramfs, pack_cpio
from veil.guest.initramfs.audit_tools import audit_tools
from veil.guest.linux.cmdline import command_line
from veil.guest.linux.kernel import DEFAULT_SERIES, Kernel, debian_kernel, open_kernel, require_bootable
from veil.host import (
    DEFAULT_POLICY,
    ChannelListener,
    HostError,
    Hypervisor,
    LaunchIdentityBlock,
    PanicWatcher,
    RunResult,
    RunState,
)
from veil.host.devices import Platform
from veil.image.launch_image import PROTECTED_SERVICES, LaunchImage, ServicesImage, build_image, hosted_programs
from veil.installation import endorsement, owner_fingerprint
from veil.private_files import require_private
from veil.snp import Machine, SnpError, build_engine

__all__ = ["QUIET", "BootTimeout", "CommandTimeout", "ConfidentialVM", "Result", "parse_size"]

_SNAPSHOTS = "snapshots"
_SNAPSHOTS_KEPT = 8
_BOOT_TIMEOUT = 180.0
_CONSOLE_KEPT = 64 * 1024
_MIB_2 = 2 << 20
_HOSTED_VMPLS = (0, 1)
#: the kernel options of a CVM that is not watched
QUIET = ("quiet", "loglevel=4")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": _PATH, "HOME": "/root", "USER": "root", "TERM": "dumb", "LANG": "C.UTF-8"}


#: what values that no host of ours would have saved can end in, while devices work with them
_NONSENSE = (
    LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, RecursionError, MemoryError,
    struct.error,
)  # fmt: skip
_OURS = ("veil.host", "veil.snp", "veil.monitor", "veil.services", "veil.formats", "veil.guest")


class BootTimeout(VeilError):
    """The guest's agent did not come up in time."""


class CommandTimeout(VeilError):
    """A command ran longer than it was given."""


@dataclass(frozen=True)
class Result:
    """How a command ended: `exit_status` as shells give it, 128 + number for a signal."""

    stdout: bytes
    stderr: bytes
    exit_status: int


def parse_size(text: str | int) -> int:
    """Bytes from "512M", "4G", "1048576"; raises VeilError."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise VeilError(f"{text!r} is no size: write a number and K, M or G, as in 512M")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


class ConfidentialVM:
    """A confidential VM: booted the first time, resumed from a snapshot afterwards.

    The snapshot is keyed by everything that went in: sources of Veil, kernel, command line, sizes.
    """

    def __init__(
        self,
        memory: str | int = "512M",
        vcpus: int = 1,
        *,
        kernel: str | os.PathLike[str] | None = None,
        monitor: bool = True,
        fresh: bool = False,
        progress: Callable[[str], None] | None = None,
        console: Callable[[bytes], None] | None = None,
        kernel_options: Sequence[str] = QUIET,
        modules: Sequence[str] = (),
        owners: Sequence[bytes] | None = None,
        readers: Sequence[bytes] = (),
        policy: int = DEFAULT_POLICY,
        host_data: bytes = bytes(32),
        identity: LaunchIdentityBlock | None = None,
        report_version: int = 3,
        services: ServicesImage | None = PROTECTED_SERVICES,
        driver_options: str = "",
        files: Mapping[str, Node] | None = None,
        cache: Cache | None = None,
    ) -> None:
        """`kernel` is a file, or a series of Debian's ("6.1"). `fresh`: boot, neither use nor write a snapshot.

        `console` gets what the guest prints on its console while it boots and runs. `owners`: SHA-256 of the public
        keys of users who may read the log, make room in it and set rules; by default this installation's user.
        `readers`: of users who may read it. `policy`, `host_data` and `identity` are those of the SNP launch.
        `services`: the program at VMPL 1; the driver that the kernel asks them with is in the initramfs if Debian has
        headers for the kernel, with `driver_options` as its module parameters. `files`: more members of the initramfs
        (see `veil.guest.initramfs.userland`), measured with it.
        """
        self.memory = parse_size(memory)
        self.vcpus = vcpus
        self.has_monitor = monitor
        self._kernel_name = os.fspath(kernel) if kernel is not None else DEFAULT_SERIES
        self._fresh = fresh
        self._say = progress or (lambda _: None)
        self._console = console
        self._kernel_options = tuple(kernel_options)
        self._modules = tuple(modules)
        self._owners = tuple(owners) if owners is not None else (owner_fingerprint(),) if monitor else ()
        self._readers = tuple(readers) if monitor else ()
        self._policy, self._host_data, self._identity = policy, host_data, identity
        self._report_version = report_version
        self._services = services if monitor else None
        self._driver_options = driver_options
        self._files = dict(files or {})
        self._cache = cache or Cache()
        self._console_tail: deque[bytes] = deque()
        self._console_held = 0
        self._machine: Machine | None = None
        self._hypervisor: Hypervisor | None = None
        self._platform: Platform | None = None
        self._agent: AgentSession | None = None
        self._restored_from: str | None = None
        self.image: LaunchImage | None = None
        #: seconds from the launch to the agent's answer, if this VM was booted and not resumed
        self.boot_seconds: float | None = None
        if not 1 <= vcpus <= 4:
            raise VeilError(f"a CVM has 1 to 4 VCPUs, not {vcpus}")

    # Life

    def __enter__(self) -> ConfidentialVM:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Boot or resume until commands can run."""
        try:
            build_engine(self._say)
            if not self._fresh and self._resume():
                return
            self._boot()
            if not self._fresh:
                self._keep_snapshot()
        except SnpError as error:
            self.close()
            raise VeilError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def boot(self, console: Callable[[bytes], None] | None = None) -> None:
        """Boot afresh, with the console watched; `start` without snapshots."""
        if console is not None:
            self._console = console
        self._fresh = True
        self.start()

    def launch(self) -> None:
        """Build and measure the image, and stop before the first instruction; `connect` or `hypervisor.run` goes on."""
        try:
            self._launch()
        except SnpError as error:
            self.close()
            raise VeilError(str(error)) from error

    def close(self) -> None:
        """Give everything back; the guest is gone."""
        self._agent = None
        self._hypervisor = self._platform = None
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    @property
    def machine(self) -> Machine:
        """The SEV-SNP machine: views, RMP, VMSAs."""
        if self._machine is None:
            raise VeilError("the CVM is not running: use it in a `with` statement, or call start()")
        return self._machine

    @property
    def hypervisor(self) -> Hypervisor:
        """The untrusted host; `on_event` and `on_npf` are for those who test SNP software."""
        if self._hypervisor is None:
            raise VeilError("the CVM is not running: use it in a `with` statement, or call start()")
        return self._hypervisor

    @property
    def platform(self) -> Platform:
        """The host's devices."""
        if self._platform is None:
            raise VeilError("the CVM is not running: use it in a `with` statement, or call start()")
        return self._platform

    @property
    def agent(self) -> AgentSession:
        """The session with the agent in the guest."""
        if self._agent is None:
            raise VeilError("the guest is not up")
        return self._agent

    @property
    def console_output(self) -> bytes:
        """The last 64 KiB of the guest's console."""
        return b"".join(self._console_tail)

    # Commands

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Iterator[bytes] | None = None,
        stdout: Callable[[bytes], None] | None = None,
        stderr: Callable[[bytes], None] | None = None,
        env: Mapping[str, str] | None = None,
        directory: str = "/root",
        timeout: float | None = None,
    ) -> Result:
        """Run a command in the guest. Streams given as callables are not collected in the result."""
        with _explained(self):
            return Result(
                *self.agent.run(
                    argv,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    environment={**_ENVIRONMENT, **(env or {})},
                    directory=directory,
                    timeout=timeout,
                )
            )

    def copy_in(self, host_path: str | os.PathLike[str], guest_path: str) -> None:
        """Copy a file into the guest; mode bits go with it."""
        with _explained(self):
            self.agent.copy_in(Path(host_path), guest_path)

    def copy_out(self, guest_path: str, host_path: str | os.PathLike[str]) -> None:
        """Copy a file out of the guest."""
        with _explained(self):
            self.agent.copy_out(guest_path, Path(host_path))

    def shell(self, argv: Sequence[str] = ("/bin/sh", "-l"), *, output: Callable[[bytes], None] | None = None) -> int:
        """An interactive program on this terminal, which must be stdin; returns its exit status.

        `output` gets what it prints, by default stdout.
        """
        from veil.cvm.terminal import interactive, is_terminal

        if not is_terminal():
            raise VeilError("an interactive program needs a terminal as stdin; without one, use run()")
        with _explained(self):
            environment = {**_ENVIRONMENT, "TERM": os.environ.get("TERM", "vt100")}
            return interactive(self.agent, self.hypervisor, argv, environment, output)

    def user_transport(self, *, timeout: float = 30.0) -> VmTransport:
        """A user's connection to VeilMon, for `veil.remote.ChannelClient`; the guest runs while the user waits."""
        if not self.has_monitor:
            raise VeilError("without a monitor there is nobody at the other end of the secure channel")
        return VmTransport(self.hypervisor, self.platform.channel.open(), timeout=timeout)

    def listen(self, host: str = "127.0.0.1", port: int = 0) -> ChannelListener:
        """Carry users who come by TCP to VeilMon; `serve` runs the guest meanwhile."""
        if not self.has_monitor:
            raise VeilError("without a monitor there is nobody to carry users' connections to")
        listener = ChannelListener(self.hypervisor, self.platform.channel, host, port)
        listener.start()
        return listener

    def serve(self) -> None:
        """Run the guest until somebody calls `hypervisor.stop`; how a guest ends is an exception."""
        with _explained(self):
            self.hypervisor.run()

    def wait(self, seconds: float) -> None:
        """Let the guest run for so long."""
        with _explained(self):
            self.hypervisor.run(timeout=seconds)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write the whole machine to a file, for `ConfidentialVM.restore`."""
        self._let_monitor_finish()
        settings = {"memory": self.memory, "vcpus": self.vcpus, "monitor": self.has_monitor}
        sections = {
            "host": json.dumps(to_json(self.hypervisor.state())).encode(),
            "settings": json.dumps(settings).encode(),
        }
        try:
            self.machine.save(Path(path), sections)
        except SnpError as error:
            raise VeilError(str(error)) from error

    def _let_monitor_finish(self) -> None:
        """Its state and the services' are whole only between two calls: run on until no VCPU is in them."""
        vcpus = self.hypervisor.vcpus

        def at_rest() -> bool:
            return all(vcpu.vmpl not in _HOSTED_VMPLS or vcpu.state != RunState.RUNNABLE for vcpu in vcpus)

        if self.has_monitor and not at_rest() and self.hypervisor.run(until=at_rest, timeout=10.0) != RunResult.DONE:
            raise VeilError("the monitor did not come to rest; no snapshot was made")

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        *,
        console: Callable[[bytes], None] | None = None,
        services: ServicesImage | None = PROTECTED_SERVICES,
    ) -> ConfidentialVM:
        """A running CVM from a snapshot file; raises VeilError, whatever the file holds.

        What runs at VMPL 0 and 1 are the installed VeilMon and `services`, which the snapshot must have as they are
        installed. Everything else is as the file's maker left it: kernel, keys, owners, the launch digest in reports.
        """
        try:
            machine, sections = Machine.restore(Path(path), endorsement=endorsement, programs=hosted_programs(services))
        except SnpError as error:
            raise VeilError(str(error)) from error
        try:
            settings = json.loads(sections["settings"])
            vcpus, monitor = settings["vcpus"], settings["monitor"]
            if type(vcpus) is not int or type(monitor) is not bool:
                raise ValueError("a value is of another type")
            vm = cls(machine.memory_size, vcpus, monitor=monitor, console=console, services=services)
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            machine.close()
            raise VeilError(f"{path} is no snapshot of a CVM: {error!r}") from error
        except VeilError:
            machine.close()
            raise
        vm._restored_from = os.fspath(path)
        try:
            with _explained(vm):
                vm._attach(machine)
                vm.hypervisor.load(from_json(json.loads(sections["host"])))
                vm.connect()
        except BaseException:
            vm.close()
            raise
        return vm

    # Boot and resume

    def _find_kernel(self) -> Kernel:
        name = self._kernel_name
        if re.fullmatch(r"\d+\.\d+", name):
            return debian_kernel(self._cache, name, progress=self._say)
        return open_kernel(self._cache, Path(name), progress=self._say)

    def build_image(self) -> LaunchImage:
        """What a launch would measure, without launching: for who wants to know the digest beforehand."""
        build_engine(self._say)
        try:
            with Machine(_MIB_2) as machine:
                return self._build_image(machine)
        except SnpError as error:
            raise VeilError(str(error)) from error

    def ingredients(self) -> dict[str, str] | None:
        """Name and checksum of the kernel, packages and programs that go into the image; None until all are at hand."""
        return ingredients_at_hand(self._cache, self._kernel_name, driver=self._services is not None)

    def _build_image(self, machine: Machine) -> LaunchImage:
        kernel = self._find_kernel()
        require_bootable(kernel, monitor=self.has_monitor)
        driver = self._driver(kernel)
        tools = audit_tools(self._cache, self._say) if driver is not None else {}
        initramfs = build_initramfs(
            self._cache,
            module_tree=kernel.modules,
            modules=self._modules,
            driver=driver,
            driver_options=self._driver_options,
            extra=tools | self._files,
            progress=self._say,
        )
        return build_image(
            kernel.load(),
            initramfs,
            command_line(self._kernel_options),
            memory=self.memory,
            vcpus=self.vcpus,
            monitor=self.has_monitor,
            cpuid=machine.cpuid_entries(self.vcpus),
            owners=self._owners,
            readers=self._readers,
            services=self._services,
        )

    def _driver(self, kernel: Kernel) -> bytes | None:
        if self._services is None or not has_headers(kernel.release):
            return None
        return build_driver(self._cache, kernel, self._say)

    def build_intruder(self) -> bytes:
        """A kernel module for this guest that does what one would who took its kernel over; for demonstrations."""
        return build_intruder(self._cache, self._find_kernel(), self._say)

    def _launch(self) -> None:
        machine = Machine(self.memory, endorsement=endorsement, report_version=self._report_version)
        self._attach(machine)
        self.image = self._build_image(machine)
        self.hypervisor.launch(
            self.image.regions,
            protected=self.image.protected,
            policy=self._policy,
            host_data=self._host_data,
            identity=self._identity,
        )

    def _boot(self) -> None:
        self._launch()
        self._say("booting the CVM")
        start = time.monotonic()
        self.connect()
        self.boot_seconds = time.monotonic() - start

    def _attach(self, machine: Machine) -> None:
        self._machine = machine
        platform = Platform(
            machine.host_view(),
            vcpus=self.vcpus,
            now_ns=time.monotonic_ns,
            tsc=machine.tsc,
            console=self._console_bytes,
        )
        table = [(item.leaf, item.subleaf, *item[2:]) for item in machine.cpuid_entries(self.vcpus)]
        hypervisor = Hypervisor(
            machine,
            platform,
            self.vcpus,
            monitor=self.has_monitor,
            cpuid=table,
            certificates=lambda: machine.secure_processor.endorsement.certificate_table,
        )
        self._panic = PanicWatcher(hypervisor.stop)
        self._platform, self._hypervisor = platform, hypervisor

    def connect(self) -> None:
        """After `launch`: run until the guest's agent answers."""
        self._agent = AgentSession(self.hypervisor, self.platform.agent)
        with _explained(self):
            if not self._agent.open(secrets.randbits(63) | 1, os.urandom(32), timeout=_BOOT_TIMEOUT):
                raise BootTimeout(f"the guest did not come up in {_BOOT_TIMEOUT:.0f} seconds")

    def _console_bytes(self, data: bytes) -> None:
        self._console_tail.append(data)
        self._console_held += len(data)
        while self._console_held > _CONSOLE_KEPT:
            self._console_held -= len(self._console_tail.popleft())
        self._panic.feed(data)
        if self._console is not None:
            self._console(data)

    def _snapshot_path(self) -> Path | None:
        """Where a snapshot of this very configuration is or goes; None while a part of the image is not at hand."""
        ingredients = self.ingredients()
        if ingredients is None:
            return None
        key = cache_key(
            repr(sorted(ingredients.items())),
            _source_digest(),
            f"{self.memory} {self.vcpus} {self.has_monitor} {self._modules} {self._driver_options!r}",
            pack_cpio(self._files) if self._files else b"",
            f"{self._owners} {self._readers}",
            f"{self._policy} {self._host_data!r} {self._identity} {self._report_version}",
            repr(self._services),
            command_line(self._kernel_options),
        )
        return self._cache.directory(_SNAPSHOTS) / f"{key}.snapshot"

    def _resume(self) -> bool:
        path = self._snapshot_path()
        if path is None or not path.exists():
            return False
        try:
            require_private(path)
            machine, sections = Machine.restore(path, endorsement=endorsement, programs=hosted_programs(self._services))
            self._attach(machine)
            self.hypervisor.load(from_json(json.loads(sections["host"])))
            self.connect()
        except (SnpError, VeilError, KeyError, ValueError, PermissionError) as error:
            self._say(f"a snapshot in the cache was unusable and is made again ({error})")
            self.close()
            with suppress(OSError):
                path.unlink()
            return False
        with suppress(OSError):
            os.utime(path)
        return True

    def _keep_snapshot(self) -> None:
        path = self._snapshot_path()
        if path is None:
            return
        try:
            self.snapshot(path)
        except VeilError as error:
            # The command can run all the same.
            self._say(f"no snapshot for next time: {error}")
            return
        kept = sorted(path.parent.glob("*.snapshot"), key=lambda item: item.stat().st_mtime, reverse=True)
        for old in kept[_SNAPSHOTS_KEPT:]:
            old.unlink(missing_ok=True)


class _explained:
    """Turns what ends a guest into what its user should read."""

    def __init__(self, vm: ConfidentialVM) -> None:
        self._vm = vm

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, TimeoutError):
            raise CommandTimeout(str(error)) from error
        if isinstance(error, HostError):
            # A panic mostly shows itself to the host as the reset after it.
            explained = self._vm._panic.explain(error)
            if explained is not error:
                raise explained from error
        if isinstance(error, SnpError):
            raise VeilError(str(error)) from error
        if self._vm._restored_from is not None and isinstance(error, _NONSENSE) and _is_our_own(error):
            raise VeilError(f"the snapshot {self._vm._restored_from} cannot go on: {error!r:.200}") from error


def _is_our_own(error: BaseException) -> bool:
    """Did the machine, its host or the hosted code raise it, and not a caller's own function?"""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(_OURS)


def _source_digest() -> str:
    """Every source file of the package: another version's snapshot is not this one's."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.[chS]")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()

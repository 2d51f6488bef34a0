# SPDX-License-Identifier: GPL-2.0-or-later
"""`ConfidentialVM`: silicon, host, monitor and guest tied together for users, tests and the command line.

with ConfidentialVM(memory="512M") as vm:
    print(vm.run(["uname", "-a"]).stdout.decode())
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from veil.cache import Cache
from veil.cvm.attachments import Attachments
from veil.cvm.commands import ENVIRONMENT, Result
from veil.cvm.configuration import Configuration, Settings
from veil.cvm.console import Console
from veil.cvm.disks import Disk
from veil.cvm.enclaves import enclave_command, image_place
from veil.cvm.errors import BootTimeout, explained
from veil.cvm.firmware_board import boot_items
from veil.cvm.kept_snapshots import KeptSnapshots, SavedCvm, read_cvm, with_disks, with_network, write_cvm
from veil.cvm.measured import MeasuredCvm
from veil.cvm.networks import Network
from veil.cvm.running import Running, boot_timeout, launch_guest, with_host
from veil.cvm.session import AgentSession
from veil.errors import VeilError
from veil.host import ChannelListener, GuestPowerOff, HostError, Hypervisor
from veil.host.devices import BootItems, Platform
from veil.image.services_image import PROTECTED_SERVICES, ServicesImage
from veil.installation import endorsement
from veil.snp import Machine, SnpError, build_engine

if TYPE_CHECKING:
    from veil.cvm.tools import Tool
    from veil.cvm.transport import VmTransport
    from veil.image.launch_image import LaunchImage

__all__ = ["ConfidentialVM"]


class ConfidentialVM(MeasuredCvm):
    """A confidential VM: booted the first time, resumed from a snapshot afterwards.

    The snapshot is found by everything that went in: the configuration, Veil's sources, kernel, packages, programs.
    """

    @overload
    def __init__(
        self,
        configuration: Configuration,
        /,
        *,
        fresh: bool = ...,
        progress: Callable[[str], None] | None = ...,
        console: Callable[[bytes], None] | None = ...,
        cache: Cache | None = ...,
        tools: Sequence[Tool] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        memory: str | int = ...,
        vcpus: int = ...,
        *,
        fresh: bool = ...,
        progress: Callable[[str], None] | None = ...,
        console: Callable[[bytes], None] | None = ...,
        cache: Cache | None = ...,
        tools: Sequence[Tool] = ...,
        **settings: Unpack[Settings],
    ) -> None: ...

    def __init__(
        self,
        memory: Configuration | str | int = "512M",
        vcpus: int | None = None,
        *,
        fresh: bool = False,
        progress: Callable[[str], None] | None = None,
        console: Callable[[bytes], None] | None = None,
        cache: Cache | None = None,
        tools: Sequence[Tool] = (),
        **settings: Unpack[Settings],
    ) -> None:
        """`ConfidentialVM(configuration)`, or the configuration's fields: `memory` may be "4G", `kernel` a path.

        By default this installation's user is the owner. `fresh`: boot, neither use nor write a snapshot. `console`
        gets what the guest prints on its console while it boots and runs. `tools` look on (`veil.cvm.trace`).
        """
        if isinstance(memory, Configuration):
            if vcpus is not None or settings:
                raise TypeError("a configuration is whole: dataclasses.replace() makes another one")
            configuration = memory
        else:
            configuration = Configuration.make(memory, vcpus if vcpus is not None else 1, **settings)
        cache = cache or Cache()
        super().__init__(configuration, cache, progress or (lambda _: None))
        self._fresh = fresh
        self._tools = tools
        self._console = Console(console)
        self._kept = KeptSnapshots(cache)
        self._running: Running | None = None
        self._attachments = Attachments(self.configuration, cache, self._say)
        self._agent: AgentSession | None = None
        self.image: LaunchImage | None = None
        #: seconds from the launch to the agent's answer, if this VM was booted and not resumed
        self.boot_seconds: float | None = None

    # Life

    def __enter__(self) -> ConfidentialVM:
        # A restored one runs already: to start it would be to boot another guest in its place.
        if self._running is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Boot or resume until commands can run."""
        if not self.configuration.has_agent:
            raise VeilError("nobody in this guest can be told to run commands: it has its console (`veil boot`)")
        try:
            build_engine(self._say)
            self._attachments.open()
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
            self._console.watch = console
        self._fresh = True
        self.start()

    def run_until_off(self, console: Callable[[bytes], None]) -> None:
        """Boot a guest without Veil's agent, with the console watched, until it switches its machine off.

        `type_in` is the way to its serial port meanwhile.
        """
        self._console.watch = console
        build_engine(self._say)
        self.launch()
        self._say("booting the CVM")
        start = time.monotonic()
        try:
            with self._explained():
                self.hypervisor.run()
        except GuestPowerOff:
            self.boot_seconds = time.monotonic() - start

    def type_in(self, data: bytes) -> None:
        """Send to the guest's serial port. Safe in any thread; nothing happens if the guest is not there."""
        running = self._running
        if running is not None:
            running.hypervisor.post(lambda: running.platform.serial.feed(data))

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
        self._attachments.close()
        running, self._running = self._running, None
        if running is not None:
            running.machine.close()

    def _up(self) -> Running:
        if self._running is None:
            raise VeilError("the CVM is not running: use it in a `with` statement, or call start()")
        return self._running

    @property
    def machine(self) -> Machine:
        """The SEV-SNP machine: views, RMP, VMSAs."""
        return self._up().machine

    @property
    def hypervisor(self) -> Hypervisor:
        """The untrusted host; `on_event` and `on_npf` are for those who test SNP software."""
        return self._up().hypervisor

    @property
    def platform(self) -> Platform:
        """The host's devices."""
        return self._up().platform

    @property
    def agent(self) -> AgentSession:
        """The session with the agent in the guest."""
        if self._agent is None:
            raise VeilError("the guest is not up")
        return self._agent

    @property
    def console_output(self) -> bytes:
        """The last 64 KiB of the guest's console."""
        return self._console.output

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
        with self._explained():
            return Result(
                *self.agent.run(
                    argv,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    environment={**ENVIRONMENT, **(env or {})},
                    directory=directory,
                    timeout=timeout,
                )
            )

    def copy_in(self, host_path: str | os.PathLike[str], guest_path: str) -> None:
        """Copy a file into the guest; mode bits go with it."""
        with self._explained():
            self.agent.copy_in(Path(host_path), guest_path)

    def run_enclave(self, image: str | os.PathLike[str], arguments: Sequence[str] = (), **streams: Any) -> Result:
        """Run an enclave's program, from its image on this computer; `streams` as of `run`."""
        self.copy_in(image, image_place(Path(image)))
        return self.run(enclave_command(Path(image), arguments), **streams)

    def copy_out(self, guest_path: str, host_path: str | os.PathLike[str]) -> None:
        """Copy a file out of the guest."""
        with self._explained():
            self.agent.copy_out(guest_path, Path(host_path))

    def shell(self, argv: Sequence[str] = ("/bin/sh", "-l"), *, output: Callable[[bytes], None] | None = None) -> int:
        """An interactive program on this terminal, which must be stdin; returns its exit status.

        `output` gets what it prints, by default stdout.
        """
        from veil.cvm.terminal import interactive, is_terminal

        if not is_terminal():
            raise VeilError("an interactive program needs a terminal as stdin; without one, use run()")
        with self._explained():
            environment = {**ENVIRONMENT, "TERM": os.environ.get("TERM", "vt100")}
            return interactive(self.agent, self.hypervisor, argv, environment, output)

    def user_transport(self, *, timeout: float = 30.0) -> VmTransport:
        """A user's connection to VeilMon, for `veil.remote.ChannelClient`; the guest runs while the user waits."""
        if not self.has_monitor:
            raise VeilError("without a monitor there is nobody at the other end of the secure channel")
        # Here, because few commands speak to VeilMon, and what users need of X.509 and TLS takes long to import.
        from veil.cvm.transport import VmTransport

        return VmTransport(self.hypervisor, self.platform.channel.open(), timeout=timeout)

    def listen(self, host: str = "127.0.0.1", port: int = 0) -> ChannelListener:
        """Carry users who come by TCP to VeilMon; `serve` runs the guest meanwhile."""
        if not self.has_monitor:
            raise VeilError("without a monitor there is nobody to carry users' connections to")
        named = (*self.configuration.owners, *self.configuration.readers)
        listener = ChannelListener(self.hypervisor, self.platform.channel, host, port, named=named)
        listener.start()
        return listener

    def serve(self, *, end_with_kernel: bool = False, on_kernel_end: Callable[[VeilError], None] | None = None) -> None:
        """Run the guest until somebody calls `hypervisor.stop`; how a guest ends is an exception.

        A kernel's end is told to `on_kernel_end`, and VeilMon and the services run on for their users; it is raised
        when serving ends, by a signal too. `end_with_kernel`: it ends the machine at once.
        """
        kernel_end = self.hypervisor.kernel_end
        kernel_end.is_outlived = not end_with_kernel
        if on_kernel_end is not None:
            kernel_end.on_end = lambda error: on_kernel_end(self._explain_panic(error))
        with self._explained():
            try:
                self.hypervisor.run()
            except (KeyboardInterrupt, SystemExit):
                if kernel_end.error is None:
                    raise
            if kernel_end.error is not None:
                raise kernel_end.error

    def wait(self, seconds: float) -> None:
        """Let the guest run for so long."""
        with self._explained():
            self.hypervisor.run(timeout=seconds)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write the whole machine to a file, for `ConfidentialVM.restore`."""
        write_cvm(Path(path), self.machine, self.hypervisor, self.configuration)

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        *,
        console: Callable[[bytes], None] | None = None,
        services: ServicesImage | None = PROTECTED_SERVICES,
        disks: Sequence[Disk | str] = (),
        network: Network | str | None = None,
        tools: Sequence[Tool] = (),
    ) -> ConfidentialVM:
        """A running CVM from a snapshot file; raises VeilError, whatever the file holds.

        What runs at VMPL 0 and 1 are the installed VeilMon and the program of `services`, which the snapshot must have
        as they are installed. Everything else is as the file's maker left it, and configured: kernel, keys, owners,
        the services' settings, the launch digest in reports. Not in the file are the kernel's image and Debian's
        packages: `build_image` takes those that are here now, but no files that the snapshot names by their paths.
        `image` is None: nothing was launched here.

        `disks`: the guest's, as many as it has and in their order. A file does not choose which of your images are
        opened; each must be as it was when the snapshot was made.
        `network`: if the guest has one; other ports may be forwarded than before. Connections of before are gone.
        """
        saved = read_cvm(Path(path), services)
        try:
            configuration = with_network(with_disks(saved.configuration, disks), network)
            vm = cls(configuration, console=console, tools=tools)
            vm._attachments.open()
        except BaseException:
            saved.machine.close()
            raise
        vm._restored_from = os.fspath(path)
        try:
            with vm._explained():
                vm._take_over(saved)
        except BaseException:
            vm.close()
            raise
        return vm

    def _take_over(self, saved: SavedCvm) -> None:
        """Go on with a saved CVM, until its agent answers, if it has one."""
        self._attach(saved.machine)
        self.hypervisor.load(saved.host)
        self._tell_host()
        if self.configuration.has_agent:
            self.connect()

    def _tell_host(self) -> None:
        """What an honest host knows of the image beside its regions."""
        services = self.configuration.services
        if services is not None:
            self.hypervisor.hands_on_refusals = services.decides_refusals

    # Boot and resume

    def _launch(self) -> None:
        chosen = self.configuration
        self._attachments.open()
        machine = Machine(
            chosen.memory,
            firmware_size=self._assembly.firmware_size,
            far_memory=self._assembly.far_memory,
            endorsement=endorsement,
            report_version=chosen.report_version,
            hosted=chosen.monitor,
            cpu_features=chosen.features,
        )
        self._attach(machine, boot_items(self._assembly.boot_files), self._assembly.kernel_vmpl)
        self.image = self._build_image(machine)
        self._tell_host()
        launch_guest(self.hypervisor, self.image, chosen)

    def _boot(self) -> None:
        self._launch()
        self._say("booting the CVM")
        start = time.monotonic()
        self.connect()
        self.boot_seconds = time.monotonic() - start

    def _attach(self, machine: Machine, boot: BootItems | None = None, kernel_vmpl: int | None = None) -> None:
        disks, network = self._attachments.open()
        self._running = with_host(
            machine,
            self.configuration,
            disks=disks,
            network=network,
            console=self._console,
            say=self._say,
            boot=boot,
            kernel_vmpl=kernel_vmpl,
        )
        for tool in self._tools:
            tool.attach(machine, self._running.hypervisor)

    def connect(self) -> None:
        """After `launch`: run until the guest's agent answers."""
        self._agent = AgentSession(self.hypervisor, self.platform.agent)
        with self._explained():
            timeout = boot_timeout(self.configuration, self._tools)
            if not self._agent.open(secrets.randbits(63) | 1, os.urandom(32), timeout=timeout):
                raise BootTimeout(f"the guest did not come up in {timeout:.0f} seconds")

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self._explain_panic, self._restored_from)

    def _explain_panic(self, error: HostError) -> HostError:
        return self._running.panic.explain(error) if self._running is not None else error

    def _snapshot_path(self) -> Path | None:
        return self._kept.place(self.configuration, self.ingredients())

    def _resume(self) -> bool:
        path = self._snapshot_path()
        if path is None or not path.exists():
            return False
        try:
            self._take_over(self._kept.read(path, self.configuration))
        except (SnpError, VeilError, KeyError, ValueError, PermissionError) as error:
            self._say(f"a snapshot in the cache was unusable and is made again ({error})")
            self.close()
            self._kept.drop(path)
            return False
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
        self._kept.prune()

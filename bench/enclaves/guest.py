# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that runs programs as they are and shielded, with clocks and counts at the borders of enclaves."""

from __future__ import annotations

import ctypes
import shlex
import time
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.guests import ENVIRONMENT, domain_switches
from veil.cvm import ConfidentialVM
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.domains import ENCLAVE_VMPL, SERVICE_VMPL
from veil.formats.enclave_calls import EnclaveCall
from veil.formats.enclave_pages import WindowBlock, WindowState
from veil.formats.enclave_settings import ON, EncSettings
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.initramfs.archive import Node
from veil.host.observer_events import Event, ExitEvent
from veil.image.services_image import protected_services
from veil.services import KernelRequest
from veil.services.enc.service import EncService
from veil.services.protected import ProtectedServices
from veil.snp.exit_codes import ExitCode

__all__ = ["Cost", "EnclaveGuest", "Observer", "boot_guest"]

MEMORY = "1G"
_SECONDS = 300.0
#: System calls whose result is how many bytes were copied.
_TRANSFERS = frozenset({0, 1, 17, 18, 19, 20, 44, 45, 46, 47, 217, 295, 296})
_WRITE = 1


@dataclass(frozen=True)
class Cost:
    """Processor seconds of the thread that is host and core; and of them those that made and unmade enclaves."""

    seconds: float
    making: float
    unmaking: float
    switches: int
    """Domain switches, one way each."""
    requests: int
    """To VeilS-ENC."""
    output: bytes

    @property
    def running(self) -> float:
        """What a program took, from its first instruction on, and whoever started it."""
        return self.seconds - self.making - self.unmaking


def boot_guest(files: Mapping[str, Node]) -> ConfidentialVM:
    """A fresh one, with VeilS-ENC and these files. It has one VCPU."""
    return ConfidentialVM(MEMORY, files=dict(files), services=protected_services(EncSettings(mode=ON)), fresh=True)


class EnclaveGuest:
    """A running guest."""

    def __init__(self, vm: ConfidentialVM) -> None:
        self.vm = vm
        self.service = _enc_service(vm)
        self._watch = _Watch(self.service)
        self.run("ifconfig lo up; mkdir -p /mnt; mount -t tmpfs tmpfs /mnt")

    def run(self, script: str) -> Cost:
        """A shell script, which must end well. Not by the clock: other work on the computer would count."""
        switches, before = self.switches(), self._watch.totals()
        start = time.thread_time()
        result = self.vm.run(["sh", "-c", script], env=ENVIRONMENT, timeout=_SECONDS)
        seconds = time.thread_time() - start
        if result.exit_status:
            raise RuntimeError(f"{script!r} ended with status {result.exit_status}: {result.stderr[-500:]!r}")
        making, unmaking, requests = (now - then for now, then in zip(self._watch.totals(), before, strict=True))
        return Cost(seconds, making, unmaking, self.switches() - switches, int(requests), result.stdout)

    def switches(self) -> int:
        """Since the launch."""
        return domain_switches(self.vm)

    def put_image(self, name: str, image: EnclaveImage, directory: Path) -> str:
        """The command that starts it."""
        file = directory / f"{name}.enclave"
        file.write_bytes(image.pack())
        self.vm.copy_in(file, image_place(file))
        return shlex.join(enclave_command(file, ()))

    def observe(self) -> Observer:
        """Count what enclaves ask for. The host's Python does each switch meanwhile: no figure for time."""
        return Observer(self)


def _enc_service(vm: ConfidentialVM) -> EncService:
    vmsa = vm.hypervisor.vcpus[0].contexts[SERVICE_VMPL].vmcb.vmsa_pa
    program = vm.machine.hosted_program(vmsa)
    assert isinstance(program, ProtectedServices)
    (service,) = (item for item in program.services if isinstance(item, EncService))
    return service


class _Watch:
    """How long VeilS-ENC and the kernel make enclaves, from the first request to the end of the last."""

    def __init__(self, service: EncService) -> None:
        self._making = self._unmaking = self._began = 0.0
        self._requests = 0
        self._request = service.kernel_request
        service.kernel_request = self._watched  # type: ignore[method-assign]

    def totals(self) -> tuple[float, float, int]:
        """(seconds making, seconds unmaking, requests)."""
        return self._making, self._unmaking, self._requests

    def _watched(self, request: KernelRequest) -> Any:
        now = time.thread_time()
        self._requests += 1
        if request.call == EnclaveCall.CREATE:
            self._began = now
        outcome = self._request(request)
        if request.call in (EnclaveCall.FINISH, EnclaveCall.DESTROY) and isinstance(outcome, Generator):
            return self._timed(request.call, now, outcome)
        return outcome

    def _timed(self, call: int, start: float, work: Generator[Any, Any, bytes]) -> Generator[Any, Any, bytes]:
        answer = yield from work
        now = time.thread_time()
        if call == EnclaveCall.FINISH:
            self._making += now - self._began
        else:
            self._unmaking += now - start
        return answer


@dataclass
class _Counted:
    switches: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    bytes: int = 0


class Observer:
    """What enclaves ask for: system calls by number, -1 for VeilS-ENC; bytes that reads and writes copy."""

    def __init__(self, guest: EnclaveGuest) -> None:
        self._guest = guest
        self._hypervisor = guest.vm.hypervisor
        self._view = guest.vm.machine.view(vmpl=0)
        #: VMSA -> system call that goes on
        self._waiting: dict[int, int] = {}
        self._windows: dict[int, int] = {}
        self.total = _Counted()
        #: since each write of nothing to the standard output
        self.marked: list[_Counted] = []

    def __enter__(self) -> Observer:
        self._hypervisor.on_event = self._see
        return self

    def __exit__(self, *_: object) -> None:
        self._hypervisor.on_event = None

    def _see(self, event: Event) -> None:
        if not isinstance(event, ExitEvent) or event.vmpl != ENCLAVE_VMPL or event.code != ExitCode.VMGEXIT:
            return
        current = self._hypervisor.vcpus[event.vcpu].current
        assert current is not None
        vmsa = current.vmcb.vmsa_pa
        window = self._windows.get(vmsa) or self._find_window(vmsa)
        block = WindowBlock.from_buffer_copy(self._view.read(window, ctypes.sizeof(WindowBlock)))
        done = self._waiting.pop(vmsa, None)
        counted = [self.total, *self.marked[-1:]]
        if done in _TRANSFERS and block.result > 0:
            for item in counted:
                item.bytes += block.result
        if block.state == WindowState.SYSCALL:
            self._waiting[vmsa] = block.nr
            if (block.nr, block.args[0], block.args[2]) == (_WRITE, 1, 0):
                self._mark()
                return
        if block.state not in (WindowState.SYSCALL, WindowState.SERVICE):
            return
        number = block.nr if block.state == WindowState.SYSCALL else -1
        for item in counted:
            item.exits[number] += 1

    def _mark(self) -> None:
        switches = self._guest.switches()
        if self.marked:
            self.marked[-1].switches += switches
        self.marked.append(_Counted(-switches))

    def _find_window(self, vmsa: int) -> int:
        for enclave in self._guest.service._enclaves.values():
            if vmsa in enclave.contexts:
                self._windows[vmsa] = enclave.windows[enclave.contexts.index(vmsa)][0]
                return self._windows[vmsa]
        raise RuntimeError(f"no enclave has the context at {vmsa:#x}")

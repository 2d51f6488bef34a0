# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that steps an enclave by single instructions (SEV-Step) and brings in an event of its own at each of them: of
Veil's runtime, its entry and exit, and of the program (WeSee, Heckler).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest

from tests.enclave_machine import EnclaveMachine, Ending, Starved, assemble_program, build_program
from tests.monitor.harness import PAGE
from tests.services.enc.believing import BELIEVING_FLAGS, believes_events
from veil.formats.enclaves import RUNTIME, TOP
from veil.guest.enclaves.image import EnclaveImage
from veil.snp import ExitCode
from veil.snp.layouts import EVENT_VALID, SevFeatures, Vmcb

#: It has a handler for all that a host may pretend, and looks at all that one could change. Its memory comes by a page
#: fault, and goes again: then the address of that fault is one where nothing is. The second getpid is answered at once.
_PROGRAM = """
#define CALL(nr, a, b, c) mov eax, nr; mov rdi, a; mov rsi, b; mov rdx, c; syscall
_start:
    lea rbx, [rip + signals]
1:  movzx edi, byte ptr [rbx]
    test edi, edi
    jz 2f
    mov eax, 13
    lea rsi, [rip + action]
    xor edx, edx
    mov r10d, 8
    syscall
    inc rbx
    jmp 1b
2:  mov r10d, 0x22
    mov r8, -1
    xor r9d, r9d
    CALL(9, 0, 4096, 3)
    mov r15, rax
    mov [r15], rax
    CALL(11, r15, 4096, 0)
    lea r14, [rip + thread]
    CALL(158, 0x1002, r14, 0)
    ldmxcsr [rip + mxcsr]
    fldcw [rip + control]
    mov r12, 0x1212121212121212
    mov r13, 0x1313131313131313
    mov rbp, 0x1515151515151515
    pushfq
    or qword ptr [rsp], 0x400
    popfq
    CALL(39, 0, 0, 0)
    cmp eax, 1234
    jne bad
    mov eax, 39
again:
    syscall
2:  lea r8, [rip + 2b]
    cmp rcx, r8
    jne bad
    cmp rax, 1234
    jne bad
    test r11d, 0x400
    jz bad
    lea rbx, [rip + first]
    CALL(1, 1, rbx, 6)
    pushfq
    pop r8
    cld
    cmp rax, 6
    jne bad
    test r8d, 0x400
    jz bad
    rdfsbase r8
    cmp r8, r14
    jne bad
    stmxcsr [rip + seen]
    mov eax, [rip + seen]
    cmp eax, [rip + mxcsr]
    jne bad
    fnstcw [rip + seen]
    mov ax, [rip + seen]
    cmp ax, [rip + control]
    jne bad
    mov rax, 0x1212121212121212
    cmp r12, rax
    jne bad
    mov rax, 0x1313131313131313
    cmp r13, rax
    jne bad
    mov rax, 0x1515151515151515
    cmp rbp, rax
    jne bad
    mov eax, 1
    xor ecx, ecx
    cpuid
    mov eax, 100
    xor edx, edx
    mov ecx, 7
    div ecx
    cmp eax, 14
    jne bad
    cmp edx, 2
    jne bad
    lea rbx, [rip + good]
    CALL(1, 1, rbx, 5)
    CALL(231, 7, 0, 0)
bad:
    lea rbx, [rip + wrong]
    CALL(1, 1, rbx, 4)
    CALL(231, 8, 0, 0)
handler:
    lea rbx, [rip + steered]
    CALL(1, 1, rbx, 8)
    CALL(231, 9, 0, 0)
restorer:
    mov eax, 15
    syscall
    .section .rodata
signals: .byte 4, 5, 7, 8, 11, 0
first:   .ascii "first\\n"
good:    .ascii "good\\n"
wrong:   .ascii "bad\\n"
steered: .ascii "steered\\n"
    .balign 8
action:  .quad handler, 0x04000000, restorer, 0
mxcsr:   .long 0x5f80
control: .word 0x77f
    .bss
    .balign 64
thread:  .space 64
seen:    .space 64
"""
_HONEST = (7, b"first\ngood\n")
_ATTACKED = 125
_EXCEPTION, _SOFTWARE, _NMI, _ERROR_CODE = 3 << 8, 4 << 8, 2 << 8, 1 << 11
_VC, _PF, _UD, _GP, _DE = (
    29 | _EXCEPTION | _ERROR_CODE | 0x72 << 32, 14 | _EXCEPTION | _ERROR_CODE | 6 << 32, 6 | _EXCEPTION,
    13 | _EXCEPTION | _ERROR_CODE, 0 | _EXCEPTION,
)  # fmt: skip
_INT80 = 0x80
_HV = 28 | _EXCEPTION
#: What restricted injection refuses.
_REFUSED = (
    _VC, _PF, _UD, _GP, _DE, 1 | _EXCEPTION, 3 | _EXCEPTION, 16 | _EXCEPTION, 19 | _EXCEPTION, _INT80,
    _INT80 | _SOFTWARE, _INT80 | _EXCEPTION, 2 | _NMI, 28, 28 | _SOFTWARE, 0x20,
)  # fmt: skip
_ENTRY, _RETURN = 45, 30
_DIRECTION = 0x400


class _Run(NamedTuple):
    """The program's, step by step."""

    path: list[int]
    """RIP at each step."""
    ending: Ending

    def first_times(self) -> list[int]:
        """The steps at which an instruction is done for the first time."""
        seen: dict[int, int] = {}
        for step, rip in enumerate(self.path):
            seen.setdefault(rip, step)
        return list(seen.values())

    def edges(self) -> list[int]:
        """The first times of the instructions of the program, of the vectors, and of the runtime's way in and out."""
        found: set[int] = set()
        inside = [rip >= RUNTIME for rip in self.path]
        for step, rip in enumerate(self.path):
            if not inside[step]:
                found.add(rip)
            if not inside[step] or step == 0:
                found.update(self.path[max(0, step - _RETURN) : step + _ENTRY])
        return [step for step in self.first_times() if self.path[step] in found]


def _is_sound(ending: Ending) -> bool:
    """Nothing happened, or the enclave is at its end and has said no more than it would have."""
    if (ending.status, ending.output) == _HONEST:
        return True
    return ending.status == _ATTACKED and _HONEST[1].startswith(ending.output)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> EnclaveImage:
    return build_program(assemble_program(tmp_path_factory.mktemp("events"), _PROGRAM))


@pytest.fixture(scope="module")
def run(image: EnclaveImage) -> _Run:
    """Without an attack, which is what all others are compared with."""
    with EnclaveMachine(image) as machine:
        path: list[int] = []
        ending = None
        while ending is None:
            path.append(machine.registers.rip)
            ending = machine.step()
        assert (ending.status, ending.output) == _HONEST
        return _Run(path, ending)


@pytest.fixture
def machine(image: EnclaveImage) -> Iterator[EnclaveMachine]:
    with EnclaveMachine(image) as machine:
        machine.learn()
        yield machine


def _at(machine: EnclaveMachine, steps: set[int]) -> Iterator[int]:
    """The machine as it is before each of these steps; a test may go on from there and end the enclave."""
    for step in range(max(steps) + 1):
        if step in steps:
            state = machine.keep()
            yield step
            machine.back(state)
        ended = machine.step()
        assert ended is None or step == max(steps)


def _attack(machine: EnclaveMachine, event: int, *, restricted: bool = True) -> Ending:
    """Bring it in, and run the enclave to its end."""
    if not restricted:
        machine.registers.sev_features = int(SevFeatures.SNP)
    assert machine.inject(event) != ExitCode.INVALID
    return machine.finish_running()


def test_it_runs(machine: EnclaveMachine) -> None:
    ending = machine.finish_running()
    assert (ending.status, ending.output, ending.words) == (*_HONEST, ())


def test_every_event_is_refused_at_every_instruction(machine: EnclaveMachine, run: _Run) -> None:
    """Restricted injection, which VeilMon demands of the VMSA: nothing of the enclave changes."""
    steps, tried = set(run.first_times()), 0
    for step in range(len(run.path)):
        if step in steps:
            before = bytes(machine.registers)
            for event in _REFUSED:
                vmcb = Vmcb(vmsa_pa=machine.context, event_inj=event | EVENT_VALID, nrip=0x400000)
                assert machine.vmrun(vmcb) == ExitCode.INVALID
                tried += 1
            assert bytes(machine.registers) == before
        ending = machine.step()
    assert ending == run.ending
    assert tried > 10_000


@pytest.mark.parametrize("everywhere", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_hv_ends_the_enclave(machine: EnclaveMachine, run: _Run, everywhere: bool) -> None:
    """The one event that is left to a host, at the edges of the runtime and in the program; or at every instruction."""
    chosen = set(run.first_times() if everywhere else run.edges())
    for _ in _at(machine, chosen):
        ending = _attack(machine, _HV)
        assert ending.status == _ATTACKED
        assert _HONEST[1].startswith(ending.output)
        assert len(ending.words) == 1
        assert ending.words[0].startswith("vector 28 ")


#: By default the three by which others have steered, at the edges; `make soak` has all of them everywhere.
_SECOND_LINE = [
    *(pytest.param(event, False, id=name) for name, event in {"VC": _VC, "PF": _PF, "int 0x80": _INT80}.items()),
    *(
        pytest.param(event, True, id=f"{name} everywhere", marks=pytest.mark.soak)
        for name, event in {"VC": _VC, "PF": _PF, "int 0x80": _INT80, "UD": _UD, "GP": _GP}.items()
    ),
]


@pytest.mark.parametrize(("event", "everywhere"), _SECOND_LINE)
def test_the_second_line(machine: EnclaveMachine, run: _Run, event: int, everywhere: bool) -> None:
    """Without restricted injection the events arrive, and the runtime believes none of them."""
    chosen = set(run.first_times() if everywhere else run.edges())
    steered, ended = [], 0
    for step in _at(machine, chosen):
        ending = _attack(machine, event, restricted=False)
        ended += ending.status == _ATTACKED
        if not _is_sound(ending):
            steered.append((hex(run.path[step]), ending))
    # LDMXCSR, STMXCSR and RDFSBASE can be undefined opcodes: there it is the program's to handle.
    allowed = 3 if event == _UD else 0
    assert len(steered) == allowed, steered
    assert ended > len(chosen) * 0.9


def _again(run: _Run) -> int:
    """The step of the system call whose answer the runtime knows: of those in the program, the shortest way back."""
    outside = [step for step, rip in enumerate(run.path) if rip < RUNTIME]
    return min((back - step, step) for step, back in pairwise(outside) if back - step > 1)[1]


def _held(machine: EnclaveMachine, run: _Run, step: int) -> int:
    """CR2 when the program goes on, if the kernel has its page held when its system call has come to the runtime."""
    assert machine.step() is None
    assert machine.registers.rip >= RUNTIME
    machine.enclave(machine.number).tables.hold(run.path[step])
    while machine.registers.rip >= RUNTIME:
        assert machine.step() is None
    return int(machine.registers.cr2)


def test_the_kernel_takes_a_page_whose_instruction_is_looked_at(machine: EnclaveMachine, run: _Run) -> None:
    """When the system call has come to the runtime already: it is done all the same, and CR2 holds no real address."""
    step = _again(run)
    for _ in _at(machine, {step}):
        assert _held(machine, run, step) > TOP
        ending = machine.finish_running()
        assert (ending.status, ending.output) == _HONEST


def _division(run: _Run, machine: EnclaveMachine) -> int:
    """The step at which the program divides."""
    (division,) = (
        rip for rip in {*run.path} if rip < RUNTIME and machine.view(2).read(_frame(machine, rip), 2) == b"\xf7\xf1"
    )
    return run.path.index(division)


def _frame(machine: EnclaveMachine, va: int) -> int:
    found = machine.enclave(machine.number).tables.lookup(va & -PAGE)
    assert found is not None
    return found[0] + va % PAGE


def test_what_only_restricted_injection_stops(image: EnclaveImage, run: _Run) -> None:
    """A #DE where the program divides could have come from there: its handler runs, unless VMRUN refuses."""
    with EnclaveMachine(image) as machine:
        division = _division(run, machine)
    with EnclaveMachine(image) as machine:
        for _ in _at(machine, {division}):
            vmcb = Vmcb(vmsa_pa=machine.context, event_inj=_DE | EVENT_VALID)
            assert machine.vmrun(vmcb) == ExitCode.INVALID
            ending = _attack(machine, _DE, restricted=False)
            assert (ending.status, ending.output) == (9, b"first\nsteered\n")


@pytest.fixture(scope="module")
def believing(tmp_path_factory: pytest.TempPathFactory) -> EnclaveImage:
    with pytest.MonkeyPatch.context() as patch:
        sources = believes_events()
        patch.setattr("veil.guest.enclaves.runtime.build.runtime_sources", lambda: sources)
        patch.setattr("veil.guest.enclaves.runtime.build.RUNTIME_FLAGS", BELIEVING_FLAGS)
        return build_program(assemble_program(tmp_path_factory.mktemp("believing"), _PROGRAM))


@pytest.mark.parametrize("event", [_VC, _PF, _UD, _INT80, _HV], ids=["VC", "PF", "UD", "int 0x80", "HV"])
def test_a_runtime_that_believes_is_steered(believing: EnclaveImage, event: int) -> None:
    """The counter-test: with neither line the attacks of WeSee and Heckler work, in the program's own code."""
    with EnclaveMachine(believing) as machine:
        while not _steers(machine, event):
            assert machine.step() is None


def test_a_runtime_that_believes_keeps_addresses(believing: EnclaveImage, run: _Run) -> None:
    """The counter-test: what the kernel has held is a page fault that can be played again."""
    step = _again(run)
    with EnclaveMachine(believing) as machine:
        while machine.registers.rip != run.path[step]:
            assert machine.step() is None
        assert _held(machine, run, step) & -PAGE == run.path[step] & -PAGE


def _steers(machine: EnclaveMachine, event: int) -> bool:
    """Here, in the program's code?"""
    if machine.registers.rip >= RUNTIME:
        return False
    state = machine.keep()
    try:
        # The last one comes to every enclave.
        return not _is_sound(_attack(machine, event, restricted=event == _HV))
    except Starved:
        return False
    finally:
        machine.back(state)


def test_the_direction_flag_of_a_program_is_not_the_runtimes(believing: EnclaveImage, machine: EnclaveMachine) -> None:
    """Compiled code takes it for clear. Without CLD at the runtime's entry it is as the program has it."""
    assert not _direction_in_runtime(machine)
    with EnclaveMachine(believing) as other:
        assert _direction_in_runtime(other)


def _direction_in_runtime(machine: EnclaveMachine) -> bool:
    """When the program's system call has come to the runtime's compiled code."""
    while not (machine.registers.rflags & _DIRECTION and machine.registers.rip >= RUNTIME):
        assert machine.step() is None
    for _ in range(_ENTRY):
        assert machine.step() is None
    return bool(machine.registers.rflags & _DIRECTION)

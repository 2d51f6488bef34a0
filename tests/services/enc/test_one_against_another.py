# SPDX-License-Identifier: GPL-2.0-or-later
"""An enclave that would read another one, or the kernel: real code in both, and what it gets without protection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.enclave_machine import EnclaveMachine
from tests.machine_code import assemble
from tests.monitor.harness import PAGE
from tests.services.enc.enclave_bench import LAYOUT
from veil.formats.board import C_BIT
from veil.formats.enclaves import RUNTIME, WINDOW, Layout, Prot, Record, RecordKind
from veil.guest.enclaves.image import EnclaveImage
from veil.snp import ExitCode, Permission
from veil.snp.layouts import Vmcb

_VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9"
_DATA = 0x400000
_SECRET = 0x1234_5678_9ABC_DEF0
#: where an enclave puts what it finds, for all to see
_FOUND = WINDOW + 0x800
_WRITES = f"mov rax, {_SECRET}\nmov rbx, {_DATA}\nmov [rbx], rax\n{_VMGEXIT}"
_READS = f"mov rbx, {_DATA}\nmov rax, [rbx]\nmov rbx, {_FOUND}\nmov [rbx], rax\n{_VMGEXIT}"


def _image(code: str) -> EnclaveImage:
    content = assemble(code, RUNTIME).ljust(PAGE, b"\0") + assemble("hlt", RUNTIME + PAGE).ljust(PAGE, b"\0")
    records = (
        Record(RecordKind.ZERO, Prot.R | Prot.W, _DATA, 1),
        Record.content(Prot.R | Prot.X, RUNTIME, content),
    )
    layout = Layout(RUNTIME, RUNTIME + PAGE, 1, 0, LAYOUT.arena_pages, records, window_pages=2)
    return EnclaveImage(layout, content, "")


class _Two(EnclaveMachine):
    """The first has a secret in its memory; the second looks at the same address."""

    def __init__(self) -> None:
        super().__init__(_image(_WRITES))
        assert self.vmrun() == ExitCode.VMGEXIT
        other = _image(_READS)
        self.other = self.make(other.layout, other.content)

    def entry(self) -> int:
        """Where the second's page table says which page it reads."""
        tables = self.enclave(self.other).tables
        return tables._tables[1, _DATA >> 21] + (_DATA >> 12 & 511) * 8

    def look(self) -> ExitCode:
        """It reads, from its beginning."""
        context = self.enclave(self.other).contexts[0]
        self.vmsa(context).rip = RUNTIME
        return self.vmrun(Vmcb(vmsa_pa=context))

    def found(self) -> int:
        page = self.enclave(self.other).windows[0][0]
        return self.kernel.read_u64(page + _FOUND - WINDOW)


@pytest.fixture
def two() -> Iterator[_Two]:
    with _Two() as machine:
        yield machine


def _secret_page(two: _Two) -> int:
    found = two.enclave(two.number).tables.lookup(_DATA)
    assert found is not None
    assert two.view(2).read_u64(found[0]) == _SECRET
    return found[0]


def test_another_enclaves_memory(two: _Two) -> None:
    """Its page tables name its own pages only. If one named another's, the RMP would not know the difference."""
    page = _secret_page(two)
    assert two.look() == ExitCode.VMGEXIT
    assert two.found() == 0
    entry = two.view(2).read_u64(two.entry())
    two.view(0).write_u64(two.entry(), entry & ~(C_BIT - PAGE) | page)
    assert two.look() == ExitCode.VMGEXIT
    assert two.found() == _SECRET


def test_the_kernels_memory(two: _Two) -> None:
    """Not even page tables that name it would help: VMPL 2 has no right there, unless VMPL 0 gives it one."""
    (page,) = two.frames(1)
    two.kernel.write_u64(page, _SECRET)
    entry = two.view(2).read_u64(two.entry())
    two.view(0).write_u64(two.entry(), entry & ~(C_BIT - PAGE) | page)
    assert two.look() == ExitCode.NPF
    assert two.found() == 0
    two.host.psmash(page & -(2 << 20))
    two.view(0).rmpadjust(page, vmpl=2, permissions=Permission.R)
    assert two.look() == ExitCode.VMGEXIT
    assert two.found() == _SECRET

# SPDX-License-Identifier: GPL-2.0-or-later
"""The moves of a hostile kernel and its host, and one machine on which they are played."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import strategies as st

from tests.monitor.harness import (
    CPUID,
    FREE,
    FREE_2M,
    GHCB,
    HEADER,
    KERNEL_CAA,
    KERNEL_VMSA,
    LARGE,
    MONITOR,
    MONITOR_SIZE,
    MONITOR_VMSA,
    PAGE,
    RAM,
    SECRETS,
    SERVICES,
    SMALL,
    VMGEXIT,
    Bench,
    kernel_vmsa,
)
from veil.snp.errors import RmpViolation
from veil.snp.rmp import PageSize

GUEST = [SMALL + number * PAGE for number in range(6)] + [FREE, FREE + PAGE, FREE_2M, 0]


PROTECTED = [HEADER, MONITOR_VMSA, SECRETS, CPUID, GHCB, KERNEL_VMSA, MONITOR + MONITOR_SIZE - PAGE, SERVICES]


EDGES = [RAM, RAM - PAGE, 1 << 51, (1 << 64) - PAGE, MONITOR - PAGE, RAM - LARGE]


pages = st.sampled_from([*GUEST, *GUEST, KERNEL_CAA, *PROTECTED, *EDGES])


addresses = st.one_of(pages, st.builds(lambda page, low: page + low & (1 << 64) - 1, pages, st.integers(0, PAGE)))


words = st.integers(0, (1 << 64) - 1)


entries = st.lists(
    st.one_of(st.builds(lambda page, flags: page | flags, pages, st.integers(0, 15)), words), min_size=1, max_size=8
)


vcpu = st.integers(0, 1)


contexts = st.fixed_dictionaries(
    {},
    optional={
        "vmpl": st.integers(0, 5),
        "efer": st.sampled_from([0, 0x1000, 0x1D00]),
        "sev_features": st.integers(0, 3),
        "guest_exit_code": st.sampled_from([0, VMGEXIT]),
        "rax": st.integers(0, 8),
        "rcx": addresses,
        "rip": pages,
    },
)


operations = st.one_of(
    st.tuples(st.just("call"), vcpu, st.integers(0, 3), st.integers(0, 9), addresses, addresses, st.integers(0, 3)),
    st.tuples(st.just("raw"), vcpu, words, words, words, words, words),
    st.tuples(st.just("pvalidate"), vcpu, entries, st.integers(0, 600), st.integers(0, 600), st.integers(0, 1)),
    st.tuples(st.just("context"), pages, contexts),
    st.tuples(st.just("create"), vcpu, pages, pages, st.integers(0, 3)),
    st.tuples(st.just("delete"), vcpu, pages),
    st.tuples(st.just("remap"), vcpu, pages),
    st.tuples(st.just("write"), addresses, st.binary(max_size=32)),
    st.tuples(st.just("area"), vcpu, st.binary(max_size=64)),
    st.tuples(st.just("enter"), vcpu, st.sampled_from([0, VMGEXIT, 0x400])),
    st.tuples(st.just("share"), pages, st.booleans(), st.booleans()),
    st.tuples(st.just("split"), pages),
    st.tuples(st.just("rmpadjust"), pages, st.integers(0, 3), st.integers(0, 15), st.booleans()),
)


class Play:
    """One machine, and the moves of its guest and its host."""

    def __init__(self, bench: Bench | None = None) -> None:
        self.bench = bench or Bench(vcpus=2).boot()
        self.image = bytes(self.bench.memory.buf[HEADER : HEADER + 6 * PAGE])

    def call(self, index: int, protocol: int, call: int, *registers: int) -> None:
        bench = self.bench
        contexts = bench.monitor.domains.vcpus[index]
        if contexts.kernel.vmsa is None or contexts.kernel.caa is None:
            bench.enter(index)
            return
        # The host runs the context that the monitor knows: of others it would serve no call.
        bench.vcpus[index].vmsas[3] = contexts.kernel.vmsa
        bench.call(protocol, call, *registers, vcpu=index)

    def raw(self, index: int, *registers: int) -> None:
        self.call(index, registers[0] >> 32, registers[0] & 0xFFFFFFFF, *registers[1:])

    def pvalidate(self, index: int, items: list[int], count: int, first: int, reserved: int) -> None:
        caa = self.bench.monitor.domains.vcpus[index].kernel.caa
        if caa is not None:
            count = len(items) if count > 300 else count
            first = 0 if first > 300 else first
            data = struct.pack(f"<HHI{len(items)}Q", count, first, reserved, *items)
            self.bench.kernel.write(caa + 8, data)
            self.call(index, 0, 1, caa + 8)

    def context(self, page: int, fields: dict[str, int]) -> None:
        self.write(page, kernel_vmsa(**fields))

    def create(self, index: int, vmsa: int, caa: int, apic_id: int) -> None:
        self.call(index, 0, 2, vmsa, caa, apic_id)

    def delete(self, index: int, vmsa: int) -> None:
        self.call(index, 0, 3, vmsa)

    def remap(self, index: int, page: int) -> None:
        self.call(index, 0, 0, page)

    def write(self, gpa: int, data: bytes) -> None:
        with contextlib.suppress(RmpViolation):
            self.bench.kernel.write(gpa, data)

    def area(self, index: int, data: bytes) -> None:
        caa = self.bench.monitor.domains.vcpus[index].kernel.caa
        if caa is not None:
            self.bench.kernel.write(caa, data)

    def enter(self, index: int, exit_code: int) -> None:
        vmsa = self.bench.monitor.domains.vcpus[index].kernel.vmsa
        if vmsa is not None:
            self.bench.vmsa(vmsa).guest_exit_code = exit_code
        self.bench.enter(index)

    def share(self, gpa: int, assigned: bool, large: bool) -> None:
        # A host that takes away protected pages only stops the machine; see test_boot and test_on_machine.
        size = PageSize.SIZE_2M if large else PageSize.SIZE_4K
        if self.bench.monitor.book.is_kernel(gpa, size.pages * PAGE):
            self.bench.host.rmpupdate(gpa, assigned=assigned, size=size)

    def split(self, gpa: int) -> None:
        if 0 <= gpa < MONITOR:
            self.bench.host.psmash(gpa & -LARGE)

    def rmpadjust(self, gpa: int, vmpl: int, permissions: int, vmsa: bool) -> None:
        with contextlib.suppress(RmpViolation):
            self.bench.kernel.rmpadjust(gpa, vmpl=vmpl, permissions=permissions, vmsa=vmsa)

    def check(self) -> None:
        bench = self.bench
        bench.check()
        memory = bytearray(bench.memory.buf[HEADER : HEADER + 6 * PAGE])
        assert memory == self.image, "the monitor's pages changed"

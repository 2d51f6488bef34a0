# SPDX-License-Identifier: GPL-2.0-or-later
"""What levels ask of an honest host about memory of more privileged ones: every request that names some.

Each is made by VMPL 3 and refused, made by the level that owns the memory and obeyed, and made by VMPL 3 of a hostile
host, which has no protected ranges, and obeyed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.fakes import GHCB, MEMORY, PAGE, PAGE_2M, Guest
from veil.formats.launch_digest import PageType
from veil.host import (
    HostError,
    LaunchRefused,
    LaunchRegion,
    MalformedGhcb,
    ProtectedRange,
    Protection,
)
from veil.host.vcpu import Context

MONITOR, SERVICES, END = 0x300000, 0x310000, 0x320000
RANGES = [ProtectedRange(MONITOR, SERVICES - MONITOR, 0), ProtectedRange(SERVICES, END - SERVICES, 1)]
PRIVATE_PAGE, SHARED_PAGE = 0x3000, 0x4000  # offsets in a range
MESSAGES = 0x8000  # a shared page of the kernel
OWN_VMSAS = {0: 0x10000, 1: 0x11000, 3: 0x12000}

PSC, IOIO, MMIO_READ, MMIO_WRITE = 0x80000010, 0x7B, 0x80000001, 0x80000002
REQUEST, EXTENDED, AP_CREATION, APIC_IDS = 0x80000011, 0x80000012, 0x80000013, 0x80000017
SHARE, PRIVATE, SMASH = 2 << 52, 1 << 52, 3 << 52
STRING_OUT, STRING_IN = 0x3F8 << 16 | 1 << 4 | 1 << 2, 0x3F8 << 16 | 1 << 4 | 1 << 2 | 1


def made(vmpl: int, protection: Protection | None = None) -> Guest:
    """A VCPU that runs at this level, with a GHCB there."""
    guest = Guest(2, monitor=True)
    guest.machine.secure_processor = SimpleNamespace(guest_request=lambda request: (0, b"answer".ljust(PAGE, b"\0")))
    guest.host.certificates = lambda: b"certificates"
    for page in (MESSAGES, MESSAGES + PAGE, MONITOR + SHARED_PAGE, SERVICES + SHARED_PAGE):
        guest.view.private[page // PAGE] = False
    for level, vmsa in OWN_VMSAS.items():
        guest.host.vcpus[0].set_vmsa(level, vmsa).ghcb = GHCB
    guest.host.vcpus[0].start(vmpl)
    guest.host.protection = Protection(RANGES) if protection is None else protection
    return guest


def _psc(guest: Guest, entry: int) -> bool:
    answer = guest.call(PSC, data=struct.pack("<HHIQ", 0, 0, 0, entry))
    assert answer["info1"] == 0
    return answer["info2"] == 0


def _scratch(guest: Guest, base: int, code: int, info1: int, info2: int) -> bool:
    answer = guest.call(code, info1, info2, scratch=base + SHARED_PAGE)
    # What lies there is not a list of page state changes; that it was read is all that counts here.
    assert answer["info1"] == 0 or answer == {"info1": 2, "info2": 3}
    return answer["info1"] == 0


def _pages(guest: Guest, code: int, info1: int, info2: int, **registers: int) -> bool:
    answer = guest.call(code, info1, info2, **registers)  # type: ignore[arg-type]
    done = answer.pop("info1") == 0
    assert done or answer == {"info2": 5}
    return done


def _unregistered(guest: Guest, base: int) -> bool:
    """VMGEXIT with a GHCB that is not registered: the host writes its "no" into the page."""
    before = bytes(guest.view.memory[base + SHARED_PAGE : base + SHARED_PAGE + PAGE])
    try:
        guest.call_msr(base + SHARED_PAGE)
    except MalformedGhcb:
        assert bytes(guest.view.memory[base + SHARED_PAGE : base + SHARED_PAGE + PAGE]) == before
        return False
    return True


Ask = Callable[[Guest, int], bool]
#: (guest, where a range begins) -> did the host do it?
ASKED: dict[str, Ask] = {
    "share by MSR": lambda guest, base: guest.call_msr(base + PRIVATE_PAGE | SHARE | 0x014) == 0x015,
    "private by MSR": lambda guest, base: guest.call_msr(base + SHARED_PAGE | PRIVATE | 0x014) == 0x015,
    "share by page": lambda guest, base: _psc(guest, base + PRIVATE_PAGE | SHARE),
    "private by page": lambda guest, base: _psc(guest, base + SHARED_PAGE | PRIVATE),
    "split": lambda guest, base: _psc(guest, base + PRIVATE_PAGE | SMASH),
    "2 MiB around it": lambda guest, base: _psc(guest, (base & -PAGE_2M) | SHARE | 1 << 56),
    "register as GHCB": lambda guest, base: guest.call_msr(base + SHARED_PAGE | 0x012) == base + SHARED_PAGE | 0x013,
    "use as GHCB": _unregistered,
    "list of page state changes": lambda guest, base: _scratch(guest, base, PSC, 0, 0),
    "string from": lambda guest, base: _scratch(guest, base, IOIO, STRING_OUT, 4),
    "string to": lambda guest, base: _scratch(guest, base, IOIO, STRING_IN, 4),
    "load to": lambda guest, base: _scratch(guest, base, MMIO_READ, 0xFEE00000, 4),
    "store from": lambda guest, base: _scratch(guest, base, MMIO_WRITE, 0xFEE00000, 4),
    "message from": lambda guest, base: _pages(guest, REQUEST, base + SHARED_PAGE, MESSAGES),
    "answer to": lambda guest, base: _pages(guest, REQUEST, MESSAGES, base + SHARED_PAGE),
    "certificates to": lambda guest, base: _certificates(guest, base),
    "APIC IDs to": lambda guest, base: _pages(guest, APIC_IDS, base + SHARED_PAGE, 0, rax=1),
    "VMSA": lambda guest, base: _pages(guest, AP_CREATION, 1 << 32 | 3 << 16 | 1, base + PRIVATE_PAGE, rax=1),
}


def _certificates(guest: Guest, base: int) -> bool:
    guest.view.memory[MESSAGES + 0x34] = 5  # a request for a report
    return _pages(guest, EXTENDED, MESSAGES, MESSAGES + PAGE, rax=base + SHARED_PAGE, rbx=1)


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize(
    ("vmpl", "base"), [(3, MONITOR), (3, SERVICES), (1, MONITOR)], ids=["3 of 0", "3 of 1", "1 of 0"]
)
def test_refused_and_nothing_done(name: str, vmpl: int, base: int) -> None:
    guest = made(vmpl)
    view, vcpu = guest.view, guest.host.vcpus[1]
    kept = view.private.copy(), set(view.large), bytes(view.memory[MONITOR:END]), dict(vcpu.contexts)
    view.log.clear()
    assert not ASKED[name](guest, base)
    assert kept == (view.private, view.large, bytes(view.memory[MONITOR:END]), vcpu.contexts)
    assert not view.log, "neither RMPUPDATE nor PSMASH"
    assert guest.platform.log == []


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize(("vmpl", "base"), [(0, MONITOR), (0, SERVICES), (1, SERVICES)])
def test_the_owner_of_the_memory_may_ask(name: str, vmpl: int, base: int) -> None:
    if name == "2 MiB around it" and vmpl:
        pytest.skip("has the other range in it")
    assert ASKED[name](made(vmpl), base)


@pytest.mark.parametrize("name", ASKED)
def test_a_hostile_host_obeys(name: str) -> None:
    """The counter-test: the ranges are what stops it."""
    assert ASKED[name](made(3, Protection()), MONITOR)


def test_the_kernels_own_memory_is_its_own() -> None:
    guest = made(3)
    for gpa in (MONITOR - PAGE, END):
        assert guest.call_msr(gpa | SHARE | 0x014) == 0x015
        assert guest.view.is_shared(gpa, PAGE)


def test_vmsas_of_more_privileged_levels_are_protected_wherever_they_are() -> None:
    guest = made(3)
    for vmpl, vmsa in OWN_VMSAS.items():
        assert (guest.call_msr(vmsa | SHARE | 0x014) == 0x015) == (vmpl == 3)


@pytest.mark.parametrize("event", [0x80000014, 0x80000015, 0x80000016])
def test_doorbell_pages_are_not_offered(event: int) -> None:
    assert made(3).call(event, 1, MONITOR + SHARED_PAGE) == {"info1": 2, "info2": 6}


def test_devices_reach_what_the_kernel_may_name() -> None:
    guest = made(0)
    allows = guest.platform.dma_allows
    assert not allows(MONITOR + SHARED_PAGE, 1)
    assert not allows(MONITOR - 1, 2)
    assert allows(MONITOR - 1, 1)
    assert allows(END, PAGE)


def test_port_accesses_carry_their_level() -> None:
    for vmpl in (0, 3):
        for observed in (False, True):
            guest = made(vmpl)
            if observed:
                guest.host.on_event = lambda event: None
            guest.call(IOIO, 0x0CE0 << 16 | 1 << 6, 0, rax=7)
            guest.call(IOIO, 0x0CE0 << 16 | 1 << 6 | 1, 0)
            guest.call(IOIO, STRING_OUT, 2, data=b"ab")
            assert guest.platform.vmpls == [vmpl] * 4


def test_launch_tells_the_host() -> None:
    guest = Guest(monitor=True)
    guest.view.private[:] = [False] * len(guest.view.private)
    vmsa = LaunchRegion(0x1000, PageType.VMSA, b"vmsa")
    guest.host.launch([vmsa], protected=RANGES)
    allows = guest.host.protection.allows
    assert [allows(vmpl, MONITOR, PAGE) for vmpl in range(4)] == [True, False, False, False]
    assert [allows(vmpl, SERVICES, PAGE) for vmpl in range(4)] == [True, True, False, False]
    kernel = guest.host.vcpus[0].set_vmsa(3, 0x2000)
    assert not guest.host.may_name(kernel, vmsa.gpa, 1)
    assert guest.host.may_name(kernel, 0x2000, 1)


@pytest.mark.parametrize(
    "wrong",
    [ProtectedRange(8, PAGE, 0), ProtectedRange(0, 8, 0), ProtectedRange(0, 0, 0), ProtectedRange(MEMORY, PAGE, 0),
     ProtectedRange(0, PAGE, 4), ProtectedRange(0, PAGE, -1)],
)  # fmt: skip
def test_launch_refuses_ranges_that_cannot_be(wrong: ProtectedRange) -> None:
    guest = Guest(monitor=True)
    with pytest.raises(LaunchRefused, match="protected range"):
        guest.host.launch([LaunchRegion(0x1000, PageType.VMSA, b"vmsa")], protected=[wrong])


def test_snapshots_keep_it() -> None:
    saved = made(3).host.dump()
    again = made(3, Protection())
    again.host.load(saved)
    assert not ASKED["share by MSR"](again, MONITOR)
    for damaged in (None, [[1]], [["x", 1, 2]]):
        with pytest.raises(HostError, match=r"snapshot: .*protected"):
            again.host.load({**saved, "protected": damaged})


_ranges = st.builds(
    ProtectedRange, st.integers(0, 7).map(lambda page: page * PAGE), st.integers(1, 4).map(lambda n: n * PAGE),
    st.integers(0, 3),
)  # fmt: skip


@given(st.lists(_ranges, max_size=4), st.integers(0, 3), st.integers(0, 12 * PAGE), st.integers(1, 3 * PAGE))
def test_every_byte_counts(ranges: list[ProtectedRange], vmpl: int, gpa: int, length: int) -> None:
    """Against a model that looks at the first and the last byte of each page."""
    bytes_asked = {gpa, gpa + length - 1, *range(gpa & -PAGE, gpa + length, PAGE)} - set(range(gpa & -PAGE, gpa))
    closed = any(
        item.vmpl < vmpl and any(item.gpa <= at < item.gpa + item.size for at in bytes_asked) for item in ranges
    )
    assert Protection(ranges).allows(vmpl, gpa, length) == (not closed)


def test_context_of_a_level_that_does_not_run() -> None:
    """It is the context whose exit it is that counts, not what the VCPU runs by then."""
    guest = made(0)
    kernel: Context = guest.host.vcpus[0].contexts[3]
    assert not guest.host.may_name(kernel, MONITOR, PAGE)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Views: what hosted code and the host may do with guest memory."""

from __future__ import annotations

import pytest

from tests.snp.ciphers import AddingCipher
from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.errors import RmpViolation, SnpError
from veil.snp.guest_bus import GuestBus
from veil.snp.host_view import HostView
from veil.snp.memory import Memory
from veil.snp.rmp import (
    FAULT_ENC,
    FAULT_NOT_VALIDATED,
    FAULT_RMP,
    FAULT_VMPL,
    Adjustment,
    PageSize,
    Permission,
    Rmp,
    RmpResult,
)
from veil.snp.view import View

PAGE = 3 * PAGE_SIZE
SHARED = 100 * PAGE_SIZE
PAGES = 1024
END = PAGES * PAGE_SIZE


class Recorder:
    """Stands for the engine: remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, gpa: int, length: int) -> None:
        self.calls.append((gpa, length))


@pytest.fixture
def engine() -> Recorder:
    return Recorder()


@pytest.fixture
def bus(engine: Recorder) -> GuestBus:
    """Pages 3, 4 and 5 are validated; 4 is VMPL 3's to read, 5 to read and write."""
    memory = Memory(END)
    bus = GuestBus(memory, Rmp(memory.pages), AddingCipher(), on_code_write=engine)
    assert HostView(bus).rmpupdate(PAGE, assigned=True, count=3) is RmpResult.SUCCESS
    monitor = View(bus, 0)
    for page in (3, 4, 5):
        monitor.pvalidate(page * PAGE_SIZE)
    monitor.rmpadjust(4 * PAGE_SIZE, vmpl=3, permissions=Permission.R)
    monitor.rmpadjust(5 * PAGE_SIZE, vmpl=3, permissions=Permission.RW | Permission.UX)
    return bus


class TestView:
    def test_rmpadjust_of_many_pages(self, bus: GuestBus) -> None:
        monitor = View(bus, 0)
        assert monitor.rmpadjust_all([(PAGE, 2, 3, Permission.RW), (PAGE, 3, 2, Permission.R)])[0] is RmpResult.SUCCESS
        assert [int(monitor.rmpquery(page * PAGE_SIZE, vmpl=3).permissions) for page in (3, 4, 5)] == [3, 3, 7]
        assert [int(monitor.rmpquery(page * PAGE_SIZE, vmpl=2).permissions) for page in (3, 4, 5)] == [1, 1, 1]
        assert monitor.rmpadjust_all([(PAGE, 0, 3, Permission.R)])[0] is RmpResult.SUCCESS
        assert monitor.rmpadjust_all([])[0] is RmpResult.SUCCESS
        for vmpl, target, permissions in ((0, 4, 0), (0, 200, 0), (0, 3, 16), (3, 3, 0), (3, 1, 0)):
            view = View(bus, vmpl)
            code = view.rmpadjust(PAGE, vmpl=target, permissions=permissions)
            assert view.rmpadjust_all([(PAGE, 3, target, permissions)]) == (code, PAGE)
            assert code != RmpResult.SUCCESS

    def test_rmpadjust_of_many_pages_stops_where_one_would(self, bus: GuestBus) -> None:
        monitor = View(bus, 0)
        bus.rmp.vmsa_in_use = 4 * PAGE_SIZE
        pages = [(PAGE, 3, 3, Permission.RW), (PAGE, 3, 2, Permission.R)]
        assert monitor.rmpadjust_all(pages) == (RmpResult.FAIL_INUSE, 4 * PAGE_SIZE)
        assert not monitor.rmpquery(PAGE, vmpl=2).permissions
        bus.rmp.vmsa_in_use = None
        with pytest.raises(RmpViolation) as refused:
            monitor.rmpadjust_all([(PAGE, 4, 3, Permission.R)])
        assert refused.value.gpa == 6 * PAGE_SIZE
        assert [int(monitor.rmpquery(page * PAGE_SIZE, vmpl=3).permissions) for page in (3, 4, 5)] == [1, 1, 1]
        with pytest.raises(RmpViolation) as outside:
            monitor.rmpadjust_all([(END, 1, 3, Permission.R)])
        assert outside.value.gpa == END

    @pytest.mark.parametrize("wrong", [(-PAGE_SIZE, 1, 3, 1), (1 << 64, 1, 3, 1), (PAGE, -1, 3, 1), (PAGE, 1, 300, 1),
                                       (PAGE, 1, 3, 256)])  # fmt: skip
    def test_rmpadjust_of_what_it_cannot_be_given(self, bus: GuestBus, wrong: Adjustment) -> None:
        """Numbers are not cut to other pages or rights, and none of the pages is changed."""
        with pytest.raises(SnpError, match="RMPADJUST cannot be given"):
            View(bus, 0).rmpadjust_all([(PAGE, 1, 2, Permission.R), wrong])
        assert not View(bus, 0).rmpquery(PAGE, vmpl=2).permissions

    def test_a_few_pages_are_allowed_as_the_rmp_says(self, bus: GuestBus) -> None:
        """Python looks at their entries itself."""
        for vmpl, permissions in ((0, Permission.RW), (3, Permission.R), (3, Permission.UX), (3, Permission.RW)):
            view = View(bus, vmpl)
            for bus.rmp.vmsa_in_use in (None, 4 * PAGE_SIZE):
                for first in range(8):
                    for pages in range(1, 9 - first):
                        gpa, length = first * PAGE_SIZE + 5, pages * PAGE_SIZE - 5
                        fault, _ = bus.rmp.check_range(gpa, length, vmpl=vmpl, permissions=permissions)
                        assert view.allows(gpa, permissions, length) == (not fault)

    def test_fields_of_a_page(self, bus: GuestBus, engine: Recorder) -> None:
        bus.code_map[3] = 1
        view = View(bus, 0)
        view.write_fields(PAGE, [(8, 1 << 63), (PAGE_SIZE - 8, 5)])
        assert (view.read_u64(PAGE + 8), view.read_u64(PAGE + PAGE_SIZE - 8)) == (1 << 63, 5)
        assert engine.calls == [(PAGE, PAGE_SIZE)]
        for page, offset in ((PAGE + 8, 0), (PAGE, PAGE_SIZE - 7), (PAGE, -8)):
            with pytest.raises(SnpError):
                view.write_fields(page, [(offset, 1)])

    def test_fields_are_written_with_permission_only(self, bus: GuestBus) -> None:
        kernel = View(bus, 3)
        kernel.write_fields(5 * PAGE_SIZE, [(0, 1)])
        for page in (PAGE, 4 * PAGE_SIZE, 6 * PAGE_SIZE, SHARED, END, -PAGE_SIZE):
            with pytest.raises(RmpViolation):
                kernel.write_fields(page, [(0, 1)])
        bus.rmp.vmsa_in_use = 5 * PAGE_SIZE
        with pytest.raises(RmpViolation):
            kernel.write_fields(5 * PAGE_SIZE, [(0, 2)])
        assert kernel.read_u64(5 * PAGE_SIZE) == 1

    def test_integers_are_little_endian(self, bus: GuestBus) -> None:
        view = View(bus, 0)
        view.write(PAGE, bytes(range(1, 9)))
        assert view.read_u8(PAGE) == 1
        assert view.read_u16(PAGE + 1) == 0x0302
        assert view.read_u32(PAGE) == 0x04030201
        assert view.read_u64(PAGE) == 0x0807060504030201
        view.write_u8(PAGE, 0xFF)
        view.write_u16(PAGE + 2, 0xABCD)
        view.write_u32(PAGE + 4, 0x12345678)
        view.write_u64(PAGE + 8, 1 << 63)
        assert view.read(PAGE, 16).hex() == "ff02cdab785634120000000000000080"
        assert view.exchange_u8(PAGE, 7) == 0xFF
        assert view.read_u8(PAGE) == 7

    @pytest.mark.parametrize("value", [-1, 256, 1 << 70])
    def test_value_that_does_not_fit(self, bus: GuestBus, value: int) -> None:
        view = View(bus, 0)
        with pytest.raises(ValueError, match=r"range|byte"):
            view.write_u8(PAGE, value)
        with pytest.raises((ValueError, OverflowError)):
            view.exchange_u8(PAGE, value)
        assert view.read_u8(PAGE) == 0

    def test_levels(self, bus: GuestBus) -> None:
        view = View(bus, 3)
        with pytest.raises(RmpViolation) as caught:
            view.read_u64(PAGE + 8)
        assert (caught.value.gpa, caught.value.vmpl, caught.value.access) == (PAGE + 8, 3, "read")
        assert caught.value.fault == FAULT_RMP | FAULT_ENC | FAULT_VMPL
        assert str(caught.value) == "VMPL 3: read at 0x3008 refused: the level lacks the permission"
        assert view.read_u64(PAGE + PAGE_SIZE) == 0
        with pytest.raises(RmpViolation, match="write"):
            view.write_u8(PAGE + PAGE_SIZE, 1)
        view.write_u8(PAGE + 2 * PAGE_SIZE, 1)
        with pytest.raises(RmpViolation):
            view.exchange_u8(PAGE + PAGE_SIZE, 1)

    def test_execution(self, bus: GuestBus) -> None:
        View(bus, 3, 3).check_execute(5 * PAGE_SIZE)
        with pytest.raises(RmpViolation, match="execute"):
            View(bus, 3, 0).check_execute(5 * PAGE_SIZE)
        assert View(bus, 0).allows(PAGE, Permission.ALL, 3 * PAGE_SIZE)
        assert not View(bus, 0).allows(PAGE, Permission.ALL, 3 * PAGE_SIZE + 1)

    def test_unvalidated_page(self, bus: GuestBus) -> None:
        View(bus, 0).pvalidate(PAGE, validate=False)
        with pytest.raises(RmpViolation, match="not validated") as caught:
            View(bus, 0).read_u8(PAGE)
        assert caught.value.fault == FAULT_NOT_VALIDATED

    def test_private_and_shared_are_different(self, bus: GuestBus) -> None:
        view = View(bus, 0)
        with pytest.raises(RmpViolation) as caught:
            view.read_u8(PAGE, private=False)
        assert caught.value.fault == FAULT_RMP
        with pytest.raises(RmpViolation) as caught:
            view.read_u8(SHARED)
        assert caught.value.fault == FAULT_RMP | FAULT_ENC
        View(bus, 3).write_u32(SHARED, 0x01020304, private=False)
        assert HostView(bus).read_u32(SHARED) == 0x01020304

    def test_nothing_moves_if_one_page_refuses(self, bus: GuestBus) -> None:
        view = View(bus, 3)
        at = 5 * PAGE_SIZE - 4
        with pytest.raises(RmpViolation):
            view.write(at, b"x" * 8)
        with pytest.raises(RmpViolation) as caught:
            View(bus, 0).write(6 * PAGE_SIZE - 4, b"x" * 8)
        assert caught.value.gpa == 6 * PAGE_SIZE
        with pytest.raises(RmpViolation):
            View(bus, 0).zero(5 * PAGE_SIZE, 2 * PAGE_SIZE)
        assert not any(View(bus, 0).read(PAGE, 3 * PAGE_SIZE))

    def test_across_pages(self, bus: GuestBus) -> None:
        view = View(bus, 0)
        view.write_u64(PAGE + PAGE_SIZE - 3, 0x1122334455667788)
        assert view.read_u64(PAGE + PAGE_SIZE - 3) == 0x1122334455667788
        data = bytes(range(256)) * 33
        view.write(PAGE + 100, data)
        assert view.read(PAGE + 100, len(data)) == data

    def test_large_entry(self, bus: GuestBus) -> None:
        base = 512 * PAGE_SIZE
        HostView(bus).rmpupdate(base, assigned=True, size=PageSize.SIZE_2M)
        view = View(bus, 0)
        with pytest.raises(RmpViolation, match="2 MiB"):
            view.pvalidate(base + PAGE_SIZE)
        assert view.pvalidate(base, size=PageSize.SIZE_2M) == (RmpResult.SUCCESS, False)
        view.write_u64(base + 99 * PAGE_SIZE, 5)
        with pytest.raises(RmpViolation):
            View(bus, 1).read_u64(base + 99 * PAGE_SIZE)
        with pytest.raises(RmpViolation):
            HostView(bus).write_u8(base + 99 * PAGE_SIZE, 1)
        assert view.read_u64(base + 99 * PAGE_SIZE) == 5
        assert view.rmpquery(base + PAGE_SIZE, vmpl=0).size is PageSize.SIZE_2M

    @pytest.mark.parametrize(
        ("gpa", "length"),
        [(-1, 1), (-PAGE_SIZE, 8), (END, 1), (END - 4, 8), (1 << 51, 8), (1 << 64, 8), (-8, 16), (PAGE, 1 << 64)],
    )
    @pytest.mark.parametrize("private", [True, False])
    def test_outside(self, bus: GuestBus, gpa: int, length: int, private: bool) -> None:
        HostView(bus).rmpupdate(END - PAGE_SIZE, assigned=private)
        view = View(bus, 0)
        if private:
            view.pvalidate(END - PAGE_SIZE)
        with pytest.raises(RmpViolation):
            view.read(gpa, length, private=private)
        if length < 100:
            with pytest.raises(RmpViolation):
                view.write(gpa, bytes(length), private=private)
            with pytest.raises(RmpViolation):
                HostView(bus).write(gpa, bytes(length))
        with pytest.raises(RmpViolation):
            view.zero(gpa, length, private=private)
        with pytest.raises(RmpViolation, match="outside guest memory"):
            HostView(bus).read(gpa, length)
        with pytest.raises(RmpViolation, match="outside guest memory"):
            HostView(bus).zero(gpa, length)
        assert not HostView(bus).is_shared(gpa, length)
        assert not HostView(bus).is_private(gpa, length)

    def test_nothing_is_always_allowed(self, bus: GuestBus) -> None:
        for view in (View(bus, 3), HostView(bus)):
            assert view.read(PAGE, 0) == b""
            view.write(PAGE, b"")
            view.zero(PAGE, 0)
            with pytest.raises(SnpError, match="negative"):
                view.read(PAGE, -1)
            with pytest.raises(SnpError, match="negative"):
                view.zero(PAGE, -1)

    def test_running_vmsa_is_not_written(self, bus: GuestBus) -> None:
        view = View(bus, 0)
        view.rmpadjust(PAGE, vmpl=1, permissions=0, vmsa=True)
        view.write_u8(PAGE, 1)
        bus.rmp.vmsa_in_use = PAGE
        for write in (view.write_u8, view.write_u64, view.exchange_u8, view.zero):
            with pytest.raises(RmpViolation):
                write(PAGE, 2)
        assert view.read_u8(PAGE) == 1
        bus.rmp.vmsa_in_use = None
        view.write_u8(PAGE, 3)

    def test_bad_level(self, bus: GuestBus) -> None:
        for vmpl, cpl in ((4, 0), (-1, 0), (0, 4), (0, -1)):
            with pytest.raises(SnpError):
                View(bus, vmpl, cpl)

    def test_instructions_need_cpl0(self, bus: GuestBus) -> None:
        view = View(bus, 0, 3)
        with pytest.raises(RmpViolation, match="CPL"):
            view.pvalidate(PAGE)
        with pytest.raises(RmpViolation, match="CPL"):
            view.rmpadjust(PAGE, vmpl=1, permissions=0)
        with pytest.raises(RmpViolation, match="CPL"):
            view.rmpquery(PAGE, vmpl=1)


class TestHostView:
    def test_private_pages_are_ciphertext(self, bus: GuestBus) -> None:
        View(bus, 0).write(PAGE + 16, b"secret")
        host = HostView(bus)
        page = View(bus, 0).read(PAGE, PAGE_SIZE)
        cipher = bus.encryption.encrypt_page(PAGE, page)
        assert host.read(PAGE, PAGE_SIZE) == cipher
        assert host.read(PAGE + 16, 6) == cipher[16:22] != b"secret"
        assert host.read_u64(PAGE + 16) == int.from_bytes(cipher[16:24], "little")
        assert host.read_u8(PAGE + 16) == cipher[16]
        assert b"secret" not in host.read(0, END)

    def test_reads_across_owners(self, bus: GuestBus) -> None:
        host = HostView(bus)
        host.write(2 * PAGE_SIZE, b"h" * PAGE_SIZE)
        View(bus, 0).write(PAGE, b"g" * PAGE_SIZE)
        got = host.read(PAGE - 4, 8)
        assert got[:4] == b"hhhh"
        assert got[4:] != b"gggg"

    def test_private_pages_refuse_writes(self, bus: GuestBus) -> None:
        host = HostView(bus)
        for write in (host.write_u8, host.write_u16, host.write_u32, host.write_u64, host.zero):
            with pytest.raises(RmpViolation) as caught:
                write(PAGE, 1)
            assert caught.value.vmpl is None
        with pytest.raises(RmpViolation) as caught:
            host.write(PAGE - 4, b"x" * 8)
        assert caught.value.gpa == PAGE
        assert str(caught.value) == "host: write at 0x3000 refused: the page is the guest's"
        assert not any(host.read(PAGE - 4, 4))
        assert host.is_shared(PAGE - 4, 4)
        assert not host.is_shared(PAGE - 4, 5)
        assert host.is_private(PAGE)
        assert not host.is_private(PAGE - 4, 5)

    def test_integers(self, bus: GuestBus) -> None:
        host = HostView(bus)
        host.write_u64(SHARED, 0x0807060504030201)
        assert (host.read_u8(SHARED), host.read_u16(SHARED), host.read_u32(SHARED)) == (1, 0x0201, 0x04030201)
        host.write_u32(SHARED + PAGE_SIZE - 2, 0xAABBCCDD)
        assert host.read_u32(SHARED + PAGE_SIZE - 2) == 0xAABBCCDD
        host.write_u16(SHARED, 0xFFFF)
        host.zero(SHARED, 1)
        assert host.read_u16(SHARED) == 0xFF00

    def test_page_that_changes_hands_is_noise(self, bus: GuestBus) -> None:
        host, view = HostView(bus), View(bus, 0)
        view.write(PAGE, b"secret")
        ciphertext = host.read(PAGE, PAGE_SIZE)
        assert host.rmpupdate(PAGE, assigned=False) is RmpResult.SUCCESS
        assert host.read(PAGE, PAGE_SIZE) == ciphertext
        # Back again unchanged, the guest gets its plaintext (until then it had to accept the page again).
        host.rmpupdate(PAGE, assigned=True)
        view.pvalidate(PAGE)
        assert view.read(PAGE, 6) == b"secret"
        # What the host wrote while it had the page is noise to the guest.
        host.rmpupdate(PAGE, assigned=False)
        host.write(PAGE, b"planted")
        host.rmpupdate(PAGE, assigned=True)
        view.pvalidate(PAGE)
        assert view.read(PAGE, 7) != b"planted"

    def test_reassigning_an_assigned_page_keeps_its_content(self, bus: GuestBus) -> None:
        view = View(bus, 0)
        view.write(PAGE, b"data")
        HostView(bus).rmpupdate(PAGE, assigned=True)
        view.pvalidate(PAGE)
        assert view.read(PAGE, 4) == b"data"

    def test_pages_nobody_wrote_stay_zero(self, bus: GuestBus) -> None:
        host, view = HostView(bus), View(bus, 0)
        host.rmpupdate(SHARED, assigned=True)
        view.pvalidate(SHARED)
        assert not any(view.read(SHARED, PAGE_SIZE))
        host.rmpupdate(SHARED, assigned=False)
        assert not any(host.read(SHARED, PAGE_SIZE))

    def test_rmpupdate_of_a_range(self, bus: GuestBus) -> None:
        host = HostView(bus)
        host.write(SHARED, b"a" * 4 * PAGE_SIZE)
        host.rmpupdate(SHARED + 2 * PAGE_SIZE, assigned=True, immutable=True)
        before = bus.memory.buf[SHARED + 2 * PAGE_SIZE : SHARED + 4 * PAGE_SIZE].tobytes()
        # The two that were done are changed, the others are not.
        assert host.rmpupdate(SHARED, assigned=True, count=4) is RmpResult.FAIL_PERMISSION
        assert bus.memory.buf[SHARED : SHARED + PAGE_SIZE] == bus.encryption.decrypt_page(SHARED, b"a" * PAGE_SIZE)
        assert bus.memory.buf[SHARED + 2 * PAGE_SIZE : SHARED + 4 * PAGE_SIZE] == before
        for gpa, count in ((-PAGE_SIZE, 1), (END - PAGE_SIZE, 2), (0, -1), (0, 1 << 60)):
            assert host.rmpupdate(gpa, assigned=True, count=count) is RmpResult.FAIL_INPUT

    def test_hole(self) -> None:
        memory = Memory(8 * PAGE_SIZE)
        bus = GuestBus(memory, Rmp(8, holes=[range(2, 4)]), AddingCipher())
        host, view = HostView(bus), View(bus, 0)
        for gpa in (2 * PAGE_SIZE - 1, 3 * PAGE_SIZE):
            with pytest.raises(RmpViolation, match="outside guest memory"):
                host.read(gpa, 2)
            with pytest.raises(RmpViolation, match="outside guest memory"):
                host.write(gpa, b"ab")
            with pytest.raises(RmpViolation, match="outside guest memory"):
                view.read(gpa, 2, private=False)
        assert host.rmpupdate(2 * PAGE_SIZE, assigned=True) is RmpResult.FAIL_INPUT
        host.write(4 * PAGE_SIZE, b"ab")


class TestCodeMap:
    """Translated code must not outlive the bytes it came from."""

    def test_writes_are_told_where_code_is(self, bus: GuestBus, engine: Recorder) -> None:
        view, host = View(bus, 0), HostView(bus)
        view.write_u8(PAGE, 1)
        host.write_u8(SHARED, 1)
        assert engine.calls == []
        bus.code_map[[4, 100, 101]] = 1
        view.write_u64(PAGE, 1)
        assert engine.calls == []
        view.write_u64(4 * PAGE_SIZE + 8, 1)
        view.exchange_u8(4 * PAGE_SIZE, 1)
        view.write(4 * PAGE_SIZE - 2, b"1234")
        view.zero(3 * PAGE_SIZE, 3 * PAGE_SIZE)
        host.write_u16(SHARED + 4, 1)
        host.zero(SHARED + PAGE_SIZE, 10)
        assert engine.calls == [
            (4 * PAGE_SIZE + 8, 8),
            (4 * PAGE_SIZE, 1),
            (4 * PAGE_SIZE - 2, 4),
            (3 * PAGE_SIZE, 3 * PAGE_SIZE),
            (SHARED + 4, 2),
            (SHARED + PAGE_SIZE, 10),
        ]

    def test_changing_hands_rewrites_the_page(self, bus: GuestBus, engine: Recorder) -> None:
        host = HostView(bus)
        host.write(SHARED, b"code")
        bus.code_map[:] = 1
        host.rmpupdate(SHARED, assigned=True, count=3)
        assert engine.calls == [(SHARED, PAGE_SIZE)]

    def test_map_and_rmp_must_fit(self) -> None:
        memory = Memory(4 * PAGE_SIZE)
        with pytest.raises(SnpError, match="code map"):
            GuestBus(memory, Rmp(4), AddingCipher(), code_map=bytearray(3))
        with pytest.raises(SnpError, match="RMP"):
            GuestBus(memory, Rmp(5), AddingCipher())

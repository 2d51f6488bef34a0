# SPDX-License-Identifier: GPL-2.0-or-later
"""The boot data, read back as the kernel and the processor would."""

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guest.linux.images import elf
from veil.formats import board
from veil.formats.acpi import tables_with_rsdp
from veil.formats.launch_digest import PageType
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.elf import parse_kernel
from veil.guest.errors import GuestImageError
from veil.guest.linux import layout
from veil.guest.linux.boot import LinuxBoot, e820_map, prepare_linux
from veil.guest.linux.cmdline import command_line, default_options
from veil.guest.linux.layout import GIB, MIB, AddressRange, address_space

KERNEL = parse_kernel(elf([(0x1000000, b"k" * 5000, 5000), (0x3000000, b"d" * 100, 0x1200000)]), "kernel")
INITRD = b"initrd" * 5000


def boot(memory: int = 512 * MIB, *, monitor: int = 16 * MIB, vcpus: int = 1, c_bit: int | None = 51) -> LinuxBoot:
    return prepare_linux(KERNEL, INITRD, "console=ttyS0", memory=memory, vcpus=vcpus, monitor_size=monitor, c_bit=c_bit)


def memory_of(plan: LinuxBoot) -> dict[int, bytes]:
    pages = {}
    for region in plan.regions:
        assert region.gpa % PAGE_SIZE == 0
        assert len(region.data) % PAGE_SIZE == 0
        assert region.data
        for at in range(0, len(region.data), PAGE_SIZE):
            assert region.gpa + at not in pages
            pages[region.gpa + at] = region.data[at : at + PAGE_SIZE]
    return pages


def read(pages: dict[int, bytes], address: int, size: int) -> bytes:
    out = b""
    while len(out) < size:
        page = pages[(address + len(out)) & -PAGE_SIZE]
        out += page[(address + len(out)) % PAGE_SIZE :][: size - len(out)]
    return out


def number(pages: dict[int, bytes], address: int, size: int) -> int:
    return int.from_bytes(read(pages, address, size), "little")


def translate(pages: dict[int, bytes], root: int, address: int, c_bit: int | None) -> int:
    """Walk as the processor does: tables are private whatever their entries say; the leaf's C-bit counts."""
    mask = (1 << 51) - 1 & -PAGE_SIZE
    table = root
    for level in (39, 30, 21):
        entry = number(pages, table + 8 * (address >> level & 511), 8)
        assert entry & 3 == 3, f"not mapped at {address:#x}"
        assert (entry >> 51 & 1) == (c_bit is not None)
        table = entry & mask
        if entry & 0x80:
            assert level == 21
            assert table % (1 << level) == 0
            return table + address % (1 << level)
    raise AssertionError("no leaf")


@pytest.mark.parametrize("c_bit", [51, None])
def test_identity_map(c_bit: int | None) -> None:
    plan = boot(c_bit=c_bit)
    pages = memory_of(plan)
    for address in (0, 0x1234, layout.BOOT_PARAMS, KERNEL.entry, plan.layout.initrd.end - 1, 3 * GIB, 4 * GIB - 1):
        assert translate(pages, plan.registers.cr3, address, c_bit) == address


def test_boot_params() -> None:
    plan = boot()
    pages = memory_of(plan)
    zero_page = plan.registers.rsi
    assert read(pages, zero_page + 0x202, 4) == b"HdrS"
    assert number(pages, zero_page + 0x1FE, 2) == 0xAA55
    start, size = number(pages, zero_page + 0x218, 4), number(pages, zero_page + 0x21C, 4)
    assert read(pages, start, size) == INITRD
    text = read(pages, number(pages, zero_page + 0x228, 4), number(pages, zero_page + 0x238, 4) + 1)
    assert text == b"console=ttyS0\0"
    assert number(pages, zero_page + 0x1EF, 1) == 0, "the sentinel: nonzero makes the kernel distrust the page"
    assert read(pages, KERNEL.entry, 1) == b"k"


def test_confidential_computing_blob() -> None:
    plan = boot()
    pages = memory_of(plan)
    blob = number(pages, plan.registers.rsi + 0x13C, 4)
    magic, version, _, secrets, secrets_size, _, cpuid, cpuid_size, _ = struct.unpack(
        "<IHHQIIQII", read(pages, blob, 40)
    )
    assert (magic, version) == (0x45444D41, 1)
    assert (secrets, secrets_size, cpuid, cpuid_size) == (plan.secrets, PAGE_SIZE, plan.cpuid, PAGE_SIZE)
    data = number(pages, plan.registers.rsi + 0x250, 8)
    assert struct.unpack("<QIII", read(pages, data, 20)) == (0, 7, 4, blob)
    without = boot(c_bit=None)
    assert number(memory_of(without), without.registers.rsi + 0x13C, 4) == 0


def test_special_pages_are_launched_only_without_a_monitor() -> None:
    kinds = {region.gpa: region.kind for region in boot(monitor=0).regions}
    assert kinds[layout.SECRETS] is PageType.SECRETS
    assert kinds[layout.CPUID] is PageType.CPUID
    assert all(region.kind is PageType.NORMAL for region in boot().regions)
    for plan in (boot(), boot(monitor=0)):
        for page in (plan.secrets, plan.cpuid, plan.caa):
            assert kind_at(plan, page) == 2


def kind_at(plan: LinuxBoot, address: int) -> int:
    kinds = [kind for piece, kind in e820_map(plan.layout) if piece.start <= address < piece.end]
    assert len(kinds) <= 1
    return kinds[0] if kinds else 0


def test_register_state() -> None:
    plan = boot()
    state = plan.registers
    gdt = read(memory_of(plan), state.gdtr.base, state.gdtr.limit + 1)
    for segment in (state.cs, state.data):
        descriptor = int.from_bytes(gdt[segment.selector : segment.selector + 8], "little")
        assert segment.attributes == (descriptor >> 40 & 0xFF) | (descriptor >> 44 & 0xF00)
        assert segment.limit == 0xFFFFFFFF
        assert segment.base == 0
    assert state.cs.attributes & 0x200
    assert state.cr0 >> 31
    assert state.cr4 & 0x20
    assert state.efer & 0x500 == 0x500
    assert not state.rflags & 0x200
    assert state.rsp % 16 == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(64, 6000), st.integers(0, 40), st.integers(0, 9))
def test_everything_fits_or_is_refused(megabytes: int, monitor: int, initrd: int) -> None:
    try:
        plan = prepare_linux(KERNEL, bytes(initrd * 700_001), "x", memory=megabytes * MIB, monitor_size=monitor * MIB)
    except GuestImageError:
        assert megabytes % 2 or megabytes < 200
        return
    entries = e820_map(plan.layout)
    for (before, _), (after, _) in itertools.pairwise(entries):
        assert before.end <= after.start
        assert before.size > 0
    usable = sum(piece.size for piece, kind in entries if kind == 1)
    assert usable == sum(piece.size for piece in plan.layout.guest_ram) - (layout.FIRMWARE_END - layout.LOW_END)
    assert sum(piece.size for piece in plan.layout.ram) == megabytes * MIB
    for region in plan.regions:
        inside = region.range
        assert inside.end <= board.LOW_MEMORY_END or inside.start >= board.HIGH_MEMORY
        assert plan.layout.monitor is None or not inside.overlaps(plan.layout.monitor)
        if region.name in ("kernel", "initramfs"):
            assert all(kind_at(plan, address) == 1 for address in (inside.start, inside.end - 1))


def test_four_gibibytes_leave_the_hole_free() -> None:
    plan = boot(4 * GIB).layout
    assert plan.ram == (AddressRange(0, 3 * GIB), AddressRange(4 * GIB, 5 * GIB))
    assert plan.monitor is not None
    assert plan.monitor.end == 3 * GIB
    assert plan.top == address_space(4 * GIB) == 5 * GIB
    assert address_space(GIB) == GIB
    assert plan.guest_ram[0].end == plan.monitor.start


@pytest.mark.parametrize(
    ("memory", "vcpus", "message"),
    [
        (32 * MIB, 1, "too little memory: 32 MiB; this kernel, an initramfs of 1 MiB, a monitor of 16 MiB need"),
        (100 * MIB + 4096, 1, "multiple of 2 MiB"),
        (0, 1, "multiple of 2 MiB"),
        (1 << 46, 1, "too much memory"),
        (512 * MIB, 0, "1 to 64 VCPUs"),
        (512 * MIB, 65, "1 to 64 VCPUs"),
    ],
)
def test_refusals(memory: int, vcpus: int, message: str) -> None:
    with pytest.raises(GuestImageError, match=message):
        boot(memory, vcpus=vcpus)


def test_kernel_in_the_way() -> None:
    low = parse_kernel(elf([(0x8000, bytes(100), 100)], 0x8000), "low")
    with pytest.raises(GuestImageError, match="where the boot data is"):
        prepare_linux(low, b"", "", memory=512 * MIB)


def test_kernel_without_initramfs() -> None:
    plan = prepare_linux(KERNEL, b"", "", memory=512 * MIB)
    assert "initramfs" not in [region.name for region in plan.regions]
    assert number(memory_of(plan), plan.registers.rsi + 0x218, 4) == 0


def test_same_input_same_bytes() -> None:
    assert boot() == boot()


def test_command_line() -> None:
    text = command_line(["quiet", "console=hvc0"], tsc_khz=2_000_000)
    assert text.endswith(" quiet console=hvc0")
    assert "tsc_early_khz=2000000 lpj=8000000" in text
    assert len({option.text for option in default_options(1_000_000)}) == len(default_options(1_000_000))
    assert "noapic" in text.split()
    assert "noapic" not in command_line(tsc_khz=2_000_000, io_apic=True).split()
    rooms = [command_line(tsc_khz=1_000_000, disks=disks, network=disks > 0).split() for disks in (0, 2)]
    assert [[word for word in words if "swiotlb" in word] for words in rooms] == [["swiotlb=4096"], ["swiotlb=10240"]]
    assert all(option.reason for option in default_options(1_000_000))
    for bad in ("x" * 3000, "a\0b", "a\nb"):
        with pytest.raises(GuestImageError, match="command line"):
            command_line(bad, tsc_khz=1_000_000)


def tables(vcpus: int) -> tuple[dict[bytes, bytes], bytes]:
    block, rsdp = tables_with_rsdp(vcpus, layout.ACPI_TABLES), layout.ACPI_TABLES
    base = layout.ACPI_TABLES
    header = block[rsdp - base : rsdp - base + 36]
    assert header[:8] == b"RSD PTR "
    assert sum(header) % 256 == 0
    assert sum(header[:20]) % 256 == 0

    def table(address: int) -> bytes:
        size = int.from_bytes(block[address - base + 4 : address - base + 8], "little")
        found = block[address - base : address - base + size]
        assert len(found) == size
        assert found[:4] == b"FACS" or sum(found) % 256 == 0
        return found

    xsdt = table(int.from_bytes(header[24:32], "little"))
    found = [table(address) for (address,) in struct.iter_unpack("<Q", xsdt[36:])]
    by_name = {entry[:4]: entry for entry in found}
    fadt = by_name[b"FACP"]
    facs, dsdt = struct.unpack_from("<II", fadt, 36)
    assert facs % 64 == 0
    by_name |= {b"FACS": table(facs), b"DSDT": table(dsdt)}
    assert struct.unpack_from("<Q", fadt, 140) == (dsdt,)
    return by_name, block


@pytest.mark.parametrize("vcpus", [1, 4, 64])
def test_acpi_tables(vcpus: int) -> None:
    found, block = tables(vcpus)
    assert len(block) <= layout.ACPI_SIZE
    madt, at, processors = found[b"APIC"], 44, []
    assert struct.unpack_from("<II", madt, 36) == (board.LOCAL_APIC, 1)
    while at < len(madt):
        kind, size = madt[at], madt[at + 1]
        if kind == 0:
            processors.append(struct.unpack_from("<BBI", madt, at + 2))
        else:
            assert kind == 4
        at += size
    assert processors == [(i, i, 1) for i in range(vcpus)]
    fadt = found[b"FACP"]
    assert len(fadt) == 276
    assert struct.unpack_from("<I", fadt, 56) == (0x600,)
    assert struct.unpack_from("<I", fadt, 64) == (0x604,)
    assert struct.unpack_from("<BBBBQ", fadt, 172) == (1, 16, 0, 2, 0x604)
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 6)


def test_aml_lengths() -> None:
    """Every PkgLength leads exactly to the end of its object."""
    aml = tables(1)[0][b"DSDT"][36:]

    def length(at: int) -> tuple[int, int]:
        extra = aml[at] >> 6
        size = aml[at] & (0x3F if extra == 0 else 0x0F)
        for number in range(extra):
            size |= aml[at + 1 + number] << (4 + 8 * number)
        return at + size, at + 1 + extra

    assert aml[:6] == b"\x08_S5_\x12"
    scope, _ = length(6)
    assert aml[scope] == 0x10
    end, name = length(scope + 1)
    assert end == len(aml)
    assert aml[name : name + 5] == b"\\_SB_"
    assert aml[name + 5 : name + 7] == b"\x5b\x82"
    end, name = length(name + 7)
    assert end == len(aml)
    assert aml[name : name + 4] == b"PCI0"
    buffer = aml.index(b"_CRS\x11") + 5
    end, at = length(buffer)
    assert end == len(aml)
    assert aml[at] == 0x0A
    assert aml[at + 1] == end - at - 2

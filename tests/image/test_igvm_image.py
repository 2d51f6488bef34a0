# SPDX-License-Identifier: GPL-2.0-or-later
"""IGVM files: their digest is what sev-snp-measure's GCTX makes of the format's rules, and the machine runs them."""

from __future__ import annotations

import base64
import io
import re
import struct
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sevsnpmeasure.gctx import GCTX, sha384

from tests.igvm_writer import PAGE, IgvmWriter, vmsa
from tests.image.igvm_guest import MONITOR_VMSA, POLICY, two_levels, words
from tests.machine_code import assemble
from tests.snp.test_id_block_checks import TOOL, pem
from veil.cvm import ConfidentialVM
from veil.cvm.firmware_board import firmware_board
from veil.errors import VeilError
from veil.formats.acpi import acpi_tables
from veil.formats.launch_digest import LaunchLog
from veil.guest.errors import GuestImageError
from veil.guest.igvm.file import parse_igvm
from veil.host import DEFAULT_POLICY, GuestError, GuestHung, GuestPowerOff, GuestTerminated, LaunchIdentityBlock
from veil.image.igvm_image import build_igvm_image, igvm_memory
from veil.image.launch_image import LaunchImage
from veil.snp import LaunchError, PageSize, RmpResult, SnapshotError, ram_ranges
from veil.snp.cpuid import CpuidEntryValues
from veil.snp.hosted import hosted_header

_MEMORY = 16 << 20
_LARGE = 2 << 20
_CPUID = [CpuidEntryValues(0, 0, 7, 1, 2, 3), CpuidEntryValues(0xD, 1, 1, 0, 0, 0)]
#: where KVM says that VMSAs are, and where pages below 4 GiB may be
_OUTSIDE, _FLASH = 0xFFFFFFFFF000, 0xFFFF0000

_SHARED, _UNMEASURED, _2MB = 4, 2, 1
_SECRETS, _CPUID_DATA, _CPUID_XF = 1, 2, 3


def _image(writer: IgvmWriter, *, vcpus: int = 1, memory: int = _MEMORY, command_line: str = "") -> LaunchImage:
    file = parse_igvm(writer.write(), "guest.igvm")
    ram = ram_ranges(memory, igvm_memory(file))
    return build_igvm_image(file, ram=ram, vcpus=vcpus, cpuid=_CPUID, command_line=command_line)


def _writer() -> IgvmWriter:
    return IgvmWriter().platform()


def _vmsa(gctx: GCTX, gpa: int, page: bytes) -> None:
    gctx._update(0x02, gpa, sha384(page))


def test_digest_of_every_kind_of_page() -> None:
    """In the file's order; zeros are measured as content; parameters and CPUID values are not measured."""
    content, large, first, second = b"\x11" * PAGE, bytes(range(256)) * 8192, vmsa(0), vmsa(2, rip=5)
    writer = (
        _writer()
        .page(0x5000, content)
        .page(0x4000)
        .page(0x3000, content, flags=_UNMEASURED)
        .page(0x6000, kind=_SECRETS)
        .page(0x7000, content, kind=_CPUID_DATA)
        .page(0x8000, kind=_CPUID_XF)
        .page(_LARGE, large, flags=_2MB)
        .page(2 * _LARGE, flags=_2MB)
        .page(0x9000, content, flags=_SHARED)
        .error_range(0xA000, PAGE)
        .area(7, 2 * PAGE, b"\x22" * 2 * PAGE)
        .insert(0xB000, 7)
        .context(0xD000, first)
        .page(0xE000, content, mask=2)
        .context(_OUTSIDE, second)
        .page(_FLASH, content)
    )
    expected = GCTX()
    expected.update_normal_pages(0x5000, content)
    expected.update_normal_pages(0x4000, bytes(PAGE))
    expected.update_unmeasured_pages(0x3000, PAGE)
    expected.update_secrets_page(0x6000)
    expected.update_cpuid_page(0x7000)
    expected.update_cpuid_page(0x8000)
    expected.update_normal_pages(_LARGE, large)
    expected.update_normal_pages(2 * _LARGE, bytes(_LARGE))
    expected.update_unmeasured_pages(0xB000, 2 * PAGE)
    _vmsa(expected, 0xD000, first)
    expected.update_vmsa_page(second)
    expected.update_normal_pages(_FLASH, content)
    image = _image(writer)
    assert image.digest() == expected.ld()
    assert LaunchLog.parse(image.log().pack()).digest() == expected.ld()
    assert _image(replace(writer, version=2)).digest() == expected.ld()


@pytest.mark.parametrize("vmsa_at", [MONITOR_VMSA, _OUTSIDE])
@pytest.mark.parametrize("vmpl", [1, 2, 3])
def test_a_monitor_has_another_level_run(tmp_path: Path, vmsa_at: int, vmpl: int) -> None:
    said = bytearray()
    with _guest(tmp_path, two_levels(vmsa_at=vmsa_at, vmpl=vmpl)) as vm:
        digest = vm.build_image().digest()
        vm.run_until_off(said.extend)
        assert bytes(said) == words(vmpl)
        assert vm.machine.secure_processor.measurement == digest
        assert vm.machine.secure_processor.policy == POLICY
        assert vm.hypervisor.kernel_vmpl == vmpl


_FAR = 1 << 39


def test_memory_far_from_the_guests(tmp_path: Path) -> None:
    """COCONUT-SVSM's files want theirs at 512 GiB, where QEMU makes it: code runs there, and no map names it."""
    said = bytearray()
    with _guest(tmp_path, two_levels(words_gpa=_FAR).required(_FAR, 8 << 20)) as vm:
        vm.run_until_off(said.extend)
        assert bytes(said) == words(2)
        assert vm.machine.far_memory == (_FAR, 8 << 20)
        assert vm.machine.ram_ranges[-1] == (_FAR, 8 << 20)
        host = vm.machine.host_view()
        named = firmware_board(vm.configuration, vm.machine, None).files["etc/e820"]
        assert [entry[:2] for entry in struct.iter_unpack("<QQI", named)] == [(0, _MEMORY)]
        assert host.is_private(_FAR, 8 << 20)
        for outside in (4 << 30, _FAR - PAGE, _FAR + (8 << 20)):
            assert not host.is_private(outside, PAGE)
            assert not host.is_shared(outside, PAGE)
        with pytest.raises(SnapshotError, match="memory at 0x8000000000, far from its other, cannot be saved"):
            vm.machine.save(tmp_path / "saved")


@pytest.mark.parametrize(("gpa", "size"), [(_FAR, (256 << 20) + PAGE), (1 << 40, PAGE), ((1 << 40) - PAGE, 2 * PAGE)])
def test_more_far_memory_than_there_is(tmp_path: Path, gpa: int, size: int) -> None:
    with (
        _guest(tmp_path, two_levels().required(gpa, size)) as vm,
        pytest.raises(VeilError, match=r"guest\.igvm: it wants memory from 0x\w+ to 0x\w+, where the guest has none"),
    ):
        vm.launch()


def _guest(folder: Path, writer: IgvmWriter, **settings: Any) -> AbstractContextManager[ConfidentialVM]:
    path = folder / "guest.igvm"
    path.write_bytes(writer.write())
    return closing(ConfidentialVM(igvm=path, memory=_MEMORY, **settings))


def test_what_lies_where(tmp_path: Path) -> None:
    """After the launch: contents, RMP entries, what is the host's."""
    content, large = b"\x11" * PAGE, b"\x33" * _LARGE
    writer = (
        _writer()
        .page(0x5000, content)
        .page(0x6000, kind=_SECRETS)
        .page(0x7000, content, kind=_CPUID_DATA)
        .page(0x8000, kind=_CPUID_XF)
        .page(0x9000, content, flags=_SHARED)
        .error_range(0xA000, 2 * PAGE)
        .page(_LARGE, large, flags=_2MB)
        .page(_FLASH, content)
        .context(_OUTSIDE, vmsa(0))
        .context(0xD000, vmsa(2))
    )
    with _guest(tmp_path, writer) as vm:
        vm.launch()
        top, host, rmp = vm.machine.view(vmpl=0), vm.machine.host_view(), vm.machine.rmp
        assert top.read(0x5000, PAGE) == top.read(_FLASH, PAGE) == content
        assert top.read(_LARGE, _LARGE) == large
        assert top.read(0x6000, PAGE)[0x20:0x40] == vm.machine.secure_processor.vmpcks[0]
        cpuid = vm.machine.cpuid_entries()
        for gpa, entries in ((0x7000, cpuid), (0x8000, [entry for entry in cpuid if entry.leaf == 0xD])):
            page = top.read(gpa, PAGE)
            assert struct.unpack_from("<I", page) == (len(entries),)
            assert [struct.unpack_from("<II", page, 16 + 48 * at) for at in range(len(entries))] == [
                entry[:2] for entry in entries
            ]
        assert host.is_shared(0x9000, 3 * PAGE)
        assert host.read(0x9000, 3 * PAGE) == content + bytes(2 * PAGE)
        assert not host.is_shared(0xC000, PAGE)
        # An entry of 2 MiB: what changes it as one does not meet another size.
        assert top.rmpadjust(_LARGE, vmpl=1, permissions=1, size=PageSize.SIZE_2M) == RmpResult.SUCCESS
        assert rmp.is_vmsa(0xD000)
        assert rmp.is_vmsa(_FLASH - PAGE)
        contexts = vm.hypervisor.vcpus[0].contexts
        assert {vmpl: context.vmcb.vmsa_pa for vmpl, context in contexts.items()} == {0: _FLASH - PAGE, 2: 0xD000}


def test_parameters() -> None:
    """Each at its offset, over what the file has there; the area is not measured, so nothing of it is in the digest."""
    kinds = {
        "vcpus": (0x307, 4), "mmio": (0x30A, 0x10), "memory": (0x30C, 0x100), "command line": (0x30E, 0x800),
        "environment": (0x313, 0x900), "madt": (0x309, 0xA00),
    }  # fmt: skip
    writer = _writer().area(3, 2 * PAGE, b"\xff" * 2 * PAGE)
    for kind, offset in kinds.values():
        writer.parameter(kind, 3, offset)
    writer.insert(0x4000, 3).context(0x8000, vmsa(0)).page(_FLASH)
    image = _image(writer, vcpus=2, memory=4 << 30, command_line="a b")
    (region,) = [region for region in image.regions if region.name == "parameters"]
    data = region.data
    assert region.gpa == 0x4000
    assert data[:4] == data[0x1000:0x1004] == b"\xff" * 4
    assert data[4:8] == b"\2\0\0\0"
    assert struct.unpack_from("<4Q", data, 0x10) == (0xC0000, 0x3E000, 0, 0)
    # What is below 4 GiB is no memory to use.
    entries = [struct.unpack_from("<QQHHI", data, 0x100 + 24 * at) for at in range(3)]
    assert entries == [(0, 0xC0000, 0, 0, 0), (0x100000, 0x40000, 0, 0, 0), (0, 0, 0, 0, 0)]
    small = _image(writer, vcpus=2, memory=1 << 30, command_line="a b")
    (parameters,) = [region.data for region in small.regions if region.name == "parameters"]
    assert struct.unpack_from("<4Q", parameters, 0x10) == (0x80000, 0x7E000, 0, 0)
    assert data[0x800:0x805] == b"a b\0\xff"
    assert data[0x900:0x904] == bytes(4)
    size = int.from_bytes(data[0xA04:0xA08], "little")
    table = data[0xA00 : 0xA00 + size]
    assert sum(table) & 0xFF == 0
    assert table in acpi_tables(2, q35=True).placed(0)
    assert _image(writer, vcpus=2, command_line="c").digest() == _image(writer, vcpus=4).digest()


@pytest.mark.parametrize(("kind", "name"), [(0x308, "SRAT"), (0x30F, "SLIT"), (0x310, "PPTT")])
def test_parameters_that_there_are_not(kind: int, name: str) -> None:
    writer = _writer().area(1).parameter(kind, 1).context(0x8000, vmsa(0))
    # Of an area that is not imported for this platform nothing is wanted.
    assert _image(replace(writer)).regions
    with pytest.raises(GuestImageError, match=rf"header 2 \({name}, at 0x\w+\): this machine has no {name} to give"):
        _image(writer.insert(0x4000, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.page(_MEMORY), "not in the guest's memory, which is 0x0 to 0x1000000"),
        (lambda w: w.required(0, 2 * _MEMORY), "0x2000000 bytes at 0x0 are not in the guest's memory"),
        (lambda w: w.error_range(_MEMORY - PAGE, 2 * PAGE), "are not in the guest's memory"),
        (lambda w: w.area(1, 1 << 40).insert(_MEMORY, 1), "are not in the guest's memory"),
        (lambda w: w.context(_MEMORY, vmsa(1)), "are not in the guest's memory"),
        (lambda w: w.context(0x9000, vmsa(1), vp=1), "it is for VCPU 1, and the guest has 1: --vcpus 2"),
        (lambda w: w.context(0x9000, vmsa(4)), "its VMSA is for VMPL 4; there are 0 to 3"),
        (lambda w: w.context(0x9000, vmsa(0)), "a second context of VMPL 0 for VCPU 0"),
        (lambda w: w.context(0x9000, vmsa(1, sev_features=0)), "its VMSA cannot be run"),
        (lambda w: w.context(0x9000, vmsa(1, efer=0)), "its VMSA cannot be run"),
        (
            lambda w: w.area(1).parameter(0x30E, 1, PAGE - 3).insert(0x4000, 1),
            "it takes 5 bytes, and its area has 3 left at 0xffd",
        ),
        (lambda w: w.area(1).parameter(0x30C, 1, PAGE - 47).insert(0x4000, 1), "it takes 48 bytes"),
    ],
)  # fmt: skip
def test_what_this_guest_cannot_have(change: Callable[[IgvmWriter], IgvmWriter], words: str) -> None:
    with pytest.raises(GuestImageError) as caught:
        _image(change(_writer().context(0x8000, vmsa(0))), command_line="line")
    assert words in str(caught.value)
    assert re.match(r"guest\.igvm: header \d+ \(", str(caught.value))


def test_a_command_line_that_nobody_reads() -> None:
    writer = _writer().area(1).parameter(0x30E, 1).context(0x8000, vmsa(0))
    with pytest.raises(GuestImageError, match="it asks for no command line, and would not see the one that is given"):
        _image(writer, command_line="line")
    assert _image(writer.insert(0x4000, 1), command_line="line").regions


def test_somebody_must_begin() -> None:
    with pytest.raises(GuestImageError, match=r"guest\.igvm: it has no VP_CONTEXT for VCPU 0, which begins"):
        _image(_writer().context(0x8000, vmsa(0), vp=1), vcpus=2)


def test_more_contexts_than_any_guest_has(tmp_path: Path) -> None:
    writer = _writer()
    for number in range(257):
        writer.context(_OUTSIDE, vmsa(0), vp=number)
    with (
        _guest(tmp_path, writer) as vm,
        pytest.raises(VeilError, match=r"guest\.igvm: it has 257 VP_CONTEXTs outside of the guest's memory"),
    ):
        vm.launch()


def _archive(name: str, source: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(source)
        tar.addfile(info, io.BytesIO(source))
    return buffer.getvalue()


def test_another_vcpus_context_waits_to_be_started(tmp_path: Path) -> None:
    """VCPU 0 halts; VCPU 1 has a context of its own, and runs it after a start-up IPI."""
    ends = assemble("mov ecx, 0xC0010130\nmov eax, 0x71100\nxor edx, edx\nwrmsr\n.byte 0xF3, 0x0F, 0x01, 0xD9", 0x10000)
    real_mode = {"efer": 0x1000, "cr0": 0x11, "cr4": 0, "cr3": 0}
    flat = {"cs": (8, 0xC9B, 0xFFFFFFFF, 0)}
    writer = (
        _writer()
        .page(0x10000, ends.ljust(PAGE, b"\0"))
        .page(0x11000, b"\xf4".ljust(PAGE, b"\0"))
        .context(0x8000, vmsa(0, flat, rip=0x10000, **real_mode), vp=1)
        .context(0x9000, vmsa(0, flat, rip=0x11000, **real_mode))
    )
    with _guest(tmp_path, writer, vcpus=2) as vm:
        vm.launch()
        with pytest.raises(GuestHung):
            vm.hypervisor.run()
        vm.hypervisor.sipi(1)
        with pytest.raises(GuestTerminated, match="VCPU 1, VMPL 0: the guest terminated itself, reason set 1, code 7"):
            vm.hypervisor.run()


def test_python_in_a_file_is_not_run(tmp_path: Path) -> None:
    """Hosted code is for images of Veil's own; here it is bytes like any other."""
    archive = _archive("stranger.py", b"raise RuntimeError('a stranger was here')")
    header = hosted_header("stranger:Program", archive=(0x20000, len(archive)), parameters=(0x10000, 8))
    writer = _writer().page(0x10000, header.ljust(PAGE, b"\0"))
    for at in range(0, len(archive), PAGE):
        writer.page(0x20000 + at, archive[at : at + PAGE].ljust(PAGE, b"\0"))
    real_mode = {"efer": 0x1000, "cr0": 0x11, "cr4": 0, "cr3": 0}
    writer.context(0x8000, vmsa(0, {"cs": (8, 0xC9B, 0xFFFFFFFF, 0)}, rip=0x10000, **real_mode))
    with _guest(tmp_path, writer) as vm:
        with pytest.raises(GuestError, match="VMPL 0"):
            vm.run_until_off(lambda data: None)
        assert vm.machine.hosted_program(0x8000) is None
    # A machine that takes it for an image of Veil's runs it.
    with _guest(tmp_path, writer) as vm:
        vm.launch()
        vm.machine.runs_hosted = True
        with pytest.raises(LaunchError, match="a stranger was here"):
            vm.hypervisor.run()


def test_a_snapshot_of_it_goes_on(tmp_path: Path) -> None:
    """Taken while VMPL 2 runs; nothing of Veil's is in it, and nothing is run as Python afterwards."""
    path = tmp_path / "guest.igvm"
    path.write_bytes(two_levels().write())
    with closing(ConfidentialVM(igvm=path, memory=_MEMORY)) as vm:
        vm.launch()
        vm.hypervisor.run(until=lambda: vm.hypervisor.vcpus[0].vmpl == 2)
        vm.snapshot(tmp_path / "snapshot")
    said = bytearray()
    with closing(ConfidentialVM.restore(tmp_path / "snapshot", console=said.extend)) as again:
        assert (again.hypervisor.vcpus[0].vmpl, again.hypervisor.kernel_vmpl) == (2, 2)
        assert not again.machine.runs_hosted
        with pytest.raises(GuestPowerOff):
            again.hypervisor.run()
    assert bytes(said) == words(2)


def _device_tree(data: bytes) -> list[tuple[str, str, bytes]]:
    """(node, property, value) of each property: by Devicetree Specification 0.4, 5.4."""
    _, _, at, names, *_ = struct.unpack_from(">10I", data)
    found, path = [], list[str]()
    while (token := struct.unpack_from(">I", data, at)[0]) != 9:
        at += 4
        if token == 1:
            name = data[at : data.index(b"\0", at)].decode()
            path.append(name)
            at += (len(name) + 4) & -4
        elif token == 2:
            path.pop()
        else:
            assert token == 3
            length, offset = struct.unpack_from(">II", data, at)
            start = names + offset
            found.append(
                ("/".join(path), data[start : data.index(b"\0", start)].decode(), data[at + 8 : at + 8 + length])
            )
            at += 8 + (length + 3 & -4)
    assert path == []
    return found


def test_device_tree() -> None:
    writer = _writer().area(1).parameter(0x312, 1).insert(0x4000, 1).context(0x8000, vmsa(0))
    image = _image(writer, vcpus=2, memory=4 << 30, command_line="a b")
    (data,) = [region.data for region in image.regions if region.name == "parameters"]
    assert struct.unpack_from(">I", data) == (0xD00DFEED,)
    tree = _device_tree(data)
    for expected in (
        ("", "#address-cells", b"\0\0\0\2"),
        ("/chosen", "bootargs", b"a b\0"),
        ("/cpus/cpu@1", "reg", b"\0\0\0\1"),
        ("/memory@0", "reg", struct.pack(">QQ", 0, 3 << 30)),
        ("/memory@100000000", "reg", struct.pack(">QQ", 4 << 30, 1 << 30)),
        ("/memory@100000000", "microsoft,igvm-type", bytes(4)),
    ):
        assert expected in tree


class _Identity(NamedTuple):
    header: bytes
    id_key: bytes
    author_key: bytes


def _signed(folder: Path, digest: bytes, *, author: bool) -> _Identity:
    """The header of a file, from what another tool signed (`snp-create-id-block`)."""
    command = [
        str(TOOL), "--measurement", base64.b64encode(digest).decode(), "--idkey", str(pem(folder / "id")),
        "--authorkey", str(pem(folder / "author")),
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.match(r"id-block=([^,]+),id-auth=(\S+)\nid_key_hash: (\S+)\nauthor_key: (\S+)", out)
    assert found is not None
    block, auth, id_key, author_key = (base64.b64decode(text) for text in found.groups())
    assert block[88:] == struct.pack("<Q", DEFAULT_POLICY)
    id_part = auth[0x40 : 0x40 + 144] + auth[0x240:0x244] + bytes(4) + auth[0x244 : 0x244 + 144]
    author_part = auth[0x680 : 0x680 + 144] + auth[0x880:0x884] + bytes(4) + auth[0x884 : 0x884 + 144]
    header = struct.pack("<IB3x", 1, author) + block[:88] + auth[:8] + id_part + (author_part if author else bytes(296))
    return _Identity(header, id_key, author_key)


@pytest.mark.parametrize("author", [True, False])
def test_an_id_block_is_taken_from_the_file(tmp_path: Path, author: bool) -> None:
    levels = two_levels(_writer().policy(DEFAULT_POLICY))
    digest = _image(levels).digest()
    signed = _signed(tmp_path, digest, author=author)
    with _guest(tmp_path, levels.id_block(signed.header)) as vm:
        image = vm.build_image()
        assert image.digest() == digest
        image.require_acceptable(digest)
        vm.launch()
        identity = vm.machine.secure_processor._identity
        assert identity.id_key_digest == signed.id_key
        assert identity.author_key_digest == (signed.author_key if author else bytes(48))
        assert identity.author_key_enabled == author


def test_an_id_block_for_another_image(tmp_path: Path) -> None:
    signed = _signed(tmp_path, _image(two_levels()).digest(), author=False)
    other = two_levels().page(0x40000).id_block(signed.header)
    with _guest(tmp_path, other) as vm:
        image = vm.build_image()
        with pytest.raises(LaunchError, match="BAD_MEASUREMENT"):
            image.require_acceptable(image.digest())
        with pytest.raises(VeilError, match="BAD_MEASUREMENT"):
            vm.launch()
    with _guest(tmp_path, _writer().policy(5).context(0x8000, vmsa(0))) as vm:
        with pytest.raises(LaunchError, match="policy 0x5: bit 17 must be one"):
            vm.build_image().require_acceptable(b"")
        with pytest.raises(VeilError, match="policy 0x5: bit 17 must be one"):
            vm.launch()


def test_what_the_file_says_cannot_be_said_otherwise(tmp_path: Path) -> None:
    with (
        _guest(tmp_path, two_levels(), policy=POLICY | 1 << 19) as vm,
        pytest.raises(VeilError, match=r"has a guest policy \(0x3001f\): it cannot be 0xb001f"),
    ):
        vm.build_image()
    identity = LaunchIdentityBlock(bytes(96), bytes(4096))
    with (
        _guest(tmp_path, two_levels().id_block(struct.pack("<I692x", 1)), identity=identity) as vm,
        pytest.raises(VeilError, match="has an ID block: there cannot be another one"),
    ):
        vm.build_image()
    with _guest(tmp_path, two_levels(_writer()), policy=POLICY) as vm:
        vm.launch()
        assert vm.machine.secure_processor.policy == POLICY

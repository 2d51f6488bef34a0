# SPDX-License-Identifier: GPL-2.0-or-later
"""The stock kernel at VMPL 3, and commands in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from veil.cvm import CommandTimeout, ConfidentialVM
from veil.cvm.inspection import inspect_cvm
from veil.cvm.rmp_picture import Scale, write_picture
from veil.errors import VeilError


def _shell(vm: ConfidentialVM, script: str) -> str:
    result = vm.run(["/bin/sh", "-c", script])
    assert result.exit_status == 0, result.stderr
    return result.stdout.decode()


def test_the_kernel_says_where_it_runs(vm: ConfidentialVM) -> None:
    log = _shell(vm, "dmesg")
    assert "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP" in log
    assert "SEV: SNP running at VMPL3." in log
    assert "SEV: Using SNP CPUID table" in log
    assert _shell(vm, "cat /sys/devices/system/cpu/sev/vmpl") == "3\n"
    flags = _shell(vm, "grep -m1 ^flags /proc/cpuinfo").split()
    assert {"sev", "sev_es", "svsm", "smep", "smap", "umip"} <= set(flags)
    for trouble in ("WARNING:", "BUG:", "Oops", "Call Trace"):
        assert trouble not in log


def test_streams_and_status_are_apart(vm: ConfidentialVM) -> None:
    result = vm.run(["/bin/sh", "-c", "cat; echo to stderr >&2; exit 7"], stdin=b"in\0put")
    assert result == type(result)(b"in\0put", b"to stderr\n", 7)
    assert vm.run(["/bin/sh", "-c", "kill -9 $$"]).exit_status == 137
    assert vm.run(["/bin/sh", "-c", "echo $NAME; pwd"], env={"NAME": "värde"}, directory="/tmp").stdout.decode() == (
        "värde\n/tmp\n"
    )


def test_large_data_both_ways(vm: ConfidentialVM, tmp_path: Path) -> None:
    data = os.urandom(8 << 20)
    result = vm.run(["sha256sum"], stdin=iter([data[:1000], data[1000:]]))
    assert result.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert vm.run(["cat"], stdin=data).stdout == data
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(data)
    source.chmod(0o751)
    vm.copy_in(source, "/tmp/file")
    assert _shell(vm, "stat -c %a /tmp/file") == "751\n"
    vm.copy_out("/tmp/file", back)
    assert back.read_bytes() == data
    # Of the guest's bits only the owner's count.
    assert back.stat().st_mode & 0o777 == 0o700


def test_failures_are_one_clear_line(vm: ConfidentialVM, tmp_path: Path) -> None:
    with pytest.raises(VeilError, match="No such file"):
        vm.run(["/no/such/program"])
    with pytest.raises(VeilError, match="No such file"):
        vm.copy_out("/no/such/file", tmp_path / "x")
    with pytest.raises(VeilError, match="cannot read"):
        vm.copy_in(tmp_path / "missing", "/tmp/x")
    with pytest.raises(CommandTimeout):
        vm.run(["sleep", "60"], timeout=0.3)
    # The guest is as well as before.
    assert _shell(vm, "echo well") == "well\n"
    assert list(tmp_path.iterdir()) == []


def test_time_goes_on_after_a_snapshot(vm: ConfidentialVM) -> None:
    first = float(_shell(vm, "cut -d' ' -f1 /proc/uptime"))
    _shell(vm, "sleep 0.3")
    second = float(_shell(vm, "cut -d' ' -f1 /proc/uptime"))
    assert 0.3 <= second - first < 30


def test_inspection_sees_the_domains(vm: ConfidentialVM, tmp_path: Path) -> None:
    seen = inspect_cvm(vm)
    by_level = {level.vmpl: level for level in seen.levels}
    assert [item.domain for item in seen.vmsas] == ["DomMON", "DomSER", "DomUNT"]
    assert seen.vmsa_pages == 3
    assert by_level[0].read == seen.validated > by_level[3].read > 0
    assert by_level[2].read == 0
    assert seen.shared + seen.assigned == seen.pages


@pytest.mark.open_kernel("one of its colours is that of memory that the kernel can write and execute")
def test_the_picture_says_what_it_shows_and_where(vm: ConfidentialVM, tmp_path: Path) -> None:
    from PIL import Image

    place = tmp_path / "map.png"
    write_picture(vm, place)
    with Image.open(place) as opened:
        words, picture = dict(opened.text), opened.convert("RGB")  # type: ignore[attr-defined]
    assert words["Title"] == "Reverse map table: a CVM of 512 MiB, 1 VCPU, under VeilMon"
    assert "a cell is a page of 4 KiB; a row is 2 MiB" in words["Description"]
    assert vm.machine.secure_processor.measurement.hex() in words["Description"]
    # The map begins below title and scale, right of the addresses, and has a legend at its right.
    left, top, right = 110, 96, 110 + 1024
    title, scale, addresses = (left, 0, right, 30), (left, top - 20, right, top), (0, top, left, 600)
    for box in (title, scale, addresses, (right + 1, top, right + 300, 600)):
        assert len(picture.crop(box).getcolors(1 << 20) or ()) > 1, box
    for vmsa in inspect_cvm(vm).vmsas:
        row, column = divmod(vmsa.gpa // 4096, 512)
        assert picture.getpixel((left + 2 * column, top + 2 * row)) == (255, 255, 255)
    assert picture.getpixel((left + 2 * 511, top)) == (70, 160, 90)


def test_the_scale_fits_much_memory_and_knows_the_hole() -> None:
    scale = Scale(8 << 18, [(0, 3 << 30), (4 << 30, 5 << 30)])
    assert (scale.cell, scale.rows) == (4, 1024)
    assert [scale.address(row) for row in (0, 1, 383, 384, 385)] == [
        0, 8 << 20, (3 << 30) - (8 << 20), 4 << 30, (4 << 30) + (8 << 20),
    ]  # fmt: skip
    assert Scale(64 << 18, [(0, 3 << 30), (4 << 30, 61 << 30)]).rows <= 1024

# SPDX-License-Identifier: GPL-2.0-or-later
"""The RMP as a picture: all of RAM, who may touch what, with addresses, a scale and a legend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veil.cvm.inspection import inspect_cvm, ram_table
from veil.formats.domains import KERNEL_VMPL, SERVICE_VMPL
from veil.formats.page_sizes import PAGE_SIZE
from veil.private_files import replacing
from veil.snp.rmp import EntryFlag, Permission

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import ImageDraw

    from veil.cvm import ConfidentialVM

__all__ = ["Scale", "write_picture"]

_MIB = 1 << 20
_COLUMNS = 512
#: More rows than this, and a cell is more pages.
_MAX_ROWS = 1024
_WIDTH, _HEIGHT = 2 * _COLUMNS, 512
_LEFT, _TOP, _BOTTOM, _LEGEND = 110, 96, 16, 360
_LINE = 26
_MAX_NAMED = 8
_TICK = 6
_LABEL_EVERY = 32  # pixels

# From what yields to what prevails, if a cell has several pages.
_COLOURS = {
    "VMPL 3: read, write, execute": (70, 160, 90),
    "not validated": (120, 120, 120),
    "VMPL 3: read, write, user code": (160, 205, 120),
    "VMPL 3: not all of these": (200, 190, 80),
    "VMPL 3: supervisor code, not writable": (225, 120, 30),
    "VMPL 0 only": (40, 70, 160),
    "VMPL 1, not VMPL 3": (150, 80, 200),
    "shared with the host": (200, 60, 60),
    "VMSA (framed)": (255, 255, 255),
}
_NAMES = list(_COLOURS)
#: What VeilS-KCI leaves the kernel of memory that is not verified code.
_DATA = Permission.R | Permission.W | Permission.UX


def _classes(table: NDArray[Any]) -> NDArray[np.uint8]:
    """For each page, the number of its colour."""
    flags, permissions = table["flags"], table["perms"]
    result = np.full(len(table), _NAMES.index("VMPL 0 only"), dtype=np.uint8)
    result[permissions[:, SERVICE_VMPL] != 0] = _NAMES.index("VMPL 1, not VMPL 3")
    result[permissions[:, KERNEL_VMPL] != 0] = _NAMES.index("VMPL 3: not all of these")
    result[permissions[:, KERNEL_VMPL] == Permission.ALL] = _NAMES.index("VMPL 3: read, write, execute")
    result[permissions[:, KERNEL_VMPL] == _DATA] = _NAMES.index("VMPL 3: read, write, user code")
    verified = (permissions[:, KERNEL_VMPL] & (Permission.SX | Permission.W)) == Permission.SX
    result[verified] = _NAMES.index("VMPL 3: supervisor code, not writable")
    result[(flags & EntryFlag.VMSA) != 0] = _NAMES.index("VMSA (framed)")
    result[(flags & EntryFlag.VALIDATED) == 0] = _NAMES.index("not validated")
    result[(flags & EntryFlag.ASSIGNED) == 0] = _NAMES.index("shared with the host")
    return result


class Scale:
    """How pages become cells, and cells pixels."""

    def __init__(self, pages: int, ranges: list[tuple[int, int]]) -> None:
        """`ranges`: address and length of each piece of RAM, which have `pages` pages of 4 KiB together."""
        self.ranges = ranges
        #: pages of a cell
        self.cell = 1
        while -(-pages // (self.cell * _COLUMNS)) > _MAX_ROWS:
            self.cell *= 2
        self.rows = -(-pages // (self.cell * _COLUMNS))
        #: pixels of a row
        self.height = max(1, _HEIGHT // self.rows)

    @property
    def row_bytes(self) -> int:
        """What a row shows, in bytes."""
        return self.cell * _COLUMNS * PAGE_SIZE

    def address(self, row: int) -> int:
        """The guest-physical address at which a row begins."""
        offset = row * self.row_bytes
        for gpa, size in self.ranges:
            if offset < size:
                return gpa + offset
            offset -= size
        return self.ranges[-1][0] + self.ranges[-1][1]

    def cells(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The cells' numbers, row by row, from those of the pages."""
        padded = np.zeros(self.rows * _COLUMNS * self.cell, dtype=np.uint8)
        padded[: len(classes)] = classes
        cells: NDArray[np.uint8] = padded.reshape(self.rows, _COLUMNS, self.cell).max(axis=2)
        return cells


def write_picture(vm: ConfidentialVM, path: Path) -> None:
    """A PNG of all RAM: a cell a page (or several, if there is much), with addresses, legend and title. Raises OSError.

    A VMSA, which is one page among many, has a frame around it.
    """
    from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

    classes = _classes(ram_table(vm))
    scale = Scale(len(classes), list(vm.machine.ram_ranges))
    palette = np.array(list(_COLOURS.values()), dtype=np.uint8)
    pixels = palette[scale.cells(classes)].repeat(scale.height, axis=0).repeat(2, axis=1)
    height = _TOP + max(pixels.shape[0], _LINE * (len(_COLOURS) + 3 + _MAX_NAMED)) + _BOTTOM
    picture = Image.new("RGB", (_LEFT + _WIDTH + _LEGEND, height), "white")
    picture.paste(Image.fromarray(pixels), (_LEFT, _TOP))
    draw = ImageDraw.Draw(picture)
    draw.fontmode = "L"
    draw.font = ImageFont.load_default(12)
    for page in np.flatnonzero(classes == _NAMES.index("VMSA (framed)")).tolist():
        row, column = divmod(page // scale.cell, _COLUMNS)
        x, y = _LEFT + column * 2, _TOP + row * scale.height
        draw.rectangle((x - 3, y - 3, x + 4, y + scale.height + 2), outline="white")
        draw.rectangle((x - 4, y - 4, x + 5, y + scale.height + 3), outline="black")
    title, *lines = _caption(vm, scale)
    draw.text((_LEFT, 8), title, fill="black", font=ImageFont.load_default(18))
    for number, line in enumerate(lines):
        draw.text((_LEFT, 36 + 18 * number), line, fill="black")
    _axes(draw, scale)
    _legend(draw, vm, classes, scale)
    about = PngImagePlugin.PngInfo()
    about.add_text("Title", title)
    about.add_text("Description", "; ".join(lines))
    with replacing(path) as stream:
        picture.save(stream, format="PNG", pnginfo=about)


def _size(count: int) -> str:
    for unit, word in ((1 << 30, "GiB"), (_MIB, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {word}"
    return f"{count} bytes"


def _caption(vm: ConfidentialVM, scale: Scale) -> list[str]:
    """The title, and what stands below it."""
    machine = vm.machine
    monitor = "under VeilMon" if vm.has_monitor else "without a monitor"
    vcpus = f"{vm.vcpus} VCPU{'s' if vm.vcpus > 1 else ''}"
    cell = "a page of 4 KiB" if scale.cell == 1 else f"{scale.cell} pages, {_size(scale.cell * PAGE_SIZE)}"
    return [
        f"Reverse map table: a CVM of {_size(machine.memory_size)}, {vcpus}, {monitor}",
        f"launch digest {machine.secure_processor.measurement.hex()}",
        f"a cell is {cell}; a row is {_size(scale.row_bytes)}",
    ]


def _axes(draw: ImageDraw.ImageDraw, scale: Scale) -> None:
    """Where a row begins, at the left; how far into it, at the top."""
    for part in range(5):
        x = _LEFT + _WIDTH * part // 4
        draw.line((x, _TOP - _TICK, x, _TOP - 1), fill="black")
        draw.text((x, _TOP - _TICK - 2), f"+{scale.row_bytes * part // 4:#x}", fill="black", anchor="ms")
    draw.text((8, _TOP - _TICK - 2), "guest-physical", fill="black", anchor="ls")
    step = max(1, _LABEL_EVERY // scale.height)
    step = 1 << (step - 1).bit_length()
    before = None
    for row in range(scale.rows):
        address = scale.address(row)
        gap = before is not None and address != before + scale.row_bytes
        before = address
        if row % step and not gap:
            continue
        y = _TOP + row * scale.height
        if gap:
            draw.line((_LEFT, y, _LEFT + _WIDTH, y), fill="black")
        draw.line((_LEFT - _TICK, y, _LEFT - 1, y), fill="black")
        draw.text((_LEFT - _TICK - 3, y), f"{address:#x}", fill="black", anchor="rm")


def _legend(draw: ImageDraw.ImageDraw, vm: ConfidentialVM, classes: NDArray[np.uint8], scale: Scale) -> None:
    x, y = _LEFT + _WIDTH + 24, _TOP
    draw.text((x, y), "pages, and who may touch them:", fill="black")
    for number, name in reversed(list(enumerate(_NAMES))):
        y += _LINE
        count = int(np.count_nonzero(classes == number))
        draw.rectangle((x, y, x + 16, y + 16), fill=_COLOURS[name], outline="black")
        draw.text((x + 26, y + 1), f"{name}: {count} ({_size(count * PAGE_SIZE)})", fill="black")
    y += _LINE
    if scale.cell > 1:
        draw.text((x, y), "a cell has the first of these colours", fill="black")
        draw.text((x, y + 16), "that one of its pages has", fill="black")
        y += 2 * _LINE
    for item in inspect_cvm(vm).vmsas[:_MAX_NAMED]:
        draw.text((x, y), f"VMSA {item.gpa:#x}: VCPU {item.vcpu}, VMPL {item.vmpl}, {item.domain}", fill="black")
        y += 18

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running CVM looks like from above: domains, VMSAs, and what each VMPL may do with memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veil.private_files import replacing
from veil.snp.rmp import EntryFlag, Permission

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from veil.cvm import ConfidentialVM

__all__ = ["Inspection", "LevelPages", "VmsaInfo", "inspect_cvm", "write_picture"]

_DOMAINS = {0: "DomMON", 1: "DomSER", 2: "DomENC", 3: "DomUNT"}
_PAGE = 4096

# The picture: one pixel a page, this many pages a row.
_ROW = 512
_COLOURS = {
    "no memory": (20, 20, 20),
    "shared with the host": (200, 60, 60),
    "not validated": (120, 120, 120),
    "VMPL 0 only": (40, 70, 160),
    "VMPL 1": (90, 50, 150),
    "VMPL 3: read, write, execute": (70, 160, 90),
    "VMPL 3: part of that": (200, 190, 80),
    "VMSA": (255, 255, 255),
}


@dataclass(frozen=True)
class VmsaInfo:
    """A VCPU context that the host has."""

    vcpu: int
    vmpl: int
    domain: str
    gpa: int
    current: bool
    hosted: bool


@dataclass(frozen=True)
class LevelPages:
    """How many 4 KiB pages a VMPL may read, write, and execute in user and in supervisor mode."""

    vmpl: int
    domain: str
    read: int
    write: int
    execute_user: int
    execute_supervisor: int


@dataclass(frozen=True)
class Inspection:
    """Page counts are of 4 KiB pages."""

    memory: int
    launch_digest: str
    vmsas: list[VmsaInfo]
    levels: list[LevelPages]
    pages: int
    shared: int
    assigned: int
    validated: int
    vmsa_pages: int
    large_entries: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _ram_table(vm: ConfidentialVM) -> NDArray[Any]:
    table = vm.machine.rmp.effective()
    return np.concatenate([table[gpa // _PAGE : (gpa + size) // _PAGE] for gpa, size in vm.machine.ram_ranges])


def inspect_cvm(vm: ConfidentialVM) -> Inspection:
    """Look at a running CVM, between two of its instructions."""
    machine = vm.machine
    table = _ram_table(vm)
    flags, permissions = table["flags"], table["perms"]
    validated = (flags & EntryFlag.VALIDATED) != 0
    vmsas = []
    for vcpu in vm.hypervisor.vcpus:
        for vmpl, context in sorted(vcpu.contexts.items()):
            gpa = context.vmcb.vmsa_pa
            vmsas.append(
                VmsaInfo(
                    vcpu.index,
                    vmpl,
                    _DOMAINS[vmpl] if vm.has_monitor else "kernel",
                    gpa,
                    vcpu.current is context,
                    machine.hosted_program(gpa) is not None,
                )
            )
    levels = []
    for vmpl in range(4):
        may = permissions[:, vmpl][validated]
        bits = (Permission.R, Permission.W, Permission.UX, Permission.SX)
        counts = [int(np.count_nonzero(may & bit)) for bit in bits]
        levels.append(LevelPages(vmpl, _DOMAINS[vmpl], *counts))
    raw = machine.rmp.entries["flags"]
    return Inspection(
        memory=machine.memory_size,
        launch_digest=machine.secure_processor.measurement.hex(),
        vmsas=vmsas,
        levels=levels,
        pages=len(table),
        shared=int(np.count_nonzero((flags & EntryFlag.ASSIGNED) == 0)),
        assigned=int(np.count_nonzero(flags & EntryFlag.ASSIGNED)),
        validated=int(np.count_nonzero(validated)),
        vmsa_pages=int(np.count_nonzero(flags & EntryFlag.VMSA)),
        large_entries=int(np.count_nonzero(raw & EntryFlag.SIZE_2M)),
    )


def _classes(table: NDArray[Any]) -> NDArray[np.uint8]:
    flags, permissions = table["flags"], table["perms"]
    names = list(_COLOURS)
    result = np.full(len(table), names.index("VMPL 0 only"), dtype=np.uint8)
    result[permissions[:, 1] != 0] = names.index("VMPL 1")
    result[permissions[:, 3] != 0] = names.index("VMPL 3: part of that")
    result[permissions[:, 3] == Permission.ALL] = names.index("VMPL 3: read, write, execute")
    result[(flags & EntryFlag.VMSA) != 0] = names.index("VMSA")
    result[(flags & EntryFlag.VALIDATED) == 0] = names.index("not validated")
    result[(flags & EntryFlag.ASSIGNED) == 0] = names.index("shared with the host")
    return result


def write_picture(vm: ConfidentialVM, path: Path) -> None:
    """A PNG of all RAM: a pixel a page (a VMSA is drawn larger), 2 MiB a row, with a legend."""
    from PIL import Image, ImageDraw

    classes = _classes(_ram_table(vm))
    rows = -(-len(classes) // _ROW)
    padded = np.zeros(rows * _ROW, dtype=np.uint8)
    padded[: len(classes)] = classes
    palette = np.array(list(_COLOURS.values()), dtype=np.uint8)
    scale = max(1, 512 // rows)
    pixels = palette[padded.reshape(rows, _ROW)].repeat(scale, axis=0).repeat(2, axis=1)
    legend_width = 260
    picture = Image.new("RGB", (pixels.shape[1] + legend_width, max(pixels.shape[0], 28 * len(_COLOURS) + 20)), "white")
    picture.paste(Image.fromarray(pixels), (0, 0))
    draw = ImageDraw.Draw(picture)
    vmsa = list(_COLOURS).index("VMSA")
    for page in np.flatnonzero(classes == vmsa).tolist():
        x, y = page % _ROW * 2, page // _ROW * scale
        draw.rectangle((x - 2, y - 2, x + 4, y + max(scale, 3) + 1), outline="white")
    for index, (name, colour) in enumerate(_COLOURS.items()):
        x, y = pixels.shape[1] + 16, 14 + 28 * index
        draw.rectangle((x, y, x + 16, y + 16), fill=colour, outline="black")
        draw.text((x + 26, y + 2), f"{name} ({int(np.count_nonzero(classes == index))})", fill="black")
    with replacing(path) as stream:
        picture.save(stream, "PNG")

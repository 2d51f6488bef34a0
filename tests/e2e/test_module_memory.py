# SPDX-License-Identifier: GPL-2.0-or-later
"""What the stock kernel makes of its distribution's modules, against what VeilS-KCI computes from their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.running_kernel import RunningKernel, admit_driver
from tests.services.kci.debian_image import kernel_code
from tests.services.kci.modules.distribution import KINDS, exported, image, keyring, module_file, with_dependencies
from veil.cvm import ConfidentialVM
from veil.formats.kci import MemoryType, ModuleMemory
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.kci import ModuleCode
from veil.services.kci.modules import ExportedSymbols, ModuleSpace, Prepared, admit, prepare
from veil.services.kci.modules.elf import ModuleElf
from veil.services.kci.modules.layout import lay_out

Resume = Callable[[], ConfidentialVM]

#: The software machine's processor has not what they are for.
_OTHER_PROCESSORS = {"aegis128-aesni", "serpent-avx-x86_64", "serpent-avx2"}


class Guest:
    """A booted kernel into which modules are loaded, each computed as VeilS-KCI would."""

    def __init__(self, vm: ConfidentialVM) -> None:
        self.vm = vm
        self.running = RunningKernel(vm)
        self.kernel = kernel_code(image())
        admit_driver(self.kernel, self.running)
        now = self.running.read(self.kernel.range.start, self.kernel.range.size)
        explained = self.kernel.explain(now, self.running.read)
        assert explained.sound
        self.configuration = explained.configuration
        self.space = ModuleSpace.of_kernel(image())
        self.exported = ExportedSymbols(exported())

    def sh(self, script: str) -> str:
        done = self.vm.run(["/bin/sh", "-c", script])
        assert done.exit_status == 0, done.stderr
        return done.stdout.decode()

    def insert(self, files: Sequence[bytes], place: Path) -> list[Prepared]:
        """Load modules that are not there, and compute what their memory must be."""
        admitted = [admit(file, keyring()) for file in files]
        elves = [ModuleElf(module.body) for module in admitted]
        told = [self._load(file, elf, place) for file, elf in zip(files, elves, strict=True)]
        listed = ""
        if counted := [elf.name for elf in elves if lay_out(elf).percpu]:
            # Slow: a long list, of which the kernel computes every line.
            listed = self.sh(f"grep -E '\\[({'|'.join(counted)})\\]$' /proc/kallsyms")
        made = []
        for module, elf, sections in zip(admitted, elves, told, strict=True):
            percpu = _percpu(elf, listed)
            made.append(prepare(module, _memory(elf, sections), percpu, self.exported, self.space))
            self.exported.add(made[-1].name, made[-1].exports)
        return made

    def _load(self, file: bytes, elf: ModuleElf, place: Path) -> str:
        """Where its sections are."""
        (place / "module.ko").write_bytes(file)
        self.vm.copy_in(place / "module.ko", "/tmp/module.ko")
        return self.sh(
            f"[ -d /sys/module/{elf.name}/sections ] || insmod /tmp/module.ko || exit 1\n"
            f"cd /sys/module/{elf.name}/sections && grep -r '' ."
        )

    def unexplained(self, module: Prepared) -> list[str]:
        """Bytes in memory that are neither as computed nor explained by the module's own tables."""
        found = []
        code = ModuleCode(module, self.kernel.near)
        self.kernel.admit(self.kernel.near.admit(targets=code.targets))
        if MemoryType.TEXT in code.rules:
            explained = code.rules[MemoryType.TEXT].explain(
                self._now(module, MemoryType.TEXT), self.running.read, self.configuration
            )
            found += [f"{module.name}: TEXT at {byte.address:#x}" for byte in explained.unexplained]
        if MemoryType.RODATA in module.images:
            now = np.frombuffer(self._now(module, MemoryType.RODATA), np.uint8)
            wrong = np.nonzero(now != np.frombuffer(module.images[MemoryType.RODATA], np.uint8))[0]
            addresses = [module.memory[MemoryType.RODATA].address + int(at) for at in wrong]
            found += [f"{module.name}: RODATA at {at:#x}" for at in addresses
                      if not any(at in unordered for unordered in module.unordered)]  # fmt: skip
        return found

    def _now(self, module: Prepared, kind: MemoryType) -> bytes:
        return self.running.read(*module.memory[kind])


def _memory(elf: ModuleElf, told: str) -> dict[MemoryType, ModuleMemory]:
    """`struct module`'s mem[], from where the kernel says that the sections are."""
    addresses = {name: int(at, 16) for name, at in re.findall(r"^\./(\S+):0x(\w+)$", told, re.MULTILINE)}
    layout = lay_out(elf)
    memory: dict[MemoryType, ModuleMemory] = {}
    for index, (kind, offset) in layout.offsets.items():
        section = elf.sections[index]
        if section.size:
            size = -(-layout.sizes[kind] // PAGE_SIZE) * PAGE_SIZE
            place = ModuleMemory(addresses[section.name] - offset, size)
            assert memory.setdefault(kind, place) == place, f"{section.name} of {elf.name} lies elsewhere"
    return memory


def _percpu(elf: ModuleElf, told: str) -> int:
    """`struct module`'s percpu, by a symbol of the per-CPU variables; 0 without any."""
    listed = re.findall(rf"^(\w+) . (\S+)\t\[{elf.name}\]$", told, re.MULTILINE)
    addresses = {name: int(at, 16) for at, name in listed}
    index = lay_out(elf).percpu
    for number in np.nonzero(elf.symbols["section"] == index)[0].tolist() if index else ():
        if elf.symbol_name(number) in addresses:
            return addresses[elf.symbol_name(number)] - int(elf.symbols["value"][number])
    return 0


@pytest.fixture
def guest(resume: Resume) -> Guest:
    return Guest(resume())


def test_modules_in_memory(guest: Guest, tmp_path: Path) -> None:
    """Code with and without each kind of patch site, per-CPU variables, exports for each other."""
    names = with_dependencies(("dm-mod", "loop", "zram", "dummy", "tun", "overlay", "nft_compat", "sch_fq", "cpuid"))
    inserted = guest.insert([module_file(name) for name in names], tmp_path)
    modules = dict(zip(names, inserted, strict=True))
    assert [wrong for module in modules.values() for wrong in guest.unexplained(module)] == []
    for table in (".altinstructions", ".smp_locks", ".static_call_sites", "__jump_table", ".retpoline_sites"):
        assert any(table in module.sections for module in modules.values())
    assert any(section.name == ".data..percpu" for section in ModuleElf(admit(module_file("zsmalloc"), keyring()).body)
               .sections)  # fmt: skip

    # What would be seen: one byte of code that is not a patch site.
    module = modules["dummy"]
    at = module.symbols["dummy_xmit"] + 9
    view, gpa = guest.vm.machine.view(vmpl=0), guest.running.translate(at)
    view.write(gpa, bytes([view.read(gpa, 1)[0] ^ 1]))
    assert guest.unexplained(module) == [f"dummy: TEXT at {at:#x}"]


@pytest.mark.soak
def test_modules_of_all_kinds(guest: Guest, tmp_path: Path) -> None:
    done = []
    for name in with_dependencies(KINDS):
        if name in _OTHER_PROCESSORS:
            continue
        done += guest.insert([module_file(name)], tmp_path)
        assert guest.unexplained(done[-1]) == []
    assert len(done) > 60

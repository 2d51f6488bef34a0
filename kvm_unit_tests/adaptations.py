# SPDX-License-Identifier: GPL-2.0-or-later
"""What is changed in the copy of a checkout, for kvm-unit-tests knows SEV-ES and not SNP. No expectation is changed.

docs/fidelity.md lists the same.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from kvm_unit_tests.errors import JudgeError

__all__ = ["ADAPTATIONS", "Adaptation", "adapt"]

_HANDLER = "vc_msr"


@dataclass(frozen=True)
class Adaptation:
    """In `file` each match of `pattern`, of which there must be `count`, becomes `replacement`."""

    file: str
    pattern: str
    replacement: str
    why: str
    count: int = 1


_DEVICES = "addresses from 3 to 4 GiB are devices': mapped with the C-bit they would be memory of the guest"
_LOW = (
    "these are made for a program at the beginning of memory, whose pages they map once more above it; firmware puts "
    "it at the end"
)
_EFI_ACCESS = "it has absolute addresses, and names of the linker's that EFI programs lack; else it could be built"
_C_BIT = "each entry of its page tables has the C-bit, so of the two reserved bits that it tries one is another"

ADAPTATIONS = (
    Adaptation(
        "lib/x86/setup.c",
        r"\(\(phys_addr_t\) ?i << 21\) \| flags;",
        "((phys_addr_t) i << 21) | (i >> 9 == 3 ? flags & ~get_amd_sev_c_bit_mask() : flags);",
        _DEVICES,
    ),
    Adaptation(
        "lib/x86/setup.c",
        r"\twrite_gs\(KERNEL_DS\);",
        "\twrite_gs(0);",
        "IRET to user mode makes GS null if its selector has DPL 0 (APM volume 3, IRET), and with it the base of the "
        "test's own data",
    ),
    Adaptation(
        "lib/x86/vm.c",
        r"\n    flags \|= get_amd_sev_c_bit_mask\(\);",
        "\n    flags |= phys >> 30 == 3 ? 0 : get_amd_sev_c_bit_mask();",
        _DEVICES,
        count=2,
    ),
    Adaptation(
        "lib/x86/vm.c",
        r'#include "smp\.h"\n',
        '#include "smp.h"\n#include "amd_sev.h"\n',
        "for the next one: newer compilers take no function that is not declared",
    ),
    Adaptation(
        "lib/x86/vm.c",
        r"\n    write_cr3\(virt_to_phys\(cr3\)\);",
        "\n#ifdef CONFIG_EFI\n    if (amd_sev_es_enabled())\n\tsetup_ghcb_pte(cr3);\n#endif"
        "\n    write_cr3(virt_to_phys(cr3));",
        "the GHCB stays shared in page tables that a test makes for itself, as it is in the first ones",
    ),
    Adaptation(
        "lib/x86/amd_sev.c",
        r"boot_idt\[VC_VECTOR\] = vc_handler_idt;",
        "boot_idt[VC_VECTOR] = vc_handler_idt;\n\textern void setup_vc_msr(void);\n\tsetup_vc_msr();",
        "RDMSR and WRMSR get a #VC handler that hands the host's #GP to the test's own handlers; the firmware's, which "
        "the tests borrow, ends the guest then",
    ),
    Adaptation(
        "x86/Makefile.common",
        r"cflatobjs \+= lib/x86/amd_sev\.o",
        f"cflatobjs += lib/x86/amd_sev.o lib/x86/{_HANDLER}.o",
        "the same",
    ),
    Adaptation(
        "x86/msr.c",
        r"\n\tMSR_TEST\(MSR_IA32_MISC_ENABLE,[^\n]*",
        "",
        "IA32_MISC_ENABLE is Intel's; AMD's processors have no such MSR",
    ),
    Adaptation(
        "lib/efi.c",
        r"\n\tif \(!strcmp\(__argv\[__argc - 1\], \"initrd=initrd\"\)\) \{",
        '\n\tif (__argc > 1 && !strcmp(__argv[0], "initrd=initrd"))\n'
        "\t\tfor (int i = --__argc, at = 0; at < i; at++)\n\t\t\t__argv[at] = __argv[at + 1];"
        '\n\tif (!strcmp(__argv[__argc - 1], "initrd=initrd")) {',
        "newer firmware puts its own argument before the others, not behind them",
    ),
    Adaptation(
        "x86/Makefile.x86_64",
        r"tests \+= \$\(TEST_DIR\)/amd_sev\.\$\(exe\)",
        "tests += $(TEST_DIR)/amd_sev.$(exe) $(TEST_DIR)/access_test.$(exe)",
        _EFI_ACCESS,
    ),
    Adaptation("x86/access.c", r"mov \$(fixed[12]), %%rsi", r"lea \1(%%rip), %%rsi", _EFI_ACCESS, count=2),
    Adaptation(
        "x86/access.c",
        r"pushq \$do_access ",
        "push %%rax; lea do_access(%%rip), %%rax; xchg %%rax, (%%rsp) ",
        _EFI_ACCESS,
    ),
    Adaptation("x86/access.c", r"\bstext\b", "ImageBase", _EFI_ACCESS, count=2),
    Adaptation("x86/access.c", r"\betext\b", "_etext", _EFI_ACCESS, count=2),
    Adaptation("x86/access.c", r"if \(pte != \*ptep\)", "pte |= 1ull << 51;\n\t\tif (pte != *ptep)", _C_BIT),
    Adaptation("x86/access.c", r"cpuid_maxphyaddr\(\) >= 52", "1", _C_BIT),
    Adaptation("x86/access.c", r"cpuid_maxphyaddr\(\) >= 37", "0", _C_BIT),
    Adaptation("x86/access.c", r"1ull << 36;", "1ull << 48;", _C_BIT, count=2),
    Adaptation(
        "x86/access.c",
        r"do \{\n\t\t\+\+tests;",
        "do {\n\t\tif ((unsigned)at.flags * 2654435761u >> 26)\n\t\t\tcontinue;\n\t\t++tests;",
        "of its 19 million combinations one in 64, spread over all: an emulated processor takes minutes for all",
    ),
    *(
        Adaptation(file, pattern, replacement, _LOW)
        for file in ("x86/smap.c", "x86/pku.c")
        for pattern, replacement in (
            (r"(#define USER_BASE\s+)\([^)]*\)", r"\1(1 << 29)"),
            (r"if \(reserve_pages\(USER_BASE, [^)]*\)\)", "if (0)"),
        )
    ),
)


def adapt(copy: Path) -> None:
    """Make all of them. Raises JudgeError if a place is not as it was when they were written."""
    for item in ADAPTATIONS:
        path = copy / item.file
        try:
            text = path.read_text()
        except OSError as error:
            raise JudgeError(f"{item.file}: {error.strerror}, in a checkout of kvm-unit-tests") from error
        text, found = re.subn(item.pattern, item.replacement, text)
        if found != item.count:
            raise JudgeError(
                f"{item.file} of this checkout is not as expected ({found} places where {item.count} were to be "
                f"adapted): it is older or newer than kvm_unit_tests/adaptations.py knows"
            )
        path.write_text(text)
    shutil.copy2(Path(__file__).with_name(f"{_HANDLER}.c"), copy / "lib/x86")

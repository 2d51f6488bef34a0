# SPDX-License-Identifier: GPL-2.0-or-later
"""Something in the shape of a checkout of kvm-unit-tests: the places that are adapted, and a build of two programs."""

from __future__ import annotations

from pathlib import Path

__all__ = ["make_checkout"]

_CONFIGURATION = """
# comment
[first]
file = first.flat
[first-on-another-processor]
file = first.flat
qemu_params = -cpu max
[second-with-arguments]
file = first.flat
smp = 2
test_args = '-a "b c"'
arch = x86_64
[not_for_efi]
file = absent.flat
[cannot_be_built]
file = wrong.flat
[broken]
smp = 2
"""

_MAKEFILE = """
tests = x86/first.efi x86/wrong.efi
all: test_cases
test_cases: $(tests)
x86/wrong.efi:
\t@echo x86/wrong.c:1: error: no such thing >&2; exit 1
%.efi:
\tcat lib/x86/setup.c lib/x86/vc_msr.c > $@
"""

_SOURCES = {
    "lib/x86/setup.c": "\t\tcurr_pt[i] = ((phys_addr_t) i << 21) | flags;\n\twrite_gs(KERNEL_DS);\n",
    "lib/x86/vm.c": '#include "smp.h"\n'
    + "\n    flags |= get_amd_sev_c_bit_mask();\n" * 2
    + "\n    write_cr3(virt_to_phys(cr3));\n",
    "lib/efi.c": '\n\tif (!strcmp(__argv[__argc - 1], "initrd=initrd")) {\n',
    "lib/x86/amd_sev.c": "\tboot_idt[VC_VECTOR] = vc_handler_idt;\n",
    "x86/Makefile.common": "cflatobjs += lib/x86/amd_sev.o\n",
    "x86/Makefile.x86_64": "tests += $(TEST_DIR)/amd_sev.$(exe)\n",
    "x86/access.c": "mov $fixed1, %%rsi\nmov $fixed2, %%rsi\npushq $do_access \nstext etext stext etext\n"
    + "if (pte != *ptep)\ncpuid_maxphyaddr() >= 52 cpuid_maxphyaddr() >= 37\n1ull << 36;\n1ull << 36;\n"
    + "\tdo {\n\t\t++tests;\n",
    "x86/msr.c": "\n\tMSR_TEST(MSR_IA32_MISC_ENABLE, 0x400c50809, 0x1880),\n\tMSR_TEST(MSR_IA32_CR_PAT, 7, 0),\n",
    "x86/smap.c": "#define USER_BASE\t(2 << 24)\n\tif (reserve_pages(USER_BASE, USER_BASE >> 12))\n",
    "x86/pku.c": "#define USER_BASE\t(2 << 24)\n\tif (reserve_pages(USER_BASE, USER_BASE >> 12))\n",
    "lib/asm/made": "configure makes it anew",
    ".git": "gitdir: of a submodule",
    "common/readme": "",
    "scripts/readme": "",
    "x86/unittests.cfg": _CONFIGURATION,
    "Makefile": _MAKEFILE,
}


def make_checkout(place: Path, configure: str = "exit 0") -> Path:
    """There is no compiler in it: a "program" is the source that it would be made from."""
    for name, text in _SOURCES.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    script = place / "configure"
    script.write_text(f"#!/bin/sh\n[ -e lib/asm ] || [ -e .git ] && exit 3\n{configure}\n")
    script.chmod(0o755)
    return place

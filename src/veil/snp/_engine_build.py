# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the CPU engine: our C code, linked to the core (`_engine_core.py`).

`--wrap` sends calls of the functions in `_WRAPPED` to those of `engine/*.c` whose names begin with `__wrap_`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from veil.snp._engine_core import LIBRARIES, core, core_inputs, find_tool, run_tool

__all__ = ["compile_engine", "engine_inputs"]

_WRAPPED = (
    "cpu_check_watchpoint",
    "cpu_ldl_mmuidx_ra",
    "cpu_ldq_mmuidx_ra",
    "cpu_stq_mmuidx_ra",
    "cpu_svm_check_intercept_param",
    "cpu_vmexit",
    "cpu_x86_update_cr3",
    "cpu_x86_update_dr7",
    "helper_get_dr",
    "helper_hlt",
    "helper_inb",
    "helper_inl",
    "helper_inw",
    "helper_outb",
    "helper_outl",
    "helper_outw",
    "helper_pause",
    "helper_phaddd_mmx",
    "helper_phaddd_xmm",
    "helper_phaddsw_mmx",
    "helper_phaddsw_xmm",
    "helper_phaddw_mmx",
    "helper_phaddw_xmm",
    "helper_phsubd_mmx",
    "helper_phsubd_xmm",
    "helper_phsubsw_mmx",
    "helper_phsubsw_xmm",
    "helper_phsubw_mmx",
    "helper_phsubw_xmm",
    "helper_rcpps",
    "helper_rcpss",
    "helper_rdmsr",
    "helper_rdpmc",
    "helper_rdrand",
    "helper_rdtsc",
    "helper_rdtscp",
    "helper_rechecking_single_step",
    "helper_rsqrtps",
    "helper_rsqrtss",
    "helper_set_dr",
    "helper_single_step",
    "helper_svm_check_intercept_param",
    "helper_syscall",
    "helper_sysenter",
    "helper_write_crN",
    "helper_wrmsr",
    "tb_htable_lookup",
    "tlb_flush_page",
    "tlb_protect_code",
    "tlb_reset_dirty_by_vaddr",
    "tlb_unprotect_code",
)

# Unicorn's headers compare signed with unsigned and leave parameters unused; ours are held to the rest.
_OUR_FLAGS = (
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-mcx16",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-parameter",
    "-Wno-sign-compare",
)
_RMP_FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=default", "-Wall", "-Wextra", "-Werror")


def engine_inputs(engine_dir: Path) -> list[Path]:
    """Every file of ours that goes into the library."""
    return sorted({*engine_dir.rglob("*.c"), *engine_dir.rglob("*.h"), *core_inputs(engine_dir), Path(__file__)})


def compile_engine(
    engine_dir: Path, cache: Path, work: Path, progress: Callable[[str], None], *, counting: bool = False
) -> Path:
    """Build the library below `work`; `cache` keeps the core, which is built first if it is not there.

    `counting`: each translated block counts its instructions. Raises EngineBuildError and OSError.
    """
    compiler = find_tool(os.environ.get("CC") or "cc")
    place = core(engine_dir, cache, progress, counting=counting)
    source, build = place / "source", place / "build"
    qemu = source / "qemu"
    include = [
        engine_dir, build, source / "glib_compat", qemu, qemu / "include", source / "include", qemu / "tcg",
        qemu / "tcg" / "i386", qemu / "accel" / "tcg", build / "x86_64-softmmu", qemu / "target" / "i386",
    ]  # fmt: skip
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-DNEED_CPU_H", "-DNDEBUG", "-include", "x86_64.h", *_OUR_FLAGS]
    flags += ["-iquote", str(engine_dir / "shadow"), f"-I{engine_dir}"] + [
        f"-isystem{directory}" for directory in include[1:]
    ]
    units = sorted(engine_dir.glob("*.c"))
    objects = [str(work / f"{unit.stem}.o") for unit in units]

    def compile_unit(unit: Path, target: str) -> None:
        own = _RMP_FLAGS if unit.name == "rmp.c" else flags
        run_tool([compiler, *own, "-c", str(unit), "-o", target], work)

    # Here, because commands that find the library built do without.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_unit, units, objects))
    library = work / "libveil.so"
    run_tool(
        [
            compiler, "-shared", "-o", str(library), *objects,
            *(f"-Wl,--wrap={name}_x86_64" for name in _WRAPPED),
            "-Wl,--start-group", *(str(build / name) for name in LIBRARIES), "-Wl,--end-group",
            "-lpthread", "-lm", "-Wl,-z,defs", "-Wl,-s",
        ],
        work,
    )  # fmt: skip
    return library

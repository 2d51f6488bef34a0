# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI: which code of a stock kernel is its own, byte by byte, and which stores to it are.

docs/kci.md says how.
"""

from veil.services.kci.errors import ImageError, KciError, TableError
from veil.services.kci.explain_code import CodeRules, Configuration, Explanation, Unexplained
from veil.services.kci.guarded_data import writable_data
from veil.services.kci.kernel_code import KernelCode
from veil.services.kci.kernel_image import AddressRange, KernelImage, Segment
from veil.services.kci.module_code import ModuleCode
from veil.services.kci.patch_tables import PatchTables, Section, parse_tables
from veil.services.kci.patches import Patch, PatchRefused, Step, decide
from veil.services.kci.ranges import KernelRanges, kernel_ranges, physical_range
from veil.services.kci.surroundings import Surroundings

__all__ = [
    "AddressRange",
    "CodeRules",
    "Configuration",
    "Explanation",
    "ImageError",
    "KciError",
    "KernelCode",
    "KernelImage",
    "KernelRanges",
    "ModuleCode",
    "Patch",
    "PatchRefused",
    "PatchTables",
    "Section",
    "Segment",
    "Step",
    "Surroundings",
    "TableError",
    "Unexplained",
    "decide",
    "kernel_ranges",
    "parse_tables",
    "physical_range",
    "writable_data",
]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of the kernel: who vouches for a module's file, and what its memory must be."""

from veil.services.kci.modules.errors import ModuleRefused
from veil.services.kci.modules.exports import ExportedSymbols, Exports, read_exports
from veil.services.kci.modules.kernel import ModuleSpace, kernel_exports, kernel_keyring
from veil.services.kci.modules.policy import ModulePolicy
from veil.services.kci.modules.prepared import (
    AdmittedFile,
    Placed,
    Prepared,
    admit,
    prepare,
)
from veil.services.kci.modules.signature import Keyring, Signer

__all__ = [
    "AdmittedFile",
    "ExportedSymbols",
    "Exports",
    "Keyring",
    "ModulePolicy",
    "ModuleRefused",
    "ModuleSpace",
    "Placed",
    "Prepared",
    "Signer",
    "admit",
    "kernel_exports",
    "kernel_keyring",
    "prepare",
    "read_exports",
]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The measured policy on modules: whose signature counts, which files need none."""

from __future__ import annotations

from dataclasses import dataclass

from veil.formats.kci_settings import BUILD_KEYS, KciSettings
from veil.services.kci.kernel_image import KernelImage
from veil.services.kci.modules.kernel import kernel_keyring
from veil.services.kci.modules.prepared import AdmittedFile, admit
from veil.services.kci.modules.signature import Keyring

__all__ = ["ModulePolicy"]


@dataclass(frozen=True)
class ModulePolicy:
    """What the settings come to with the kernel at hand."""

    keyring: Keyring
    hashes: frozenset[bytes]

    @classmethod
    def of(cls, settings: KciSettings, image: KernelImage) -> ModulePolicy:
        """Raises ImageError or ModuleRefused if the kernel's certificates or the policy's are not valid."""
        keyring = kernel_keyring(image) if settings.keys == BUILD_KEYS else Keyring([])
        return cls(keyring.with_certificates(settings.allowed_certificates), settings.allowed_hashes)

    def admit(self, file: bytes) -> AdmittedFile:
        """Who vouches for a module's file? Raises ModuleRefused if nobody does."""
        return admit(file, self.keyring, self.hashes)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-KCI would refuse at lock-down is refused before the launch: whoever asks for it is there to read why."""

from __future__ import annotations

from veil.formats.kci import KCI_NAME
from veil.formats.kci_settings import KciSettings
from veil.guest.elf import ElfKernel
from veil.guest.errors import GuestImageError
from veil.image.services_image import ServicesImage

__all__ = ["check_exceptions"]


def check_exceptions(services: ServicesImage, kernel: ElfKernel) -> None:
    """Are the policy's exceptions read-only data of this kernel? Raises GuestImageError if they are not. Of modules
    nothing is known yet."""
    settings = services.settings.get(KCI_NAME)
    symbols = KciSettings.of(settings).writable_of() if settings is not None else []
    if not symbols:
        return
    # Nobody else waits for what it takes to import.
    from veil.services.kci import KciError, KernelImage, Segment, kernel_ranges, writable_data

    image = KernelImage([Segment(item.virtual, item.address, item.data) for item in kernel.segments if item.data])
    try:
        writable_data(image, kernel_ranges(image), symbols)
    except KciError as error:
        raise GuestImageError(f"code integrity: {error}") from error

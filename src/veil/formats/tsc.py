# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's time stamp counter, as the kernel, enclaves, the local APIC's timer and the CPUID page are told of it."""

from __future__ import annotations

__all__ = ["TSC_KHZ"]

#: How fast it counts: nanoseconds (the engine's clock.c).
TSC_KHZ = 1_000_000

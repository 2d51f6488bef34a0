# SPDX-License-Identifier: GPL-2.0-or-later
"""The runtime: what an enclave's program meets in place of a kernel. Freestanding C at ring 3."""

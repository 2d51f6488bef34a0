# SPDX-License-Identifier: GPL-2.0-or-later
"""The silicon: memory, RMP, VMSAs, instructions, VCPU engine, secure processor, snapshots."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-ENC: programs that run shielded from the kernel, at VMPL 2 and CPL 3."""

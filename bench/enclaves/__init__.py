# SPDX-License-Identifier: GPL-2.0-or-later
"""The evaluation of VeilS-ENC: programs and system calls as they are and shielded (`make bench-enclaves`)."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI: its rules on Debian's kernel and on small ones, and its decisions."""

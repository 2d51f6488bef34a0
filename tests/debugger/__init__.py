# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's remote protocol: by itself, with hostile peers, and with Debian's gdb."""

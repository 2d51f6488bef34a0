# SPDX-License-Identifier: GPL-2.0-or-later
"""The secure channel's end in VeilMon, with hostile carriers and users."""

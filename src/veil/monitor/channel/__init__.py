# SPDX-License-Identifier: GPL-2.0-or-later
"""The secure channel's end in VeilMon: TLS 1.3 on connections that the host carries."""

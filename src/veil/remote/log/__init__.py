# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG at the remote user: fetch, verify, analyse, export."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The GHCB protocol, the host's side: by MSR and by page."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""SVSM protocols, one module each (58019)."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""SVSM protocols, call by call."""

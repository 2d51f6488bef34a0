# SPDX-License-Identifier: GPL-2.0-or-later
"""The PC's old devices, by their data sheets."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of enclaves, and the runtime as a program of this computer, whose kernel may lie."""

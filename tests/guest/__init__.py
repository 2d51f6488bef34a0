# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is made of: built, reproducible, and run outside of Veil where that is possible."""

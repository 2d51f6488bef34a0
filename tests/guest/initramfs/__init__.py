# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive, and Debian's programs for it."""

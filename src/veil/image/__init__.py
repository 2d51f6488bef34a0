# SPDX-License-Identifier: GPL-2.0-or-later
"""What is loaded and measured at launch."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""One module for each family of NAE events (56421, section 4)."""

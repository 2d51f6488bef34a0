# SPDX-License-Identifier: GPL-2.0-or-later
"""The user of VeilS-KCI."""

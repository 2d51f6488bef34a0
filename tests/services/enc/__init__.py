# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-ENC, with a hostile driver."""

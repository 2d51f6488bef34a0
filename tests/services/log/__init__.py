# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG, with a hostile kernel and full memory."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""`veil logs`, on logs that were written here."""

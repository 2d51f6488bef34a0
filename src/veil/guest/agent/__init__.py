# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent: process 1 of the guest, and its protocol."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The remote user: verifies attestation, talks to VeilMon through the secure channel. Knows wire formats only."""

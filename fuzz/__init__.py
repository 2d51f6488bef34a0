# SPDX-License-Identifier: GPL-2.0-or-later
"""Coverage-guided fuzzing of whatever reads bytes that an attacker may have written (`make fuzz`)."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The honest host against scripted machines and hostile guests; and hosts that are not honest."""

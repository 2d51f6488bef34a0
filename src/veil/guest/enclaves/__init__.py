# SPDX-License-Identifier: GPL-2.0-or-later
"""What of enclaves is in the guest: the runtime inside them, the program that starts them, and what builds both."""

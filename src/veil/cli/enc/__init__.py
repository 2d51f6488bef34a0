# SPDX-License-Identifier: GPL-2.0-or-later
"""veil enclave: programs that run shielded from the guest's kernel."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The program in the guest that starts an enclave: untrusted, like the kernel below it."""

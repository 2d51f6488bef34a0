# SPDX-License-Identifier: GPL-2.0-or-later
"""kvm-unit-tests as the judge of the machine: a checkout of the user's, whose x86 tests run as SNP guests."""

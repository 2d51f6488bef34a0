# SPDX-License-Identifier: GPL-2.0-or-later
"""The evaluation of VeilS-LOG: programs with and without it, and where a record's time goes (`make bench-audit`)."""

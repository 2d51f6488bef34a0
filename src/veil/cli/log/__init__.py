# SPDX-License-Identifier: GPL-2.0-or-later
"""`veil logs`: audit records of VeilS-LOG."""

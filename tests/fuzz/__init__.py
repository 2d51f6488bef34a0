# SPDX-License-Identifier: GPL-2.0-or-later
"""That the fuzzer's targets work: a few inputs for each."""

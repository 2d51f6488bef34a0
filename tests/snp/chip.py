# SPDX-License-Identifier: GPL-2.0-or-later
"""A chip for tests, made once for each process: its RSA keys take seconds."""

from __future__ import annotations

import functools

from veil.snp import MODEL_TCB
from veil.snp.endorsement import Endorsement


@functools.cache
def chip() -> Endorsement:
    return Endorsement.generate(MODEL_TCB)

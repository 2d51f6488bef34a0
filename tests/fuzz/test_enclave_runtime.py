# SPDX-License-Identifier: GPL-2.0-or-later
"""What the fuzzing of the enclaves' runtime finds, and what it calls it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from fuzz import enclave_runtime
from fuzz.mutations import mutated
from fuzz.target import examine
from fuzz.targets import TARGETS

#: A read believes how much the kernel says that it has read.
_CHECK = """	if (result > (s64)part)
		attacked(self, "a read of %d bytes is answered by %d", part, (u64)result);
"""
_INPUTS = 2_000


@pytest.mark.soak
def test_a_runtime_that_believes_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test of all runs without a finding."""
    place = tmp_path / "enclaves"
    shutil.copytree(enclave_runtime._SOURCE.parents[1], place)
    source = place / "runtime" / "src"
    text = (source / "io.c").read_text()
    assert text.count(_CHECK) == 1
    (source / "io.c").write_text(text.replace(_CHECK, ""))
    monkeypatch.setattr(enclave_runtime, "_SOURCE", source)
    monkeypatch.setattr(enclave_runtime, "fuzz_directory", lambda: tmp_path)
    enclave_runtime._harness.cache_clear()
    target, chance = TARGETS["enclave-runtime"], random.Random(1)
    try:
        seeds = list(target.seeds())
        # read is the first call.
        tries = (mutated(chance, target, seeds[:1]) for _ in range(_INPUTS))
        found = next((finding for data in tries if (finding := examine(target, data))), None)
        assert found is not None
        assert "a result goes where the program did not want it" in found.what or "AddressSanitizer" in found.what
    finally:
        process = enclave_runtime._harness()
        process.kill()
        process.wait()
        enclave_runtime._harness.cache_clear()


def test_the_same_mistake_has_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enclave_runtime, "fuzz_directory", lambda: tmp_path)
    errors = tmp_path / "enclave_runtime" / "errors"
    errors.parent.mkdir()
    names, before = list[str](), 0
    for process, address in ((71, "0x7ffe12"), (72, "0x55aa00")):
        with errors.open("a") as file:
            file.write(f"=={process}==ERROR: AddressSanitizer: stack-buffer-overflow on address {address} in T0\n")
        names.append(enclave_runtime._said_since(before))
        before = errors.stat().st_size
    assert names[0] == names[1] == "-ERROR: AddressSanitizer: stack-buffer-overflow on address - in -"
    # An endless loop after that is no stack that overflows.
    assert enclave_runtime._said_since(before) == "an input's process ended without a word, or was at work for too long"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware starts an EFI program in a kernel's place, as an SNP guest: the way on which kvm-unit-tests run."""

from __future__ import annotations

from pathlib import Path

from kvm_unit_tests.checkout import Test
from kvm_unit_tests.guest import Guest
from kvm_unit_tests.output import End
from tests.e2e.efi_program import efi_program
from veil.guest.ovmf.package import DEBIAN_FIRMWARE

#: The port remembers two bytes, and gives them back one by one: "ok".
_CODE = """
    mov eax, 0x6b6f
    mov dx, 0xe0
    out dx, ax
    xor eax, eax
    in ax, dx
    mov [rip + echoed], ax
    lea rsi, [rip + text]
    mov dx, 0x3f8
1:  lodsb
    test al, al
    jz 2f
    out dx, al
    jmp 1b
2:  mov eax, 5
    mov dx, 0xf4
    out dx, eax
3:  jmp 3b
text: .ascii "\\r\\nPASS: it runs\\r\\nFAIL: "
echoed: .ascii "??\\r\\n\\0"
"""


def test_a_test_runs_and_is_read(tmp_path: Path) -> None:
    program = tmp_path / "small.efi"
    program.write_bytes(efi_program(_CODE))
    guest = Guest(DEBIAN_FIRMWARE, (), 300.0, lambda text: None, lambda data: None)
    outcome = guest.run(Test("small", "small"), program)
    assert (outcome.end, outcome.status) == (End.EXITED, 5)
    assert (outcome.passed, outcome.failed) == (["it runs"], ["ok"])

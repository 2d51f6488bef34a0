# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of a few instructions in an IGVM file: VMPL 0 has another level run, and prints what that wrote."""

from __future__ import annotations

import struct

from tests.igvm_writer import PAGE, IgvmWriter, vmsa
from tests.machine_code import assemble

__all__ = ["MONITOR_VMSA", "POLICY", "two_levels", "words"]

_C_BIT = 1 << 51
_PML4, _PDPT, _PD, _PD_SHARED = 0x1000, 0x2000, 0x3000, 0x4000
MONITOR_VMSA, GUEST_VMSA = 0x8000, 0x9000
CODE, GHCB, STACK = 0x10000, 0x20000, 0x30000
#: one page of 2 MiB, with the less privileged level's code in its second page
WORDS_AT = 0x600000
GUEST = WORDS_AT + PAGE
_SHARED = 1 << 30
POLICY = 1 << 17 | 1 << 16 | 0x1F


def words(vmpl: int) -> bytes:
    """What it prints."""
    return f"VMPL {vmpl} was here\n".encode()


# GHCB MSR protocol: run a level, page state change (shared), register. GHCB page: IOIO with EXITINFO1 in ECX, AL or AX
# in EAX. What is not as it must be ends the guest with the number in EDI.
def _monitor(vmpl: int) -> str:
    return f"""
    .macro request low, high
    mov ecx, 0xC0010130
    mov eax, \\low
    mov edx, \\high
    wrmsr
    .byte 0xF3, 0x0F, 0x01, 0xD9
    rdmsr
    .endm
    mov edi, 1
    mov esi, {_PML4}
grant:
    mov rax, rsi
    xor ecx, ecx
    mov edx, {0x0F00 | vmpl}
    .byte 0xF3, 0x0F, 0x01, 0xFE
    test eax, eax
    jnz end
    add esi, {PAGE}
    cmp esi, {_PD_SHARED}
    jbe grant
    mov esi, {GUEST}
    mov eax, {GUEST}
    mov edx, {0x0F00 | vmpl}
    .byte 0xF3, 0x0F, 0x01, 0xFE
    mov eax, {WORDS_AT}
    .byte 0xF3, 0x0F, 0x01, 0xFE
    mov edi, 2
    request 0x16, {vmpl}
    cmp eax, 0x17
    jne end
    test edx, edx
    jnz end
    mov edi, 3
    mov eax, {GHCB}
    xor ecx, ecx
    xor edx, edx
    .byte 0xF2, 0x0F, 0x01, 0xFF
    jc end
    request {GHCB + 0x14}, {2 << 20}
    cmp eax, 0x15
    jne end
    test edx, edx
    jnz end
    mov edi, 4
    request {GHCB + 0x12}, 0
    cmp eax, {GHCB + 0x13}
    jne end
    mov esi, {WORDS_AT}
print:
    movzx eax, byte ptr [rsi]
    test al, al
    jz off
    mov ecx, {0x3F8 << 16 | 1 << 9 | 1 << 4}
    call output
    inc esi
    jmp print
off:
    mov eax, {1 << 13}
    mov ecx, {0x604 << 16 | 1 << 9 | 1 << 5}
    call output
    mov edi, 6
end:
    shl edi, 16
    mov eax, edi
    or eax, {1 << 12 | 0x100}
    request eax, 0
    hlt
output:
    mov rbx, {_SHARED + GHCB}
    mov [rbx + 0x1F8], rax
    mov qword ptr [rbx + 0x390], 0x7B
    mov [rbx + 0x398], rcx
    mov qword ptr [rbx + 0x3A0], 0
    mov rax, {1 << 63}
    mov [rbx + 0x3F0], rax
    mov rax, {7 << 50}
    mov [rbx + 0x3F8], rax
    mov word ptr [rbx + 0xFFA], 2
    mov dword ptr [rbx + 0xFFC], 0
    mov ecx, 0xC0010130
    mov eax, {GHCB}
    xor edx, edx
    wrmsr
    .byte 0xF3, 0x0F, 0x01, 0xD9
    mov edi, 5
    cmp dword ptr [rbx + 0x398], 0
    jne end
    ret
"""


def _guest(vmpl: int) -> str:
    return f"""
    lea rsi, [rip + words]
    mov edi, {WORDS_AT}
    mov ecx, {len(words(vmpl))}
    rep movsb
    mov ecx, 0xC0010130
    mov eax, 0x16
    xor edx, edx
    wrmsr
    .byte 0xF3, 0x0F, 0x01, 0xD9
    hlt
words:
    .ascii "{words(vmpl).decode().strip()}\\n"
"""


def _tables(words_gpa: int) -> dict[int, bytes]:
    link = _C_BIT | 7
    one = struct.pack("<Q", _PDPT | link).ljust(PAGE, b"\0")
    two = struct.pack("<QQ", _PD | link, _PD_SHARED | link).ljust(PAGE, b"\0")
    places = {WORDS_AT >> 21: words_gpa}
    private, shared = (
        b"".join(struct.pack("<Q", places.get(index, index << 21) | bit | 0x87) for index in range(PAGE // 8))
        for bit in (_C_BIT, 0)
    )
    return {_PML4: one, _PDPT: two, _PD: private, _PD_SHARED: shared}


def two_levels(
    writer: IgvmWriter | None = None, *, vmsa_at: int = MONITOR_VMSA, vmpl: int = 2, words_gpa: int = WORDS_AT
) -> IgvmWriter:
    """The file: page tables, code, its data, and both contexts. `vmpl`: of the context that is not VMPL 0's, whose code
    and words are in 2 MiB of memory at `words_gpa`."""
    writer = writer or IgvmWriter().platform().policy(POLICY)
    for gpa, table in _tables(words_gpa).items():
        writer.page(gpa, table)
    writer.page(CODE, assemble(_monitor(vmpl), CODE).ljust(PAGE, b"\0"))
    writer.page(words_gpa).page(words_gpa + PAGE, assemble(_guest(vmpl), GUEST).ljust(PAGE, b"\0"))
    writer.page(GHCB).page(STACK)
    writer.context(GUEST_VMSA, vmsa(vmpl, rip=GUEST, cr3=_PML4))
    return writer.context(vmsa_at, vmsa(0, rip=CODE, rsp=STACK + PAGE, cr3=_PML4))

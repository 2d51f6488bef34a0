# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves of a few instructions, as images for the starter."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from tests.machine_code import assemble
from veil.formats.enclaves import RUNTIME, THREADS, WINDOW, Layout, Prot, Record, RecordKind
from veil.formats.page_sizes import PAGE_SIZE

__all__ = ["EXIT", "PRINT", "SERVE", "enclave_image"]

_VECTORS = RUNTIME + 0x10000
DATA = RUNTIME + 0x20000
_BEGIN = f"""
    mov rbx, {WINDOW}
    mov rax, rdi
    shl rax, 18
    add rbx, rax
    mov r12, {THREADS}
    mov rax, rdi
    shl rax, 16
    add r12, rax
"""


def call_window(state: int) -> str:
    """Puts the state, and goes on when it is served."""
    return f"mov dword ptr [rbx], {state}\n9: rep; vmmcall\ncmp dword ptr [rbx], 0\njne 9b\n"


#: writes the bytes at `text` (`length`) to the standard output, by way of the window's buffer
PRINT = """
    lea rsi, [rip + text]
    lea rdi, [rbx + 0x1000]
    mov ecx, length
    rep movsb
    mov qword ptr [rbx + 8], 1
    mov qword ptr [rbx + 16], 1
    lea rax, [rbx + 0x1000]
    mov [rbx + 24], rax
    mov qword ptr [rbx + 32], length
""" + call_window(1)


def EXIT(status: int) -> str:
    """The enclave ends."""
    return (
        f"mov qword ptr [rbx + 16], {status}\nmov qword ptr [rbx + 24], 0\nmov qword ptr [rbx + 32], 0\n"
        + call_window(4)
    )


def SERVE(call: int, *args: int | str) -> str:
    """The service is asked; its answer is in the mailbox, at R12 + 0xf000."""
    put = "".join(f"mov rax, {arg}\nmov [r12 + {0xF008 + 8 * at}], rax\n" for at, arg in enumerate(args))
    return f"{put}mov dword ptr [r12 + 0xf000], {call}\nmov dword ptr [r12 + 0xf004], -1\n{call_window(2)}"


def enclave_image(code: str, *, text: bytes = b"hello\n", event: str = "", **layout: Any) -> bytes:
    """An image whose slots run `code`, and `event` on each exception."""
    body = f".set length, {len(text)}\n{_BEGIN}{code}\nhlt\ntext: .byte {','.join(map(str, text))}\n"
    program = assemble(body, RUNTIME).ljust(0x10000, b"\0")
    handlers = assemble(f".rept 256\n.balign 16\njmp handler\n.endr\n.balign 16\nhandler: {event}\nhlt\n", _VECTORS)
    content = program + handlers.ljust(0x2000, b"\0")
    numbers: dict[str, Any] = {"slots": 1, "pool_pages": 16, "arena_pages": 1024, **layout}
    made = Layout(
        entry=RUNTIME,
        vectors=_VECTORS,
        records=(
            Record.content(Prot.R | Prot.X, RUNTIME, content),
            Record(RecordKind.ZERO, Prot.R | Prot.W, DATA, 1),
        ),
        **numbers,
    )
    assert made.records[0].pages * PAGE_SIZE == len(content)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("layout", made.pack()), ("content", content)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()

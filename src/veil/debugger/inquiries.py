# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's `monitor` commands: what of a machine gdb has no words for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from veil.debugger.contexts import Context, read_vmsa
from veil.debugger.memory import ContextMemory, NotThere
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.snp import EntryFlag, ExitCode, Permission

if TYPE_CHECKING:
    from veil.debugger.target import Target

__all__ = ["inquire"]

#: where Linux is linked to (arch/x86: __START_KERNEL_map + CONFIG_PHYSICAL_START), and how far it may be moved
_LINKED_AT = 0xFFFFFFFF81000000
_KERNEL_SPACE = range(0xFFFFFFFF80000000, 0xFFFFFFFFC0000000, PAGE_SIZE_2M)
_RIGHTS = ((Permission.R, "r"), (Permission.W, "w"), (Permission.UX, "u"), (Permission.SX, "s"))


class _Unanswered(Exception):
    """One line why."""


def _address(text: str) -> int:
    try:
        return int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        raise _Unanswered(f"{text!r} is not an address: write 0x...") from None


def _memory(target: Target, context: Context) -> ContextMemory:
    return ContextMemory(target.real.view(vmpl=context.vmpl), read_vmsa(target.real, context.vmsa))


def _rmp(target: Target, context: Context, arguments: list[str]) -> list[str]:
    gpa = _address(arguments[0]) & -PAGE_SIZE
    if not 0 <= gpa < target.real.memory.size:
        raise _Unanswered(f"{gpa:#x} is outside guest memory")
    entry = target.real.rmp.entry(gpa)
    flags = EntryFlag(int(entry["flags"]))
    names = [flag.name.lower() for flag in EntryFlag if flag in flags and flag.name]
    lines = [f"{gpa:#x}: {', '.join(names) or 'shared'}"]
    for vmpl, rights in enumerate(entry["perms"]):
        lines.append(f"  VMPL {vmpl}: {''.join(letter if rights & bit else '-' for bit, letter in _RIGHTS)}")
    return lines


def _translate(target: Target, context: Context, arguments: list[str]) -> list[str]:
    address = _address(arguments[0])
    try:
        page = _memory(target, context).translate(address)
    except NotThere as error:
        raise _Unanswered(str(error)) from error
    return [f"{address:#x} is GPA {page.gpa:#x}, {'private' if page.private else 'shared'}"]


def _vmsa(target: Target, context: Context, arguments: list[str]) -> list[str]:
    vmsa = read_vmsa(target.real, context.vmsa)
    return [
        f"VCPU {context.vcpu}, VMPL {vmsa.vmpl}, CPL {vmsa.cpl}: VMSA at {context.vmsa:#x}",
        f"  last exit {_exit_name(vmsa.guest_exit_code)}, EXITINFO1 {vmsa.exit_info_1:#x}, "
        f"EXITINFO2 {vmsa.exit_info_2:#x}, EXITINTINFO {vmsa.exit_int_info:#x}",
        f"  SEV_FEATURES {vmsa.sev_features:#x}, EFER {vmsa.efer:#x}, CR0 {vmsa.cr0:#x}, CR3 {vmsa.cr3:#x}, "
        f"CR4 {vmsa.cr4:#x}, XCR0 {vmsa.xcr0:#x}",
    ]


def _contexts(target: Target, context: Context, arguments: list[str]) -> list[str]:
    lines = []
    for item in target.contexts():
        code = "Python" if target.real.hosted_program(item.vmsa) is not None else "machine code"
        current = ", current" if item.current else ""
        lines.append(f"{item.thread}: VCPU {item.vcpu}, VMPL {item.vmpl}, VMSA {item.vmsa:#x}, {code}{current}")
    return lines


def _switches(target: Target, context: Context, arguments: list[str]) -> list[str]:
    lines, before = [], dict[int, int]()
    for left in target.left:
        item = left.context
        if before.get(item.vcpu, item.vmpl) != item.vmpl:
            lines.append(f"VCPU {item.vcpu}: VMPL {before[item.vcpu]} to {item.vmpl}")
        lines.append(f"VCPU {item.vcpu}: VMPL {item.vmpl} left by {_exit_name(left.exit_code)}")
        before[item.vcpu] = item.vmpl
    return lines or ["nothing was left since gdb is here"]


def _offset(target: Target, context: Context, arguments: list[str]) -> list[str]:
    memory = _memory(target, context)
    for address in _KERNEL_SPACE:
        try:
            memory.translate(address)
        except NotThere:
            continue
        slide = address - _LINKED_AT
        if not slide:
            return ["the kernel is where it is linked to: file vmlinux"]
        return [f"the kernel is moved by {slide:#x}: symbol-file vmlinux -o {slide:#x}"]
    raise _Unanswered("this context maps no Linux kernel")


def _exit_name(code: int) -> str:
    try:
        return ExitCode(code).name
    except ValueError:
        return f"{code:#x}"


_Inquiry = Callable[["Target", Context, list[str]], list[str]]
#: by name: its arguments, what it tells
_INQUIRIES: dict[str, tuple[str, str, _Inquiry]] = {
    "contexts": ("", "all VCPU contexts", _contexts),
    "offset": ("", "how far the kernel is from where it is linked to (KASLR)", _offset),
    "rmp": ("GPA", "the RMP's entry of a page, and the rights of each VMPL: read, write, execute as user, supervisor",
            _rmp),
    "switches": ("", "how contexts were left, the newest last", _switches),
    "translate": ("ADDRESS", "where the context's page tables lead", _translate),
    "vmsa": ("", "of the context's VMSA, what is no register of gdb's", _vmsa),
}  # fmt: skip


def inquire(target: Target, context: Context | None, line: str) -> str:
    """The answer to a command, in lines."""
    name, *arguments = line.split() or ["help"]
    if name not in _INQUIRIES or context is None:
        known = [f"{f'{name} {item[0]}':<20} {item[1]}" for name, item in _INQUIRIES.items()]
        return "\n".join(["monitor commands:", *(f"  {text}" for text in known), ""])
    wanted, _, answer = _INQUIRIES[name]
    if len(arguments) != len(wanted.split()):
        return f"usage: monitor {name} {wanted}\n"
    try:
        return "\n".join([*answer(target, context, arguments), ""])
    except _Unanswered as error:
        return f"{error}\n"

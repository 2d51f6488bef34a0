# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages that an enclave's runtime shares, and what C says of them and of the layout."""

from __future__ import annotations

import ctypes
from importlib.resources import files

from tests.c_declarations import Declarations, Member
from veil.formats import enclave_pages, enclaves
from veil.formats.enclave_pages import EndReason, InfoPage, Mailbox, MailboxCall, StartBlock, WindowBlock, WindowState
from veil.formats.enclaves import RUNTIME, Layout, Prot, Record, ThreadPart
from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.layouts import CPUID_COUNT_MAX, CpuidFunction

LAYOUT = Layout(RUNTIME, RUNTIME, 2, 16, 64, (Record.content(Prot.R | Prot.X, RUNTIME, bytes(PAGE_SIZE)),))


def test_information_page() -> None:
    page = InfoPage.of(LAYOUT, 7, 1_000_000, bytes(range(0x30)) * 2)
    assert (page.enclave, page.cpuid_entries, page.slots, page.pool_pages) == (7, 2, 2, 16)
    assert bytes(page.measurement) == LAYOUT.measurement
    assert bytes(page.cpuid[:0x60]) == bytes(range(0x30)) * 2
    assert enclave_pages.INFO_CPUID_ENTRIES == CPUID_COUNT_MAX


# The same in C.

ABI = Declarations.of([files("veil.guest.enclaves").joinpath("abi.h").read_text()])
STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "veil_window_block": WindowBlock,
    "veil_start_block": StartBlock,
    "veil_mailbox": Mailbox,
    "veil_cpuid_entry": CpuidFunction,
    "veil_enclave_info": InfoPage,
}
ENUMS = {
    "veil_window_state": ("VEIL_WINDOW_", WindowState),
    "veil_end_reason": ("VEIL_END_", EndReason),
    "veil_mailbox_call": ("VEIL_MAILBOX_", MailboxCall),
}
NUMBERS = [
    "ARENA", "WINDOW", "WINDOW_STRIDE", "RUNTIME", "THREADS", "THREAD_STRIDE", "SYSTEM", "SYSTEM_STRIDE", "IDT", "INFO",
    "TOP", "MAX_SLOTS", "MAX_RECORDS", "MAX_PAGES", "VECTOR_STRIDE", "CODE_SELECTOR", "DATA_SELECTOR",
    "MAILBOX_PENDING", "MAILBOX_DATA", "INFO_CPUID", "INFO_CPUID_ENTRIES",
    "START_MAGIC", "MOST_STRINGS", "MOST_TEXT",
]  # fmt: skip


def test_numbers_in_c() -> None:
    defined = vars(enclaves) | vars(enclave_pages)
    said = {name for name in ABI.numbers if name.startswith("VEIL_ENC_")}
    expected = {f"VEIL_ENC_{name}": defined[name] for name in NUMBERS}
    expected |= {f"VEIL_ENC_{name}": part.value for name, part in ThreadPart.__members__.items()}
    expected |= {f"VEIL_ENC_{prot.name}": prot.value for prot in Prot}
    assert {name: ABI.numbers[name] for name in said} == expected


def test_enumerations_in_c() -> None:
    assert ABI.enums.keys() == ENUMS.keys()
    for name, (prefix, defined) in ENUMS.items():
        assert ABI.enums[name] == {prefix + member.name: member.value for member in defined}


def test_structures_in_c() -> None:
    assert ABI.structs.keys() == STRUCTURES.keys()
    for name, defined in STRUCTURES.items():
        members = {
            member: Member(getattr(defined, member).offset, getattr(defined, member).size)
            for member, *_ in defined._fields_
        }
        assert (ABI.structs[name], ABI.sizes[name]) == (members, ctypes.sizeof(defined)), name

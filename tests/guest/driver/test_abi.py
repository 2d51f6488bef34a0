# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver's C says of calls to VeilMon and to the services is what the other side says of them."""

from __future__ import annotations

import ctypes
import enum
import re
import struct

import pytest

from tests.c_declarations import Declarations
from veil.formats import enclave_calls, enclave_pages, enclaves, kci, log, request_block
from veil.formats.audit_types import type_name
from veil.formats.domains import ENCLAVE_VMPL, MONITOR_VMPL, SERVICE_VMPL
from veil.formats.ghcb import GHCB_MSR, RUN_CONTEXT_SHIFT, MsrRequest, MsrResponse
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.status import Status
from veil.formats.svsm_calls import SVSM_CAA_MSR, ServicesCall
from veil.guest.driver.build import driver_sources
from veil.monitor.protocols import services_setup
from veil.monitor.svsm_call import ResultCode

DRIVER = Declarations.of(data.decode() for data in driver_sources().values())

#: an enumeration of the driver: what its members' names begin with, the definition, and members of the driver's own
ENUMS: dict[str, tuple[str, type[enum.IntEnum], set[str]]] = {
    "veil_status": ("VEIL_", Status, {"VEIL_NO_ANSWER"}),
    "veil_log_call": ("VEIL_LOG_", log.KernelCall, set()),
    "veil_kci_call": ("VEIL_KCI_", kci.KernelCall, set()),
    "veil_enclave_call": ("VEIL_ENCLAVE_CALL_", enclave_calls.EnclaveCall, set()),
    "veil_end_reason": ("VEIL_END_", enclave_pages.EndReason, set()),
    "veil_window_state": ("VEIL_WINDOW_", enclave_pages.WindowState, set()),
    "veil_mailbox_call": ("VEIL_MAILBOX_", enclave_pages.MailboxCall, set()),
}

NUMBERS = {
    "ENCLAVE_VMPL": ENCLAVE_VMPL,
    "MONITOR_VMPL": MONITOR_VMPL,
    "MSR_GHCB": GHCB_MSR,
    "MSR_SVSM_CAA": SVSM_CAA_MSR,
    "REGISTER_BLOCK": ServicesCall.REGISTER_BLOCK,
    "RUN_CONTEXT_SHIFT": RUN_CONTEXT_SHIFT,
    "RUN_VMPL_REQUEST": MsrRequest.RUN_VMPL,
    "RUN_VMPL_RESPONSE": MsrResponse.RUN_VMPL,
    "SERVICES_PROTOCOL": services_setup.ServicesProtocol.number,
    "SERVICE_VMPL": SERVICE_VMPL,
    "SVSM_BUSY": ResultCode.BUSY,
    "SVSM_INCOMPLETE": ResultCode.INCOMPLETE,
    "SVSM_SUCCESS": ResultCode.SUCCESS,
    "VEIL_ENC_CONTENT_PAGES": enclave_calls.CONTENT_PAGES,
    "VEIL_ENC_SERVICE": enclave_calls.ENC_NUMBER,
    "VEIL_KCI_MEMORY_TYPES": len(kci.MemoryType),
    "VEIL_KCI_SERVICE": kci.KCI_NUMBER,
    "VEIL_HEARTBEAT_VERSION": log._HEARTBEAT_VERSION,
    "VEIL_LOG_SERVICE": log.LOG_NUMBER,
    "VEIL_RAN_CONTEXT": MsrResponse.RUN_VMPL,
    "VEIL_TICK_MS": log.TICK_NS // 1_000_000,
    "VEIL_MAX_RULES": log.MAX_RULES,
    "VEIL_MAX_RULES_MESSAGE": log.MAX_RULES_MESSAGE,
}


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations(name: str) -> None:
    prefix, defined, own = ENUMS[name]
    said = dict(DRIVER.enums[name])
    for member in own:
        assert said.pop(member) not in set(defined), f"{member} means something to the other side"
    assert said == {prefix + member.name: int(member) for member in defined}


def test_every_enumeration_is_compared() -> None:
    assert DRIVER.enums.keys() == ENUMS.keys(), "name the definition in `formats` that a new one repeats"


def test_every_structure_is_compared() -> None:
    compared = {
        "veil_block", "veil_record", "veil_heartbeat", "veil_rules_call", "veil_rules_answer", "svsm_caa",
        "veil_kci_piece", "veil_kci_memory", "veil_kci_prepared", "layout_start", "created", "add_request", "finished",
        "reclaim_request", "reclaimed_page", "released", "return_request", "wanted",
    }  # fmt: skip
    # tests/formats/test_enclave_pages.py compares these.
    compared |= {"veil_window_block", "veil_start_block", "veil_mailbox", "veil_cpuid_entry", "veil_enclave_info"}
    own = {
        "veil_pages", "veil_enclave_create", "veil_enclave_add", "veil_enclave_finish", "veil_enclave_enter",
        "veil_paging_state",
    }  # fmt: skip
    assert DRIVER.structs.keys() == compared | own, "compare a new one with its definition in `formats`"


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    assert DRIVER.numbers[name] == NUMBERS[name]


def offsets(layout: struct.Struct) -> list[int]:
    """Where each field of a `struct` format is."""
    fields = re.findall(r"\d*[a-zA-Z]", layout.format)
    return [struct.calcsize("<" + "".join(fields[:end])) for end in range(len(fields))]


@pytest.mark.parametrize(
    ("name", "layout"),
    [("veil_record", log._RECORD), ("veil_heartbeat", log._HEARTBEAT), ("veil_rules_call", log.RULES_CALL)],
    ids=["record", "heartbeat", "rules"],
)
def test_structures(name: str, layout: struct.Struct) -> None:
    assert DRIVER.sizes[name] == layout.size
    assert [member.offset for member in DRIVER.structs[name].values()] == offsets(layout)


def test_memory_of_a_module() -> None:
    assert [kind.value for kind in kci.MemoryType] == list(range(DRIVER.numbers["VEIL_KCI_MEMORY_TYPES"]))
    memory = {kind: kci.ModuleMemory(0x100000 * (kind + 1), 0x1000 * (kind + 1)) for kind in kci.MemoryType}
    body = kci.FilePart(0x5678, 0x1000).pack() + kci.ModulePrepared(0x1234, memory).pack()
    prepared, one = DRIVER.structs["veil_kci_prepared"], DRIVER.structs["veil_kci_memory"]
    assert len(body) == DRIVER.sizes["veil_kci_prepared"]
    assert struct.unpack_from("<QQ", body, prepared["rest"].offset) == (0x5678, 0x1000)
    assert struct.unpack_from("<Q", body, prepared["percpu"].offset) == (0x1234,)
    for kind, (address, size) in memory.items():
        at = prepared["memory"].offset + kind * DRIVER.sizes["veil_kci_memory"]
        assert struct.unpack_from("<Q", body, at + one["address"].offset) == (address,)
        assert struct.unpack_from("<Q", body, at + one["size"].offset) == (size,)


def test_a_piece_of_a_file() -> None:
    piece = DRIVER.structs["veil_kci_piece"]
    assert [(name, member.offset) for name, member in piece.items()] == list(
        zip(kci.FilePart._fields, offsets(kci.FILE_PART), strict=True)
    )


def test_requests_about_enclaves() -> None:
    header, start = enclaves._Header, DRIVER.structs["layout_start"]
    for name in ("slots", "window_pages", "records"):
        assert start[name].offset == getattr(header, name).offset
    assert DRIVER.numbers["LAYOUT_START"] == ctypes.sizeof(header)
    assert DRIVER.numbers["RECORD_SIZE"] == enclaves._RECORD.size
    for name, layout in (
        ("created", enclave_calls._CREATED),
        ("add_request", enclave_calls._ADD),
        ("reclaim_request", enclave_calls._RECLAIM),
        ("wanted", enclave_calls.PAGES_MISSING),
    ):
        assert DRIVER.sizes[name] == layout.size
        assert [member.offset for member in DRIVER.structs[name].values()] == offsets(layout)
    assert DRIVER.sizes["reclaimed_page"] == len(enclave_calls.Reclaimed(((0, 0),)).pack())
    assert DRIVER.structs["return_request"]["addresses"].offset == enclave_calls._RETURN_HEAD.size
    released = DRIVER.structs["released"]
    assert [member.offset for member in released.values()] == [
        *offsets(enclave_calls._RELEASED),
        enclave_calls._RELEASED.size,
    ]
    assert DRIVER.numbers["KEPT_PAGES"] == enclave_calls.KEPT_PAGES
    assert DRIVER.numbers["PAGED_AT_ONCE"] == enclave_calls.PAGED_AT_ONCE
    finished = DRIVER.structs["finished"]
    assert len(enclave_calls.Finished(bytes(48), ()).pack()) == finished["contexts"].offset


def test_answer_with_rules() -> None:
    answer = DRIVER.structs["veil_rules_answer"]
    assert (answer["wanted"].offset, answer["wanted"].size) == (0, log.RULES_ANSWER.size)
    assert (answer["text"].offset, answer["text"].size) == (log.RULES_ANSWER.size, log.MAX_RULES)


def test_request_block() -> None:
    block = DRIVER.structs["veil_block"]
    asked = offsets(request_block._REQUEST)
    names = ["pending", "status", "service", "call", "length", "user", "page_count", "ticket"]
    # "user" is what VeilMon alone writes, four fields.
    assert [block[name].offset for name in names] == asked[:6] + asked[9:]
    assert block["user"].offset + block["user"].size == block["page_count"].offset
    assert offsets(request_block.BLOCK_START) == asked[:5]
    assert block["length"].offset + block["length"].size == request_block.BLOCK_START.size
    assert block["body"].offset == DRIVER.sizes["veil_block"] == request_block.BLOCK_HEADER
    assert 1 <= DRIVER.numbers["VEIL_BLOCK_PAGES"] <= services_setup.MAX_BLOCK_PAGES
    assert DRIVER.numbers["VEIL_BLOCK_PAGES"] * PAGE_SIZE > request_block.BLOCK_HEADER


def test_pages_by_reference() -> None:
    """As many as the driver lists fit into its block, with the small body that it promises room for."""
    room = DRIVER.numbers["VEIL_BLOCK_PAGES"] * PAGE_SIZE - request_block.BLOCK_HEADER
    assert DRIVER.numbers["VEIL_MAX_PAGES"] * 8 + 64 == room


def test_the_record_of_an_intent() -> None:
    assert type_name(DRIVER.numbers["INTENT_TYPE"]) == "TRUSTED_APP"


def test_calling_area() -> None:
    """58019, table 2: the bytes that the driver uses."""
    area = DRIVER.structs["svsm_caa"]
    assert (area["call_pending"].offset, area["mem_available"].offset, DRIVER.sizes["svsm_caa"]) == (0, 1, 8)

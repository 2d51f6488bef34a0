# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests in GHCB pages: every event's good answer, and what malformed requests get."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.host.fakes import BUFFER, FIELDS, GHCB, MEMORY, OK, PAGE, SHARED, VMSA, Guest, malformed, three_vcpus
from veil.formats.ghcb import GhcbReason, NaeEvent
from veil.host import (
    GuestTerminated,
    HostError,
    MalformedGhcb,
    UnsupportedEvent,
)

OUT_BYTE = 0x3F8 << 16 | 1 << 4
IN_BYTE = OUT_BYTE | 1
STRING = 1 << 2
REP = 1 << 3
GP = 0x80000B0D


class TestHeader:
    @pytest.mark.parametrize("missing", ["code", "info1", "info2"])
    def test_required_fields(self, guest: Guest, missing: str) -> None:
        valid = tuple({"code", "info1", "info2", "rax"} - {missing})
        assert guest.call(0x7B, OUT_BYTE, rax=1, valid=valid) == malformed(GhcbReason.MISSING_INPUT)
        assert guest.platform.log == []

    def test_usage(self, guest: Guest) -> None:
        assert guest.call(0x7B, OUT_BYTE, rax=1, usage=1) == malformed(GhcbReason.INVALID_USAGE)

    def test_version_not_said(self, guest: Guest) -> None:
        """edk2's first phase says none."""
        assert guest.call(0x7B, OUT_BYTE, rax=1, version=0) == {"info1": 0, "info2": 0}
        assert len(guest.platform.log) == 1

    @pytest.mark.parametrize("version", [3, 0xFFFF])
    def test_version(self, guest: Guest, version: int) -> None:
        assert guest.call(0x7B, OUT_BYTE, rax=1, version=version) == malformed(GhcbReason.INVALID_INPUT)

    @pytest.mark.parametrize("code", [0, 0x400, 0x80000014, 0x80000015, 0x80000019, (1 << 64) - 1, 1 << 32 | 0x7B])
    def test_unknown_event(self, guest: Guest, code: int) -> None:
        assert guest.call(code) == malformed(GhcbReason.INVALID_EVENT)

    def test_not_registered(self, guest: Guest) -> None:
        guest.host.vcpus[0].contexts[0].ghcb = None
        assert guest.call(0x7B, OUT_BYTE, rax=1) == malformed(GhcbReason.NOT_REGISTERED)

    def test_private_page(self, guest: Guest) -> None:
        guest.view.private[GHCB // PAGE] = True
        before = bytes(guest.view.memory[: 2 * PAGE])
        with pytest.raises(MalformedGhcb, match="page state change"):
            guest.call(0x7B, OUT_BYTE, rax=1)
        assert guest.view.memory[: 2 * PAGE] == before

    @pytest.mark.parametrize("gpa", [0, MEMORY, 1 << 51])
    def test_no_page(self, guest: Guest, gpa: int) -> None:
        with pytest.raises(MalformedGhcb, match="not a page of guest memory"):
            guest.call_msr(gpa)


class TestIoio:
    def test_out(self, guest: Guest) -> None:
        assert guest.call(0x7B, OUT_BYTE, rax=0xABCD41) == OK
        assert guest.platform.log == [("out", 0x3F8, 1, 0x41)]

    def test_in(self, guest: Guest) -> None:
        guest.platform.ports[0x3F8] = 0x123
        assert guest.call(0x7B, IN_BYTE) == OK | {"rax": 0x23}

    @pytest.mark.parametrize(("bits", "size"), [(1 << 5, 2), (1 << 6, 4)])
    def test_sizes(self, guest: Guest, bits: int, size: int) -> None:
        guest.platform.ports[0xCFC] = 0x1_8765_4321
        assert guest.call(0x7B, 0xCFC << 16 | bits | 1)["rax"] == 0x8765_4321 & (1 << 8 * size) - 1
        guest.call(0x7B, 0xCFC << 16 | bits, rax=(1 << 64) - 1)
        assert guest.platform.log[-1] == ("out", 0xCFC, size, (1 << 8 * size) - 1)

    @pytest.mark.parametrize("bits", [0, 3 << 4, 7 << 4])
    def test_bad_size(self, guest: Guest, bits: int) -> None:
        assert guest.call(0x7B, 0x3F8 << 16 | bits, rax=1) == malformed(GhcbReason.INVALID_INPUT)

    def test_out_needs_rax(self, guest: Guest) -> None:
        assert guest.call(0x7B, OUT_BYTE) == malformed(GhcbReason.MISSING_INPUT)

    def test_out_string(self, guest: Guest) -> None:
        assert guest.call(0x7B, OUT_BYTE | STRING | REP, 3, data=b"abc") == OK
        assert guest.platform.log == [("out", 0x3F8, 1, byte) for byte in b"abc"]

    def test_out_string_elsewhere(self, guest: Guest) -> None:
        guest.view.memory[SHARED : SHARED + 4] = b"wxyz"
        assert guest.call(0x7B, 0x80 << 16 | 1 << 5 | STRING | REP, 2, scratch=SHARED) == OK
        assert guest.platform.log == [("out", 0x80, 2, 0x7877), ("out", 0x80, 2, 0x7A79)]

    def test_in_string(self, guest: Guest) -> None:
        guest.platform.ports[0x60] = 0x4142
        assert guest.call(0x7B, 0x60 << 16 | 1 << 5 | STRING | REP | 1, 2, scratch=BUFFER) == OK
        assert guest.buffer(6) == b"BABA\0\0"

    def test_in_string_of_nothing(self, guest: Guest) -> None:
        assert guest.call(0x7B, IN_BYTE | STRING | REP, 0, scratch=BUFFER) == OK

    @pytest.mark.parametrize(
        ("scratch", "count"),
        [
            (BUFFER - 1, 1),
            (GHCB, 1),
            (BUFFER + 0x7EF, 2),
            (BUFFER, 0x7F1),
            (VMSA, 1),
            (SHARED + PAGE - 1, 2),
            (SHARED, (1 << 64) - 1),
            (MEMORY, 1),
            (0, 1),
            ((1 << 64) - 1, 2),
        ],
    )
    @pytest.mark.parametrize("direction", [0, 1])
    def test_bad_scratch(self, guest: Guest, scratch: int, count: int, direction: int) -> None:
        answer = guest.call(0x7B, OUT_BYTE | direction | STRING | REP, count, scratch=scratch)
        assert answer == malformed(GhcbReason.INVALID_SCRATCH_AREA)
        assert guest.platform.log == []

    def test_string_needs_scratch(self, guest: Guest) -> None:
        assert guest.call(0x7B, OUT_BYTE | STRING, 1) == malformed(GhcbReason.MISSING_INPUT)


class TestMsr:
    def test_read(self, guest: Guest) -> None:
        guest.platform.msrs[0xC0010010] = 0x1122_3344_5566_7788
        assert guest.call(0x7C, rcx=0xC0010010) == OK | {"rax": 0x5566_7788, "rdx": 0x1122_3344}

    def test_write(self, guest: Guest) -> None:
        guest.platform.msrs[0x6E0] = 0
        assert guest.call(0x7C, 1, rcx=0x6E0, rax=0xFFFF_FFFF_0000_0002, rdx=1) == OK
        assert guest.platform.log == [("wrmsr", 0, 0x6E0, 0x1_0000_0002)]

    def test_unknown_is_gp(self, guest: Guest) -> None:
        assert guest.call(0x7C, rcx=0x1234) == {"info1": 1, "info2": GP}
        assert guest.call(0x7C, 1, rcx=0x1234, rax=0, rdx=0) == {"info1": 1, "info2": GP}

    def test_malformed(self, guest: Guest) -> None:
        guest.platform.msrs[0x10] = 0
        assert guest.call(0x7C) == malformed(GhcbReason.MISSING_INPUT)
        assert guest.call(0x7C, 1, rcx=0x10, rax=0) == malformed(GhcbReason.MISSING_INPUT)
        assert guest.call(0x7C, 2, rcx=0x10) == malformed(GhcbReason.INVALID_INPUT)


class TestMmio:
    APIC = 0xFEE0_0020

    def test_read(self, guest: Guest) -> None:
        guest.platform.mmio[self.APIC] = 0x1_0203_0405
        assert guest.call(0x80000001, self.APIC, 4, scratch=BUFFER) == OK
        assert guest.buffer(5) == b"\x05\x04\x03\x02\0"

    def test_write(self, guest: Guest) -> None:
        assert guest.call(0x80000002, self.APIC, 8, data=bytes(range(9))) == OK
        assert guest.platform.log == [("mmio write", self.APIC, 8, 0x0706050403020100, 0)]

    @pytest.mark.parametrize(
        ("gpa", "length"),
        [(APIC, 0), (APIC, 3), (APIC, 16), (0x1000, 4), (MEMORY - 4, 8), (1 << 51, 4), ((1 << 64) - 1, 1)],
    )
    @pytest.mark.parametrize("event", [0x80000001, 0x80000002])
    def test_bad_target(self, guest: Guest, event: int, gpa: int, length: int) -> None:
        assert guest.call(event, gpa, length, scratch=BUFFER) == malformed(GhcbReason.INVALID_INPUT)
        assert guest.platform.log == []

    def test_scratch(self, guest: Guest) -> None:
        assert guest.call(0x80000001, self.APIC, 4) == malformed(GhcbReason.MISSING_INPUT)
        bad = guest.call(0x80000001, self.APIC, 4, scratch=VMSA)
        assert bad == malformed(GhcbReason.INVALID_SCRATCH_AREA)


class Processor:
    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def guest_request(self, request: bytes) -> tuple[int, bytes]:
        self.requests.append(request)
        return 0, b"response".ljust(PAGE, b"\0")


class TestGuestRequest:
    REQUEST, RESPONSE, DATA = 0x8000, 0x9000, 0xA000

    @pytest.fixture
    def guest(self) -> Guest:
        guest = Guest()
        for gpa in (self.REQUEST, self.RESPONSE, self.DATA):
            guest.view.private[gpa // PAGE] = False
        guest.machine.secure_processor = Processor()
        guest.view.memory[self.REQUEST + 0x34] = 5
        return guest

    def test_carried(self, guest: Guest) -> None:
        assert guest.call(0x80000011, self.REQUEST, self.RESPONSE) == OK
        assert guest.machine.secure_processor.requests[0][0x34] == 5
        assert guest.view.memory[self.RESPONSE : self.RESPONSE + 8] == b"response"

    def test_certificates(self, guest: Guest) -> None:
        guest.host.certificates = lambda: b"certificate"
        short = guest.call(0x80000012, self.REQUEST, self.RESPONSE, rax=self.DATA, rbx=0)
        assert short == {"info1": 0, "info2": 1 << 32, "rbx": 1}
        assert guest.machine.secure_processor.requests == []
        assert guest.call(0x80000012, self.REQUEST, self.RESPONSE, rax=self.DATA, rbx=1) == OK
        assert guest.view.memory[self.DATA : self.DATA + 11] == b"certificate"

    def test_no_certificates(self, guest: Guest) -> None:
        guest.view.memory[self.DATA] = 1
        assert guest.call(0x80000012, self.REQUEST, self.RESPONSE, rax=self.DATA, rbx=1) == OK
        assert guest.view.memory[self.DATA] == 0
        assert guest.call(0x80000012, self.REQUEST, self.RESPONSE, rax=0, rbx=0) == OK

    @pytest.mark.parametrize(
        ("request_gpa", "response"),
        [(0x8000, 0x8000), (0x8008, 0x9000), (VMSA, 0x9000), (0x8000, VMSA), (0x8000, GHCB), (MEMORY, 0x9000)],
    )
    def test_bad_pages(self, guest: Guest, request_gpa: int, response: int) -> None:
        assert guest.call(0x80000011, request_gpa, response) == malformed(GhcbReason.INVALID_INPUT)
        assert guest.machine.secure_processor.requests == []

    @pytest.mark.parametrize("data", [VMSA, 0xA008, 0x8000, 0x9000, GHCB])
    def test_bad_data(self, guest: Guest, data: int) -> None:
        answer = guest.call(0x80000012, self.REQUEST, self.RESPONSE, rax=data, rbx=1)
        assert answer == malformed(GhcbReason.INVALID_INPUT)


class TestSmallEvents:
    def test_cpuid(self) -> None:
        guest = Guest(cpuid=[(7, 0, 1, 2, 3, 4), (0xD, 1, 5, 6, 7, 8)], apic_ids=[9])
        assert guest.call(0x72, rax=7, rcx=0) == OK | {"rax": 1, "rbx": 2, "rcx": 3, "rdx": 4}
        assert guest.call(0x72, rax=1, rcx=0)["rbx"] == 9 << 24
        assert guest.call(0x72, rax=0x8000001E, rcx=0)["rax"] == 9
        assert guest.call(0x72, rax=0xD, rcx=1, xcr0=1)["rdx"] == 8
        assert guest.call(0x72, rax=0xD, rcx=1) == malformed(GhcbReason.MISSING_INPUT)
        assert guest.call(0x72, rax=7) == malformed(GhcbReason.MISSING_INPUT)

    def test_cpuid_says_whether_the_apic_is_on(self) -> None:
        guest = Guest(cpuid=[(1, 0, 1, 2, 3, 1 << 9 | 4), (0xD, 1, 5, 6, 7, 1 << 9)])
        assert guest.call(0x72, rax=1, rcx=0)["rdx"] == 1 << 9 | 4
        guest.platform.apics_off.add(0)
        assert guest.call(0x72, rax=1, rcx=0)["rdx"] == 4
        assert guest.call(0x72, rax=0xD, rcx=1, xcr0=1)["rdx"] == 1 << 9, "of another leaf the bit is something else"
        guest.platform.apics_off.clear()
        assert guest.call(0x72, rax=1, rcx=0)["rdx"] == 1 << 9 | 4

    @pytest.mark.parametrize(
        ("subleaf", "xcr0", "size"),
        [(0, 1, 0x240), (0, 3, 0x240), (0, 0x203, 0xA88), (0, 7, 0), (1, 3, 0x240), (1, 0x203, 0x248), (9, 1, 0xA80)],
    )
    def test_the_area_of_xsave_follows_xcr0(self, subleaf: int, xcr0: int, size: int) -> None:
        guest = Guest(cpuid=[(0xD, 0, 0x203, 0x240, 0xA88, 0), (0xD, 1, 7, 0x240, 0, 0), (0xD, 9, 8, 0xA80, 0, 0)])
        assert guest.call(0x72, rax=0xD, rcx=subleaf, xcr0=xcr0)["rbx"] == size

    def test_tsc(self, guest: Guest) -> None:
        assert guest.call(0x6E) == OK | {"rax": 0x2345_6789, "rdx": 1}
        assert guest.call(0x87) == OK | {"rax": 0x2345_6789, "rdx": 1, "rcx": 0}

    @pytest.mark.parametrize("code", [0x76, 0x89, 0x80000003])
    def test_nothing_to_do(self, guest: Guest, code: int) -> None:
        assert guest.call(code) == OK

    @pytest.mark.parametrize(
        ("code", "registers"),
        [(0x37, {"rax"}), (0x6F, {"rcx"}), (0x8A, {"rax", "rcx", "rdx"}), (0x8B, {"rax", "rcx"})],
    )
    def test_needs(self, guest: Guest, code: int, registers: set[str]) -> None:
        everything: dict[str, Any] = dict.fromkeys(registers, 0)
        assert guest.call(code, **everything)["info1"] == 0
        for missing in registers:
            some: dict[str, Any] = {name: 0 for name in registers if name != missing}
            assert guest.call(code, **some) == malformed(GhcbReason.MISSING_INPUT)

    def test_dr7_read(self, guest: Guest) -> None:
        assert guest.call(0x27) == OK | {"rax": 0x400}

    def test_vmmcall(self, guest: Guest) -> None:
        assert guest.call(0x81, rax=1, cpl=0) == OK | {"rax": (1 << 64) - 1000}
        assert guest.call(0x81, rax=1) == malformed(GhcbReason.MISSING_INPUT)

    def test_features(self, guest: Guest) -> None:
        assert guest.call(0x8000FFFD) == {"info1": 0, "info2": 0x33}

    def test_terminate(self, guest: Guest) -> None:
        with pytest.raises(GuestTerminated, match="PVALIDATE") as caught:
            guest.call(0x8000FFFE, 2 << 4 | 1)
        assert (caught.value.reason_set, caught.value.code) == (1, 2)

    def test_unsupported(self, guest: Guest) -> None:
        with pytest.raises(UnsupportedEvent, match="0xdead"):
            guest.call(0x8000FFFF, 0xDEAD)


hostile_addresses = st.sampled_from([0, GHCB, BUFFER, BUFFER + 0x7EF, VMSA, 0x8000, MEMORY - 1, MEMORY, 1 << 51])
hostile_words = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 8, 0xD, 253, 512, OUT_BYTE, IN_BYTE, OUT_BYTE | STRING | REP, 1 << 32, 1 << 63]),
    hostile_addresses,
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=examples(100))
@given(
    code=st.one_of(st.sampled_from([int(event) for event in NaeEvent]), st.integers(0, (1 << 64) - 1)),
    words=st.fixed_dictionaries({name: hostile_words for name in FIELDS if name != "code"}),
    data=st.binary(max_size=64),
    valid=st.sets(st.sampled_from(sorted(FIELDS)), min_size=6),
    version=st.sampled_from([0, 1, 2, 2, 2, 3]),
    usage=st.sampled_from([0, 0, 0, 1]),
    observed=st.booleans(),
)
def test_any_page(
    code: int,
    words: dict[str, int],
    data: bytes,
    valid: set[str],
    version: int,
    usage: int,
    observed: bool,
) -> None:
    """No exception but the typed ones, an answer in the specified form, and private memory untouched."""
    guest = three_vcpus()
    guest.view.private[0x8000 // PAGE] = False
    guest.view.large.add(512)
    if observed:
        guest.host.on_event = lambda event: None
    private = {page for page, owned in enumerate(guest.view.private) if owned}
    info1, info2 = words.pop("info1"), words.pop("info2")
    request = valid | {"code", "info1", "info2"} if usage == 0 else valid
    with contextlib.suppress(HostError):
        answer = guest.call(code, info1, info2, data=data, valid=tuple(request), version=version, usage=usage, **words)
        assert answer["info1"] in (0, 1, 2)
        if answer["info1"] == 2:
            assert 1 <= answer["info2"] <= 6
            assert set(answer) == {"info1", "info2"}
    for page in private:
        if guest.view.private[page]:
            assert guest.view.memory[page * PAGE : (page + 1) * PAGE] == bytes(PAGE)

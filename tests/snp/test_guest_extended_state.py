# SPDX-License-Identifier: GPL-2.0-or-later
"""XSAVE and its family, XCR0, and protection keys (APM volume 2, 5.6.7 and 11.5; volume 4)."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.small_guest import CODE, FREE, PAGE, STACK, VMSA, SmallGuest
from veil.formats.registers import Cr4
from veil.snp import CpuFeature, ExitCode, Machine, SnpError
from veil.snp.layouts import Vmsa

_UD, _GP, _PF = 6, 13, 14
_AREA = FREE
_XSTATE_BV, _XCOMP_BV, _COMPACT_PKRU, _PKRU = 512, 520, 576, 0xA80
_XSAVE = (CpuFeature.XSAVE,)
_BOTH = (CpuFeature.XSAVE, CpuFeature.PKU)
_SAVES = {"xsave": "xsave64", "xsaveopt": "xsaveopt64", "xsavec": "xsavec64"}


def _guest(
    code: str,
    *,
    cpl: int = 0,
    features: tuple[CpuFeature, ...] = _XSAVE,
    cr4: int = Cr4.OSXSAVE,
    xcr0: int = 3,
    **more: int,
) -> SmallGuest:
    guest = SmallGuest(code, cpl=cpl, cpu_features=features)
    vmsa = guest.vmsa()
    vmsa.cr4 |= cr4
    vmsa.xcr0 = xcr0
    for name, value in more.items():
        setattr(vmsa, name, value)
    guest.top.write(VMSA, bytes(vmsa))
    return guest


def _ends(guest: SmallGuest, vector: int | None) -> None:
    assert guest.run() == ExitCode.HLT
    trap = guest.trap()
    assert (trap.vector if trap.times else None) == vector


def _all_state(code: str) -> str:
    return f"mov eax, -1\nmov edx, -1\n{code}"


@pytest.mark.parametrize(
    "code",
    [
        "xor ecx, ecx\nxgetbv", "xor ecx, ecx\nmov eax, 3\nxor edx, edx\nxsetbv", f"xsave64 [{_AREA}]",
        f"xsaveopt64 [{_AREA}]", f"xsavec64 [{_AREA}]", f"xrstor64 [{_AREA}]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("features", [(), _XSAVE], ids=["without", "with"])
def test_none_of_it_before_the_kernel_says_so(code: str, features: tuple[CpuFeature, ...]) -> None:
    with _guest(f"{code}\nhlt", features=features, cr4=0) as guest:
        _ends(guest, _UD)


@pytest.mark.parametrize(
    ("features", "bit"), [((), Cr4.OSXSAVE), (_XSAVE, Cr4.PKE), ((), Cr4.PKE)], ids=["OSXSAVE", "PKE", "neither"]
)
def test_the_kernel_cannot_say_so_of_what_is_not_there(features: tuple[CpuFeature, ...], bit: int) -> None:
    with _guest(f"mov rax, cr4\nor rax, {int(bit)}\nmov cr4, rax\nhlt", features=features, cr4=0) as guest:
        _ends(guest, _GP)


def _xsetbv(value: int, register: int = 0) -> str:
    return f"mov ecx, {register}\nmov eax, {value & 0xFFFFFFFF:#x}\nmov edx, {value >> 32:#x}\nxsetbv\nhlt"


def test_xcr0_is_the_contexts() -> None:
    with _guest(f"xor ecx, ecx\nxgetbv\nmov ebx, eax\n{_xsetbv(3)}", xcr0=1, rdx=5) as guest:
        _ends(guest, None)
        assert (guest.vmsa().rbx, guest.vmsa().rdx, guest.vmsa().xcr0) == (1, 0, 3)


@pytest.mark.parametrize(
    ("value", "register", "features"),
    [(0, 0, _BOTH), (2, 0, _BOTH), (7, 0, _BOTH), (1 << 9 | 3, 0, _XSAVE), (1 << 62 | 3, 0, _BOTH), (3, 1, _BOTH)],
)
def test_what_xcr0_cannot_be(value: int, register: int, features: tuple[CpuFeature, ...]) -> None:
    with _guest(_xsetbv(value, register), features=features) as guest:
        _ends(guest, _GP)
        assert guest.vmsa().xcr0 == 3


def test_a_program_does_not_write_xcr0() -> None:
    with _guest(_xsetbv(1), cpl=3) as guest:
        _ends(guest, _GP)
        assert guest.vmsa().xcr0 == 3


@pytest.mark.parametrize("value", [1, 1 << 8, 1 << 11, 1 << 63], ids=hex)
@pytest.mark.parametrize("features", [(), _BOTH], ids=["without", "with"])
def test_there_is_no_state_of_supervisors(value: int, features: tuple[CpuFeature, ...]) -> None:
    code = f"mov ecx, 0xda0\nmov eax, {value & 0xFFFFFFFF:#x}\nmov edx, {value >> 32:#x}\nhere: wrmsr\nhlt"
    with _guest(code, features=features, cr4=0) as guest:
        _ends(guest, _GP)
        assert guest.vmsa().xss == 0


def test_zero_is_taken_for_xss() -> None:
    with _guest("mov ecx, 0xda0\nxor eax, eax\nxor edx, edx\nwrmsr\nmov eax, 5\nrdmsr\nhlt") as guest:
        _ends(guest, None)
        assert guest.vmsa().rax == 0


def _fill(guest: SmallGuest) -> Vmsa:
    rng, vmsa = random.Random(1), guest.vmsa()
    vmsa.fpreg_xmm[:] = rng.randbytes(256)
    for number in range(8):
        vmsa.fpreg_x87[10 * number : 10 * number + 10] = struct.pack("<QH", 1 << 63 | rng.getrandbits(62), 0x3FFF)
    vmsa.x87_ftw, vmsa.mxcsr, vmsa.x87_fcw = 0, 0x3F80, 0x27F
    guest.top.write(VMSA, bytes(vmsa))
    return vmsa


def _floating(vmsa: Vmsa) -> tuple[object, ...]:
    return bytes(vmsa.fpreg_xmm), bytes(vmsa.fpreg_x87), vmsa.x87_ftw, vmsa.x87_fcw, vmsa.mxcsr


@pytest.mark.parametrize("save", _SAVES.values(), ids=_SAVES)
def test_saved_and_restored(save: str) -> None:
    change = "fninit\npxor xmm0, xmm0\npxor xmm15, xmm15\nfld1"
    with _guest(_all_state(f"{save} [{_AREA}]\n{change}\nhlt\nxrstor64 [{_AREA}]\nhlt")) as guest:
        before = _fill(guest)
        _ends(guest, None)
        assert _floating(guest.vmsa()) != _floating(before)
        assert int.from_bytes(guest.top.read(_AREA + _XSTATE_BV, 8), "little") == 3
        compact = int.from_bytes(guest.top.read(_AREA + _XCOMP_BV, 8), "little")
        assert compact == (1 << 63 | 3 if "xsavec" in save else 0)
        _ends(guest, None)
        assert _floating(guest.vmsa()) == _floating(before)


@pytest.mark.parametrize("compact", [0, 1 << 63 | 3], ids=["standard", "compact"])
def test_what_is_not_saved_is_as_after_a_reset(compact: int) -> None:
    with _guest(_all_state(f"xrstor64 [{_AREA}]\nhlt")) as guest:
        _fill(guest)
        guest.top.write(_AREA, bytes(24) + (0x5F80).to_bytes(4, "little") + bytes(PAGE - 28))
        guest.top.write_u64(_AREA + _XCOMP_BV, compact)
        _ends(guest, None)
        vmsa = guest.vmsa()
        assert not any(vmsa.fpreg_xmm)
        assert (vmsa.x87_ftw, vmsa.x87_fcw) == (0xFFFF, 0x37F)
        assert vmsa.mxcsr == (0x1F80 if compact else 0x5F80)


@pytest.mark.parametrize(
    ("saved", "form"),
    [(4, 0), (1 << 63, 0), (0, 3), (3, 1 << 63 | 1), (0, 1 << 63 | 7), (1 << 62, 1 << 63 | 3)],
)
def test_headers_that_are_refused(saved: int, form: int) -> None:
    with _guest(_all_state(f"xrstor64 [{_AREA}]\nhlt")) as guest:
        guest.top.write_u64(_AREA + _XSTATE_BV, saved)
        guest.top.write_u64(_AREA + _XCOMP_BV, form)
        _ends(guest, _GP)


@pytest.mark.parametrize("name", [*_SAVES.values(), "xrstor64"])
def test_areas_are_aligned(name: str) -> None:
    with _guest(_all_state(f"here: {name} [{_AREA + 16}]\nhlt")) as guest:
        _ends(guest, _GP)
        assert guest.trap().rip == CODE + 10


@pytest.mark.parametrize("name", [*_SAVES.values(), "xrstor64"])
def test_an_area_that_is_not_there(name: str) -> None:
    """RIP and flags are those from before."""
    with _guest(_all_state(f"stc\n{name} [{_AREA}]\nhlt")) as guest:
        guest.top.write_u64(0x4000 + 8 * (_AREA // PAGE), 0)
        _ends(guest, _PF)
        assert guest.trap().rip == CODE + 11
        assert guest.top.read_u64(STACK - 24) & 1  # of the frame


def test_only_what_is_asked_for() -> None:
    with _guest(f"mov eax, 2\nxor edx, edx\nxsavec64 [{_AREA}]\nhlt") as guest:
        _fill(guest)
        guest.top.write(_AREA, b"\xaa" * PAGE)
        _ends(guest, None)
        area = guest.top.read(_AREA, PAGE)
        assert area[:24] == b"\xaa" * 24
        assert struct.unpack_from("<QQ", area, _XSTATE_BV) == (2, 1 << 63 | 2)


# Protection keys

_KEY = 5
_FORBIDDEN, _READ_ONLY = 1, 2


def _key_guest(code: str, rights: int, *, cpl: int, cr0: int = 0x80050033) -> SmallGuest:
    """The free page has a key."""
    guest = _guest(
        code, cpl=cpl, features=_BOTH, cr4=Cr4.OSXSAVE | Cr4.PKE, xcr0=0x203, pkru=rights << 2 * _KEY, cr0=cr0
    )
    guest.top.write_u64(0x4000 + 8 * (FREE // PAGE), FREE | 7 | 1 << 51 | _KEY << 59)
    return guest


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("rights", [0, _FORBIDDEN, _READ_ONLY])
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("protect", [True, False], ids=["WP", "no WP"])
def test_keys(cpl: int, rights: int, write: bool, protect: bool) -> None:
    code = f"mov [{FREE}], rax" if write else f"mov rax, [{FREE}]"
    with _key_guest(f"{code}\nint 0x30", rights, cpl=cpl, cr0=0x80050033 if protect else 0x80040033) as guest:
        refused = rights == _FORBIDDEN or (rights == _READ_ONLY and write and (cpl == 3 or protect))
        _ends(guest, _PF if refused else 0x30)
        if refused:
            assert guest.trap().error_code == 0x21 | (2 if write else 0) | (4 if cpl else 0)


@pytest.mark.parametrize("rights", [0, _FORBIDDEN, _READ_ONLY])
def test_the_error_code_tells_of_the_key_even_if_the_page_refuses_too(rights: int) -> None:
    with _key_guest(f"mov [{FREE}], rax", rights, cpl=3) as guest:
        entry = 0x4000 + 8 * (FREE // PAGE)
        guest.top.write_u64(entry, guest.top.read_u64(entry) & ~2)
        _ends(guest, _PF)
        assert guest.trap().error_code == 7 | (0x20 if rights else 0)


def test_code_has_no_key() -> None:
    with _key_guest(f"mov rax, {FREE}\njmp rax", _FORBIDDEN, cpl=3) as guest:
        guest.put("int 0x30", at=FREE)
        _ends(guest, 0x30)


def test_a_key_is_taken_away_at_once() -> None:
    load = f"mov rbx, [{FREE}]"
    code = (
        f"{load}\nxor ecx, ecx\nxor edx, edx\nmov eax, {_FORBIDDEN << 2 * _KEY}\nwrpkru\nrdpkru\nmov esi, eax\n{load}"
    )
    with _key_guest(f"{code}\nint 0x30", 0, cpl=3) as guest:
        _ends(guest, _PF)
        assert guest.vmsa().pkru == guest.vmsa().rsi == _FORBIDDEN << 2 * _KEY


def test_keys_count_from_when_the_kernel_says_so() -> None:
    """For pages that it has used already, too."""
    load = f"mov rbx, [{FREE}]"
    code = f"{load}\nmov rax, cr4\nor rax, {int(Cr4.PKE)}\nmov cr4, rax\nmov esi, 1\n{load}"
    with _key_guest(f"{code}\nint 0x30", _FORBIDDEN, cpl=0) as guest:
        vmsa = guest.vmsa()
        vmsa.cr4 ^= Cr4.PKE
        guest.top.write(VMSA, bytes(vmsa))
        _ends(guest, _PF)
        assert guest.vmsa().rsi == 1


def test_a_key_that_the_monitor_takes_away() -> None:
    load = f"mov rbx, [{FREE}]"
    with _key_guest(f"{load}\nhlt\n{load}\nhlt", 0, cpl=0) as guest:
        _ends(guest, None)
        vmsa = guest.vmsa()
        vmsa.pkru = _FORBIDDEN << 2 * _KEY
        guest.top.write(VMSA, bytes(vmsa))
        _ends(guest, _PF)


@pytest.mark.parametrize(("save", "at"), [("xsave64", _PKRU), ("xsavec64", _COMPACT_PKRU)])
def test_keys_are_saved(save: str, at: int) -> None:
    code = f"xor edx, edx\nmov eax, 0x200\n{save} [{_AREA}]\nhlt\nxor ecx, ecx\nxor eax, eax\nwrpkru\n"
    code += f"mov eax, 0x200\nxrstor64 [{_AREA}]\nhlt"
    with _guest(code, features=_BOTH, cr4=Cr4.OSXSAVE | Cr4.PKE, xcr0=0x203, pkru=0x55555550) as guest:
        _ends(guest, None)
        assert int.from_bytes(guest.top.read(_AREA + at, 8), "little") == 0x55555550
        _ends(guest, None)
        assert guest.vmsa().pkru == 0x55555550


# What the machine says of it


def _table(*features: CpuFeature) -> dict[tuple[int, int], tuple[int, ...]]:
    with Machine(2 << 20, cpu_features=features) as machine:
        return {(item.leaf, item.subleaf): tuple(item[2:]) for item in machine.cpuid_entries()}


def test_cpuid() -> None:
    without, with_xsave, with_both = _table(), _table(*_XSAVE), _table(*_BOTH)
    assert without[0, 0][0] == 7
    assert not without[1, 0][2] & (1 << 26 | 1 << 27)
    assert (0xD, 0) not in without
    assert with_xsave[0, 0][0] == 0xD
    assert with_xsave[1, 0][2] & (1 << 26 | 1 << 27) == 1 << 26
    assert with_xsave[0xD, 0] == (3, 0x240, 0x240, 0, 1)
    # Linux gives up a guest whose EAX has neither XSAVEC nor XSAVES.
    assert with_xsave[0xD, 1] == (7, 0x240, 0, 0, 1)
    assert not with_xsave[7, 0][2] & 0x18
    assert with_both[7, 0][2] & 0x18 == 8
    assert with_both[0xD, 0] == (0x203, 0x240, 0xA88, 0, 1)
    assert with_both[0xD, 9] == (8, 0xA80, 0, 0, 0)


def test_no_keys_without_xsave() -> None:
    with pytest.raises(SnpError, match="has xsave as well"):
        Machine(2 << 20, cpu_features=[CpuFeature.PKU])


def test_a_snapshot_has_the_same_processor(tmp_path: Path) -> None:
    with Machine(2 << 20, cpu_features=_BOTH) as machine:
        machine.save(tmp_path / "snapshot")
    restored, _ = Machine.restore(tmp_path / "snapshot")
    with restored:
        assert restored.cpu_features == set(_BOTH)

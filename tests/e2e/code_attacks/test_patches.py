# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel-mode code forges patches of its own text: every kind of site, every step."""

from __future__ import annotations

import re
import struct

import pytest

from tests.e2e.code_attacks.guests import EFAULT, CodeGuest
from veil.services.kci import KernelCode
from veil.services.kci.live_sites import Site
from veil.services.kci.patch_tables import kernel_tables

__all__ = ["idle_site", "legal_steps"]

_CALL, _JMP, _INT3, _NOP5 = 0xE8, 0xE9, "cc", bytes.fromhex("0f1f440000")
#: Code that nobody executes here, so that a site of it may be half patched for a while.
_IDLE = re.compile("hibernat|swsusp|swapoff|security_msg_queue|acct_write|__SCT__x86_pmu|unmask_lapic|tdx_kexec")
#: Of the idle functions one that has no site at its beginning.
_UNLISTED = "__x64_sys_swapoff"
PAGE = 4096


def _branch(opcode: int, at: int, to: int) -> bytes:
    return bytes([opcode]) + struct.pack("<i", to - at - 5)


def _sites(code: KernelCode, kind: str) -> list[Site]:
    live = (code.live.site(number) for number in range(len(code.live)))
    return [site for site in live if site.kind == kind and site.length == 5]


def idle_site(code: KernelCode, kind: str) -> Site:
    """A site in code that nobody executes here."""
    return next(site for site in _sites(code, kind) if _IDLE.match(code.image.symbols.describe(site.address)))


def _forged(code: KernelCode, kind: str, site: Site) -> bytes:
    """A content that would be good for an attacker: it leads into the middle of a function, or to no entry of the
    function tracer; of a jump label to another one's target."""
    middle = code.image.symbols[_UNLISTED] + 17
    opcode = _JMP if kind in ("jump label", "static tail call", "static call trampoline") else _CALL
    return _branch(opcode, site.address, middle)


def legal_steps(text: bytes) -> str:
    """What Linux does itself to patch a site, with what is there already."""
    return f"0:{_INT3},1:{text[1:].hex()},0:{text[:1].hex()}"


KINDS = ("jump label", "static call", "static tail call", "static call trampoline", "function entry")


@pytest.mark.parametrize("kind", KINDS)
def test_listed_sites(locked: CodeGuest, code: KernelCode, kind: str) -> None:
    site = idle_site(code, kind)
    now, forged = locked.text(site.address, 5), _forged(code, kind, site)
    assert locked.store("alias", site.address, legal_steps(now)) == [0, 0, 0]
    known = locked.status().violations
    first, rest = now[:1].hex(), now[1:].hex()
    wrong = {
        "all at once": (f"0:{forged.hex()}", [EFAULT]),
        "no INT3 yet": (f"1:{forged[1:].hex()}", [EFAULT]),
        "the first byte, no INT3 yet": ("0:90", [EFAULT]),
        "another target": (f"0:cc,1:{forged[1:].hex()},0:{first}", [0, EFAULT, 0]),
        "another instruction": (f"0:cc,0:90,0:{first}", [0, EFAULT, 0]),
        "a part of it": (f"0:cc,1:{forged[1:3].hex()},0:{first}", [0, EFAULT, 0]),
        "beyond it": (f"0:cc,1:{rest}90,0:{first}", [0, EFAULT, 0]),
        "before it": (f"-1:90{first}", [EFAULT]),
    }
    for what, (steps, results) in wrong.items():
        assert locked.store("alias", site.address, steps) == results, what
        assert locked.text(site.address, 5) == now, what
    assert locked.status().violations == known + len(wrong)


def test_the_tracers_own_call(locked: CodeGuest, code: KernelCode) -> None:
    site = next(
        site for site in _sites(code, "trace dispatch") if site.address == code.image.symbols["ftrace_regs_call"]
    )
    now, forged = locked.text(site.address, 5), _forged(code, site.kind, site)
    assert locked.store("alias", site.address, f"0:{forged.hex()},1:{forged[1:].hex()}") == [EFAULT, EFAULT]
    assert locked.text(site.address, 5) == now


def _lock_prefix(guest: CodeGuest, code: KernelCode) -> int:
    """The first one that no alternative has taken the place of."""
    return next(site for site in map(int, kernel_tables(code.image).smp_locks) if guest.text(site, 1) == b"\xf0")


def test_a_lock_prefix_does_not_go(locked: CodeGuest, code: KernelCode) -> None:
    """With it the kernel would race with itself on two VCPUs."""
    site = _lock_prefix(locked, code)
    assert locked.store("alias", site, "0:3e,0:f0") == [EFAULT, 0]


def test_what_is_legal_elsewhere(locked: CodeGuest, code: KernelCode) -> None:
    """A jump label's step, complete and legal, at another jump label; and where no table lists anything."""
    here = idle_site(code, "jump label")
    other = next(item for item in kernel_tables(code.image).jumps if int(item["site"]) != here.address)
    now = locked.text(here.address, 5)
    steps = f"0:cc,1:{_branch(_JMP, here.address, int(other['target']))[1:].hex()},0:{now[:1].hex()}"
    assert locked.store("alias", here.address, steps) == [0, EFAULT, 0]
    assert locked.text(here.address, 5) == now
    unlisted = code.image.symbols[_UNLISTED] + 16
    assert code.live.find(unlisted) is None
    steps = f"0:cc,1:{_NOP5[1:].hex()},0:0f,0:{_NOP5.hex()}"
    assert locked.store("alias", unlisted, steps) == [EFAULT] * 4


def _across(code: KernelCode) -> Site:
    """A site whose instruction crosses into the next page."""
    return next(
        site
        for kind in KINDS
        for site in _sites(code, kind)
        if site.address % PAGE + site.length > PAGE and _IDLE.match(code.image.symbols.describe(site.address))
    )


def test_over_the_end_of_a_page(locked: CodeGuest, code: KernelCode) -> None:
    site = _across(code)
    now = locked.text(site.address, 5)
    # By an instruction that crosses into its own next page, too.
    for way in ("alias", "across"):
        assert locked.store(way, site.address, legal_steps(now)) == [0, 0, 0]
        forged = f"0:cc,1:{_forged(code, site.kind, site)[1:].hex()},0:{now[:1].hex()}"
        assert locked.store(way, site.address, forged) == [0, EFAULT, 0]
        assert locked.text(site.address, 5) == now
    # Eight bytes as one, over both pages: of text, and of a page of data and one of text.
    end = (site.address | (PAGE - 1)) + 1
    before = locked.text(end - 8, 16)
    assert locked.store("word", end - 4, f"0:{'90' * 8}") == [EFAULT]
    assert locked.store("edge", end, f"-4:{'90' * 8}") == [EFAULT]
    assert locked.text(end - 8, 16) == before


def _put(guest: CodeGuest, way: str, target: int, at: int, data: bytes) -> None:
    """It gets there, and is taken back."""
    before = guest.text(target + at, len(data))
    assert guest.store(way, target, f"{at}:{data.hex()}") == [0]
    assert guest.text(target + at, len(data)) == data
    assert guest.store("alias", target + at, f"0:{before.hex()}") == [0]


def test_off_all_of_it_gets_through(unlocked: CodeGuest, code: KernelCode) -> None:
    for kind in KINDS:
        site = idle_site(code, kind)
        _put(unlocked, "alias", site.address, 0, _forged(code, kind, site))
    _put(unlocked, "alias", code.image.symbols[_UNLISTED] + 16, 0, _NOP5)
    _put(unlocked, "alias", _lock_prefix(unlocked, code), 0, b"\x3e")
    site = _across(code)
    end = (site.address | (PAGE - 1)) + 1
    _put(unlocked, "across", site.address, 0, _forged(code, site.kind, site))
    _put(unlocked, "word", end - 4, 0, b"\x90" * 8)
    assert unlocked.store("edge", end, f"-4:{'90' * 4}{unlocked.text(end, 4).hex()}") == [0]

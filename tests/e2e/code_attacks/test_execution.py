# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel-mode code executes what is not verified: data, memory of user mode, pages that were code or change hands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.code_attacks.guests import RAN, VICTIM, CodeGuest, Resume
from veil.cvm.commands import ENVIRONMENT
from veil.formats.kci_settings import OFF
from veil.formats.page_sizes import PAGE_SIZE_2M
from veil.host import RunResult
from veil.monitor.svsm_call import ResultCode
from veil.services.kci import KernelCode, physical_range
from veil.snp import EntryFlag, Permission

PAGE = 4096
_SHARED, _PRIVATE = 2, 1
_INVALID_ADDRESS = int(ResultCode.INVALID_ADDRESS)
#: So large that it has a page of its own. Nobody calls it here.
LARGE = "ZSTD_compressBlock_doubleFast"


def _text(code: KernelCode) -> int:
    return -(-code.image.symbols[LARGE] // PAGE) * PAGE


def _text_page(code: KernelCode) -> int:
    """GPA of a page of text that nobody executes."""
    address = _text(code)
    assert code.image.symbols.describe(address + PAGE - 1).startswith(f"{LARGE}+")
    return physical_range(code.image, code.range).start + address - code.range.start


def _refused(guest: CodeGuest, *attack: str | int) -> None:
    known = len(guest.violations())
    assert guest.attack(*attack) is None
    *_, word = violations = guest.violations()
    assert len(violations) == known + 1
    assert "execution of what is not verified code" in word.words
    assert guest.sh("echo works") == (0, "works\n")


def _numbers(guest: CodeGuest, *attack: str | int) -> list[int]:
    """Each as 64 bits."""
    return [number % (1 << 64) for number in guest.attack(*attack) or []]


@pytest.mark.parametrize("how", ["data", "user"])
def test_data_and_user_memory(locked: CodeGuest, how: str) -> None:
    _refused(locked, how)


@pytest.mark.parametrize("how", ["data", "user"])
def test_off_data_and_user_memory(unlocked: CodeGuest, how: str) -> None:
    assert unlocked.attack(how) == [RAN]


def _freed_text(guest: CodeGuest) -> int:
    """GPA of a page in which a module's text was."""
    (gpa,) = _numbers(guest, "physical", guest.module_text(VICTIM))
    assert guest.sh(f"rmmod {VICTIM}") == (0, "")
    return gpa


def test_pages_of_a_module_that_is_gone(locked: CodeGuest) -> None:
    _refused(locked, "frame", _freed_text(locked))


def test_off_pages_of_a_module_that_is_gone(unlocked: CodeGuest) -> None:
    assert unlocked.attack("frame", _freed_text(unlocked)) == [RAN]


def _given_and_taken(guest: CodeGuest) -> int:
    """A page of data that was not validated, was shared, and is the kernel's again."""
    (gpa,) = _numbers(guest, "page")
    for step in (("pvalidate", gpa, "0"), ("state", gpa, _SHARED), ("state", gpa, _PRIVATE), ("pvalidate", gpa, "1")):
        assert _numbers(guest, *step) == [0], step
    return gpa


def test_data_given_back_and_taken_again(locked: CodeGuest) -> None:
    _refused(locked, "frame", _given_and_taken(locked))


def test_off_data_given_back_and_taken_again(unlocked: CodeGuest) -> None:
    assert unlocked.attack("frame", _given_and_taken(unlocked)) == [RAN]


Place = Callable[[CodeGuest, KernelCode], int]
PLACES: dict[str, Place] = {
    "text": lambda guest, code: _text_page(code),
    "a module's text": lambda guest, code: _numbers(guest, "physical", guest.module_text(VICTIM))[0],
    "read-only data": lambda guest, code: _numbers(guest, "physical", code.image.symbols["sys_call_table"] & -PAGE)[0],
}


@pytest.mark.parametrize("place", PLACES)
def test_code_is_not_given_back(locked: CodeGuest, code: KernelCode, place: str) -> None:
    """VeilMon does not do it: nothing is lost, and nothing is there to be taken again."""
    gpa = PLACES[place](locked, code)
    view = locked.vm.machine.view(vmpl=0)
    before = view.read(gpa, PAGE)
    assert _numbers(locked, "pvalidate", gpa, "0") == [_INVALID_ADDRESS]
    assert _numbers(locked, "pvalidate", gpa, "1") == [_INVALID_ADDRESS]
    # Nor with all that is around it, as one large page.
    assert _numbers(locked, "pvalidate", gpa & -PAGE_SIZE_2M | 1, "0") == [_INVALID_ADDRESS]
    assert view.read(gpa, PAGE) == before
    permissions = Permission(int(locked.vm.machine.rmp.effective()["perms"][gpa // PAGE, 3]))
    assert not permissions & Permission.W


@pytest.mark.parametrize("place", ["text", "a module's text"])
def test_off_text_is_given_back_and_taken_again(resume: Resume, code: KernelCode, place: str) -> None:
    """And then it is whatever the kernel writes there. (Without its system call table no kernel goes on.)"""
    guest = resume(OFF)
    gpa = PLACES[place](guest, code)
    assert _numbers(guest, "pvalidate", gpa, "0") == [0]
    assert _numbers(guest, "pvalidate", gpa, "1") == [0]
    assert guest.attack("frame", gpa) == [RAN]


def test_text_that_the_host_takes_away_for_the_kernel(resume: Resume, code: KernelCode) -> None:
    """It is not validated any more, VeilMon does not validate it for the kernel, and who executes it is stopped."""
    guest, gpa = resume(), _text_page(code)
    assert _numbers(guest, "state", gpa, _SHARED) == [0]
    assert _numbers(guest, "state", gpa, _PRIVATE) == [0]
    assert _numbers(guest, "pvalidate", gpa, "1") == [_INVALID_ADDRESS]
    assert not guest.vm.machine.rmp.entry(gpa)["flags"] & EntryFlag.VALIDATED
    # Linux reports the #VC, and another one in the report, and so on: what comes of that is a question of time.
    vm = guest.vm
    vm.agent.start(["sh", "-c", f"echo 0 call {_text(code):#x} > /dev/attacker"], environment=ENVIRONMENT)
    reported = vm.hypervisor.run(until=lambda: b"exit-code 0x404 in #VC" in vm.console_output, timeout=120)
    assert reported is RunResult.DONE


def test_off_text_that_the_host_takes_away_for_the_kernel(resume: Resume, code: KernelCode) -> None:
    """VeilMon validates it again, and it is whatever the kernel writes there."""
    guest, gpa = resume(OFF), _text_page(code)
    for step in (("pvalidate", gpa, "0"), ("state", gpa, _SHARED), ("state", gpa, _PRIVATE), ("pvalidate", gpa, "1")):
        assert _numbers(guest, *step) == [0], step
    assert guest.attack("frame", gpa) == [RAN]


OTHERS: dict[str, Place] = {
    "a request block": lambda guest, code: guest.block(1),
    "memory of init": lambda guest, code: (
        physical_range(code.image, code.range).start + code.image.symbols["__init_begin"] - code.range.start
    ),
}


@pytest.mark.parametrize("place", OTHERS)
def test_pages_of_other_uses(resume: Resume, code: KernelCode, place: str) -> None:
    """What passes to VMPL 1, and what was code until the end of boot."""
    guest = resume()
    _refused(guest, "frame", OTHERS[place](guest, code))


@pytest.mark.parametrize("place", OTHERS)
def test_off_pages_of_other_uses(resume: Resume, code: KernelCode, place: str) -> None:
    guest = resume(OFF)
    assert guest.attack("frame", OTHERS[place](guest, code)) == [RAN]

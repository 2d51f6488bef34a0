# SPDX-License-Identifier: GPL-2.0-or-later
"""A module's file or memory changes while it is checked: by another VCPU, at each step, and by the host."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from tests.e2e.code_attacks.guests import VICTIM, CodeGuest, Resume
from veil.formats.kci import MemoryType
from veil.host.errors import GuestError
from veil.services.kci.guarded_module import frames_of
from veil.services.kci.module_calls import ModuleCalls
from veil.snp import EntryFlag, Permission, RmpViolation

PAGE = 4096


class _Steps:
    """Counts the moments of an admission: before VeilMon does what the service asks for, and when it is done. At each
    of them the kernel may run on other VCPUs; at one of them something happens to a page."""

    def __init__(self, patch: pytest.MonkeyPatch, page: str, attack: Callable[[int], None], at: int | None) -> None:
        """`page`: the first of the "file", or of the module's "text". `at`: None is each moment."""
        self.count = 0
        self.gpa = 0
        self.finished = False
        original: Any = ModuleCalls.take

        def watched(loader: ModuleCalls, *arguments: Any) -> Generator[Any, Any, Any]:
            rest, told, pages, *_ = arguments
            self.gpa = pages[0] if page == "file" else frames_of(told, pages[rest.pages :])[MemoryType.TEXT][0]
            work, answer = original(loader, *arguments), None
            try:
                while True:
                    ask = work.send(answer)
                    self._pass(attack, at)
                    answer = yield ask
                    self._pass(attack, at)
            except StopIteration as stop:
                return stop.value
            finally:
                self.finished = True

        patch.setattr(ModuleCalls, "take", watched)

    def _pass(self, attack: Callable[[int], None], at: int | None) -> None:
        if at is None or self.count == at:
            attack(self.gpa)
        self.count += 1


class _OtherVcpu:
    """Code of the kernel on another VCPU: it has VMPL 3's rights and no others."""

    def __init__(self, guest: CodeGuest) -> None:
        self._view = guest.vm.machine.view(vmpl=3)
        self.refused = False

    def __call__(self, gpa: int) -> None:
        try:
            self._view.write_u8(gpa, self._view.read_u8(gpa) ^ 1)
        except RmpViolation:
            self.refused = True


def _permissions(guest: CodeGuest, gpa: int) -> Permission:
    """What VMPL 3 may do with a page."""
    return Permission(int(guest.vm.machine.rmp.effective()["perms"][gpa // PAGE, 3]))


def _load(guest: CodeGuest) -> int:
    return guest.sh(f"insmod /root/{VICTIM}.ko")[0]


def _first_byte(guest: CodeGuest) -> bytes:
    found = guest.text(guest.module_text(VICTIM), 1)
    assert guest.sh(f"rmmod {VICTIM}") == (0, "")
    return found


@pytest.mark.parametrize("page", ["file", "text"])
def test_another_vcpu_at_each_step(locked: CodeGuest, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    with monkeypatch.context() as patch:
        steps = _Steps(patch, page, lambda gpa: None, None)
        assert _load(locked) == 0
    sound = _first_byte(locked)
    results = set()
    for moment in range(steps.count):
        other, known = _OtherVcpu(locked), locked.status().refused
        with monkeypatch.context() as patch:
            _Steps(patch, page, other, moment)
            # busybox tries again if it is refused, and nothing changes then.
            assert _load(locked) == 0, moment
        seen = locked.status().refused > known
        assert _first_byte(locked) == sound, moment
        results.add("seen" if seen else "not written" if other.refused else "too late")
    # The file is copied once; text is compared when nobody can write it any more.
    assert results == ({"seen", "too late"} if page == "file" else {"seen", "not written"})


def test_nothing_runs_before_it_is_checked(locked: CodeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another VCPU that jumps into the module finds code only when there is nothing left to be refused."""
    kernel = locked.vm.machine.view(vmpl=3)
    executable: list[bool] = []
    with monkeypatch.context() as patch:
        _Steps(patch, "text", lambda gpa: executable.append(kernel.allows(gpa, Permission.SX)), None)
        assert _load(locked) == 0
    _first_byte(locked)
    assert len(executable) > 2
    assert executable == [False] * (len(executable) - 1) + [True]


def test_off_another_vcpu_need_not_wait(unlocked: CodeGuest) -> None:
    """All of the kernel's memory can be written and executed, so a module's too before anybody has looked."""
    found = unlocked.attack("physical", unlocked.module_text(VICTIM))
    assert found is not None
    assert unlocked.vm.machine.view(vmpl=3).allows(found[0], Permission.SX | Permission.W)


def _replace(guest: CodeGuest, gpa: int) -> None:
    """The host takes a page and gives it back with something else on it."""
    host = guest.vm.machine.host_view()
    host.psmash(gpa & -(2 << 20))
    host.rmpupdate(gpa, assigned=False)
    host.write(gpa, b"\xcc" * PAGE)
    host.rmpupdate(gpa, assigned=True)


@pytest.mark.parametrize("page", ["file", "text"])
def test_the_host_at_each_step(resume: Resume, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """What it takes away is not validated when it gives it back: nothing of it becomes code. The kernel meets the page
    when it frees or executes it, and is stopped; here nobody waits for that."""
    for moment in range(100):
        guest = resume()
        with monkeypatch.context() as patch:
            steps = _Steps(patch, page, partial(_replace, guest), moment)
            assert guest.sh(f"(sleep 0.2; insmod /root/{VICTIM}.ko) >/dev/null 2>&1 &") == (0, "")
            with suppress(GuestError):
                guest.vm.hypervisor.run(until=lambda: steps.finished, timeout=60)  # noqa: B023 (it is called here only)
        if steps.count <= moment:
            break  # There are no more steps.
        assert not guest.vm.machine.rmp.entry(steps.gpa)["flags"] & EntryFlag.VALIDATED, moment
        assert not _permissions(guest, steps.gpa), moment
        guest.vm.close()
    assert moment >= 2
    assert _permissions(guest, steps.gpa) == (
        Permission.R | Permission.SX if page == "text" else Permission.ALL & ~Permission.SX
    )


def test_off_nobody_looks(unlocked: CodeGuest) -> None:
    """The same write, when the module runs."""
    place = unlocked.module_text(VICTIM)
    other = _OtherVcpu(unlocked)
    before = unlocked.text(place, 1)
    found = unlocked.attack("physical", place)
    assert found is not None
    other(found[0])
    assert not other.refused
    assert unlocked.text(place, 1) != before

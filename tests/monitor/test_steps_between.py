# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hostile kernel does on another VCPU while VeilMon waits for the host in the middle of a service's request."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.monitor.harness import FREE, FREE_2M, KERNEL_CAA, PAGE, SMALL, Bench, kernel_vmsa
from tests.monitor.hostile_moves import Play, operations
from tests.monitor.keeper import CHANGE, MOVE, NUMBER, RESTRICT, Services, moved
from veil.formats.domains import Domain
from veil.formats.status import Status
from veil.monitor import Owner
from veil.snp.errors import RmpViolation
from veil.snp.host_view import HostView
from veil.snp.rmp import Permission, RmpResult

_HELD = b"what was checked"
_KEEP = Permission.RW | Permission.UX
#: On VCPU 1: VeilMon waits on VCPU 0. Pages that matter are named often.
_PAGES = st.sampled_from([SMALL, SMALL, SMALL + PAGE, FREE + PAGE, FREE_2M + PAGE, KERNEL_CAA])
_MOVES = st.lists(
    st.one_of(
        operations,
        st.tuples(st.just("write"), _PAGES, st.just(b"evil")),
        st.tuples(st.just("remap"), st.just(1), _PAGES),
        st.tuples(st.just("call"), st.just(1), st.just(16), st.just(0), _PAGES, st.integers(0, 2), st.just(0)),
        st.tuples(st.just("create"), st.just(1), _PAGES, _PAGES, st.just(1)),
        _PAGES.map(lambda page: ("pvalidate", 1, [page, page | 4], 2, 0, 0)),
    ),
    max_size=12,
)


def _play(play: Play, moves: list[tuple[Any, ...]]) -> None:
    for name, *arguments in moves:
        if name in ("call", "raw", "pvalidate", "create", "delete", "remap", "area", "enter"):
            arguments[0] = 1
        with contextlib.suppress(RmpViolation):
            getattr(play, name)(*arguments)


def _rights_are_as_the_book_says(bench: Bench) -> None:
    book, rows = bench.monitor.book, bench.monitor.state.rows
    rights = bench.rmp.effective()["perms"]
    for owner, gpa, size in book.runs():
        for domain in (Domain.SER, Domain.ENC, Domain.UNT):
            found = set(map(int, rights[gpa // PAGE : (gpa + size) // PAGE, domain.vmpl]))
            assert not [has for has in found if has & ~int(rows.permissions(owner, domain))], f"{owner.name} {gpa:#x}"


@settings(max_examples=examples(100), deadline=None)
@given(_MOVES, st.sampled_from([Owner.KERNEL_CODE, Owner.KERNEL_RODATA, Owner.ENCLAVE]), st.booleans(), st.booleans())
def test_whatever_comes_between(moves: list[tuple[Any, ...]], source: Owner, fails: bool, restricts: bool) -> None:
    """No level has more than the book and its rows say, and what is kept in the end is what was kept."""
    bench = Bench(vcpus=2, services=Services).boot()
    bench.kernel.write(FREE_2M, kernel_vmsa())
    # Its calling area lies in a large RMP entry, which the host must split for its neighbours.
    assert bench.create_vcpu(FREE_2M, FREE + PAGE, 1) == 0
    assert bench.ask(NUMBER, MOVE, moved(SMALL, target=source)) == (Status.OK, b"done")
    bench.view(0).write(SMALL, _HELD)
    play, split = Play(bench), HostView.psmash
    waits = [0]

    def between(host: HostView, gpa: int) -> RmpResult:
        code = split(host, gpa)
        waits[0] += 1
        if waits[0] == 1:
            _play(play, moves)
            if fails and bench.monitor.book.owner(FREE) is Owner.KERNEL_RODATA:
                bench.host.rmpupdate(FREE, assigned=False)
        return code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostView, "psmash", between)
        if restricts:
            assert bench.ask(NUMBER, RESTRICT, bytes((Owner.KERNEL, _KEEP)))[0] == Status.OK
        else:
            back = struct.pack("<HHQ", source, Owner.KERNEL, SMALL)
            taken = struct.pack("<HHQ", Owner.KERNEL, Owner.KERNEL_RODATA, FREE)
            bench.ask(NUMBER, CHANGE, back + taken)
    assert waits[0]
    _rights_are_as_the_book_says(bench)
    if bench.monitor.book.owner(SMALL) is source:
        assert bench.view(0).read(SMALL, len(_HELD)) in (_HELD, bytes(len(_HELD)))

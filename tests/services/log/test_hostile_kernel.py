# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a kernel and a host do with request blocks, VeilMon's calls and each other's memory: what VeilS-LOG answered
with OK is in the log, in its order and as it was, and nothing else is."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.monitor.harness import BLOCKS, FREE, FREE_2M, HEADER, MAILBOX, PAGE, SERVICE_HEADER, SERVICE_MEMORY, SERVICES
from tests.monitor.hostile_moves import Play, operations, pages, vcpu
from tests.services.log.harness import Machine, boot, service
from veil.formats.log import LOG_NUMBER, EntryKind, KernelCall, parse_entries
from veil.formats.request_block import BLOCK_HEADER, read_answer
from veil.formats.status import Status
from veil.snp.errors import RmpViolation

_UNANSWERED = 0x7777

places = [FREE, FREE, FREE_2M - PAGE, SERVICES - PAGE, BLOCKS, MAILBOX, SERVICE_HEADER, SERVICE_MEMORY]
targets = st.one_of(pages, st.sampled_from(places))
lengths = st.one_of(st.integers(0, 40), st.sampled_from([PAGE - BLOCK_HEADER, PAGE, 1 << 16, (1 << 32) - 1]))
moves_of_the_log = st.one_of(
    st.tuples(st.just("register"), vcpu, targets, st.sampled_from([0, 1, 1, 2, 16, 17, 1 << 40])),
    st.tuples(st.just("ask"), vcpu, st.sampled_from([LOG_NUMBER] * 4 + [0, 7]), st.sampled_from([0, 0, 1, 2, 3, 17]),
              lengths, st.binary(max_size=40), st.sampled_from([1, 1, 1, 0, 1 << 31])),
    st.tuples(st.just("steal"), vcpu, st.integers(0, 1), st.booleans()),
    st.tuples(st.just("serve"), vcpu),
    st.tuples(st.just("restart")),
)  # fmt: skip


class LogPlay(Play):
    """The moves of `Play`, and those that the services add."""

    def __init__(self) -> None:
        super().__init__(boot(vcpus=2))
        self.kept: list[bytes | None] = [None]  # the launch

    def register(self, index: int, gpa: int, count: int) -> None:
        self.call(index, 16, 0, gpa, count)

    def ask(self, index: int, number: int, call: int, length: int, body: bytes, pending: int) -> None:
        found = self.bench.monitor.state.blocks.get(index)
        if found is None:
            return
        gpa, _ = found
        # A body that the kernel did not write is what lay there.
        header = struct.pack("<IIHHI", pending, _UNANSWERED, number, call, length)
        with contextlib.suppress(RmpViolation):
            self.bench.kernel.write(gpa + BLOCK_HEADER, body)
            self.bench.kernel.write(gpa, header)
        self.serve(index)

    def serve(self, index: int) -> None:
        found = self.bench.monitor.state.blocks.get(index)
        request = (0, 0, 0, 0, 0)
        body = b""
        with contextlib.suppress(RmpViolation):
            if found is not None:
                gpa, size = found
                request = struct.unpack("<IIHHI", self.bench.kernel.read(gpa, 16))
                body = self.bench.kernel.read(gpa + BLOCK_HEADER, min(request[4], size - BLOCK_HEADER))
        if 1 in self.bench.vcpus[index].vmsas:
            self.bench.enter(index, vmpl=1)
        with contextlib.suppress(RmpViolation):
            if found is not None and request[0] and request[2] == LOG_NUMBER and request[3] in (0, 1, 2):
                answer = read_answer(self.bench.kernel, gpa, size)
                if answer is not None and answer[0] == Status.OK:
                    self.kept.append(body)

    def steal(self, index: int, page: int, back: bool) -> None:
        """The host takes a page of a block, and may give it back."""
        found = self.bench.monitor.state.blocks.get(index)
        if found is not None and page * PAGE < found[1]:
            self.bench.host.rmpupdate(found[0] + page * PAGE, assigned=False)
            if back:
                self.bench.host.rmpupdate(found[0] + page * PAGE, assigned=True)

    def restart(self) -> None:
        Machine(self.bench).restore(self.bench)
        # The machine has made new keys.
        self.image = bytes(self.bench.memory.buf[HEADER : HEADER + 6 * PAGE])
        for index in range(2):
            if 1 in self.bench.vcpus[index].vmsas and self.bench.vcpus[index].service_steps is not None:
                self.serve(index)
                break
        else:
            return
        self.kept.append(None)

    def check(self) -> None:
        super().check()
        store = service(self.bench).store
        entries = list(parse_entries(store.read(0, 1 << 20)))
        assert [item.body if item.kind < EntryKind.STARTED else None for item in entries] == self.kept


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(moves_of_the_log, moves_of_the_log, operations), min_size=1, max_size=30))
def test_invariants(moves: list[tuple[Any, ...]]) -> None:
    play = LogPlay()
    for name, *arguments in moves:
        getattr(play, name)(*arguments)
        play.check()


def test_the_moves_do_log() -> None:
    """So that the test above can fail."""
    play = LogPlay()
    for index in range(3):
        play.register(0, FREE, 2)
        play.ask(0, LOG_NUMBER, KernelCall.RECORDS, 4, b"text", 1)
        play.steal(0, 1, False)
        play.check()
        assert play.kept[-1] == b"text"
        assert len(play.kept) == index + 2 or index


def test_a_new_block_after_the_host_took_the_old_one() -> None:
    """No memory stays within VMPL 1's reach that is nobody's block."""
    for back in (False, True):
        play = LogPlay()
        play.register(0, FREE, 2)
        play.steal(0, 0, back)
        play.register(0, FREE + 2 * PAGE, 1)
        play.check()
        play.ask(0, LOG_NUMBER, KernelCall.RECORDS, 4, b"text", 1)
        play.check()
        assert play.kept[-1] == b"text"

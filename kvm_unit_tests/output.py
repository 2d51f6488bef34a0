# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test printed on its serial port (kvm-unit-tests, lib/report.c), and how it ended."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

__all__ = ["End", "Outcome", "Verdict", "is_dump_complete", "read_output"]


class Verdict(enum.StrEnum):
    """The first word of a line that reports something."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"
    XFAIL = "XFAIL"
    XPASS = "XPASS"
    KFAIL = "KFAIL"


class End(enum.StrEnum):
    """How a test ended."""

    EXITED = "it gave an exit status"
    ABORTED = "it gave up"
    TIMEOUT = "it did not end in time"
    UNHANDLED = "an exception that it has no handler for"
    GUEST = "the guest ended"
    UNBUILT = "its program could not be built"


_LINE = re.compile(rf"({'|'.join(Verdict)}): (.*)")
#: How edk2 begins and ends what it prints of an exception that nobody handles (UefiCpuPkg, CpuExceptionHandlerLib).
_DUMP = re.compile(r"!!!! X64 Exception Type - \w+\((.*?)\)")
_DUMP_END = re.compile(rb"!!!! (?:Find image based on IP|Can't find image information)[^\n]*!!!!")
#: kvm-unit-tests' own, lib/x86/desc.c.
_UNHANDLED = re.compile(r"Unhandled (?:cpu )?exception (.*)")
#: What abort() gives to the port by which tests end: 127 is QEMU's exit status then (lib/abort.c).
_ABORT = 127 >> 1


@dataclass(frozen=True)
class Outcome:
    """The lines by their verdict, in their order, and the end. `status` is what the test gave exit(), or None."""

    end: End
    status: int | None = None
    why: str = ""
    """Of the end, if it was no exit."""
    lines: tuple[tuple[Verdict, str], ...] = field(default=(), repr=False)

    def texts(self, *verdicts: Verdict) -> list[str]:
        """The lines with one of these verdicts, without it."""
        return [text for verdict, text in self.lines if verdict in verdicts]

    @property
    def failed(self) -> list[str]:
        """Lines that a test counts as failures; KFAIL and XFAIL are not."""
        return self.texts(Verdict.FAIL, Verdict.XPASS)

    @property
    def passed(self) -> list[str]:
        """Lines that passed, or failed as the test itself expects."""
        return self.texts(Verdict.PASS, Verdict.XFAIL)

    @property
    def skipped(self) -> list[str]:
        """What a test did not try, and failures that it knows of and does not count."""
        return self.texts(Verdict.SKIP, Verdict.KFAIL)


def is_dump_complete(output: bytes) -> bool:
    """Has edk2 told of an exception that nobody handles? It waits for ever then."""
    return _DUMP_END.search(output) is not None


def read_output(output: bytes, end: End, status: int | None = None, why: str = "") -> Outcome:
    """From all that was printed; whatever is in it, nothing is raised."""
    lines: list[tuple[Verdict, str]] = []
    if end is End.EXITED and status == _ABORT:
        end = End.ABORTED
    for raw in output.decode("ascii", "replace").splitlines():
        if match := _LINE.fullmatch(raw.strip("\r")):
            lines.append((Verdict(match[1]), match[2].strip()))
        # The first is the cause of others.
        elif end is not End.EXITED and not why and (match := _DUMP.search(raw) or _UNHANDLED.match(raw)):
            end, why = End.UNHANDLED, match[1]
    return Outcome(end, status, why, tuple(lines))

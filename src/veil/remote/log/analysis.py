# SPDX-License-Identifier: GPL-2.0-or-later
"""Silence, gaps and contradictions in a log whose entries were verified.

That an entry was made at its time, and in its order, is proved. What it says is the kernel's word; here its words are
held against each other, against the machine's time, and against the sign of life that the driver gives each second.
"""

from __future__ import annotations

import re

from veil.formats.errors import FormatError
from veil.formats.kci import KCI_NUMBER
from veil.formats.kci_status import CodeEvent, CodeWord
from veil.formats.log import EntryKind, Head, Heartbeat, LogEntry, ServiceWord, Silence, parse_records
from veil.formats.printable import printable
from veil.remote.log.clock import ClockCheck
from veil.remote.log.findings import Finding, FindingKind, Findings, machine_text
from veil.remote.log.folder import LogSummary
from veil.remote.log.recording import RecordingCheck
from veil.remote.log.serials import Drops, SerialCheck
from veil.remote.log.silence import SilenceCheck

__all__ = ["LogAnalysis"]

_NS = 1_000_000_000
#: The driver beats each second (module parameter log_heartbeat).
_SILENCE_NS = 5 * _NS
_SYSCALL, _CONFIG_CHANGE, _TIME_INJOFFSET = 1300, 1305, 1332
_LOOKED_AT = frozenset({_SYSCALL, _CONFIG_CHANGE, _TIME_INJOFFSET})
#: AUDIT_FIRST_USER_MSG and so on: what programs have the kernel record, with the time at which it does
_FROM_PROGRAMS = frozenset((*range(1100, 1200), *range(2100, 3000)))
_MODULES = frozenset({CodeEvent.MODULE_ADMITTED, CodeEvent.MODULE_GONE})
#: of a record, in words about it
_SHOWN = 120
_STAMP = re.compile(rb"audit\((\d{1,20})\.(\d{3}):(\d{1,10})\): ?")
# Matched where they must stand, with a bound on each repetition: a record of any length costs no more than its length.
#: As the driver writes it (src/veil/guest/driver/src/log/intent.c).
_CODE = re.compile(rb"[^']{0,200}msg='veil-intent op=module comm=[^ ]{1,64} ([^']{0,200})")
#: As Linux writes it (6.12: kernel/audit.c, `audit_log_config_change`).
_SET = re.compile(rb"op=set (audit_\w{1,40})=(\d{1,10}) old=(\d{1,10}) ")
_RESULT = b" res="


class LogAnalysis:
    """Fed with one entry after the other, in order; keeps little of each. `findings` has what was found so far."""

    def __init__(self, *, first: int = 0, silence_ns: int = _SILENCE_NS, untrusted_from: int | None = None) -> None:
        """`first`: the entry that it begins with. `silence_ns`: no sign of life for longer than this is a finding.

        `untrusted_from`: from this entry on the user believes nothing anyway, and findings are notes.
        """
        self._first = first
        self._last: LogEntry | None = None
        self._whole = True  # all entries since the launch were fed
        self.summary = LogSummary()
        self.findings = Findings(untrusted_from)
        self._silence = SilenceCheck(self._silent, silence_ns)
        self._recording = RecordingCheck(self._recorded)
        self._drops = Drops()
        self._serials = SerialCheck(self._kernel, self._drops)
        self._intents = SerialCheck(self._kernel, self._drops, "intent")
        self._clock = ClockCheck(self._kernel)
        self._claimed_ms: int | None = None
        self._last_ns = 0
        self._stamp = b""  # of the last event
        self.resumed_ns = 0
        """when the machine was restored last: a user's clock knows nothing of before"""

    def _kernel(self, kind: FindingKind, entry: LogEntry, words: str, distrust: bool) -> None:
        self._report(kind, entry, words, trouble=distrust, distrust=distrust)

    def _silent(self, kind: FindingKind, entry: LogEntry, claimed_ms: int | None, words: str, distrust: bool) -> None:
        self.findings.add(
            Finding(kind, entry.sequence, entry.time_ns, claimed_ms, words, trouble=distrust, distrust=distrust)
        )

    def _recorded(self, kind: FindingKind, entry: LogEntry, words: str, distrust: bool) -> None:
        self._report(kind, entry, words, trouble=True, distrust=distrust)

    def _report(self, kind: FindingKind, entry: LogEntry, words: str, *, trouble: bool, distrust: bool = False) -> None:
        self.findings.add(
            Finding(kind, entry.sequence, entry.time_ns, self._claimed_ms, words, trouble=trouble, distrust=distrust)
        )

    def feed(self, entry: LogEntry) -> None:
        """The next entry."""
        kind = entry.kind
        count = 0
        if entry.time_ns < self._last_ns:
            words = f"the machine's time went back by {machine_text(self._last_ns - entry.time_ns)}"
            self._report(FindingKind.MACHINE_TIME, entry, words, trouble=True, distrust=True)
        self._last_ns = entry.time_ns
        self._clock.hear(entry)
        if kind == EntryKind.HEARTBEAT:
            self._listen(entry)
        elif kind in (EntryKind.RECORDS, EntryKind.INTENT):
            count = self._read(entry)
            self._recording.record()
            self._silence.sign(entry, self._claimed_ms)
        else:
            self._service(entry)
        self._last = entry
        self._whole &= entry.sequence == self.summary.entries
        if not self.summary.entries and entry.sequence != self._first:
            words = f"entries {self._first} to {entry.sequence - 1} had been acknowledged before this user came"
            self._report(FindingKind.BEGINS_LATE, entry, words, trouble=False)
        self.summary.count(entry, count)

    def finish(self, head: Head | None) -> None:
        """There are no more entries up to this head (None: not known)."""
        now = self._last_ns if head is None else head.time_ns
        self.silence(now, head)
        self._silence.finish()
        self._serials.finish(now)
        self._intents.finish(now)
        untold = 0 if head is None else head.dropped - self.summary.dropped
        if self._whole and self._last is not None and untold > 0:
            words = f"{untold} calls of the kernel found no room after the last entry"
            self._report(FindingKind.DROPPED, self._last, words, trouble=True)
        if self._last is not None and not self._silence.beats:
            words = "there is no sign of life of the driver in the log: a kernel that is silent looks like an idle one"
            self._report(FindingKind.NO_HEARTBEATS, self._last, words, trouble=False)

    # Signs of life

    def _listen(self, entry: LogEntry) -> None:
        self._settle(entry.time_ns)
        heartbeat = None
        if entry.body:
            try:
                heartbeat = Heartbeat.parse(entry.body)
            except FormatError as error:
                words = f"the kernel handed over a heartbeat that cannot be read: {error}"
                self._kernel(FindingKind.UNREADABLE, entry, words, True)
        self._silence.sign(entry, self._claimed_ms)
        self._silence.beat(entry, heartbeat)
        if heartbeat is not None:
            self._recording.beat(entry, heartbeat)

    def _settle(self, now_ns: int) -> None:
        self._intents.settle(now_ns)
        self._serials.settle(now_ns)

    def silence(self, now_ns: int, head: Head | None = None) -> None:
        """It is `now_ns` by the machine, and there are no more entries: how long is the last sign of life ago?"""
        self._settle(now_ns)
        self._silence.up_to(now_ns, head)

    # The service's own words

    def _service(self, entry: LogEntry) -> None:
        if entry.kind == EntryKind.RESUMED:
            self._silence.restart(entry, self._claimed_ms)
            self.resumed_ns = entry.time_ns
            self._clock.excuse(entry)
            self._report(FindingKind.RESUMED, entry, "the machine was restored from a snapshot", trouble=False)
        elif entry.kind == EntryKind.STARTED:
            self._silence.restart(entry, None)
        elif entry.kind == EntryKind.SILENCE:
            self._tell(entry)
        elif entry.kind == EntryKind.DROPPED:
            count = entry.dropped
            self._drops.add(entry, count)
            words = f"{count} calls of the kernel found no room before this entry"
            self._report(FindingKind.DROPPED, entry, words, trouble=True)
        elif entry.kind == EntryKind.RULES:
            self._recording.rules(entry, entry.body[32:])
            words = f"an owner of the CVM, {entry.body[:32].hex()[:16]}, sent it audit rules"
            self._report(FindingKind.RULES, entry, words, trouble=False)
        elif entry.kind == EntryKind.WORD:
            self._word(entry)

    def _word(self, entry: LogEntry) -> None:
        """Another service's."""
        try:
            word = ServiceWord.parse(entry.body)
            if word.service != KCI_NUMBER:
                return
            said = CodeWord.parse(word.body)
        except FormatError as error:
            self._report(FindingKind.UNREADABLE, entry, f"a service's word is unreadable: {error}", trouble=True)
            return
        # What tries to get past code integrity is in the kernel already.
        distrust = said.event is CodeEvent.VIOLATION
        kind = FindingKind.MODULES if said.event in _MODULES else FindingKind.CODE_INTEGRITY
        self._report(kind, entry, printable(said.words), trouble=said.trouble, distrust=distrust)

    def _tell(self, entry: LogEntry) -> None:
        try:
            self._silence.tell(Silence.parse(entry.body))
        except FormatError as error:
            self._report(FindingKind.UNREADABLE, entry, f"the service's word is unreadable: {error}", trouble=True)

    # Records

    def _read(self, entry: LogEntry) -> int:
        """Look at an entry's records; returns how many there are, -1 if they are nonsense."""
        try:
            records = parse_records(entry.body)
        except FormatError as error:
            self._kernel(
                FindingKind.UNREADABLE, entry, f"the kernel handed over records that cannot be read: {error}", True
            )
            return -1
        # Mostly all records of an entry, or of entries in a row, are of one event.
        stamp = self._stamp if entry.kind == EntryKind.RECORDS else b""
        for kind, text in records:
            if stamp and kind not in _LOOKED_AT and text.startswith(stamp):
                continue
            found = _STAMP.match(text)
            if found is None:
                words = f"a record of type {kind} has no time and number: '{printable(text, _SHOWN)}'"
                self._kernel(FindingKind.UNREADABLE, entry, words, True)
                continue
            stamp = found[0]
            claimed = int(found[1]) * 1000 + int(found[2])
            self._claimed_ms = claimed
            self._clock.see(claimed, entry, at_once=entry.kind == EntryKind.INTENT or kind in _FROM_PROGRAMS)
            serial = int(found[3])
            if kind == _CONFIG_CHANGE:
                self._config(text, found.end(), entry)
            elif kind == _TIME_INJOFFSET:
                self._clock.excuse(entry)
            if entry.kind == EntryKind.INTENT:
                self._intent(text, found.end(), entry)
                self._intents.see(serial & 0xFFFFFFFF, claimed, False, entry)
            else:
                self._serials.see(serial & 0xFFFFFFFF, claimed, kind == _SYSCALL, entry)
        if entry.kind == EntryKind.RECORDS:
            self._stamp = stamp
        return len(records)

    def _intent(self, text: bytes, start: int, entry: LogEntry) -> None:
        found = _CODE.match(text, start)
        if found is not None:
            what = printable(found[1].rstrip())
            words = f"the kernel was about to load code into itself ({what}), and is what that makes of it"
            self._report(FindingKind.CODE, entry, words, trouble=False)

    def _config(self, text: bytes, start: int, entry: LogEntry) -> None:
        found = _SET.match(text, start)
        if found is not None:
            name, new, old = found[1].decode(), int(found[2]), int(found[3])
            done = text[text.rfind(_RESULT) :].startswith(_RESULT + b"1")
            if name == "audit_enabled" and done and not new:
                self._recording.switched(on=False)
                words = "the kernel's audit was switched off: what it records from here on is next to nothing"
                asked = self._recording.wants_off
                words += ", as an owner's rules say" if asked else ""
                self._report(FindingKind.AUDIT_OFF, entry, words, trouble=not asked, distrust=not asked)
            elif name == "audit_enabled" and done:
                self._report(FindingKind.AUDIT_ON, entry, f"{name} was set from {old} to {new}", trouble=False)
            else:
                words = f"{name} was {'set' if done else 'to be set, and was not,'} from {old} to {new}"
                self._report(FindingKind.RULES, entry, words, trouble=False)
        elif b"op=add_rule" in text or b"op=remove_rule" in text:
            words = f"the audit rules were changed: '{printable(text[start:].rstrip(), _SHOWN)}'"
            self._report(FindingKind.RULES, entry, words, trouble=False)
        elif text.startswith(b"op=set ", start):
            words = f"a change of settings that no kernel writes so: '{printable(text[start:], _SHOWN)}'"
            self._kernel(FindingKind.UNREADABLE, entry, words, True)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What gdb asks, and what it is answered ("GDB Remote Serial Protocol", E.2 to E.4). All threads stop and go together.

Of what is not answered here gdb makes do without: it gets an empty answer.
"""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from veil.debugger.contexts import Context, read_vmsa, write_vmsa
from veil.debugger.inquiries import inquire
from veil.debugger.memory import ContextMemory, NotThere
from veil.debugger.packets import MAX_PACKET, Deframer, Mark, ProtocolError, escape, frame
from veil.debugger.registers import REGISTERS, TARGET_XML, pack_all, unpack_all
from veil.debugger.target import Killed, Stop
from veil.snp import HOSTED_VMPLS, MAX_WATCHPOINTS, WatchKind, Watchpoint

if TYPE_CHECKING:
    from veil.debugger.target import Target

__all__ = ["Session"]

_OK = b"OK"
_UNKNOWN = b""
#: "E NN": EPERM, EFAULT, EINVAL, ENOSPC
_NOT_ALLOWED, _NOT_THERE, _WRONG, _NO_ROOM = b"E01", b"E0e", b"E16", b"E1c"
_MAX_BREAKPOINTS = 256
#: requests that may wait
_MAX_QUEUE = 64
#: by the packet's number: what a stop reply calls it
_BREAKPOINTS = {0: "sw", 1: "hw"}
_WATCHPOINTS = {
    2: ("watch", WatchKind.WRITE), 3: ("rwatch", WatchKind.READ), 4: ("awatch", WatchKind.READ | WatchKind.WRITE),
}  # fmt: skip
_FEATURES = (
    f"PacketSize={MAX_PACKET:x};QStartNoAckMode+;qXfer:features:read+;qXfer:threads:read+;vContSupported+;"
    "swbreak+;hwbreak+"
)


class _Wrong(Exception):
    """A request that cannot be; the answer."""

    def __init__(self, answer: bytes = _WRONG) -> None:
        super().__init__(answer)
        self.answer = answer


def _number(text: str) -> int:
    """Hexadecimal, at most 64 bits."""
    if not re.fullmatch(r"[0-9a-fA-F]{1,16}", text):
        raise _Wrong
    return int(text, 16)


def _data(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise _Wrong from None


class Session:
    """One connection."""

    def __init__(self, target: Target, connection: socket.socket) -> None:
        self.connection = connection
        #: has it asked for anything yet?
        self.begun = False
        #: the machine runs, and is to stand still; and gdb waits for the reason of that
        self.wants_stop = False
        self.wants_reason = False
        self._target = target
        self._deframer = Deframer()
        #: requests, and None for an interrupt
        self._queue: deque[bytes | None] = deque()
        self._last = b""
        #: the thread that registers and memory are asked of, 0: any
        self._chosen = 0
        self._commands: dict[str, Callable[[str], bytes | None]] = {
            "?": self._why,
            "D": self._detach,
            "G": self._write_registers,
            "H": self._choose,
            "M": self._write_memory,
            "P": self._write_register,
            "T": self._is_alive,
            "Z": self._insert,
            "c": self._continue,
            "g": self._read_registers,
            "k": self._kill,
            "m": self._read_memory,
            "p": self._read_register,
            "s": self._step,
            "z": self._remove,
        }
        self._queries: dict[str, Callable[[str], bytes | None]] = {
            "QStartNoAckMode": self._stop_acknowledging,
            "qAttached": lambda _: b"1",
            "qC": self._current,
            "qRcmd,": self._inquire,
            "qSupported": lambda _: _FEATURES.encode(),
            "qSymbol:": lambda _: _OK,
            "qThreadExtraInfo,": self._thread_name,
            "qXfer:features:read:target.xml:": lambda text: self._piece(TARGET_XML, text),
            "qXfer:threads:read::": lambda text: self._piece(self._threads(), text),
            "qfThreadInfo": lambda _: b"m" + b",".join(b"%x" % item.thread for item in self._target.contexts()),
            "qsThreadInfo": lambda _: b"l",
            "vCont?": lambda _: b"vCont;c;C;s;S",
            "vCont": self._go_on,
            "vKill": self._kill,
        }

    def close(self) -> None:
        """The connection ends."""
        with suppress(OSError):
            self.connection.close()

    def exited(self) -> None:
        """The machine is gone."""
        with suppress(OSError):
            self._send(b"W00")

    def tell(self, stop: Stop) -> None:
        """The reason of a stop."""
        self.wants_reason = False
        self._send(self._reply(stop))

    def hear(self, data: bytes) -> None:
        """What came; nothing is the end. Raises ProtocolError and OSError."""
        if not data:
            raise ConnectionResetError
        for item in self._deframer.feed(data):
            if item is Mark.INTERRUPT:
                self._queue.append(None)
            elif item is Mark.DAMAGED:
                self.connection.sendall(self._last)
            elif item is None:
                self.connection.sendall(b"-")
            elif isinstance(item, bytes):
                if self._deframer.acknowledges:
                    self.connection.sendall(b"+")
                self._queue.append(item)
                self.begun = True
        # gdb takes for granted that whom it asks stands still: so it is from its first request on.
        self.wants_stop = bool(self._queue) and self._target.stopped is None
        if len(self._queue) > _MAX_QUEUE:
            raise ProtocolError("requests without end")

    def work(self) -> None:
        """Answer what waits, as long as the machine stands still. Raises OSError and Killed."""
        while self._queue and self._target.stopped is not None:
            request = self._queue.popleft()
            if request is None:
                continue
            try:
                answer = self._answer(request.decode("latin-1"))
            except _Wrong as wrong:
                answer = wrong.answer
            if answer is not None:
                self._send(answer)
        self.wants_stop = bool(self._queue)

    def _answer(self, text: str) -> bytes | None:
        if text[:1] in ("q", "Q", "v"):
            for name, query in self._queries.items():
                if text.startswith(name) and (name[-1:] in ",:" or text[len(name) :][:1] in ("", ":", ";")):
                    return query(text[len(name) :])
            return _UNKNOWN
        command = self._commands.get(text[:1])
        return command(text[1:]) if command is not None else _UNKNOWN

    def _send(self, data: bytes) -> None:
        self._last = frame(data)
        self.connection.sendall(self._last)

    # Threads

    def _by_number(self, text: str) -> Context:
        for context in self._target.contexts():
            if context.thread == _number(text):
                return context
        raise _Wrong

    def _context(self) -> Context:
        """Whose registers and memory gdb asks for."""
        known = list(self._target.contexts())
        stop = self._target.stopped
        wanted = self._chosen or (stop.context.thread if stop is not None and stop.context is not None else 0)
        for context in known:
            if context.thread == wanted or not wanted:
                return context
        raise _Wrong

    def _changeable(self) -> Context:
        """The same, if gdb may write there."""
        context = self._context()
        # Hosted code is Python out of that level's memory, run by this computer's user. Whoever comes to gdb's port may
        # have the guest, and not the user's files.
        if self._target.real.runs_hosted and context.vmpl in HOSTED_VMPLS:
            raise _Wrong(_NOT_ALLOWED)
        return context

    def _choose(self, text: str) -> bytes:
        if text[:1] == "g":
            # -1: all of them.
            self._chosen = 0 if text[1:] in ("-1", "0") else self._by_number(text[1:]).thread
        return _OK

    def _is_alive(self, text: str) -> bytes:
        self._by_number(text)
        return _OK

    def _current(self, text: str) -> bytes:
        return b"QC%x" % self._context().thread

    def _describe(self, context: Context) -> str:
        code = " (Python)" if self._target.real.hosted_program(context.vmsa) is not None else ""
        return f"VCPU {context.vcpu}, VMPL {context.vmpl}{code}{', current' if context.current else ''}"

    def _thread_name(self, text: str) -> bytes:
        return self._describe(self._by_number(text)).encode().hex().encode()

    def _threads(self) -> str:
        rows = [
            f'<thread id="{context.thread:x}" core="{context.vcpu}" name="VMPL {context.vmpl}">'
            f"{self._describe(context)}</thread>"
            for context in self._target.contexts()
        ]
        return "\n".join(['<?xml version="1.0"?>', "<threads>", *rows, "</threads>", ""])

    def _piece(self, text: str, where: str) -> bytes:
        """`where`: "offset,length"."""
        offset, _, length = where.partition(",")
        data = text.encode()
        start, end = _number(offset), _number(offset) + min(_number(length), MAX_PACKET // 2)
        return (b"m" if end < len(data) else b"l") + escape(data[start:end])

    # Registers

    def _read_registers(self, text: str) -> bytes:
        return pack_all(read_vmsa(self._target.real, self._context().vmsa)).hex().encode()

    def _write_registers(self, text: str) -> bytes:
        gpa = self._changeable().vmsa
        vmsa = read_vmsa(self._target.real, gpa)
        try:
            unpack_all(vmsa, _data(text))
        except ValueError:
            raise _Wrong from None
        write_vmsa(self._target.real, gpa, vmsa)
        return _OK

    def _read_register(self, text: str) -> bytes:
        number = _number(text)
        if number >= len(REGISTERS):
            raise _Wrong
        register = REGISTERS[number]
        value = register.read(read_vmsa(self._target.real, self._context().vmsa))
        return value.to_bytes(32, "little")[: register.size].hex().encode()

    def _write_register(self, text: str) -> bytes:
        number, _, data = text.partition("=")
        if _number(number) >= len(REGISTERS) or len(_data(data)) != REGISTERS[_number(number)].size:
            raise _Wrong
        gpa = self._changeable().vmsa
        vmsa = read_vmsa(self._target.real, gpa)
        REGISTERS[_number(number)].write(vmsa, int.from_bytes(_data(data), "little"))
        write_vmsa(self._target.real, gpa, vmsa)
        return _OK

    # Memory

    def _memory(self, context: Context) -> ContextMemory:
        vmsa = read_vmsa(self._target.real, context.vmsa)
        return ContextMemory(self._target.real.view(vmpl=context.vmpl), vmsa)

    def _read_memory(self, text: str) -> bytes:
        address, _, length = text.partition(",")
        try:
            data = self._memory(self._context()).read(_number(address), min(_number(length), MAX_PACKET // 2))
        except NotThere:
            raise _Wrong(_NOT_THERE) from None
        return data.hex().encode()

    def _write_memory(self, text: str) -> bytes:
        where, _, content = text.partition(":")
        address, _, length = where.partition(",")
        data = _data(content)
        if len(data) != _number(length):
            raise _Wrong
        try:
            self._memory(self._changeable()).write(_number(address), data)
        except NotThere:
            raise _Wrong(_NOT_THERE) from None
        return _OK

    # Breakpoints

    def _insert(self, text: str) -> bytes:
        kind, address, size = self._breakpoint(text)
        if kind in _BREAKPOINTS:
            if len(self._target.breakpoints) >= _MAX_BREAKPOINTS:
                raise _Wrong(_NO_ROOM)
            self._target.breakpoints[address] = _BREAKPOINTS[kind]
            return _OK
        name, access = _WATCHPOINTS[kind]
        if len(self._target.watchpoints) >= MAX_WATCHPOINTS:
            raise _Wrong(_NO_ROOM)
        self._target.watchpoints[Watchpoint(address, size, access)] = name
        return _OK

    def _remove(self, text: str) -> bytes:
        kind, address, size = self._breakpoint(text)
        if kind in _BREAKPOINTS:
            self._target.breakpoints.pop(address, None)
        else:
            self._target.watchpoints.pop(Watchpoint(address, size, _WATCHPOINTS[kind][1]), None)
        return _OK

    def _breakpoint(self, text: str) -> tuple[int, int, int]:
        """ "type,address,kind", as numbers; a watchpoint's kind is its length."""
        match = re.fullmatch(r"([0-4]),([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,8})(;.*)?", text)
        if match is None or (match[1] in "234" and not 0 < int(match[3], 16) <= MAX_PACKET):
            raise _Wrong
        return int(match[1]), int(match[2], 16), int(match[3], 16)

    # Going on

    def _go_on(self, text: str) -> bytes | None:
        """vCont: `;action[:thread]`... The first action that fits a thread is that thread's; all others continue."""
        actions = text.split(";")[1:]
        if not actions:
            raise _Wrong
        for action in actions:
            word, _, thread = action.partition(":")
            if word[:1] not in ("c", "C", "s", "S"):
                raise _Wrong
            if word[:1] in "sS":
                self._resume(self._context() if thread in ("", "-1", "0") else self._by_number(thread))
                return None
        self._resume(None)
        return None

    def _continue(self, text: str) -> None:
        self._resume(None)

    def _step(self, text: str) -> None:
        self._resume(self._context())

    def _resume(self, step: Context | None) -> None:
        self.wants_reason = True
        self._target.resume(step)

    def _detach(self, text: str) -> None:
        self._send(_OK)
        self._target.detach()

    def _kill(self, text: str) -> None:
        raise Killed("gdb ended the machine")

    # The rest

    def _why(self, text: str) -> bytes:
        stop = self._target.stopped
        assert stop is not None
        return self._reply(stop)

    def _reply(self, stop: Stop) -> bytes:
        self._chosen = 0
        if stop.context is None:
            return b"S%02x" % stop.signal
        where = f"thread:{stop.context.thread:x};core:{stop.context.vcpu:x};"
        return f"T{stop.signal:02x}{stop.reason}{where}".encode()

    def _stop_acknowledging(self, text: str) -> None:
        self._send(_OK)
        self._deframer.acknowledges = False

    def _inquire(self, text: str) -> bytes:
        line = _data(text).decode("latin-1")
        known = list(self._target.contexts())
        answer = inquire(self._target, self._context() if known else None, line)
        return answer.encode()[: MAX_PACKET // 2].hex().encode()

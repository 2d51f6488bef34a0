# SPDX-License-Identifier: GPL-2.0-or-later
"""Iago attacks, call by call: what no honest kernel answers ends the enclave; a runtime without the check is fooled.

The table of system calls (`calls.def`) says which there are. Calls that it describes are tried by their descriptions;
each that has a handler of its own is in one of the tables of `hostile_answers.py`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.guest.enclaves.call_table import ROWS, Described, described
from tests.guest.enclaves.hostile_answers import (
    ATTACKS,
    ENCLAVE,
    INSIDE,
    LARGE,
    NO_ANSWER,
    PASSWD,
    PATH,
    SOCKETS,
    WAITING,
    Attack,
    lie_once,
)
from tests.guest.enclaves.native_runtime import EVERY_CALL, Lie, NativeRuntime
from tests.guest.enclaves.test_programs_outside import PROGRAM_LIES
from tests.services.enc.believing import (
    believes_results,
    believes_sets,
    reads_twice,
    sleeps_as_told,
    takes_any_events,
    takes_unknown_options,
    tells_twice,
)
from veil.guest.enclaves.image import EnclaveImage

_SYNC = ["162", "/"]
_LINK = "@16:x2f70726f632f6d6f756e747300"  # /proc/mounts
_ATTACKED = 125

# Calls that calls.def describes

_LIES = {
    "ZERO": (1, ENCLAVE), "NUMBER": (1 << 31, ENCLAVE), "DESCRIPTOR": (1, 1 << 31), "BYTES": (3, ENCLAVE),
    "COUNT": (3, ENCLAVE), "ANY": (), "MODE": (0o1000, ENCLAVE), "PRIORITY": (0, 41),
}  # fmt: skip
#: Neither an error number nor a result: what lies between.
_NO_RESULTS = (-200, -4096, -(1 << 63))


@pytest.fixture(scope="module")
def believing(native: NativeRuntime) -> NativeRuntime:
    """Without checks of results."""
    return NativeRuntime(native.place, believes_results())


def _ended(done: subprocess.CompletedProcess[bytes]) -> bool:
    return done.returncode == _ATTACKED and done.stderr.startswith(b"log: ") and done.stderr.count(b"\n") == 1


def _results(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("call", described(), ids=lambda call: call.name)
def test_calls_that_are_described(native: NativeRuntime, image: EnclaveImage, call: Described) -> None:
    words = [*_SYNC, str(call.number), *call.arguments]
    if call.name == "sync":
        words = words[2:]
    for result in (*_LIES[call.result], *_NO_RESULTS[:1]):
        done = native.run(image, "p", *words, lie=Lie(call.number, result, once=call.name != "sync"))
        assert _ended(done), (result, done)


@pytest.mark.parametrize("call", [call for call in described() if call.name != "sync"], ids=lambda call: call.name)
def test_calls_that_are_described_without_checks(
    believing: NativeRuntime, image: EnclaveImage, call: Described
) -> None:
    """The counter-test: the program is told what cannot be."""
    for result in _LIES[call.result][:1] or _NO_RESULTS[:1]:
        words = [*_SYNC, str(call.number), *call.arguments]
        done = believing.run(image, "p", *words, lie=Lie(call.number, result, once=True))
        assert done.returncode != _ATTACKED
        # A descriptor beyond all is closed again; one that is another file's is given.
        assert call.result == "BYTES" or _results(done)[:1] == [str(result)], done


@pytest.mark.parametrize("result", _NO_RESULTS)
def test_numbers_that_are_no_result(native: NativeRuntime, image: EnclaveImage, result: int) -> None:
    done = native.run(image, "p", *_SYNC, "102", lie=Lie(102, result, once=True))
    assert _ended(done)
    assert b"which no system call is" in done.stderr


# Calls with handlers of their own


def test_no_call_is_forgotten() -> None:
    """A call that is added to the table without a case here fails this one."""
    plain = {call.name for call in described()}
    handled = {row.name for row in ROWS if not row.result}
    named = {word for name in ATTACKS for word in (name.split()[0], name.split("'")[0])} & handled
    programs = {name.split()[0] for name in PROGRAM_LIES}
    groups = (plain, named, set(INSIDE), set(WAITING), NO_ANSWER, programs)
    assert sum(map(len, groups)) == len(set().union(*groups)), "each call is in one group"
    assert set().union(*groups) == {row.name for row in ROWS}
    assert handled >= NO_ANSWER


@pytest.mark.parametrize("name", INSIDE)
def test_the_kernel_is_not_asked(native: NativeRuntime, image: EnclaveImage, name: str) -> None:
    """All that it would answer is nonsense, and would end the enclave."""
    # The number of the process is asked for once, and known afterwards.
    words = ["39", "/", "102", "@8192", "/", *_SYNC, *INSIDE[name].replace("&", "&0").split(), "/", "162"]
    done = native.run(image, "p", *words, lie=Lie(EVERY_CALL, -200, once=True))
    assert done.returncode == 0, done
    assert done.stderr.count(b"\n") <= 1, done


def test_one_that_asks_would_be_seen(native: NativeRuntime, image: EnclaveImage) -> None:
    words = [*_SYNC, "110", "/", "162"]
    assert _ended(native.run(image, "p", *words, lie=Lie(EVERY_CALL, -200, once=True)))


@pytest.mark.parametrize("result", [0, 7, -14, LARGE])
@pytest.mark.parametrize("name", WAITING)
def test_who_waits_is_not_told_the_answer(native: NativeRuntime, image: EnclaveImage, name: str, result: int) -> None:
    words = [*_SYNC, *WAITING[name].split()]
    honest = native.run(image, "p", *words)
    lying = native.run(image, "p", *words, lie=Lie(202, result, once=True))
    assert (lying.returncode, lying.stdout) == (honest.returncode, honest.stdout)


def test_a_file_that_is_mapped(native: NativeRuntime, image: EnclaveImage) -> None:
    """Its content is read, and more than was asked for cannot come."""
    words = f"2 {PASSWD} 0 0 / 162 / 9 0 4096 1 2 3 0".split()
    assert native.run(image, "p", *words).returncode == 0
    done = native.run(image, "p", *words, lie=lie_once(17, LARGE))
    assert _ended(done)
    assert b"a read of " in done.stderr


def test_a_folder_that_is_none(native: NativeRuntime, image: EnclaveImage) -> None:
    for words in (f"162 / 80 {PATH}", f"2 {PATH} 65536 0 / 162 / 81 3"):
        done = native.run(image, "p", *words.split(), lie=lie_once(262, 1))
        assert _ended(done), done


def test_a_descriptor_that_the_kernel_does_not_close(native: NativeRuntime, image: EnclaveImage) -> None:
    """The program has closed it, whatever the kernel answers."""
    for result in (1, -5, LARGE):
        done = native.run(image, "p", *_SYNC, *["3", "2", "/", "1", "2", "@1", "1"], lie=Lie(3, result, once=True))
        assert _results(done)[:2] == ["0", "-9"]


def _words(attack: Attack) -> Sequence[str]:
    """The lie holds for the last call, or for the one with a `!`."""
    calls = attack.words.split(" / ")
    marked = [call for call in calls if call.startswith("! ")]
    calls.insert(calls.index(marked[0]) if marked else -1, "162")
    return [word for call in calls for word in (*call.removeprefix("! ").split(), "/")][:-1]


@pytest.mark.parametrize("name", ATTACKS)
def test_what_no_honest_kernel_answers(native: NativeRuntime, image: EnclaveImage, name: str) -> None:
    attack = ATTACKS[name]
    honest = native.run(image, "p", *_words(attack))
    assert honest.returncode == 0, "the call is one that a program can make"
    done = native.run(image, "p", *_words(attack), lie=attack.lie)
    assert _ended(done), done
    assert attack.why in done.stderr, done.stderr


@pytest.mark.parametrize("name", ATTACKS)
def test_without_the_check_it_gets_through(believing: NativeRuntime, image: EnclaveImage, name: str) -> None:
    attack = ATTACKS[name]
    done = believing.run(image, "p", *_words(attack), lie=attack.lie)
    assert done.returncode != _ATTACKED
    assert done.stdout != believing.run(image, "p", *_words(attack)).stdout, "the program sees another answer"


# What is not watched any more

#: A pipe is watched, and no more: it is closed, by its number or by another one's coming there, or taken out.
_WATCHED = "291 0 / 293 @8 0 / 233 3 1 4 @12:d1,q77 / 1 5 @8 8 / "
_NO_MORE = ("3 4", "33 1 4", "233 3 2 4 0")


@pytest.mark.parametrize("how", _NO_MORE)
def test_what_is_not_watched_any_more(native: NativeRuntime, image: EnclaveImage, how: str) -> None:
    """What the program kept with it is freed memory by now. It may be an event of before, so nobody is blamed."""
    words = f"{_WATCHED}{how} / 162 / 232 3 @12 1 0".split()
    done = native.run(image, "p", *words, lie=lie_once(232, 1, (1, 0, 4, 1), (1, 4, 8, 4)))
    assert done.stdout == native.run(image, "p", *words).stdout
    assert (_results(done)[-1], done.stderr) == ("0" * 24 + ".", b"")


@pytest.mark.parametrize("how", _NO_MORE)
def test_a_set_that_forgets_nothing(native: NativeRuntime, image: EnclaveImage, how: str) -> None:
    words = f"{_WATCHED}{how} / 162 / 232 3 @12 1 0".split()
    lie = lie_once(232, 1, (1, 0, 4, 1), (1, 4, 8, 4))
    done = NativeRuntime(native.place, believes_sets()).run(image, "p", *words, lie=lie)
    assert _results(done)[-1] == "010000004d00000000000000."


def test_what_is_watched_still(native: NativeRuntime, image: EnclaveImage) -> None:
    """By another descriptor of the same file; and as it was before something that the kernel refused."""
    for more in ("32 4 / 3 4", "233 3 1 4 @12:d4,q88"):
        done = native.run(image, "p", *f"{_WATCHED}{more} / 232 3 @12 1 0".split())
        assert _results(done)[-1] == "010000004d00000000000000.", done


def test_who_waits_for_ever_hears_of_something(native: NativeRuntime, image: EnclaveImage) -> None:
    """An event that is not the program's is no answer: some programs take "none" for a time that has passed."""
    words = f"{_WATCHED}293 @8 0 / 233 3 1 6 @12:d1,q88 / 3 6 / 162 / 232 3 @12 1 -1".split()
    done = native.run(image, "p", *words, lie=lie_once(232, 1, (1, 0, 4, 1), (1, 4, 8, 6)))
    assert _results(done)[-1] == "010000004d00000000000000.", done


@pytest.mark.parametrize(
    ("words", "lie", "result", "seen", "fooled"),
    [
        ("162 / 7 @8:d1,d1 1 0", lie_once(7, 1, (0, 6, 2, 0x7FFF)), 1, "0100000001003900", "010000000100ff7f"),
        ("162 / 23 2 @128:q2 0 0 @16", lie_once(23, 1, (1, 0, 8, 3)), 1, "02" + "00" * 127, "03" + "00" * 127),
        (f"{_WATCHED}162 / 232 3 @12 1 0", lie_once(232, 1, (1, 0, 4, (1 << 32) - 1), (1, 4, 8, 4)), 1,
         "190000004d00000000000000", "ffffffff4d00000000000000"),
    ],
    ids=["poll", "select", "epoll_wait"],
)  # fmt: skip
def test_events_that_nobody_asked_for(
    native: NativeRuntime, image: EnclaveImage, words: str, lie: Lie, result: int, seen: str, fooled: str
) -> None:
    done = native.run(image, "p", *words.split(), lie=lie)
    assert str(result) in _results(done)
    assert f"{seen}." in _results(done)
    believing = NativeRuntime(native.place, takes_any_events()).run(image, "p", *words.split(), lie=lie)
    assert f"{fooled}." in _results(believing)


_TWICE = (2, (1, 0, 4, 1), (1, 4, 8, 4), (1, 12, 4, 1), (1, 16, 8, 4))


def test_an_event_comes_once_in_an_answer(native: NativeRuntime, image: EnclaveImage) -> None:
    """The program frees what it keeps with a connection when it hears that it has ended: it must not hear it again."""
    words = f"{_WATCHED}162 / 232 3 @24 2 0".split()
    result, *puts = _TWICE
    done = native.run(image, "p", *words, lie=lie_once(232, result, *puts))
    assert _results(done)[4] == "1"
    assert _results(done)[-1] == "010000004d00000000000000" + "00" * 12 + "."
    done = NativeRuntime(native.place, tells_twice()).run(image, "p", *words, lie=lie_once(232, result, *puts))
    assert _results(done)[4] == "2"


def test_a_report_that_comes_once(native: NativeRuntime, image: EnclaveImage) -> None:
    """EPOLLONESHOT: two threads would have the same connection. Asked for again, it comes again."""
    one_shot = f"@12:d{1 | 1 << 30},q77"
    watched = f"291 0 / 293 @8 0 / 233 3 1 4 {one_shot} / 1 5 @8 8 / "
    words = (
        f"{watched}232 3 @12 1 0 / 162 / 232 3 @12 1 0 / 232 3 @12 1 0 / 233 3 3 4 {one_shot} / 232 3 @12 1 0".split()
    )
    lie = lie_once(232, 1, (1, 0, 4, 1), (1, 4, 8, 4))
    assert _results(native.run(image, "p", *words))[4:9] == ["1", "0", "0", "0", "1"]
    assert _results(native.run(image, "p", *words, lie=lie))[4:9] == ["1", "0", "0", "0", "1"]
    fooled = NativeRuntime(native.place, tells_twice()).run(image, "p", *words, lie=lie)
    assert _results(fooled)[4:9] == ["1", "1", "0", "0", "1"]


# Time

_ASKS = "228 1 @16"


def _nanoseconds(buffer: str) -> int:
    data = bytes.fromhex(buffer.rstrip("."))
    return int.from_bytes(data[:8], "little") * 1_000_000_000 + int.from_bytes(data[8:16], "little")


@pytest.mark.parametrize(
    "words", ["35 @16:q0,q200000000 0", "230 0 0 @16:q0,q200000000 0", "230 7 0 @16:q0,q200000000 0"]
)
def test_a_sleep_that_ends_too_early(native: NativeRuntime, image: EnclaveImage, words: str) -> None:
    """The kernel is asked for the rest."""
    words = f"{_ASKS} / 162 / {words} / {_ASKS}"
    waited = []
    for runtime in (native, NativeRuntime(native.place, sleeps_as_told())):
        done = _results(runtime.run(image, "p", *words.split(), lie=lie_once(230, 0)))
        assert done[:3] == ["0", "0", "0"]
        waited.append(_nanoseconds(done[-1]) - _nanoseconds(done[3]))
    assert waited[0] >= 200_000_000
    assert waited[1] < 200_000_000


#: Nothing is there to be read.
_SILENCE = "293 @8 0 / 291 0 / 233 5 1 3 @12:d1,q77"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (7, "7 @8:d3,d1 1 200"), (271, "271 @8:d3,d1 1 @16:q0,q200000000 0 8"),
        (23, "23 4 @128:q8 0 0 @16:q0,q200000"), (270, "270 4 @128:q8 0 0 @16:q0,q200000000 0"),
        (232, "232 5 @12 1 200"), (232, "281 5 @12 1 200 0 8"), (202, "128 @8:q512 0 @16:q0,q200000000 8"),
    ],
    ids=["poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait", "rt_sigtimedwait"],
)  # fmt: skip
@pytest.mark.parametrize("answer", [0, -4, 1])
def test_a_wait_that_ends_too_early(
    native: NativeRuntime, image: EnclaveImage, call: int, words: str, answer: int
) -> None:
    """The time is said to be over, or there is a signal that the program does not get, or an event that it does not."""
    # Of a watched descriptor, for epoll knows others; and nothing of it.
    lie = lie_once(call, answer, (1, 0, 4, 0), (1, 4, 8, 3)) if call == 232 else lie_once(call, answer)
    places = ((0, 6, 2, 0),) if call in (7, 271) else ((1, 0, 8, 0),)
    lie = lie if call == 232 else replace(lie, put=places)
    program = f"{_SILENCE} / {_ASKS} / 162 / {words} / {_ASKS}"
    waited = []
    for runtime in (native, NativeRuntime(native.place, sleeps_as_told())):
        done = _results(runtime.run(image, "p", *program.split(), lie=lie))
        assert done[:6] == ["0", "5", "0", "0", "-11" if call == 202 else "0", "0"]
        times = [_nanoseconds(buffer) for buffer in done[6:] if len(buffer) == 33 and buffer[16:24] != "0" * 8]
        waited.append(times[-1] - times[0])
    assert waited[0] >= 200_000_000
    assert waited[1] < 200_000_000


def test_a_sleep_until_a_time_that_ends_too_early(native: NativeRuntime, image: EnclaveImage) -> None:
    now = _nanoseconds(_results(native.run(image, "p", *_ASKS.split()))[-1])
    until = now + 700_000_000
    words = f"162 / 230 1 1 @16:q{until // 1_000_000_000},q{until % 1_000_000_000} 0 / {_ASKS}".split()
    for runtime, waits in ((native, True), (NativeRuntime(native.place, sleeps_as_told()), False)):
        done = _results(runtime.run(image, "p", *words, lie=lie_once(230, 0)))
        assert done[:2] == ["0", "0"]
        if waits:
            assert _nanoseconds(done[-1]) >= until


@pytest.mark.parametrize("clock", [2, 3])
def test_what_was_used_does_not_go_back(native: NativeRuntime, image: EnclaveImage, clock: int) -> None:
    words = f"228 {clock} @16 / 162 / 228 {clock} @16".split()
    done = _results(native.run(image, "p", *words, lie=lie_once(228, 0)))
    assert _nanoseconds(done[-1]) == _nanoseconds(done[-2]) > 0
    done = _results(NativeRuntime(native.place, sleeps_as_told()).run(image, "p", *words, lie=lie_once(228, 0)))
    assert _nanoseconds(done[-1]) == 0


# What changes while it is read


def _changing() -> list[str]:
    """Attacks whose hostile value comes when the good one was read."""
    # Free memory changes by itself.
    return [name for name, attack in ATTACKS.items() if attack.lie.put and not name.startswith("sysinfo")]


@pytest.mark.parametrize("name", _changing())
def test_what_changes_after_it_was_read(native: NativeRuntime, image: EnclaveImage, name: str) -> None:
    """What is used is what was checked: as if nothing had changed, or the enclave ends."""
    attack = ATTACKS[name]
    honest = Lie(attack.lie.call, attack.lie.result, once=True)
    wanted = native.run(image, "p", *_words(attack), lie=honest)
    done = native.run(image, "p", *_words(attack), lie=replace(honest, later=attack.lie.put[0]))
    assert _ended(done) or (done.returncode, done.stdout) == (wanted.returncode, wanted.stdout), done


def test_a_length_that_is_read_twice(native: NativeRuntime, image: EnclaveImage) -> None:
    """The counter-test: a length that is checked, and read again when it is used."""
    words = _words(ATTACKS["getsockopt's length"])
    lie = Lie(55, None, once=True, later=(4, 0, 4, 2048))
    assert _results(native.run(image, "p", *words, lie=lie))[-2:] == ["01000000.", "04000000."]
    done = NativeRuntime(native.place, reads_twice()).run(image, "p", *words, lie=lie)
    assert _results(done)[-2:] == ["01000000!", "00080000."], "what lies behind the buffer was overwritten"


def test_what_an_option_leaves_of_its_room(native: NativeRuntime, image: EnclaveImage) -> None:
    """Of an option without a size of its own (TCP_INFO) nothing stays there that was there before."""
    words = f"41 2 1 0 / 162 / 55 3 6 11 @120:x{'77' * 120} @4:d120".split()
    done = native.run(image, "p", *words, lie=lie_once(55, 0, (3, 0, 8, 0x6162), (4, 0, 4, 104)))
    assert _results(done)[-2:] == ["6261" + "00" * 118 + ".", "68000000."]


@pytest.mark.parametrize(
    "option", ["1 28", "1 31", "1 59", "1 26", "6 26", "6 35", "0 4", "0 9", "0 80", "41 61", "270 1", "263 6"]
)
def test_an_option_that_is_not_known(native: NativeRuntime, image: EnclaveImage, option: str) -> None:
    """SO_PEERNAME, SO_PEERSEC, SO_PEERGROUPS, TCP_ZEROCOPY_RECEIVE and the like: structures with lengths and places, of
    which the runtime could not say what cannot be. As of a kernel that does not have them."""
    words = f"41 2 1 0 / 162 / 55 3 {option} @16:x{'77' * 16} @4:d16".split()
    lie = lie_once(55, 0, (3, 0, 8, ENCLAVE), (4, 0, 4, 16))
    done = native.run(image, "p", *words, lie=lie)
    assert _results(done)[1:] == ["-92", "77" * 16 + ".", "10000000."]
    assert done.stderr == b"log: system call 55 (getsockopt): an option that is not known\n"
    fooled = NativeRuntime(native.place, takes_unknown_options()).run(image, "p", *words, lie=lie)
    assert _results(fooled)[1:3] == ["0", ENCLAVE.to_bytes(16, "little").hex() + "."]


@pytest.mark.parametrize(("kind", "kept"), [(40, 24), (99, 0)])
def test_ancillary_data_that_are_not_known(native: NativeRuntime, image: EnclaveImage, kind: int, kept: int) -> None:
    """They are cut off, as the kernel cuts off what has no room (MSG_CTRUNC)."""
    words = f"{SOCKETS}102 @64 @16:&1,q32 @64 / 1 4 @8:q1 8 / 162 / 47 3 @56:q0,d0,d0,&2,q1,&3,q64 64".split()
    puts = ((1, 40, 8, 24), (1, 208, 8, 20), (1, 216, 8, kind << 32 | 1))
    done = native.run(image, "p", *words, lie=lie_once(47, None, *puts))
    message = bytes.fromhex(_results(done)[-1].rstrip("."))
    assert int.from_bytes(message[40:48], "little") == kept
    assert message[48] & 8 == (0 if kept else 8)


def test_ancillary_data_without_room(native: NativeRuntime, image: EnclaveImage) -> None:
    """The last part ends where the program's room ends: so does an honest kernel's."""
    words = f"{SOCKETS}102 @64 @16:&1,q32 @64 / 1 4 @8:q1 8 / 162 / 47 3 @56:q0,d0,d0,&2,q1,&3,q64 64".split()
    for length in (40, 39):
        puts = ((1, 208, 8, 20), (1, 216, 8, 40 << 32 | 1), (1, 232, 8, length), (1, 240, 8, 37 << 32 | 1))
        done = native.run(image, "p", *words, lie=lie_once(47, 1, *puts))
        if length == 40:
            assert int.from_bytes(bytes.fromhex(_results(done)[-1].rstrip("."))[40:48], "little") == 64
        else:
            assert _ended(done)


def test_a_process_that_is_gone(native: NativeRuntime, image: EnclaveImage) -> None:
    """SCM_PIDFD has an error number in place of a descriptor."""
    words = f"{SOCKETS}102 @64 @16:&1,q32 @64 / 1 4 @8:q1 8 / 162 / 47 3 @56:q0,d0,d0,&2,q1,&3,q64 64".split()
    for number, ends in ((-3, False), (-200, True)):
        puts = ((1, 40, 8, 24), (1, 208, 8, 20), (1, 216, 8, 4 << 32 | 1), (1, 224, 4, number & 0xFFFFFFFF))
        done = native.run(image, "p", *words, lie=lie_once(47, None, *puts))
        assert _ended(done) == ends, done


def test_a_link_to_nothing(native: NativeRuntime, image: EnclaveImage) -> None:
    """What stands before its end would stand before the program's buffer."""
    for words in (f"162 / 89 {_LINK} @8 8", f"162 / 267 -100 {_LINK} @8 8"):
        done = native.run(image, "p", *words.split(), lie=lie_once(89, 0))
        assert _results(done)[0] == "-5", done


def test_an_option_with_negative_room(native: NativeRuntime, image: EnclaveImage) -> None:
    """As Linux: it is an error, and nothing is written."""
    done = native.run(image, "p", *f"{SOCKETS}55 3 1 3 @4:d77 @4:d-1".split())
    assert _results(done)[1] == "-22"
    assert _results(done)[-2:] == ["4d000000.", "ffffffff."]


def test_a_part_of_an_option(native: NativeRuntime, image: EnclaveImage) -> None:
    """A program with less room than the option needs gets as much."""
    done = native.run(image, "p", *f"{SOCKETS}55 3 1 3 @2 @4:d2".split())
    assert _results(done)[-2:] == ["0100.", "02000000."]


def test_a_device_that_knows_no_places(native: NativeRuntime, image: EnclaveImage) -> None:
    """/dev/null says that it is where it always is."""
    words = "2 @16:x2f6465762f6e756c6c00 0 0 / 8 3 100 0 / 8 3 100 1 / 8 3 0 5"
    assert _results(native.run(image, "p", *words.split()))[1:4] == ["0", "0", "-22"]


def test_a_socket_stays_of_its_family(native: NativeRuntime, image: EnclaveImage) -> None:
    """One of IPv6 cannot be made one of IPv4, whose addresses are others."""
    words = "41 10 1 0 / 54 3 41 1 @4:d2 4 / 54 3 41 26 @4:d1 4"
    assert _results(native.run(image, "p", *words.split()))[1:3] == ["-95", "0"]


def test_a_socket_that_was_accepted(native: NativeRuntime, image: EnclaveImage) -> None:
    """It has the family of the one that listens."""
    name = f"x010000{os.urandom(8).hex()}"
    connected = f"41 1 1 0 / 49 3 @16:{name} 11 / 50 3 1 / 41 1 1 0 / 42 4 @16:{name} 11 / 43 3 0 0"
    words = f"{connected} / 162 / 51 5 @128 @4:d128".split()
    assert _results(native.run(image, "p", *words))[:7] == ["3", "0", "0", "4", "0", "5", "0"]
    done = native.run(image, "p", *words, lie=lie_once(51, None, (1, 0, 2, 2), (2, 0, 4, 16)))
    assert _ended(done)
    assert b"a socket of family 1 has an address of family 2" in done.stderr

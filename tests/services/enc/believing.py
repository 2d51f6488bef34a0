# SPDX-License-Identifier: GPL-2.0-or-later
"""The runtime's source with its checks taken out: what they stop gets through then."""

from __future__ import annotations

import re
from collections.abc import Mapping

from veil.guest.enclaves.runtime.build import RUNTIME_FLAGS, runtime_sources

__all__ = [
    "BELIEVING_FLAGS",
    "believes_chunks",
    "believes_events",
    "believes_results",
    "believes_sets",
    "believes_signals",
    "executes_anything",
    "follows_no_names",
    "forgets_removed_files",
    "forgets_tags",
    "links_what_names_lead_to",
    "looks_at_whole_registers",
    "meets_none_again",
    "reads_twice",
    "sleeps_as_told",
    "takes_any_events",
    "takes_unknown_options",
    "tells_twice",
]

#: Such a runtime is run for a moment: -O0 compiles it in less than half the time. And without a check what it looked at
#: is not used.
BELIEVING_FLAGS = (*RUNTIME_FLAGS, "-O0", "-w")

_PLACE = "runtime/src/"
_COPY_GIVEN = "if (copy_out(a[3], value, given))"


def _edited(name: str, *edits: tuple[str, str]) -> str:
    text = runtime_sources()[_PLACE + name].decode()
    for old, new in edits:
        assert text.count(old) == 1, (name, old)
        text = text.replace(old, new)
    return text


def believes_events() -> dict[str, bytes]:
    """All sources: each event is what its vector says, and the direction flag stays as the program had it."""
    events = _edited(
        "events.c",
        # WeSee: a #VC is an instruction that was intercepted, wherever RIP is.
        ('		injected(self, "#VC");\n', "		at.opcode = 0;\n"),
        # Heckler: vector 0x80 is a system call. So is what a host says is pending (#HV).
        ("	default:\n		/* #GP and #SS", "	case 28:\n	case 0x80:\n		self->regs.rip -= 2;\n"
         "		system_call(self);\n		break;\n	default:\n		/* #GP and #SS"),
        ('	if (address == NO_FAULT)\n		injected(self, "#PF");\n', ""),
        # The address of the last fault stays in CR2.
        ("	if (self->faulted)\n		forget_fault_address(self);\n", ""),
        ('	injected(self, "#UD");\n', "	fault(self, SIGILL, ILL_ILLOPN, regs->rip);\n"),
    )  # fmt: skip
    entry = _edited("entry.S", ("event:\n	cld\n", "event:\n"))
    return runtime_sources() | {f"{_PLACE}events.c": events.encode(), f"{_PLACE}entry.S": entry.encode()}


def believes_chunks() -> Mapping[str, str]:
    """A trusted file is what the kernel gives."""
    return {"chunks.c": _edited("chunks.c", ("if (!memcmp(digest, hash, HASH_BYTES))", "if (true)"))}


def believes_signals() -> Mapping[str, str]:
    """Every signal that the process outside passes on comes to the program."""
    return {"offered.c": _edited("offered.c", ("offered = (offered & allowed) | of_timers;", "offered |= of_timers;"))}


def believes_sets() -> Mapping[str, str]:
    """A descriptor that was watched once is for ever."""
    return {"poll.c": _edited("poll.c", ("entry && entry->file && !(seen", "entry && !(seen"))}


def believes_results() -> Mapping[str, str]:
    """C files by name: whatever is outside answers is taken."""
    changed = {}
    for name, data in runtime_sources().items():
        text = data.decode()
        file = name.removeprefix(_PLACE)
        if not file.endswith(".c") or file in ("log.c", "events.c", "start.c") or "attacked(" not in text:
            continue
        believed = re.sub(r"\battacked\(", "believed(", text)
        changed[file] = "#define believed(...) ((void)0)\n" + believed
    # What is not followed by a check is not even looked at; and what has no entry comes as it is.
    for file, old, new in (
        ("file_status.c", "	check_entries(self, copy, (u64)result, self->regs.rax == 217);\n", ""),
        (
            "sockets.c",
            "known = check_received(self, control, answer.control_length, own.control_length);",
            "known = answer.control_length;",
        ),
        (
            "poll.c",
            '		believed(self, "epoll reports %x, which nobody watches", got->data);\n',
            "		event = *got;\n",
        ),
    ):
        assert changed[file].count(old) == 1
        changed[file] = changed[file].replace(old, new)
    end = 'believed(self, "a system call is answered by %x, which no system call is", (u64)result);\n}'
    assert changed["window.c"].count(end) == 1
    changed["window.c"] = changed["window.c"].replace(end, "return result;\n}")
    return changed


def executes_anything() -> Mapping[str, str]:
    """Code may be in any file that the manifest passes."""
    return {"mappings.c": _edited("mappings.c", ("file->kind == FILE_OUTSIDE && a[2] & PROT_EXEC", "false"))}


def follows_no_names() -> Mapping[str, str]:
    """Where /proc/self/fd/N leads is the kernel's affair."""
    name = "process_links.c"
    return {
        name: _edited(
            name,
            (
                "	if (name.kind == NO_NAME || name.kind == MAP_NAME)\n		return 0;",
                "	if (name.kind != NO_NAME || true)\n		return 0;",
            ),
        )
    }


def forgets_removed_files() -> Mapping[str, str]:
    """Of a sealed file that was removed nothing is known."""
    name = "removed_files.c"
    return {name: _edited(name, ("at->length == length && !memcmp", "false && !memcmp"))}


def forgets_tags() -> Mapping[str, str]:
    """Each block that was sealed once is one that is good."""
    known = "memcmp(sealed_work.tag, file->tags[number], SEAL_TAG) ||"
    return {"sealed_blocks.c": _edited("sealed_blocks.c", (known, ""))}


def links_what_names_lead_to() -> Mapping[str, str]:
    """A hard link is of its own name, whatever the kernel follows."""
    return {"renaming.c": _edited("renaming.c", ("!i && a[4] & AT_SYMLINK_FOLLOW", "false"))}


def looks_at_whole_registers() -> Mapping[str, str]:
    """What a program left above an int counts."""
    narrow = ("	narrow(call, registers, a);\n", "	memcpy(a, registers, sizeof(a));\n")
    return {"calls.c": _edited("calls.c", narrow)}


def meets_none_again() -> Mapping[str, str]:
    """A sealed file that is opened by a new name is a new one."""
    name = "sealed_files.c"
    return {name: _edited(name, ("	if (!result && is_new && !empty)\n", "	if (0)\n"))}


def reads_twice() -> Mapping[str, str]:
    """One length is checked, and read again when it is used."""
    return {
        "socket_options.c": _edited(
            "socket_options.c",
            ("	given = READ_ONCE(*length);\n	if (given > space)", "	if (READ_ONCE(*length) > space)"),
            ("if (!is_answer(option, a, own, given, space, socket_family(self, (s32)a[0])))", "if (false)"),
            ("if (given < space && clear_out(a[3] + given, space - given))", "if (false)"),
            ('"getsockopt of %d bytes is answered by %d", (u64)space, (u64)given)', '"getsockopt")'),
            ("	if (copy_out(a[3], own, given))", f"	given = READ_ONCE(*length);\n	{_COPY_GIVEN}"),
        )
    }


def sleeps_as_told() -> Mapping[str, str]:
    """The kernel says when a time is over, and what of a processor was used."""
    early = ("if (early <= 0)", "if (early <= INT64_MAX)")
    clock = _edited("clock.c", early, ("value = value < *before ? *before : value;", ""))
    return {"clock.c": clock, "limits.c": _edited("limits.c", ("return limit->rest > 0;", "return false;"))}


def takes_any_events() -> Mapping[str, str]:
    """Whatever the kernel reports was asked for."""
    asked = ("READ_ONCE(shared[i].revents) & (own[i].events | ALWAYS_REPORTED)", "READ_ONCE(shared[i].revents)")
    chosen = ("own[i][word] & READ_ONCE(shared[i][word])", "READ_ONCE(shared[i][word])")
    watched = ("got->events & (entry->events | EPOLL_ALWAYS)", "got->events")
    return {"poll.c": _edited("poll.c", asked, chosen, watched)}


def takes_unknown_options() -> Mapping[str, str]:
    """Whatever an option is, that nobody knows, it is as the kernel says."""
    known = "const struct option *option = find_option(a);"
    anything = "static const struct option any = { .least = LARGEST_OPTION };\n"
    name = "socket_options.c"
    return {name: _edited(name, (known, f"{anything}	{known.replace(';', ' ?: &any;')}"))}


def tells_twice() -> Mapping[str, str]:
    """An event comes as often as the kernel says."""
    once = (" && !(seen[got->data / 64] >> got->data % 64 & 1)", "")
    return {"poll.c": _edited("poll.c", once, ("&& !entry->shots--", "&& false"))}

# SPDX-License-Identifier: GPL-2.0-or-later
"""Filters of system calls by libseccomp (seccomp.h), which Debian's apt needs and so each Debian has."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["LIBRARY", "Action", "Filters", "Rule", "is_", "masked"]

LIBRARY = "libseccomp.so.2"
_MOST_ARGUMENTS = 6
_EQUAL, _MASKED_EQUAL = 4, 7
_ERRNO = 0x50000
_API_SYSRAWRC = 9


class Action(IntEnum):
    """SCMP_ACT_*. Calls of another architecture (int 0x80, x32) always end the process."""

    ALLOW = 0x7FFF0000
    REFUSE = _ERRNO | errno.EPERM
    PRETEND = _ERRNO
    """Nothing is done, and the caller is told that it was: 0 is returned."""


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class _Condition:
    argument: int
    operator: int
    datum_a: int
    datum_b: int = 0


def is_(argument: int, value: int) -> _Condition:
    """Argument number `argument`, from 0, is `value`, in all of its 64 bits."""
    return _Condition(argument, _EQUAL, value)


def masked(argument: int, mask: int, value: int) -> _Condition:
    """Of argument number `argument`, from 0, the bits of `mask` are those of `value`."""
    return _Condition(argument, _MASKED_EQUAL, mask, value)


@dataclass(frozen=True)
class Rule:
    """What becomes of a call for which all conditions hold."""

    call: str
    """Its name. One that this libseccomp does not know is not there for it: the rule is left out."""
    conditions: tuple[_Condition, ...] = ()
    action: Action = Action.ALLOW


class Filters:
    """What loads filters. Raises OSError if there is no libseccomp."""

    def __init__(self) -> None:
        library = ctypes.CDLL(LIBRARY)
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_init.argtypes = [ctypes.c_uint32]
        library.seccomp_release.restype = None
        library.seccomp_release.argtypes = [ctypes.c_void_p]
        library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
        library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
        library.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
        ]  # fmt: skip
        library.seccomp_load.argtypes = [ctypes.c_void_p]
        self._library = library

    def load(self, rules: Iterable[Rule], otherwise: Action) -> None:
        """For this thread and those that it starts, without a way back. No new privileges either: what is executed
        cannot gain any. Raises OSError; then nothing is filtered."""
        library = self._library
        context = library.seccomp_init(otherwise)
        if not context:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        try:
            # What the kernel says is told, by those who can (from 2.5).
            library.seccomp_attr_set(context, _API_SYSRAWRC, 1)
            for rule in rules:
                self._add(context, rule)
            _check(library.seccomp_load(context))
        finally:
            library.seccomp_release(context)

    def _add(self, context: int, rule: Rule) -> None:
        number = self._library.seccomp_syscall_resolve_name(rule.call.encode())
        if number < 0:
            return
        comparisons = (_Comparison * _MOST_ARGUMENTS)()
        for place, item in enumerate(rule.conditions):
            comparisons[place] = _Comparison(item.argument, item.operator, item.datum_a, item.datum_b)
        count = len(rule.conditions)
        _check(self._library.seccomp_rule_add_array(context, rule.action, number, count, comparisons))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))

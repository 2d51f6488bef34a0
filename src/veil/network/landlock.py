# SPDX-License-Identifier: GPL-2.0-or-later
"""Landlock (landlock(7), linux/landlock.h): a process gives up what it may reach by a name. The C library has no
functions for it."""

from __future__ import annotations

import ctypes
import os

__all__ = ["give_up_names"]

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_VERSION = 1
_PR_SET_NO_NEW_PRIVS = 38
#: how many rights to files and folders each version of the interface knows, from the first one
_FILE_RIGHTS = (13, 14, 15, 15, 16)
_BIND_TCP = 1 << 0
_ABSTRACT_UNIX_SOCKETS, _SIGNALS = 1 << 0, 1 << 1


class _RulesetAttr(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = [
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


def give_up_names() -> bool:
    """This thread, and those that it starts, open, make, remove, and execute no file any more; listen at no TCP port
    (from version 4 of the interface), reach no abstract Unix socket of others, and signal none of them (from 6).

    Returns False if the kernel has no Landlock. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    rights = _FILE_RIGHTS[min(version, len(_FILE_RIGHTS)) - 1]
    attributes = _RulesetAttr((1 << rights) - 1)
    size = _RulesetAttr.handled_access_net.offset
    if version >= 4:
        attributes.handled_access_net = _BIND_TCP
        size = _RulesetAttr.scoped.offset
    if version >= 6:
        attributes.scoped = _ABSTRACT_UNIX_SOCKETS | _SIGNALS
        size = ctypes.sizeof(attributes)
    ruleset = _done(libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0))
    try:
        _done(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _done(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def _done(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

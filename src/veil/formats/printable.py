# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that is not ours, made safe to show.

Names in certificates, refusals, audit records, a console's lines: hosts, kernels and whoever answers in their place
choose every byte. Raw, they would clear the screen, paint checks and a verdict of their own below ours, reorder a line
(bidirectional text), or fill the terminal.
"""

from __future__ import annotations

import unicodedata

__all__ = ["MAX_TEXT", "one_line", "printable"]

#: Characters of what somebody else says: enough to know what it is about.
MAX_TEXT = 500
#: Letters of these directions turn what stands around them; "ET" and others are neutral.
_TURNING = frozenset({"R", "AL", "AN"})
#: Letters and symbols that look like nothing at all.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def printable(text: str | bytes, limit: int | None = MAX_TEXT) -> str:
    """In printable ASCII, anything else escaped; no longer than `limit` characters and a word on how much was cut.

    For what somebody else says: it cannot look like another name either.
    """
    size = len(text)
    # This much input always gives enough output: nobody makes us escape megabytes that are then thrown away.
    text = text[:limit] if limit is not None else text
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if text.isascii() and text.isprintable():
        made = text
    else:
        made = "".join([char if " " <= char <= "~" else ascii(char)[1:-1] for char in text])
    return _bounded(made, size, limit)


def one_line(text: str, limit: int | None = None) -> str:
    """A line as it may go to a terminal: what is neither a letter, a mark nor a space is escaped.

    For whole lines of ours, which may name the user's own files: words in most languages stay as they are. A line
    without anything to escape is given back as it is, so that it does not matter how often this is done. `limit` as
    in `printable`.
    """
    size = len(text)
    text = text[:limit] if limit is not None else text
    if not (text.isascii() and text.isprintable()):
        text = "".join([char if _shows(char) else ascii(char)[1:-1] for char in text])
    return _bounded(text, size, limit)


def _bounded(made: str, size: int, limit: int | None) -> str:
    if limit is None or (size <= limit and len(made) <= limit):
        return made
    return f"{made[:limit]}... ({size} in all)"


def _shows(char: str) -> bool:
    return (
        char.isprintable()
        and char not in _BLANK
        and not unicodedata.category(char).startswith("M")
        and unicodedata.bidirectional(char) not in _TURNING
    )

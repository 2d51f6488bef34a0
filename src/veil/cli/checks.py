# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verification checked, for people and for programs, and a command's status if something does not hold."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from veil.cli.exit_statuses import EXIT_NOT_VERIFIED
from veil.cli.option_types import Function
from veil.cli.output import Mark, say, say_all, tell

if TYPE_CHECKING:
    from veil.remote import Check

__all__ = ["checks_as_json", "failures_are_1", "print_checks"]


def failures_are_1(function: Function) -> Function:
    """A command whose exit status tells what is not as it was attested or signed from what cannot be reached."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        from veil.remote.errors import VerificationFailed

        try:
            return function(*args, **options)
        except VerificationFailed as error:
            tell(f"veil: NOT VERIFIED: {error}")
            return EXIT_NOT_VERIFIED

    return run  # type: ignore[return-value]


def print_checks(checks: Iterable[Check], *, verdict: Iterable[str]) -> None:
    """A line a check, the verdict's lines, and for what failed where it is explained."""
    checks = list(checks)
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        mark = Mark.FAIL if not check.ok else Mark.NOTE if check.note else Mark.OK
        say(f"{check.name:<{width}}  {check.words}", mark=mark)
    explained = dict.fromkeys(check.explained_at for check in checks if not check.ok)
    say_all([*verdict, *([f"explained in {', '.join(explained)}"] if explained else [])])


def checks_as_json(checks: Iterable[Check]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {"name": item.name, "ok": item.ok, "note": item.note, "words": item.words, "explained": item.explained_at}
        for item in checks
    ]

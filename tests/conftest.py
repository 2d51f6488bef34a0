# SPDX-License-Identifier: GPL-2.0-or-later
"""How hypothesis searches: the same examples in every run by default, new ones with `--hypothesis-profile=search`.

And what several processes that share the tests read in turn, and which tests come first. And with VEIL_KCI=on (make
test-kci) VeilS-KCI locks the guests of all tests down that do not say otherwise. And Ctrl-C works in what the tests
start.
"""

import gc
import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings

from veil.formats.kci_settings import KciSettings

_E2E = Path(__file__).parent / "e2e"
#: needs no snapshot, so that while one process is at it another one makes those that both need
_FIRST = "test_torture.py"


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """What is read stays until the end: nothing in it is worth a search for garbage, neither now nor later."""
    gc.disable()
    try:
        if "PYTEST_XDIST_WORKER" in os.environ:
            _read_in_turn(session.config)
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def _read_in_turn(config: pytest.Config) -> None:
    """Each process reads all tests. It begins with a part of its own, so that of those which nobody has compiled yet
    (all, in a fresh clone) the processes compile different ones at the same time, and find those of the others."""
    process = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    processes = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    asked = [config.rootpath / argument.split("::")[0] for argument in config.args]
    found = sorted({path for place in asked for path in (place.rglob("test_*.py") if place.is_dir() else [place])})
    first = len(found) * process // processes
    for path in found[first:] + found[:first]:
        # What is wrong with a file pytest says, when it comes there.
        with suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(path.relative_to(config.rootpath).with_suffix("").parts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that no process has much left to do when the others are done. Files that are near each
    other by name use the same guests: each has one of the other half of the alphabet beside it, so that no process
    waits for a guest that another one boots."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        long = list(dict.fromkeys(item.path for item in items if item.path.is_relative_to(_E2E)))
        half = (len(long) + 1) // 2
        turn = {path: (index % half, index) for index, path in enumerate(long)}
        short = (half, 0)
        items.sort(key=lambda item: (item.path.name != _FIRST, turn.get(item.path, short)))


# A change is judged by its own doing: an example that no run has found before is for `make soak`.
# How long one takes says something of the computer.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, print_blob=True, deadline=None)
settings.load_profile("same")


def _code_integrity(mode: str) -> None:
    """Make it the default of this process, as the variable makes it that of the command `veil`. What has the settings'
    defaults in it is imported later: by the tests, and by the other files of fixtures."""
    KciSettings(mode=mode)
    _, *others = KciSettings.__init__.__defaults__ or ()
    KciSettings.mode = mode
    KciSettings.__init__.__defaults__ = (mode, *others)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so, and commands that the tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "VEIL_KCI" in os.environ:
    _code_integrity(os.environ["VEIL_KCI"])

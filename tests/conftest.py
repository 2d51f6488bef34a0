# SPDX-License-Identifier: GPL-2.0-or-later
"""How hypothesis searches: the same examples in every run by default, new ones with `--hypothesis-profile=search`.

And which tests come first when several processes share them. And with VEIL_KCI=on (make test-kci) VeilS-KCI locks the
guests of all tests down that do not say otherwise. And Ctrl-C works in what the tests start.
"""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from veil.formats.kci_settings import KciSettings

_E2E = Path(__file__).parent / "e2e"
#: needs no snapshot, so that while one process is at it another one makes those that both need
_FIRST = "test_torture.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that no process has much left to do when the others are done."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (item.path.name != _FIRST, not item.path.is_relative_to(_E2E)))


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

# SPDX-License-Identifier: GPL-2.0-or-later
"""A confined libslirp still knows this computer's name server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import veil
from veil.cache import Cache
from veil.cvm import Network
from veil.cvm.networks import open_network

pytestmark = pytest.mark.e2e

_ROOT = Path(__file__).parents[2]
_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
_ALONE = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


def _heard(tmp_path: Path, instead: str) -> list[str]:
    open_network(Network(), Cache(), print).close()  # fetches the library, if need be
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this computer lets its users make no name spaces")
    folders = list((Cache().root / "library").glob("libslirp0_*/usr/lib/x86_64-linux-gnu"))
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.1\n")
    command = [sys.executable, "-m", "tests.network.ask_name_server", instead, *map(str, folders)]
    done = subprocess.run(
        [*_UNSHARE, "sh", "-c", _ALONE, str(file), *command],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(Path(veil.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    heard: list[str] = json.loads(done.stdout)
    return heard


def test_it_is_that_of_the_beginning(tmp_path: Path) -> None:
    """Nothing is sent to it but what the guest sends."""
    assert _heard(tmp_path, "") == ["at first", "later", "when the file is another"]


def test_it_must_be_learned_before(tmp_path: Path) -> None:
    instead = "process.learn_name_server = lambda slirp, filters: None"
    assert _heard(tmp_path, instead) == ["nothing", "nothing", "nothing"]


def test_it_is_followed_by_a_process_that_is_not_confined(tmp_path: Path) -> None:
    instead = "process._confine = lambda slirp, restrict: None"
    assert _heard(tmp_path, instead) == ["at first", "later", "nothing"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program costs whose memory is twice as large as what enclaves may have: pages go and come all the time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.enclaves.guest import EnclaveGuest
from bench.programs import build_program
from veil.cache import Cache
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import ComputerFiles

__all__ = ["Paging", "measure_paging"]

_LIMIT = 8
"""MiB."""
_SIZE = 2 * _LIMIT
_PAGES = _SIZE << 8
#: Rounds in which no page comes or goes are short.
_MORE = 50
_PARAMETER = "/sys/module/veil/parameters/enc_limit"
_ORDERS = {"pages in turn": "0", "pages at random": "1"}


@dataclass(frozen=True)
class Paging:
    """Of one order in which the pages are used."""

    name: str
    all_there: float
    """Microseconds for each page that is used, without a limit."""
    half_there: float
    """The same with a limit of half of the memory."""
    returned: float
    """Pages that came back for each that was used; as many went."""
    requests: float
    """To VeilS-ENC, for each that came back, to take others and to return it."""
    switches: float
    """One way each, for each that came back, all that the enclave and VeilMon need with them."""


def measure_paging(guest: EnclaveGuest, directory: Path, say: Callable[[str], None], rounds: int) -> list[Paging]:
    """In each order, in so many rounds of all pages."""
    manifest = Manifest.of({"memory": f"{_SIZE + 2}M", "threads": 1, "stack": "64K", "arguments": {"outside": True}})
    program = build_program("walk", directory, "-static")
    command = guest.put_image("walk", build_enclave(Cache(), ComputerFiles(), str(program), manifest), directory)
    found = []
    for name, order in _ORDERS.items():
        say(f"paging: {name}")
        there, _ = _measure(guest, 0, f"{command} {_SIZE}", order, rounds * _MORE)
        half, counted = _measure(guest, _LIMIT, f"{command} {_SIZE}", order, rounds)
        used, back = rounds * _PAGES, counted["returned"]
        ratios = (back / used, counted["paging"] / back, counted["switches"] / back)
        found.append(Paging(name, there / _MORE / used * 1e6, half / used * 1e6, *ratios))
    guest.run(f"echo 0 > {_PARAMETER}")
    return found


def _measure(guest: EnclaveGuest, limit: int, command: str, order: str, rounds: int) -> tuple[float, dict[str, int]]:
    """Seconds and counts of the rounds alone."""
    guest.run(f"echo {limit} > {_PARAMETER}")
    seconds, counts = [], []
    for number in (0, rounds):
        before = _counts(guest)
        cost = guest.run(f"{command} {number} {order}")
        seconds.append(cost.running)
        counts.append({key: value - before[key] for key, value in _counts(guest).items()} | {"switches": cost.switches})
    return seconds[1] - seconds[0], {key: value - counts[0][key] for key, value in counts[1].items()}


def _counts(guest: EnclaveGuest) -> dict[str, int]:
    """The line of VeilS-ENC in /dev/veil."""
    text = guest.run("cat /dev/veil").output.decode()
    return {key: int(value) for key, value in re.findall(r"(\w+) (\d+)", text)}

# SPDX-License-Identifier: GPL-2.0-or-later
"""A service is a folder on each side, which knows none of the other services, and which no contract has to name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import veil
from veil.services.protected import ProtectedServices

ROOT = Path(veil.__file__).parent
SERVICES = {service.name for service in ProtectedServices.service_types}
#: what is no service's in each part
SHARED = {
    "services": {
        "__init__.py",
        "context.py",
        "interface.py",
        "parameters.py",
        "program.py",
        "protected.py",
        "repetition.py",
    },
    "remote": {"__init__.py", "errors.py", "attestation", "channel"},
}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("part", SHARED)
def test_what_is_there_is_shared_or_a_services(part: str) -> None:
    found = {path.name for path in (ROOT / part).iterdir() if path.is_dir() or path.suffix == ".py"} - {"__pycache__"}
    assert found - SHARED[part] <= SERVICES


@pytest.mark.parametrize("part", SHARED)
@pytest.mark.parametrize("service", sorted(SERVICES))
def test_services_do_not_know_each_other(part: str, service: str) -> None:
    for path in (ROOT / part / service).rglob("*.py"):
        for name in imported(path):
            for other in SERVICES - {service}:
                assert not f"{name}.".startswith(f"veil.{part}.{other}."), f"{path} imports {name}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosted code: what runs is what the measured image holds."""

from __future__ import annotations

import io
import tarfile

import pytest

from veil.snp.errors import LaunchError
from veil.snp.hosted import hosted_header, load_program, pack_sources


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_the_installed_sources_run_as_themselves() -> None:
    import veil.monitor

    program = load_program(pack_sources(["veil.monitor"]), "veil.monitor:VeilMon")
    assert type(program) is veil.monitor.VeilMon


def test_altered_sources_run_altered_and_leave_the_installed_ones_alone() -> None:
    import veil.monitor

    files = {}
    with tarfile.open(fileobj=io.BytesIO(pack_sources(["veil.monitor"]))) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None
            files[member.name] = stream.read()
    files["veil/monitor/__init__.py"] += b"\nVeilMon.altered = True\n"
    program = load_program(_archive(files), "veil.monitor:VeilMon")
    assert program.altered is True  # type: ignore[attr-defined]
    assert not hasattr(veil.monitor.VeilMon, "altered")


def test_packing_is_reproducible() -> None:
    assert pack_sources(["veil.monitor"]) == pack_sources(["veil.monitor"])


@pytest.mark.parametrize(
    ("archive", "message"),
    [(b"no tar", "damaged"), (_archive({}), "no source"), (_archive({"veil/monitor/__init__.py": b"1/0"}), "start")],
)
def test_bad_archives_are_one_clear_error(archive: bytes, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        load_program(archive, "veil.monitor:VeilMon")


def test_long_names_are_refused() -> None:
    with pytest.raises(LaunchError, match="too long"):
        hosted_header("x" * 200, archive=(0, 0), parameters=(0, 0))

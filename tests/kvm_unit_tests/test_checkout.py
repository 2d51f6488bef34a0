# SPDX-License-Identifier: GPL-2.0-or-later
"""A checkout is read, copied, adapted and built; what is not one is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvm_unit_tests.adaptations import ADAPTATIONS
from kvm_unit_tests.checkout import Test, build, read_tests
from kvm_unit_tests.errors import JudgeError
from tests.kvm_unit_tests.made_checkout import make_checkout


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_its_tests_are_read(tmp_path: Path) -> None:
    """Two sections that differ in the processor alone are one, by the program's name."""
    tests = read_tests(make_checkout(tmp_path))
    assert [test.name for test in tests[:5]] == ["dummy", "amd_sev", "hpet_read_test", "init", "tscdeadline_latency"]
    assert tests[5:] == [
        Test("first", "first"),
        Test("second-with-arguments", "first", '-a "b c"'),
        Test("absent", "absent"),
        Test("wrong", "wrong"),
    ]


def test_a_copy_is_adapted_and_built(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    before = _content(checkout)
    found = build(checkout, tmp_path / "copy", ["first", "absent"])
    assert (list(found.programs), found.failed) == (["first"], {}), "make is not asked for what is not for EFI"
    built = found.programs["first"].read_text()
    assert "flags & ~get_amd_sev_c_bit_mask()" in built
    assert "vc_msr_entry" in built
    assert _content(checkout) == before
    adapted = {name: (tmp_path / "copy" / name).read_text() for name in {item.file for item in ADAPTATIONS}}
    assert adapted["lib/x86/vm.c"].count("phys >> 30 == 3") == 2
    assert adapted["lib/x86/vm.c"].index("setup_ghcb_pte(cr3)") < adapted["lib/x86/vm.c"].index("write_cr3")
    assert "MISC_ENABLE" not in adapted["x86/msr.c"]
    assert "MSR_IA32_CR_PAT" in adapted["x86/msr.c"]
    assert "(1 << 29)" in adapted["x86/smap.c"]
    assert "lea fixed1(%%rip)" in adapted["x86/access.c"]
    assert "access_test" in adapted["x86/Makefile.x86_64"]
    assert "__argv[0]" in adapted["lib/efi.c"]


@pytest.mark.parametrize("name", sorted({item.file for item in ADAPTATIONS}))
def test_another_version_is_told_of(tmp_path: Path, name: str) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    (checkout / name).write_text("something else\n")
    with pytest.raises(JudgeError, match="older or newer") as caught:
        build(checkout, tmp_path / "copy", ["first"])
    assert name in str(caught.value)


def test_what_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="not a checkout"):
        read_tests(tmp_path)
    with pytest.raises(JudgeError, match="not a checkout"):
        build(tmp_path, tmp_path / "copy", ["first"])


def test_a_build_that_fails(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout", configure="echo no compiler: an error >&2; exit 1")
    with pytest.raises(JudgeError, match=r"configure .* ended with 1: no compiler: an error"):
        build(checkout, tmp_path / "copy", ["first"])


def test_a_program_that_cannot_be_built_is_told_of(tmp_path: Path) -> None:
    found = build(make_checkout(tmp_path / "checkout"), tmp_path / "copy", ["wrong", "first"])
    assert list(found.programs) == ["first"]
    assert found.failed == {"wrong": "x86/wrong.c:1: error: no such thing"}


def test_nothing_that_can_be_built(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"make x86/wrong.efi ended with 2: x86/wrong.c:1: error: no such thing"):
        build(make_checkout(tmp_path / "checkout"), tmp_path / "copy", ["wrong"])


def test_nothing_of_it_is_for_efi(tmp_path: Path) -> None:
    found = build(make_checkout(tmp_path / "checkout"), tmp_path / "copy", ["absent"])
    assert (found.programs, found.failed) == ({}, {})


def test_a_makefile_that_names_no_programs(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    (checkout / "Makefile").write_text("all:\n")
    with pytest.raises(JudgeError, match="lists no EFI programs"):
        build(checkout, tmp_path / "copy", ["first"])

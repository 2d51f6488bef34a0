# SPDX-License-Identifier: GPL-2.0-or-later
"""Each kind of patch site: what Linux writes there is explained, anything else is found."""

from __future__ import annotations

import struct

import pytest

from tests.services.kci.small_kernel import (
    BASE,
    BUG_FUNC,
    DATA,
    ENDBR,
    FENTRY,
    FTRACE_CALL,
    FTRACE_CALLER,
    LIST_FUNC,
    NOP5,
    NOP_FUNC,
    RETURN_THUNK,
    SRSO_THUNK,
    THUNKS,
    SmallKernel,
    call,
    jump,
)
from veil.services.kci import Configuration, Explanation, KernelCode, TableError

PLAIN_RETURN = bytes.fromhex("c3cccccccc")
NOP6, NOP3 = bytes.fromhex("660f1f440000"), bytes.fromhex("0f1f00")
SEAL = bytes.fromhex("660f1f00")
SEALED = BASE + 0x1040
ALWAYS, FIRST, SECOND = 117, 8, 9
NOT, DIRECT_CALL = 1, 2


@pytest.fixture
def kernel() -> SmallKernel:
    return SmallKernel()


def explain(
    kernel: SmallKernel, *changes: tuple[int, bytes], configuration: Configuration | None = None
) -> Explanation:
    """Explain the kernel's text after changes."""
    now = bytearray(kernel.text)
    now[SEALED - BASE : SEALED - BASE + 4] = SEAL
    for address, code in changes:
        now[address - BASE : address - BASE + len(code)] = code
    return KernelCode(kernel.image()).explain(bytes(now), kernel.data_reader, configuration)


def test_nothing_changed_but_what_always_is(kernel: SmallKernel) -> None:
    explanation = explain(kernel)
    assert explanation.sound
    assert explanation.sites["ENDBR"] == 1
    assert explanation.changed == 3


def test_a_changed_byte_is_found_with_its_address_and_both_values(kernel: SmallKernel) -> None:
    explanation = explain(kernel, (BASE + 0x123, b"\x90"))
    assert not explanation.sound
    assert explanation.unexplained_bytes == 1
    (wrong,) = explanation.unexplained
    assert (wrong.address, wrong.found, wrong.expected) == (BASE + 0x123, 0x90, 0xCC)


def test_endbr_is_sealed_everywhere_or_nowhere(kernel: SmallKernel) -> None:
    sites = [kernel.put(BASE + 0x100 + 16 * number, ENDBR) for number in range(3)]
    for site in sites:
        kernel.entry("__ibt_endbr_seal", site)
    assert explain(kernel, *((site, SEAL) for site in sites)).sound
    newer = bytes.fromhex("0f1f40d6")
    assert explain(kernel, *((site, newer) for site in [*sites, SEALED])).sound
    assert not explain(kernel, *((site, SEAL) for site in sites[1:])).sound


def test_an_endbr_that_is_no_endbr_stays(kernel: SmallKernel) -> None:
    site = kernel.put(BASE + 0x100, b"\x55\x48\x89\xe5")
    kernel.entry("__ibt_endbr_seal", site)
    assert explain(kernel).sound
    assert not explain(kernel, (site, SEAL)).sound


@pytest.mark.parametrize("form", ["plain", "thunk"])
def test_returns_have_one_form(kernel: SmallKernel, form: str) -> None:
    sites = [BASE + 0x100 + 16 * number for number in range(3)]
    for site in sites:
        kernel.entry("__return_sites", kernel.put(site, jump(site, RETURN_THUNK)))
    patched = [(site, PLAIN_RETURN if form == "plain" else jump(site, SRSO_THUNK)) for site in sites]
    explanation = explain(kernel, *patched)
    assert explanation.sound
    assert explanation.configuration.returns == ("ret" if form == "plain" else "srso_return_thunk")
    other = jump(sites[0], SRSO_THUNK) if form == "plain" else PLAIN_RETURN
    mixed = explain(kernel, (sites[0], other), *patched[1:])
    assert not mixed.sound
    assert mixed.unexplained[0].address in range(sites[0], sites[0] + 5)


def test_a_return_that_jumps_elsewhere_is_found(kernel: SmallKernel) -> None:
    site = kernel.put(BASE + 0x100, jump(BASE + 0x100, RETURN_THUNK))
    kernel.entry("__return_sites", site)
    assert not explain(kernel, (site, jump(site, BASE + 0x1000))).sound


@pytest.mark.parametrize(
    ("before", "indirect", "lfence", "prefixed"),
    [
        (lambda at: call(at, THUNKS), "ffd0 0f1f00", "0faee8 ffd0", "2e2e2e ffd0"),
        (lambda at: jump(at, THUNKS), "ffe0 cc 6690", "0faee8 ffe0", "ffe0 cccccc"),
        # r9: with LFENCE it is too long for its place, and stays.
        (lambda at: call(at, THUNKS + 9 * 32), "41ffd1 6690", None, "2e2e 41ffd1"),
        (lambda at: jump(at, THUNKS + 9 * 32), "41ffe1 cc90", None, "41ffe1 cccc"),
        (lambda at: b"\x2e" + call(at + 1, THUNKS + 9 * 32), "41ffd1 0f1f00", "0faee8 41ffd1", "2e2e2e 41ffd1"),
        # jne thunk: je over an indirect jump.
        (lambda at: b"\x0f\x85" + struct.pack("<i", THUNKS - at - 6), "7404 ffe0 cc90", None, "7404 ffe0 cccc"),
    ],
)
def test_retpolines(kernel: SmallKernel, before: object, indirect: str, lfence: str | None, prefixed: str) -> None:
    site = BASE + 0x100
    original = before(site)  # type: ignore[operator]
    kernel.entry("__retpoline_sites", kernel.put(site, original))
    # Most sites say which form it is: here an ordinary one, twice.
    others = [BASE + 0x200, BASE + 0x300]
    for other in others:
        kernel.entry("__retpoline_sites", kernel.put(other, call(other, THUNKS)))
    shapes = {
        "retpoline": (original, None),
        "indirect": (bytes.fromhex(indirect), bytes.fromhex("ffd00f1f00")),
        "prefixed": (bytes.fromhex(prefixed), bytes.fromhex("2e2e2effd0")),
        "lfence": (original if lfence is None else bytes.fromhex(lfence), bytes.fromhex("0faee8ffd0")),
    }
    for form, (content, usual) in shapes.items():
        usually = [(other, usual or call(other, THUNKS)) for other in others]
        explanation = explain(kernel, (site, content), *usually)
        assert explanation.configuration.retpolines == form
        assert explanation.sound, form
        assert not explain(kernel, (site, b"\xff\xd1" + content[2:]), *usually).sound


def test_lock_prefixes_go_all_together_where_there_is_one_cpu(kernel: SmallKernel) -> None:
    sites = [kernel.put(BASE + 0x100 + 16 * number, b"\xf0\x48\xff\x07") for number in range(3)]
    # An alternative without a lock may have taken the place of one.
    sites.append(kernel.put(BASE + 0x180, b"\x48\xff\x07"))
    for site in sites:
        kernel.entry("__smp_locks", site)
    assert not explain(kernel).configuration.uniprocessor
    explanation = explain(kernel, *((site, b"\x3e") for site in sites[:3]))
    assert explanation.sound
    assert explanation.configuration.uniprocessor
    assert not explain(kernel, *((site, b"\x3e") for site in sites[:2])).sound
    assert not explain(kernel, *((site, b"\x3e") for site in sites)).sound


class TestAlternatives:
    def test_original_and_replacement(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x90" * 3)
        kernel.alternative(site, 3, b"\x0f\x01\xcb", FIRST)
        assert explain(kernel, (site, NOP3)).configuration.features[FIRST] is False
        patched = explain(kernel, (site, b"\x0f\x01\xcb"))
        assert patched.sound
        assert patched.configuration.features[FIRST] is True
        # As measured, but NOPs that are not joined: no kernel leaves that behind.
        assert not explain(kernel).sound
        assert not explain(kernel, (site, b"\x0f\x01\xca")).sound

    def test_no_mixture_inside_of_a_site(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x48\x89\xd8\x48\x89\xc3")
        kernel.alternative(site, 6, b"\x31\xc0\x31\xdb\x31\xc9", FIRST)
        assert not explain(kernel, (site, b"\x31\xc0\x31\x89\xc3\x90")).sound
        assert not explain(kernel, (site, b"\x31\xc0")).sound

    def test_no_mixture_across_sites(self, kernel: SmallKernel) -> None:
        sites = [kernel.put(BASE + 0x100 + 16 * number, b"\x90" * 3) for number in range(4)]
        for site in sites:
            kernel.alternative(site, 3, b"\x0f\x01\xcb", FIRST)
        mixed = explain(kernel, (sites[0], NOP3), *((site, b"\x0f\x01\xcb") for site in sites[1:]))
        assert not mixed.sound
        assert mixed.unexplained[0].address == sites[0] + 1

    def test_features_of_the_kernel_bind_a_module(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x90" * 3)
        kernel.alternative(site, 3, b"\x0f\x01\xcb", FIRST)
        with_it = explain(kernel, (site, b"\x0f\x01\xcb")).configuration
        assert explain(kernel, (site, b"\x0f\x01\xcb"), configuration=with_it).sound
        assert not explain(kernel, (site, NOP3), configuration=with_it).sound

    def test_a_feature_that_must_not_be_there(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x90" * 3)
        kernel.alternative(site, 3, b"\x0f\x01\xcb", FIRST, NOT)
        assert explain(kernel, (site, b"\x0f\x01\xcb")).configuration.features[FIRST] is False
        assert explain(kernel, (site, NOP3)).configuration.features[FIRST] is True

    def test_the_last_entry_that_applies_counts(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x48\x89\xd8")
        kernel.alternative(site, 3, b"\x31\xc0", FIRST)
        kernel.alternative(site, 3, b"\x31\xdb", SECOND)
        for content, features in (
            ("4889d8", {FIRST: False, SECOND: False}),
            ("31c090", {FIRST: True, SECOND: False}),
            ("31db90", {SECOND: True}),
        ):
            explanation = explain(kernel, (site, bytes.fromhex(content)))
            assert explanation.sound
            assert explanation.configuration.features == features

    def test_the_longest_entry_of_a_site_gives_its_length(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x31\xc0" + b"\x90" * 4)
        kernel.alternative(site, 2, b"\x31\xdb", FIRST)
        kernel.alternative(site, 6, b"\x48\x89\xd8\x48\x89\xc3", SECOND)
        assert explain(kernel, (site, b"\x31\xdb\x0f\x1f\x40\x00")).sound

    @pytest.mark.parametrize(
        ("count", "joined"),
        [
            (1, "90"), (2, "6690"), (8, "0f1f840000000000"), (9, "2e0f1f840000000000"), (10, "662e0f1f840000000000"),
            (11, "66662e0f1f840000000000"), (12, "eb0a" + "cc" * 10), (130, "e97d000000" + "cc" * 125),
        ],
    )  # fmt: skip
    def test_runs_of_nops_are_joined(self, kernel: SmallKernel, count: int, joined: str) -> None:
        site = kernel.put(BASE + 0x100, b"\x90" * count + b"\x31\xc0")
        kernel.alternative(site, count + 2, b"\x31\xdb" * 2 if count > 1 else b"\x31\xdb\xc3", FIRST)
        assert explain(kernel, (site, bytes.fromhex(joined) + b"\x31\xc0")).sound

    def test_a_last_single_nop_is_not_joined(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x31\xc0" + bytes.fromhex("662e0f1f840000000000"))
        kernel.alternative(site, 12, b"\x31\xdb" * 6, FIRST)
        assert explain(kernel).sound
        site = kernel.put(BASE + 0x200, b"\x31\xc0\x0f\x1f\x00")
        kernel.alternative(site, 5, b"\x31\xdb" * 2, FIRST)
        assert explain(kernel).sound

    def test_calls_and_rip_relative_operands_are_relocated(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x90" * 12)
        # lea disp32(%rip), %rdi; call BUG_func
        source = kernel.alternative(site, 12, b"\x48\x8d\x3d" + bytes(4) + call(0, 0), FIRST)
        kernel.replacements[3:7] = struct.pack("<i", DATA - source - 7)
        kernel.replacements[7:12] = call(source + 7, BUG_FUNC)
        code = b"\x48\x8d\x3d" + struct.pack("<i", DATA - site - 7) + call(site + 7, BUG_FUNC)
        assert explain(kernel, (site, code)).sound
        assert not explain(kernel, (site, bytes(kernel.replacements))).sound

    def test_a_jump_inside_of_a_replacement_is_not_relocated(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x90" * 4)
        kernel.alternative(site, 4, b"\x75\x02\x31\xc0", FIRST)
        assert explain(kernel, (site, b"\x75\x02\x31\xc0")).sound

    def test_a_jump_becomes_short_where_it_can(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, b"\x90" * 5)
        source = kernel.alternative(site, 5, jump(0, 0), FIRST)
        kernel.replacements[:5] = jump(source, site + 0x40)
        assert explain(kernel, (site, b"\xeb\x3e\xcc\xcc\xcc")).sound
        assert not explain(kernel, (site, jump(site, site + 0x40))).sound

    def test_returns_are_patched_before_they_are_put_in(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, jump(BASE + 0x100, RETURN_THUNK))
        kernel.entry("__return_sites", site)
        source = kernel.alternative(site, 5, jump(0, 0), FIRST)
        kernel.replacements[:5] = jump(source, RETURN_THUNK)
        kernel.entry("__return_sites", source)
        other = kernel.put(BASE + 0x200, jump(BASE + 0x200, RETURN_THUNK))
        kernel.entry("__return_sites", other)
        assert explain(kernel, (site, PLAIN_RETURN), (other, PLAIN_RETURN)).sound
        assert not explain(kernel, (other, PLAIN_RETURN)).sound

    @pytest.mark.parametrize(
        ("function", "content"),
        [
            (BASE + 0x1000, call(BASE + 0x100, BASE + 0x1000) + b"\x90"),
            (NOP_FUNC, NOP6),
            (0, call(BASE + 0x100, BUG_FUNC) + b"\x90"),
            # Not at the start of a function that may be called through a pointer.
            (BASE + 0x1004, None),
        ],
    )
    def test_direct_calls_follow_the_pointer(self, kernel: SmallKernel, function: int, content: bytes | None) -> None:
        pointer = kernel.word(0x40, function)
        site = BASE + 0x100
        kernel.put(site, b"\xff\x15" + struct.pack("<i", pointer - site - 6))
        source = kernel.alternative(site, 6, call(0, 0), ALWAYS, DIRECT_CALL)
        kernel.replacements[:5] = call(source, BUG_FUNC)
        if content is not None:
            assert explain(kernel, (site, content)).sound
        else:
            assert not explain(kernel, (site, call(site, function) + b"\x90")).sound
        assert not explain(kernel, (site, call(site, BASE + 0x1100) + b"\x90")).sound


def test_runtime_constants_have_the_value_of_their_variable(kernel: SmallKernel) -> None:
    kernel.symbols["table"] = kernel.word(0x80, 0xFFFF888000123000)
    kernel.symbols["shift"] = kernel.word(0x88, 0x13)
    pointers = [kernel.put(BASE + 0x100 + 32 * number, b"\x48\xb8" + bytes(8)) + 2 for number in range(2)]
    shift = kernel.put(BASE + 0x180, b"\xc1\xe8\x0c") + 2
    for site in pointers:
        kernel.entry("__start_runtime_ptr_table", site)
    kernel.entry("__start_runtime_shift_shift", shift)
    value = struct.pack("<Q", 0xFFFF888000123000)
    assert explain(kernel, *((site, value) for site in pointers), (shift, b"\x13")).sound
    assert not explain(kernel, *((site, value) for site in pointers), (shift, b"\x14")).sound
    other = struct.pack("<Q", 0xFFFF888000124000)
    assert not explain(kernel, (pointers[0], other), (pointers[1], value), (shift, b"\x13")).sound


def test_runtime_masks(kernel: SmallKernel) -> None:
    kernel.symbols["mask"] = kernel.word(0x80, 0xFFFF_FFFF_0000_01FF)
    site = kernel.put(BASE + 0x100, b"\x81\xe1\x78\x56\x34\x12") + 2
    kernel.entry("__start_runtime_mask_mask", site)
    assert explain(kernel, (site, b"\xff\x01\0\0")).sound
    assert not explain(kernel, (site, b"\xff\x03\0\0")).sound
    # What keeps other bits than low ones is no mask, whatever the kernel's variable says.
    kernel.word(0x80, 0x9090C3FF)
    assert not explain(kernel, (site, b"\xff\xc3\x90\x90")).sound


def test_runtime_constants_without_a_variable_are_the_same_everywhere(kernel: SmallKernel) -> None:
    sites = [kernel.put(BASE + 0x100 + 32 * number, b"\x48\xb8" + bytes(8)) + 2 for number in range(3)]
    for site in sites:
        kernel.entry("__start_runtime_ptr_unnamed", site)
    value = struct.pack("<Q", 0x7FFFFFFFF000)
    assert explain(kernel, *((site, value) for site in sites)).sound
    assert not explain(
        kernel, (sites[0], struct.pack("<Q", 0x7FFFFFFFE000)), *((site, value) for site in sites[1:])
    ).sound
    # Eight bytes of code are no address.
    assert not explain(kernel, *((site, b"\x0f\x22\xdf\xc3\x90\x90\x90\x90") for site in sites)).sound


INLINE = {"WARN_trap": bytes.fromhex("67480fb93a"), "queued_spin_unlock": bytes.fromhex("3e3ec60700")}


class TestLiveSites:
    @pytest.mark.parametrize("long", [True, False])
    def test_jump_labels(self, kernel: SmallKernel, long: bool) -> None:
        site, target = BASE + 0x100, BASE + 0x140
        nop = NOP5 if long else b"\x66\x90"
        code = jump(site, target) if long else b"\xeb\x3e"
        kernel.entry("__start___jump_table", kernel.put(site, nop), target, DATA)
        assert explain(kernel).sound
        assert explain(kernel, (site, code)).sound
        elsewhere = jump(site, target + 1) if long else b"\xeb\x3f"
        assert not explain(kernel, (site, elsewhere)).sound
        assert not explain(kernel, (site, b"\xcc")).sound

    @pytest.mark.parametrize(
        ("tail", "legal", "illegal"),
        [
            (
                False,
                [call(BASE + 0x100, BASE + 0x1000), NOP5, bytes.fromhex("2e2e2e31c0")],
                [jump(BASE + 0x100, BASE + 0x1000), call(BASE + 0x100, BASE + 0x1004), call(BASE + 0x100, SEALED),
                 PLAIN_RETURN, *INLINE.values(), bytes(5)],
            ),
            (
                True,
                [jump(BASE + 0x100, BASE + 0x1000), PLAIN_RETURN],
                [call(BASE + 0x100, BASE + 0x1000), jump(BASE + 0x100, BASE + 0x1001), NOP5],
            ),
        ],
    )  # fmt: skip
    def test_static_calls(self, kernel: SmallKernel, tail: bool, legal: list[bytes], illegal: list[bytes]) -> None:
        site, trampoline = BASE + 0x100, BASE + 0x400
        kernel.symbols["__SCT__small"] = trampoline
        kernel.put(trampoline, jump(trampoline, BASE + 0x1000) + b"\x0f\xb9\xcc")
        kernel.entry("__start_static_call_sites", site, DATA + 0x100 + tail)
        kernel.put(site, jump(site, trampoline) if tail else call(site, trampoline))
        for content in legal:
            assert explain(kernel, (site, content)).sound, content.hex()
        for content in illegal:
            assert not explain(kernel, (site, content)).sound, content.hex()

    @pytest.mark.parametrize("prefix", ["__SCK__", "__SCT__"])
    @pytest.mark.parametrize("name", INLINE)
    def test_static_calls_that_are_written_out(self, kernel: SmallKernel, name: str, prefix: str) -> None:
        """In place of the call of one function, by the static call's key; a module may have its trampoline there."""
        site, tail, key = BASE + 0x100, BASE + 0x110, DATA + 0x100
        kernel.symbols[prefix + name] = key
        for place, opcode, flags in ((site, call, 0), (tail, jump, 1)):
            kernel.entry("__start_static_call_sites", kernel.put(place, opcode(place, BASE + 0x1000)), key + flags)
        for written, content in INLINE.items():
            assert explain(kernel, (site, content)).sound == (written == name)
            assert not explain(kernel, (tail, content)).sound

    def test_static_calls_of_functions_whose_address_stands_in_the_image(self, kernel: SmallKernel) -> None:
        site, function = BASE + 0x100, kernel.put(BASE + 0x1100, b"\x55\x48\x89\xe5")
        kernel.symbols["in_assembler"] = function
        kernel.entry("__start_static_call_sites", kernel.put(site, call(site, BASE + 0x1000)), DATA + 0x100)
        assert not explain(kernel, (site, call(site, function))).sound
        kernel.word(0x200, function)
        assert explain(kernel, (site, call(site, function))).sound
        assert not explain(kernel, (site, call(site, function + 4))).sound

    def test_static_call_trampolines(self, kernel: SmallKernel) -> None:
        site = BASE + 0x400
        kernel.symbols["__SCT__small"] = site
        kernel.put(site, jump(site, RETURN_THUNK) + b"\x0f\xb9\xcc")
        kernel.entry("__return_sites", site)
        assert explain(kernel, (site, PLAIN_RETURN)).sound
        assert explain(kernel, (site, jump(site, BASE + 0x1000))).sound
        assert not explain(kernel, (site, jump(site, BASE + 0x1002))).sound

    def test_traced_functions(self, kernel: SmallKernel) -> None:
        site = BASE + 0x100
        kernel.entry("__start_mcount_loc", kernel.put(site, call(site, FENTRY)))
        assert explain(kernel, (site, NOP5)).sound
        assert explain(kernel, (site, call(site, FTRACE_CALLER))).sound
        assert not explain(kernel, (site, call(site, BASE + 0x1000))).sound

    def test_the_tracer_in_use(self, kernel: SmallKernel) -> None:
        assert explain(kernel, (FTRACE_CALL, call(FTRACE_CALL, BASE + 0x1000))).sound
        assert explain(kernel, (FTRACE_CALL, call(FTRACE_CALL, LIST_FUNC))).sound
        assert not explain(kernel, (FTRACE_CALL, call(FTRACE_CALL, BASE + 0x1008))).sound

    def test_trampolines_are_refused(self, kernel: SmallKernel) -> None:
        site, trampoline = BASE + 0x100, BASE + 0x100000
        kernel.entry("__start_mcount_loc", kernel.put(site, call(site, FENTRY)))
        rules = KernelCode(kernel.image())
        now = bytearray(kernel.text)
        now[0x100:0x105] = call(site, trampoline)
        now[SEALED - BASE : SEALED - BASE + 4] = SEAL
        assert not rules.explain(bytes(now), kernel.data_reader).sound
        # A function of a module is no entry's target either.
        rules.admit(rules.near.admit(targets=[trampoline]))
        assert not rules.explain(bytes(now), kernel.data_reader).sound


class TestHostileTables:
    def test_thunks_in_no_order(self, kernel: SmallKernel) -> None:
        kernel.symbols["__x86_indirect_thunk_rcx"] = THUNKS - 0x100
        kernel.entry("__retpoline_sites", kernel.put(BASE + 0x100, call(BASE + 0x100, THUNKS)))
        assert explain(kernel).configuration.retpolines == "retpoline"

    @pytest.mark.parametrize(
        "table", ["__return_sites", "__retpoline_sites", "__ibt_endbr_seal", "__smp_locks", "__start_mcount_loc"]
    )
    def test_sites_outside(self, kernel: SmallKernel, table: str) -> None:
        kernel.entry(table, BASE - 0x1000)
        with pytest.raises(TableError, match="outside"):
            KernelCode(kernel.image())

    def test_overlapping_kinds(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, NOP5)
        kernel.entry("__start___jump_table", site, BASE + 0x140, DATA)
        kernel.alternative(site + 2, 3, b"\x0f\x01\xcb", FIRST)
        with pytest.raises(TableError, match="overlap"):
            KernelCode(kernel.image())

    def test_overlapping_alternatives(self, kernel: SmallKernel) -> None:
        kernel.alternative(BASE + 0x100, 6, b"\x0f\x01\xcb", FIRST)
        kernel.alternative(BASE + 0x102, 6, b"\x0f\x01\xcb", FIRST)
        with pytest.raises(TableError, match="overlap"):
            KernelCode(kernel.image())

    def test_a_return_that_is_half_in_an_alternative(self, kernel: SmallKernel) -> None:
        site = kernel.put(BASE + 0x100, jump(BASE + 0x100, RETURN_THUNK))
        kernel.entry("__return_sites", site)
        kernel.alternative(site + 3, 3, b"\x0f\x01\xcb", FIRST)
        with pytest.raises(TableError, match="overlap"):
            KernelCode(kernel.image())

    def test_a_site_across_the_end(self, kernel: SmallKernel) -> None:
        kernel.alternative(BASE + 0x1FFE, 6, b"\x0f\x01\xcb", FIRST)
        with pytest.raises(TableError, match="leaves its code"):
            KernelCode(kernel.image())

    def test_a_replacement_longer_than_its_site(self, kernel: SmallKernel) -> None:
        kernel.alternative(BASE + 0x100, 2, b"\x0f\x01\xcb", FIRST)
        with pytest.raises(TableError, match="more bytes"):
            KernelCode(kernel.image())

    def test_a_jump_label_without_a_nop(self, kernel: SmallKernel) -> None:
        kernel.entry("__start___jump_table", kernel.put(BASE + 0x100, b"\x55" * 5), BASE + 0x140, DATA)
        with pytest.raises(TableError, match="no jump label"):
            KernelCode(kernel.image())

    def test_a_jump_label_that_leads_out(self, kernel: SmallKernel) -> None:
        kernel.entry("__start___jump_table", kernel.put(BASE + 0x100, NOP5), DATA, DATA)
        with pytest.raises(TableError, match="no jump label"):
            KernelCode(kernel.image())

    def test_unknown_flags(self, kernel: SmallKernel) -> None:
        kernel.alternative(BASE + 0x100, 3, b"\x0f\x01\xcb", FIRST, 4)
        with pytest.raises(TableError, match="flags"):
            KernelCode(kernel.image())

    def test_a_site_with_many_entries(self, kernel: SmallKernel) -> None:
        for feature in range(40):
            kernel.alternative(BASE + 0x100, 3, b"\x0f\x01\xcb", feature)
        with pytest.raises(TableError, match="40 entries"):
            KernelCode(kernel.image())

# SPDX-License-Identifier: GPL-2.0-or-later
"""A CVM's configuration: what it refuses, what its key tells apart, and how it comes back from a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cvm.configurations import configurations
from tests.examples import examples
from veil.cvm import ConfidentialVM, Configuration, Disk, Network, parse_size
from veil.cvm.configuration import Settings
from veil.cvm.plain_values import from_plain, to_plain
from veil.errors import VeilError
from veil.formats.log_settings import LogSettings
from veil.guest.initramfs.archive import Node
from veil.image.services_image import protected_services
from veil.installation import owner_fingerprint

_KEY = bytes(range(32))
#: A value other than the default's, for each field.
OTHERS: dict[str, Any] = {
    "memory": 1 << 30,
    "vcpus": 2,
    "kernel": "6.1",
    "kernel_options": ("loglevel=7",),
    "modules": ("loop",),
    "owners": (_KEY,),
    "readers": (_KEY,),
    "policy": 1 << 17,
    "host_data": _KEY,
    "identity": None,
    "report_version": 2,
    "services": protected_services(LogSettings(full="drop")),
    "driver": False,
    "driver_options": "log_heartbeat=500",
    "files": {"etc/word": Node.file(b"one")},
    "disks": (Disk("/a.img", "tmp"),),
    "network": Network.parse("user,hostfwd=tcp:8080:80"),
    "firmware": "debian",
    "initrd": "/initrd.img",
    "append": "console=ttyS0",
    "igvm": "/guest.igvm",
    "cpu_features": ("xsave",),
}
#: What there must be for a field to have another value.
_NEEDED: dict[str, dict[str, Any]] = {
    "initrd": {"firmware": "debian"},
    "append": {"firmware": "debian"},
}


@settings(max_examples=examples(100))
@given(configuration=configurations())
def test_round_trip(configuration: Configuration) -> None:
    again = Configuration.parse(configuration.pack())
    assert again == configuration
    assert (again.key(), hash(again)) == (configuration.key(), hash(configuration))


@settings(max_examples=examples(100))
@given(one=configurations(), data=st.data())
def test_another_value_is_another_key(one: Configuration, data: st.DataObject) -> None:
    other = data.draw(configurations())
    assert (one == other) == (one.key() == other.key())


@pytest.mark.parametrize("name", ["kernel_options", "modules", "owners", "readers", "disks", "cpu_features"])
def test_a_list_is_the_same_value(name: str) -> None:
    def make(value: Any) -> Configuration:
        return Configuration(**{name: value})

    items = list(OTHERS[name])
    one, other = make(items), make(tuple(items))
    assert (one, hash(one)) == (other, hash(other))
    items.clear()
    assert one == other
    with pytest.raises(VeilError, match=f"{name} is a sequence"):
        make(OTHERS[name][0])


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in ("identity", "igvm")])
def test_each_field_is_in_the_key(name: str) -> None:
    default = Configuration(**_NEEDED.get(name, {}))
    other = dataclasses.replace(default, **{name: OTHERS[name]})
    assert other != default
    assert other.key() != default.key()
    assert getattr(Configuration.parse(other.pack()), name) == OTHERS[name]


def test_a_file_of_another_content_is_another_configuration() -> None:
    one, other, again = (Configuration(files={"a": Node.file(word)}) for word in (b"one", b"two", b"one"))
    assert one == again
    assert one.key() == again.key()
    assert one.key() != other.key()


def test_it_cannot_be_changed() -> None:
    files = {"a": Node.file(b"one")}
    configuration = Configuration(files=files)
    files["b"] = Node.file(b"two")
    assert list(configuration.files) == ["a"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        configuration.memory = 1  # type: ignore[misc]


def test_what_users_may_say_is_what_there_is() -> None:
    assert Settings.__annotations__.keys() | {"memory", "vcpus"} == {
        item.name for item in dataclasses.fields(Configuration)
    }
    assert OTHERS.keys() | {"monitor"} == {item.name for item in dataclasses.fields(Configuration)}


@pytest.mark.parametrize(
    ("features", "refusal"),
    [
        (("avx",), "no processor here has 'avx': there are xsave, pku"),
        (("pku",), r"a processor with protection keys \(pku\) has xsave as well"),
        (("xsave", ""), "no processor here has ''"),
    ],
)
def test_processors_that_there_are_not(features: tuple[str, ...], refusal: str) -> None:
    with pytest.raises(VeilError, match=refusal):
        Configuration(cpu_features=features)


def test_forms_of_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Configuration.make() == Configuration(owners=(owner_fingerprint(),))
    made = Configuration.make("1G", 2, kernel=Path("bzImage"), owners=[_KEY], modules=["loop"])
    assert made == Configuration(
        memory=1 << 30, vcpus=2, kernel=str(tmp_path / "bzImage"), owners=(_KEY,), modules=("loop",)
    )
    stock = Configuration.make(monitor=False, firmware=Path("OVMF.fd"), initrd="initrd.img")
    assert (stock.firmware, stock.initrd) == (str(tmp_path / "OVMF.fd"), str(tmp_path / "initrd.img"))
    assert Configuration.make(monitor=False, firmware="debian").firmware == "debian"
    assert Configuration.make(owners=()).owners == ()
    bare = Configuration.make(monitor=False, owners=[_KEY], readers=[_KEY])
    assert (bare.owners, bare.readers, bare.services) == ((), (), None)


def test_both_ways_to_a_cvm_are_the_same() -> None:
    chosen = Configuration.make("1G", 2, driver_options="x")
    assert ConfidentialVM("1G", 2, driver_options="x").configuration == ConfidentialVM(chosen).configuration == chosen
    with pytest.raises(TypeError, match="a configuration is whole"):
        ConfidentialVM(chosen, 2)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vcpus": 5}, "1 to 4 VCPUs, not 5"),
        ({"memory": 0}, "more than 0 bytes"),
        ({"policy": -1}, "number of 64 bits"),
        ({"host_data": b"short"}, "host data has 32 bytes, not 5"),
        ({"owners": (b"short",)}, "32 bytes of a key's SHA-256"),
        ({"readers": (_KEY,) * 9}, "9 keys are too many"),
        ({"monitor": False}, "without a monitor"),
        ({"append": "quiet"}, "are given to firmware"),
        ({"initrd": "/initrd.img"}, "are given to firmware"),
        ({"driver": False, "driver_options": "log_intent=exec"}, "without the driver there is nothing"),
    ],
)
def test_what_no_cvm_can_have(change: dict[str, Any], words: str) -> None:
    with pytest.raises(VeilError, match=words):
        Configuration(**change)
    value = from_plain(to_plain(Configuration())) | {
        name: list(item) if isinstance(item, tuple) else item for name, item in change.items()
    }
    with pytest.raises(VeilError, match=words):
        Configuration.parse(json.dumps(to_plain(value)).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"5", b"[]", b"{}", b'{"map": 5}', b'{"map": [[{"map": []}, 1]]}', b'{"base64": "?"}', b"\xff",
     b"[" * 100_000, b'{"map": [["memory", 5]]}'],
)  # fmt: skip
def test_nonsense_is_one_line(data: bytes) -> None:
    with pytest.raises(VeilError, match="configuration") as caught:
        Configuration.parse(data)
    assert str(caught.value).isprintable()


@settings(max_examples=examples(100))
@given(configuration=configurations(), data=st.data())
def test_any_value_anywhere(configuration: Configuration, data: st.DataObject) -> None:
    value = from_plain(to_plain(configuration))
    name = data.draw(st.sampled_from(sorted(value)))
    values = st.one_of(
        st.none(), st.booleans(), st.integers(-(1 << 66), 1 << 66), st.text(max_size=3), st.binary(max_size=9),
        st.sampled_from([[], {}, [0], [[[]]], {"x": 1}, {1: 2}]),
    )  # fmt: skip
    value[name] = data.draw(values)
    said = ""
    try:
        Configuration.parse(json.dumps(to_plain(value)).encode())
    except VeilError as error:
        said = str(error)
    assert said.isprintable()


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("4G", 4 << 30), (" 64KiB ", 64 << 10), (7, 7)])
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-5M", "1T", "1.5G", "9" * 16])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(VeilError, match="is not a size"):
        parse_size(text)


def test_an_igvm_file_is_all_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = (Configuration.make(igvm=name, append="for the file", owners=[_KEY]) for name in ("a.igvm", "b.igvm"))
    assert (one.igvm, one.kernel, one.monitor, one.services) == (str(tmp_path / "a.igvm"), "none", False, None)
    assert not one.has_agent
    assert one != other
    assert one.key() != other.key()
    assert Configuration.parse(one.pack()) == one
    more: list[Settings] = [{"kernel": "6.1"}, {"firmware": "debian"}, {"initrd": "initrd.img"}]
    for wanted in more:
        with pytest.raises(VeilError, match="an IGVM file has all that the guest begins with"):
            Configuration.make(**(wanted | {"igvm": "a.igvm"}))
    initramfs: list[Settings] = [{"files": {"a": Node.file(b"")}}, {"modules": ["loop"]}, {"driver_options": "x=1"}]
    for wanted in initramfs:
        with pytest.raises(VeilError, match="has no initramfs of Veil's"):
            Configuration.make(**(wanted | {"igvm": "a.igvm"}))


def test_without_a_kernel_firmware_boots_from_a_disk() -> None:
    configuration = Configuration.make(kernel="none", firmware="debian", monitor=False)
    assert (configuration.kernel, configuration.has_agent) == ("none", False)
    assert Configuration.make(firmware="debian", monitor=False).has_agent
    with pytest.raises(VeilError, match="nobody in this guest can be told to run commands"):
        ConfidentialVM(configuration).start()
    for firmware, more in ((None, {}), ("debian", {"append": "quiet"}), ("debian", {"initrd": "/initrd"})):
        with pytest.raises(VeilError, match="without a kernel there is firmware"):
            dataclasses.replace(configuration, firmware=firmware, **more)  # type: ignore[arg-type]
    with pytest.raises(VeilError, match="--no-monitor"):
        Configuration.make(kernel="none", firmware="debian")

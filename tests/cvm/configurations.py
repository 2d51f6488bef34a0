# SPDX-License-Identifier: GPL-2.0-or-later
"""Configurations as hypothesis makes them."""

from __future__ import annotations

from hypothesis import strategies as st

from veil.cvm import Configuration, Disk, Network
from veil.cvm.configuration import NO_KERNEL
from veil.formats.log_settings import LogSettings
from veil.guest.initramfs.archive import Node
from veil.host import LaunchIdentityBlock
from veil.image.services_image import ServicesImage, protected_services
from veil.network import Forward

__all__ = ["configurations"]

_NUMBERS = st.integers(0, (1 << 64) - 1)
_KEYS = st.lists(st.binary(min_size=32, max_size=32), max_size=8).map(tuple)
_WORDS = st.lists(st.text(max_size=9), max_size=3).map(tuple)
_NODES = st.builds(Node, st.integers(0, 0o177777), st.binary(max_size=99), st.tuples(_NUMBERS, _NUMBERS))
# No more than the image has room for, however the text is written in JSON.
_VALUES = st.none() | _NUMBERS | st.text(max_size=20)
_SETTINGS = st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), _VALUES, max_size=4), max_size=4)
_SERVICES = st.one_of(
    st.builds(
        protected_services,
        st.builds(LogSettings, memory=st.integers(1, 1 << 40), full=st.sampled_from(["halt", "drop"])),
    ),
    st.builds(
        ServicesImage,
        st.text(max_size=9),
        _WORDS,
        _SETTINGS,
        memory=_NUMBERS,
    ),
)
_PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9).map(
    lambda name: f"/{name}"
)
_DISKS = st.lists(
    st.builds(Disk, _PATHS, st.sampled_from(["read-only", "write", "tmp"]))
    | st.builds(Disk, st.none(), st.just("tmp"), st.integers(1, 1 << 40).map(lambda count: 512 * count)),
    max_size=3,
).map(tuple)
_PORTS = st.integers(1, 0xFFFF)
_FORWARDS = st.lists(
    st.builds(Forward, st.sampled_from(["tcp", "udp"]), st.ip_addresses(v=4).map(str), _PORTS, _PORTS),
    max_size=3,
    unique_by=lambda item: (item.protocol, item.address, item.port),
)
_NETWORKS = st.builds(Network, _FORWARDS.map(tuple), st.just(False), st.booleans()) | st.builds(
    Network, restrict=st.just(True)
)
_IDENTITIES = st.builds(LaunchIdentityBlock, st.binary(max_size=96), st.binary(max_size=99), st.booleans())


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Any, with a monitor or without, with firmware or an IGVM file."""
    igvm = draw(st.none() | st.text(max_size=9))
    bare = igvm is not None
    monitor = not bare and draw(st.booleans())
    firmware = None if bare else draw(st.none() | st.text(max_size=9))
    return Configuration(
        memory=draw(st.integers(1, (1 << 64) - 1)),
        vcpus=draw(st.integers(1, 4)),
        kernel=NO_KERNEL if bare else draw(st.text(max_size=20)),
        monitor=monitor,
        kernel_options=draw(_WORDS),
        modules=() if bare else draw(_WORDS),
        owners=draw(_KEYS) if monitor else (),
        readers=draw(_KEYS) if monitor else (),
        policy=draw(_NUMBERS),
        host_data=draw(st.binary(min_size=32, max_size=32)),
        identity=draw(st.none() | _IDENTITIES),
        report_version=draw(st.sampled_from([2, 3, 5])),
        services=draw(st.none() | _SERVICES) if monitor else None,
        driver_options="" if bare else draw(st.text(max_size=9)),
        disks=draw(_DISKS),
        network=draw(st.none() | _NETWORKS),
        firmware=firmware,
        initrd=draw(st.none() | st.text(max_size=9)) if firmware is not None else None,
        append=draw(st.none() | st.text(max_size=9)) if bare or firmware is not None else None,
        files={} if bare else draw(st.dictionaries(st.text(max_size=9), _NODES, max_size=3)),
        igvm=igvm,
        cpu_features=draw(st.sampled_from([(), ("xsave",), ("xsave", "pku")])),
    )

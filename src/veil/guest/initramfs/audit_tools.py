# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver's company in the guest: auditctl, the helper that it starts to load rules, and what shows its state."""

from collections.abc import Callable
from importlib.resources import files

from veil.cache import Cache
from veil.guest.initramfs.archive import Node
from veil.guest.initramfs.debian_programs import debian_programs

__all__ = ["AUDIT_PACKAGES", "audit_tools"]

#: Named here with what auditctl is linked with, so that a cache can be asked whether it has them all.
AUDIT_PACKAGES = ("auditd", "libaudit1", "libauparse0", "libc6", "libcap-ng0")
# The first path stands in guest/driver/src/log/rules.c.
_SCRIPTS = {"usr/lib/veil/load-rules": "load-rules", "usr/bin/veil-status": "veil-status"}


def audit_tools(cache: Cache, progress: Callable[[str], None] | None = None) -> dict[str, Node]:
    """Members of the initramfs."""
    nodes = debian_programs(cache, AUDIT_PACKAGES, ["sbin/auditctl"], progress=progress)
    place = files("veil.guest.initramfs").joinpath("scripts")
    return nodes | {path: Node.file(place.joinpath(name).read_bytes(), 0o755) for path, name in _SCRIPTS.items()}

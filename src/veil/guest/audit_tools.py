# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver needs in the guest to load audit rules: auditctl, and the helper that the driver starts."""

from collections.abc import Callable
from importlib.resources import files

from veil.cache import Cache
from veil.guest.initramfs import Node
from veil.guest.userland import debian_programs

__all__ = ["AUDIT_PACKAGES", "audit_tools"]

#: Named here with what auditctl is linked with, so that a cache can be asked whether it has them all.
AUDIT_PACKAGES = ("auditd", "libaudit1", "libauparse0", "libc6", "libcap-ng0")
# Its path stands in guest/driver/rules.c.
_HELPER = "usr/lib/veil/load-rules"


def audit_tools(cache: Cache, progress: Callable[[str], None] | None = None) -> dict[str, Node]:
    """Members of the initramfs."""
    nodes = debian_programs(cache, AUDIT_PACKAGES, ["sbin/auditctl"], progress=progress)
    script = files("veil.guest").joinpath("load-rules.sh").read_bytes()
    return nodes | {_HELPER: Node.file(script, 0o755)}

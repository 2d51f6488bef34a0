# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs in the guests: five of Debian's programs, as their packages have them, and the audit rules."""

from __future__ import annotations

from dataclasses import dataclass

from bench.sql import sql_script
from veil.cache import Cache
from veil.guest.initramfs.archive import Node
from veil.guest.initramfs.debian_programs import debian_programs
from veil.remote.log.audit_rules import default_rules

__all__ = ["PREPARE", "PROGRAMS", "RULES", "Program", "program_files"]

#: What goes from which process to where, by system calls that open, close, copy and hand on: the list that SPADE, a
#: collector of provenance, gives to auditctl unless it is told to audit each read and write too.
_PROVENANCE = (
    "mmap", "mprotect", "unlink", "unlinkat", "link", "linkat", "symlink", "symlinkat", "clone", "fork", "vfork",
    "execve", "open", "close", "creat", "openat", "mknodat", "mknod", "dup", "dup2", "dup3", "fcntl", "bind", "accept",
    "accept4", "socket", "rename", "renameat", "setuid", "setreuid", "setgid", "setregid", "chmod", "fchmod",
    "fchmodat", "pipe", "pipe2", "truncate", "ftruncate",
)  # fmt: skip
_ALWAYS = ("kill", "exit", "exit_group", "connect")
#: Each transfer of data on top of that.
_TRANSFERS = (
    "read", "readv", "pread", "write", "writev", "pwrite", "sendto", "recvfrom", "sendmsg", "recvmsg", "sendfile",
    "splice",
)  # fmt: skip


def _rules(calls: tuple[str, ...]) -> bytes:
    # No limit to the kernel's queue: a record that it throws away would be one for free.
    return (
        "-D\n-b 0\n-e 1\n"
        f"-a always,exit -F arch=b64 -S {','.join(_ALWAYS)} -k always\n"
        f"-a always,exit -F arch=b64 -S {','.join(calls)} -F success=1 -k flow\n"
    ).encode()


#: For auditctl, by name.
RULES = {
    "default": default_rules(),
    "provenance": _rules(_PROVENANCE),
    "transfers": _rules(_PROVENANCE + _TRANSFERS),
}

_PACKAGES = ("openssl", "p7zip", "sqlite3", "redis-server", "redis-tools", "nginx", "apache2-utils")
_PROGRAMS = (
    "usr/bin/openssl", "usr/lib/p7zip/7zr", "usr/bin/sqlite3", "usr/bin/redis-server", "usr/bin/redis-benchmark",
    "usr/sbin/nginx", "usr/bin/ab",
)  # fmt: skip
_NGINX = """\
user root; worker_processes 1; pid /run/nginx.pid; error_log /mnt/error.log;
events { worker_connections 256; }
http { access_log /mnt/access.log; server { listen 127.0.0.1:8080; root /mnt/www; } }
"""
_TRANSACTIONS, _ROWS = 10, 100


def program_files(cache: Cache) -> dict[str, Node]:
    """Members of the initramfs."""
    return debian_programs(cache, _PACKAGES, _PROGRAMS) | {
        "etc/nginx.conf": Node.file(_NGINX.encode()),
        "etc/bench.sql": Node.file(sql_script(_TRANSACTIONS, _ROWS).encode()),
    }


#: A shell script, run once: files in memory, and servers that stay.
PREPARE = """\
set -e
ifconfig lo up
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/www /mnt/files /var/log/nginx /var/lib/nginx
for number in $(seq 40); do
  dd if=/bin/busybox of=/mnt/files/$number bs=1k skip=$((number * 40)) count=40 2>/dev/null
done
head -c 4194304 /usr/bin/redis-server >/mnt/big
head -c 10240 /bin/busybox >/mnt/www/file
nginx -c /etc/nginx.conf
redis-server --port 6379 --save '' --daemonize yes --dir /mnt >/dev/null
redis-benchmark -t get -n 1 -q >/dev/null
"""


@dataclass(frozen=True)
class Program:
    """One of them; `script` is the shell's."""

    name: str
    what: str
    script: str

    @property
    def command(self) -> list[str]:
        """The command for a run."""
        return ["sh", "-c", self.script]


PROGRAMS = (
    Program(
        "OpenSSL",
        "AES-256-CTR of a file of 4 MiB, then SHA-256 of the result",
        "openssl enc -aes-256-ctr -K 00 -iv 00 -in /mnt/big -out /mnt/out 2>/dev/null && "
        "openssl dgst -sha256 /mnt/out >/dev/null",
    ),
    Program(
        "7-Zip",
        "7zr -mx=1, one thread, packs 40 files, 1.6 MiB",
        "rm -f /mnt/a.7z; /usr/lib/p7zip/7zr a -mx=1 -mmt=1 /mnt/a.7z /mnt/files >/dev/null",
    ),
    Program(
        "SQLite",
        f"{_TRANSACTIONS} transactions with {_ROWS} rows and {_ROWS // 10} updates each, as many queries, in tmpfs",
        "rm -f /mnt/db; sqlite3 /mnt/db </etc/bench.sql >/dev/null",
    ),
    Program(
        "Redis",
        "redis-benchmark, 10 clients, 500 SET and 500 GET of 1 KiB",
        "redis-benchmark -t set,get -n 500 -c 10 -d 1024 -q >/dev/null",
    ),
    Program(
        "nginx",
        "ab, 5 clients that keep their connections, 150 requests of a file of 10 KiB, access log on",
        "ab -q -k -n 150 -c 5 http://127.0.0.1:8080/file >/dev/null",
    ),
)

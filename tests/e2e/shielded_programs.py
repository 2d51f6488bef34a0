# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's programs, and what each is to do: the same commands with the program in an enclave, and with it as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["EXERCISES", "LONG_EXERCISES", "Exercise", "Program"]


@dataclass(frozen=True)
class Program:
    """A program of Debian's packages."""

    packages: tuple[str, ...]
    path: str
    """In them, or its name."""
    manifest: Mapping[str, object] = field(default_factory=dict)
    """What it needs beside what all get."""


@dataclass(frozen=True)
class Exercise:
    """Commands for the guest's shell. `$name` starts the program of that name, whichever way."""

    name: str
    programs: Mapping[str, Program]
    """By the names that the commands have for them."""
    commands: str
    expected: str
    """A word that is in the output, lest two failures are taken for the same."""


def _one(name: str, program: Program, commands: str, expected: str) -> Exercise:
    variable = "".join(filter(str.isalnum, name))
    return Exercise(name, {f"p{variable}" if variable[0].isdigit() else variable: program}, commands, expected)


_NETWORK: dict[str, object] = {"calls": {"allow": ["network", "identity"]}}
_BUSYBOX = Program(("busybox-static",), "busybox", {"memory": "8M", "threads": 1})
_OPENSSL = Program(("openssl",), "openssl", {"memory": "16M", "threads": 1, **_NETWORK})
_REDIS = Program(("redis-server", "redis-tools"), "redis-server", {"memory": "32M", "threads": 8, **_NETWORK})
_REDIS_BENCHMARK = Program(("redis-tools",), "redis-benchmark", {"memory": "64M", "threads": 1, **_NETWORK})
_LIGHTTPD = Program(
    ("lighttpd",), "usr/sbin/lighttpd", {"memory": "16M", "threads": 1, "signals": ["TERM"], **_NETWORK}
)
_AB = Program(("apache2-utils",), "usr/bin/ab", {"memory": "16M", "threads": 1, **_NETWORK})
_PYTHON = Program(
    ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
    "python3.11",
    {
        "memory": "48M",
        "programs": ["/bin/echo", "/bin/cat"],
        "files": {"trusted": ["/usr/lib/python3.11/"], "pass": ["/tmp/", "/dev/null"]},
    },
)

#: until a server listens, but not for ever
_UNTIL_LISTENS = "i=0; until netstat -ltn | grep -q :{port} || [ $i -gt 300 ]; do sleep 0.1; i=$((i+1)); done\n"

_REDIS_COMMANDS = (
    "$redis --port 7101 --save '' --appendonly no --dir /tmp >/tmp/redis.log 2>&1 &\n"
    + _UNTIL_LISTENS.format(port=7101)
    + """
$benchmark -p 7101 -n {requests} -c 8 -q --csv -t ping_mbulk,set,get,incr | cut -d , -f 1
for command in DBSIZE 'GET counter:__rand_int__' QUIT; do
  printf '%s\\r\\n' "$command"
done | nc 127.0.0.1 7101
printf 'SHUTDOWN NOSAVE\\r\\n' | nc 127.0.0.1 7101
wait $!
echo status $?
"""
)

_LIGHTTPD_COMMANDS = (
    """
mkdir -p /tmp/pages; head -c 30000 /tmp/words >/tmp/pages/page; chmod 755 /tmp/pages; chmod 644 /tmp/pages/page
cat >/tmp/lighttpd.conf <<end
server.document-root = "/tmp/pages"
server.port = 7102
server.bind = "127.0.0.1"
server.compat-module-load = "disable"
end
$lighttpd -D -f /tmp/lighttpd.conf 2>/tmp/lighttpd.log &
server=$!
"""
    + _UNTIL_LISTENS.format(port=7102)
    + """
$ab -q -n {requests} -c 4 http://127.0.0.1:7102/page | grep -E '^(Document|Complete|Failed|Total tr|HTML)'
$ab -q -k -n {requests} -c 2 http://127.0.0.1:7102/none | grep -E '^(Document|Complete|Failed|Non|Keep)'
wget -q -O - http://127.0.0.1:7102/page | sha256sum
kill $server; wait $server; echo status $?
"""
)

_TLS_COMMANDS = (
    """
cd /tmp
cat >openssl.cnf <<end
[req]
distinguished_name = name
x509_extensions = own
[name]
[own]
basicConstraints = CA:TRUE
end
$openssl req -config openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=veil \\
  -keyout key.pem -out certificate.pem 2>/dev/null
$openssl s_server -accept 7103 -cert certificate.pem -key key.pem -tls1_3 -HTTP -naccept {requests} >server.log 2>&1 &
"""
    + _UNTIL_LISTENS.format(port=7103)
    + """
i=0
while [ $i -lt {requests} ]; do
  i=$((i+1))
  printf 'GET /words HTTP/1.0\\r\\n\\r\\n' | $openssl s_client -connect 127.0.0.1:7103 -tls1_3 -quiet -verify_quiet \\
    -verify_return_error -CAfile certificate.pem >page 2>client.log
  echo status $?
  sha256sum <page
  head -n 1 page
done
wait $!
echo status $?
"""
)

_PYTHON_SCRIPT = r"""
import hashlib, json, queue, subprocess, threading
print(hashlib.sha256(b"x").hexdigest(), json.dumps({"a": [1, None]}))
print(subprocess.run(["/bin/echo", "hi"], capture_output=True))
print(len(subprocess.run(["/bin/cat"], input=b"x" * 200000, stdout=subprocess.PIPE).stdout))
work, done = queue.Queue(), []
lock = threading.Lock()
def serve():
    while (item := work.get()) is not None:
        with lock:
            done.append((item, item ** 7 % 1009))
threads = [threading.Thread(target=serve) for _ in range(4)]
for thread in threads:
    thread.start()
for item in range(200):
    work.put(item)
for _ in threads:
    work.put(None)
for thread in threads:
    thread.join()
print("items", len(done), sum(value for _, value in done), sorted(done)[-1])
"""

_WEB_COMMANDS = (
    """
mkdir -p /tmp/pages /tmp/nginx; head -c 30000 /tmp/words >/tmp/pages/page
cat >/tmp/nginx.conf <<end
daemon off;
master_process off;
user root root;
pid /tmp/nginx/pid;
error_log /tmp/nginx/errors;
events {{}}
http {{
  access_log off;
  client_body_temp_path /tmp/nginx; proxy_temp_path /tmp/nginx; fastcgi_temp_path /tmp/nginx;
  uwsgi_temp_path /tmp/nginx; scgi_temp_path /tmp/nginx;
  server {{ listen 127.0.0.1:7104; root /tmp/pages; }}
}}
end
$nginx -c /tmp/nginx.conf -e /tmp/nginx/errors &
server=$!
"""
    + _UNTIL_LISTENS.format(port=7104)
    + """
for i in $(seq {requests}); do $curl -s http://127.0.0.1:7104/page | sha256sum; done
$curl -s -o /dev/null -w '%{{http_code}}\n' http://127.0.0.1:7104/none
kill $server; wait $server; echo status $?
"""
)

_MEMCACHED_COMMANDS = (
    "$memcached -u root -l 127.0.0.1 -p 7105 -U 0 -t 2 -m 8 &\nserver=$!\n"
    + _UNTIL_LISTENS.format(port=7105)
    + r"""
printf 'set a 0 0 5\r\nhello\r\nincr n 1\r\nset n 0 0 1\r\n7\r\nincr n 35\r\nget a\r\nquit\r\n' | nc 127.0.0.1 7105
kill $server; wait $server; echo status $?
"""
)

_GIT_COMMANDS = r"""
rm -rf /tmp/repository; mkdir /tmp/repository; cp /tmp/words /tmp/repository
export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
export GIT_AUTHOR_DATE='2026-01-01 00:00:00 +0000' GIT_COMMITTER_DATE='2026-01-01 00:00:00 +0000'
git="$git -C /tmp/repository -c gc.auto=0 -c maintenance.auto=false"
$git init -q -b main 2>&1 | grep -v templates
$git add words
$git commit -q -m first
echo more >>/tmp/repository/words
$git diff --stat
$git commit -q -a -m second
$git log --format='%h %s'
$git cat-file -p HEAD:words | sha256sum; echo status $?
"""

EXERCISES = (
    _one(
        "busybox",
        _BUSYBOX,
        r"""
$busybox sh -c 'i=0; while [ $i -lt 300 ]; do i=$((i+1)); done; echo $i'
$busybox sha256sum /tmp/words
$busybox sed -n 's/line 7 /seven /p' /tmp/words
echo 6 7 | $busybox awk '{print $1*$2}'
$busybox cat /tmp/nothing; echo $?
""",
        "seven of some words",
    ),
    _one(
        "sqlite3",
        Program(("sqlite3",), "sqlite3", {"memory": "8M", "threads": 1}),
        r"""
rm -f /tmp/db
$sqlite3 /tmp/db 'create table t(a, b); create index at on t(b); with recursive n(i) as
  (select 1 union select i+1 from n where i < 200) insert into t select i, hex(i*i) from n'
$sqlite3 /tmp/db 'select count(*), sum(a), max(b) from t; pragma integrity_check'
rm /tmp/db
""",
        "200|20100|",
    ),
    _one(
        "xz",
        Program(("xz-utils",), "xz", {"memory": "64M", "threads": 4}),
        r"""
$xz -1 -T2 --block-size=16KiB </tmp/words >/tmp/words.xz
sha256sum </tmp/words.xz
$xz -dc /tmp/words.xz | sha256sum
""",
        "  -",
    ),
    _one(
        "rg",
        Program(("ripgrep",), "rg", {"memory": "16M", "threads": 6}),
        r"""
$rg --no-config -j 2 -n 'line 19[0-9]{2} ' /tmp/words | tail -n 2
""",
        "line 1999 of",
    ),
    _one(
        "gdu",
        Program(
            ("gdu",),
            "gdu",
            {"memory": "256M", "threads": 24, "files": {"pass": ["/tmp/", "/dev/null"], "read": ["/proc/"]}},
        ),
        r"""
mkdir -p /tmp/tree/a/b
cp /tmp/words /tmp/tree/a/b/one
cp /tmp/words /tmp/tree/a/two
$gdu --non-interactive --no-progress --no-color --no-cross --show-apparent-size /tmp/tree
""",
        "/a",
    ),
    _one(
        "luajit",
        Program(("luajit",), "luajit", {"memory": "32M", "threads": 1}),
        "$luajit -e 'local s = 0 for i = 1, 2e6 do s = s + i % 7 end print(s, jit.status())'",
        "5999997\ttrue",
    ),
    _one(
        "python3.11",
        _PYTHON,
        f"cat >/tmp/script.py <<'end'{_PYTHON_SCRIPT}end\n$python311 -I -S /tmp/script.py",
        "items 200",
    ),
    Exercise(
        "lighttpd", {"lighttpd": _LIGHTTPD, "ab": _AB}, _LIGHTTPD_COMMANDS.format(requests=16), "requests:      16"
    ),
    Exercise("tls", {"openssl": _OPENSSL}, _TLS_COMMANDS.format(requests=1), "line 1 of"),
)

#: for minutes together, and those that do what some other above does
LONG_EXERCISES = (
    _one(
        "7za",
        Program(("p7zip-full",), "usr/lib/p7zip/7za", {"memory": "64M", "threads": 6}),
        r"""
rm -f /tmp/words.7z
$p7za a -mx=1 -mmt=2 -bd /tmp/words.7z /tmp/words >/dev/null
echo status $?
$p7za x -so -bd /tmp/words.7z | sha256sum
""",
        "status 0",
    ),
    _one(
        "lua5.4",
        Program(("lua5.4",), "lua5.4", {"memory": "16M", "threads": 1}),
        r"""
$lua54 -e 'local t = {} for i = 1, 20000 do t[i] = i * i % 7 end table.sort(t) print(#t, t[1], t[#t], _VERSION)
print(("x"):rep(10), select(2, pcall(error, "an error")))'
""",
        "Lua 5.4",
    ),
    _one(
        "bc",
        Program(("bc",), "bc", {"memory": "8M", "threads": 1}),
        "echo '2^200; scale=30; 1/7' | $bc",
        "1606938044258",
    ),
    _one(
        "pypy3",
        Program(
            ("pypy3", "pypy3-lib"),
            "pypy3",
            {
                "memory": "256M",
                # It looks for its own modules beside this one.
                "files": {
                    "trusted": ["/usr/lib/pypy3.9/", "/usr/lib/x86_64-linux-gnu/libpypy3.9-c.so"],
                    "pass": ["/tmp/", "/dev/null"],
                },
            },
        ),
        r"""
$pypy3 -c 'import sys, threading
s = 0
for i in range(2000000): s = (s * 31 + i) % 1000003
print(s, sys.version.split()[0])
threads = [threading.Thread(target=print, args=("thread",)) for _ in range(3)]
for thread in threads: thread.start(); thread.join()'
""",
        "235197 3.9",
    ),
    _one(
        "perl",
        Program(("perl-base",), "perl", {"memory": "16M", "threads": 1}),
        r"""
$perl -e 'my %h; while (<>) { $h{length $_}++ } print map { "$_ $h{$_}\n" } sort { $a <=> $b } keys %h;
$SIG{ALRM} = sub { print "alarm\n"; exit 3 }; alarm 1; 1 while 1' /tmp/words
echo status $?
""",
        "alarm\nstatus 3",
    ),
    _one(
        "openssl",
        _OPENSSL,
        r"""
$openssl dgst -sha3-256 /tmp/words
$openssl enc -aes-256-ctr -K 00 -iv 00 -in /tmp/words 2>/dev/null | sha256sum
$openssl speed -seconds 1 -bytes 64 sha256 2>/dev/null | grep -c '^sha256 '
""",
        "SHA3-256",
    ),
    _one(
        "jq",
        Program(("jq",), "jq", {"memory": "16M", "threads": 1}),
        """echo '{"a":[1,2,{"b":7}]}' | $jq -c '.a[2].b * 6'""",
        "42",
    ),
    _one(
        "zstd",
        Program(("zstd",), "zstd", {"memory": "64M", "threads": 6}),
        r"""
$zstd -q -3 -T2 </tmp/words >/tmp/words.zst
sha256sum </tmp/words.zst
$zstd -q -dc /tmp/words.zst | sha256sum
""",
        "  -",
    ),
    _one(
        "7z",
        Program(
            ("p7zip-full",),
            "usr/lib/p7zip/7z",
            {
                "memory": "64M",
                "threads": 6,
                # Its codecs, which it loads by itself.
                "files": {"trusted": ["/usr/lib/p7zip/7z.so"], "pass": ["/tmp/", "/dev/null"]},
            },
        ),
        r"""
rm -f /tmp/words.7z
$p7z a -mx=1 -mmt=2 -bd /tmp/words.7z /tmp/words >/dev/null
echo status $?
$p7z x -so -bd /tmp/words.7z | sha256sum
""",
        "status 0",
    ),
    _one(
        "gzip",
        Program(("gzip",), "gzip", {"memory": "8M", "threads": 1}),
        "$gzip -nc /tmp/words >/tmp/words.gz; sha256sum </tmp/words.gz; $gzip -dc /tmp/words.gz | tail -n 1",
        "line 2000 of",
    ),
    _one(
        "mawk",
        Program(("mawk",), "usr/bin/mawk", {"memory": "8M", "threads": 1}),
        "$mawk '{s += $2} END {print NR, s, sqrt(2)}' /tmp/words",
        "2000 2001000 1.41421",
    ),
    _one(
        "sort",
        Program(("coreutils",), "usr/bin/sort", {"memory": "64M", "threads": 4}),
        "$sort --parallel=2 -S 4M -r -k 2,2n /tmp/words | sha256sum; $sort -k 2,2nr /tmp/words | head -n 1",
        "line 2000 of",
    ),
    _one(
        "gpg",
        Program(("gpg",), "usr/bin/gpg", {"memory": "16M", "threads": 1}),
        "mkdir -p -m 700 /tmp/gnupg; $gpg --homedir /tmp/gnupg --print-md SHA512 /tmp/words 2>/dev/null",
        "/tmp/words: ",
    ),
    _one(
        "cc1",
        Program(("cpp-12",), "usr/lib/gcc/x86_64-linux-gnu/12/cc1", {"memory": "128M", "threads": 1}),
        r"""
echo 'int square(int x) { return x * x; } int of(int y) { return square(y) + 1; }' >/tmp/square.c
$cc1 -quiet -fpreprocessed -O2 /tmp/square.c -o -
""",
        "imull",
    ),
    _one("git", Program(("git",), "git", {"memory": "64M", "threads": 4}), _GIT_COMMANDS, "second"),
    Exercise(
        "nginx",
        {
            "nginx": Program(
                ("nginx",),
                "usr/sbin/nginx",
                {
                    "memory": "32M",
                    "threads": 4,
                    "signals": ["TERM"],
                    "files": {"pass": ["/tmp/", "/dev/null"], "read": ["/etc/"]},
                    **_NETWORK,
                },
            ),
            "curl": Program(("curl",), "curl", {"memory": "32M", "threads": 4, **_NETWORK}),
        },
        _WEB_COMMANDS.format(requests=20),
        "404",
    ),
    Exercise(
        "memcached",
        {
            "memcached": Program(
                ("memcached",),
                "usr/bin/memcached",
                {
                    "memory": "64M",
                    "threads": 12,
                    "signals": ["TERM"],
                    "files": {"pass": ["/tmp/", "/dev/null"], "read": ["/etc/"]},
                    **_NETWORK,
                },
            )
        },
        _MEMCACHED_COMMANDS,
        "hello",
    ),
    Exercise(
        "redis", {"redis": _REDIS, "benchmark": _REDIS_BENCHMARK}, _REDIS_COMMANDS.format(requests=3000), "PING_MBULK"
    ),
    Exercise(
        "lighttpd", {"lighttpd": _LIGHTTPD, "ab": _AB}, _LIGHTTPD_COMMANDS.format(requests=1500), "requests:      1500"
    ),
    Exercise("tls", {"openssl": _OPENSSL}, _TLS_COMMANDS.format(requests=20), "line 1 of"),
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's programs, in turn as they are and shielded, in one guest; and on this computer, without a guest."""

from __future__ import annotations

import random
import re
import resource
import shlex
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.enclaves.guest import Cost, EnclaveGuest
from bench.sql import sql_script
from veil.cache import Cache
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import DebianFiles
from veil.guest.initramfs.archive import Node
from veil.guest.initramfs.debian_programs import debian_programs

__all__ = ["PROGRAMS", "Outcome", "Program", "measure_computer", "measure_programs", "program_files"]

_GUEST_FOLDER = "/mnt"
_LOADER = "lib64/ld-linux-x86-64.so.2"
_CLIENT, _CLIENT_PACKAGE = "usr/bin/ab", "apache2-utils"


@dataclass(frozen=True)
class Program:
    """One of them. `script` runs in a shell: {program} is what starts it, {folder} where files are, {port} its own."""

    name: str
    what: str
    package: str
    path: str
    script: str
    server: str | None = None
    """What is started before the script. One of the two is {program}, the other {client}, which is never shielded."""
    client: str = _CLIENT
    check: str | None = None
    """Is what it has done right? Another script."""
    counted: str | None = None
    """A pattern: how often the script has done it, as it says itself. The figures are of one time then."""
    rate: tuple[float, str] | None = None
    """How much of what is done by one turn, or one time."""
    manifest: dict[str, object] = field(default_factory=dict)


_COMMON: dict[str, object] = {
    "memory": "32M", "threads": 1, "arguments": {"outside": True}, "files": {"pass": ["/mnt/"]},
}  # fmt: skip

_NETWORK: dict[str, object] = {
    "calls": {"allow": ["network", "identity"]},
    "files": {"pass": ["/mnt/", "/dev/null"]},
    "memory": "16M",
}
_TLS_SERVER = "{starter} s_server -accept {port} -cert certificate.pem -key key.pem -tls1_3 -WWW -quiet"
_TLS_GET = (
    "printf 'GET /part HTTP/1.0\\r\\n\\r\\n' | {starter} s_client -connect 127.0.0.1:{port} -tls1_3 -quiet "
    "-verify_return_error -CAfile {folder}/certificate.pem 2>/dev/null >{folder}/page"
)
_TLS_GOT = f"tail -c {8 << 20} {{folder}}/page | cmp - {{folder}}/part"
_TLS_SHAKE = "{starter} s_time -connect 127.0.0.1:{port} -tls1_3 -new -time 4 -CAfile {folder}/certificate.pem"
_TLS_COUNTED = r"(\d+) connections in \d+ real seconds"
#: What the server is, made where it is used.
_TLS_CERTIFICATE = (
    "cd {folder} && /usr/bin/openssl req -config openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
    "-days 30 -subj /CN=veil -keyout key.pem -out certificate.pem 2>/dev/null"
)
_TLS_SETTINGS = """\
[req]
distinguished_name = name
x509_extensions = own
[name]
[own]
basicConstraints = CA:TRUE
"""


def _tls(end: str, name: str, what: str, script: str, rate: tuple[float, str], **more: str) -> Program:
    """OpenSSL at one end of a connection; its other end is OpenSSL, too, and not shielded."""
    starters = {"server": "{client}", "client": "{client}"} | {end: "{program}"}
    return Program(
        f"OpenSSL {end}, {name}", what, "openssl", "usr/bin/openssl", script.replace("{starter}", starters["client"]),
        server=_TLS_SERVER.replace("{starter}", starters["server"]), client="usr/bin/openssl", rate=rate,
        check=more.get("check"), counted=more.get("counted"), manifest={**_NETWORK, "directory": _GUEST_FOLDER},
    )  # fmt: skip


def _tls_programs(end: str) -> tuple[Program, Program]:
    file, shake = "a file of 8 MiB by TLS 1.3", "a TLS 1.3 handshake"
    return (
        _tls(end, "8 MiB", file, _TLS_GET, ((8 << 20) / 1e6, "MB/s"), check=_TLS_GOT),
        _tls(end, "handshake", shake, _TLS_SHAKE, (1, "handshakes/s"), counted=_TLS_COUNTED),
    )


PROGRAMS = (
    Program(
        "gzip", "packs a text of 8 MiB", "gzip", "bin/gzip", "{program} -c {folder}/part >{folder}/part.gz",
    ),
    Program(
        "Berkeley DB", "db5.3_load puts 10,000 pairs of 100 bytes into a new B-tree", "db5.3-util",
        "usr/bin/db5.3_load", "rm -f {folder}/kv; {program} -T -t btree -f {folder}/pairs {folder}/kv",
    ),
    Program(
        "OpenSSL", "AES-256-CTR of a file of 32 MiB", "openssl", "usr/bin/openssl",
        "{program} enc -aes-256-ctr -K 00 -iv 00 -in {folder}/big -out {folder}/big.out 2>/dev/null",
    ),
    Program(
        "lighttpd", "ab, 5 clients that keep their connections, 800 requests of a file of 10 KiB", "lighttpd",
        "usr/sbin/lighttpd", "{client} -q -k -n 800 -c 5 http://127.0.0.1:{port}/file >/dev/null",
        server="{program} -D -f {folder}/lighttpd-{port}.conf",
        manifest=_NETWORK,
    ),
    Program(
        "SQLite", "40 transactions with 100 rows and 10 updates each, as many queries, in tmpfs", "sqlite3",
        "usr/bin/sqlite3", "rm -f {folder}/sqlite; {program} {folder}/sqlite <{folder}/sql >/dev/null",
    ),
    *_tls_programs("server"),
    *_tls_programs("client"),
)  # fmt: skip
_LIGHTTPD = """\
server.document-root = "{folder}/www"
server.bind = "127.0.0.1"
server.port = {port}
server.compat-module-load = "disable"
server.modules = ()
server.max-keep-alive-requests = 1000
"""
#: The text 4 times, and 16 times.
_BIG = "cd {folder} && cat text text text text >part && cat part part part part >big"
_WARM = 1


@dataclass
class Outcome:
    """One program: processor seconds of each turn; what a shielded turn does."""

    program: Program
    native: list[float] = field(default_factory=list)
    shielded: list[float] = field(default_factory=list)
    """Running, and not being made. Of what is counted, for one time."""
    making: list[float] = field(default_factory=list)
    switches: int = 0
    requests: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    """By system call; -1: to VeilS-ENC."""
    bytes: int = 0
    """That reads and writes copy into and out of the enclave."""
    computer: float | None = None
    """Seconds of the same program on this computer, without a guest."""

    @property
    def ratios(self) -> list[float]:
        """Shielded to native, turn by turn."""
        return [one / other for one, other in zip(self.shielded, self.native, strict=True)]

    @property
    def overhead(self) -> float:
        """The median, as a part of the whole."""
        return statistics.median(self.ratios) - 1


def program_files(cache: Cache) -> dict[str, Node]:
    """Members of the initramfs."""
    packages = sorted({*(item.package for item in PROGRAMS), _CLIENT_PACKAGE})
    return debian_programs(cache, packages, sorted({*(item.path for item in PROGRAMS), _CLIENT}))


def write_data(place: Path, folder: str, ports: Sequence[int]) -> None:
    """What the programs work on, below `place`, which they know as `folder`. Always the same."""
    chance = random.Random(1)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(5000)]
    text = " ".join(chance.choices(words, k=800_000)).encode()[: 2 << 20]
    place.joinpath("text").write_bytes(text)
    pairs = [f"{chance.getrandbits(64):016x}\n{chance.getrandbits(320):080x}\n" for _ in range(10_000)]
    place.joinpath("pairs").write_text("".join(pairs))
    place.joinpath("www").mkdir()
    place.joinpath("www", "file").write_bytes(text[: 10 << 10])
    place.joinpath("openssl.cnf").write_text(_TLS_SETTINGS)
    place.joinpath("sql").write_text(sql_script(40, 100))
    for port in ports:
        place.joinpath(f"lighttpd-{port}.conf").write_text(_LIGHTTPD.format(folder=folder, port=port))


_PORTS = (8080, 8081)


def measure_programs(
    guest: EnclaveGuest, directory: Path, turns: int, say: Callable[[str], None], only: Sequence[str] = ()
) -> list[Outcome]:
    """Each in turn, native and shielded, after one of each that warms up; then once more, slowly, to count."""
    data = directory / "data"
    data.mkdir()
    write_data(data, _GUEST_FOLDER, _PORTS)
    guest.run(f"mkdir -p {_GUEST_FOLDER}/www")
    for file in sorted(path for path in data.rglob("*") if path.is_file()):
        guest.vm.copy_in(file, f"{_GUEST_FOLDER}/{file.relative_to(data)}")
    for script in (_BIG, _TLS_CERTIFICATE):
        guest.run(script.format(folder=_GUEST_FOLDER))
    outcomes = []
    for program in PROGRAMS:
        if only and not any(word.lower() in program.name.lower() for word in only):
            continue
        say(f"programs: {program.name}: {program.what}")
        manifest = Manifest.of({**_COMMON, **program.manifest})
        image = build_enclave(Cache(), DebianFiles(Cache(), [program.package]), f"/{program.path}", manifest)
        shielded = guest.put_image(Path(program.path).name, image, directory)
        outcomes.append(_measure(guest, program, shielded, turns))
    return outcomes


def _measure(guest: EnclaveGuest, program: Program, shielded: str, turns: int) -> Outcome:
    outcome = Outcome(program)
    scripts: list[str] = []
    with ExitStack() as stack:
        for command, port in ((f"/{program.path}", _PORTS[0]), (shielded, _PORTS[1])):
            names = {"program": command, "folder": _GUEST_FOLDER, "port": port, "client": f"/{program.client}"}
            if program.server is not None:
                pid = _start(guest, program.server.format(**names), port)
                stack.callback(guest.run, f"kill -9 {pid}")
            scripts.append(program.script.format(**names))
        native, inside = scripts
        for turn in range(_WARM + turns):
            costs = [guest.run(native), guest.run(inside)]
            if program.check is not None:
                guest.run(program.check.format(folder=_GUEST_FOLDER))
            if turn >= _WARM:
                times = [_times(program, cost) for cost in costs]
                outcome.native.append(costs[0].seconds / times[0])
                outcome.shielded.append(costs[1].running / times[1])
                outcome.making.append(costs[1].making)
                outcome.switches, outcome.requests = costs[1].switches // times[1], costs[1].requests // times[1]
        with guest.observe() as observer:
            times = [_times(program, guest.run(inside))]
        outcome.exits = Counter({call: count // times[0] for call, count in observer.total.exits.items()})
        outcome.bytes = observer.total.bytes // times[0]
    return outcome


def _times(program: Program, cost: Cost) -> int:
    """How often it was done."""
    if program.counted is None:
        return 1
    found = re.search(program.counted, cost.output.decode(errors="replace"))
    if found is None or not int(found[1]):
        raise RuntimeError(f"{program.name} does not say how often it was done: {cost.output[-200:]!r}")
    return int(found[1])


def _start(guest: EnclaveGuest, command: str, port: int) -> int:
    """Start a server; its process's number, once it listens."""
    script = f"cd {_GUEST_FOLDER}; setsid {command} </dev/null >server.log 2>&1 & echo $!"
    pid = int(guest.run(script).output)
    guest.run(f"until netstat -tln | grep -q ':{port} '; do kill -0 {pid} || exit 1; sleep 0.1; done")
    return pid


def measure_computer(outcomes: Sequence[Outcome], files: dict[str, Node], directory: Path, turns: int) -> None:
    """The same programs as processes of this computer, by the processor time that they take."""
    root, data = directory / "root", directory / "computer"
    for name, node in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(node.data)
        place.chmod(0o755)
    data.mkdir()
    libraries = root / "lib/x86_64-linux-gnu"
    start = [str(root / _LOADER), "--library-path", str(libraries)]
    for outcome in outcomes:
        program = outcome.program
        if program.server is not None:
            continue
        data_folder = str(data)
        if not any(data.iterdir()):
            write_data(data, data_folder, ())
            subprocess.run(["sh", "-c", _BIG.format(folder=data_folder)], check=True)
        command = shlex.join([*start, str(root / program.path)])
        script = program.script.format(program=command, folder=data_folder, port=0, client="")
        outcome.computer = min(_child_seconds(script) for _ in range(turns))


def _child_seconds(script: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["sh", "-c", script], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

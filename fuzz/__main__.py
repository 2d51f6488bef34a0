# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m fuzz: all targets in turn, or one input again. Exit status 1 if there is a finding."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fuzz.progress import Progress
from fuzz.target import Target, examine
from fuzz.targets import TARGETS
from fuzz.world import fuzz_directory
from veil.errors import VeilError
from veil.snp import SnpError

#: Endless loops, by the clock: far more than an input may take, as the computer may have other work.
_STUCK_SECONDS = 30
_LOG_LINES = 5


def _write_inputs(folder: Path, inputs: list[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / hashlib.sha256(data).hexdigest()[:20]).write_bytes(data)


def _dictionary(words: tuple[bytes, ...]) -> str:
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)


def _fuzz(target: Target, root: Path, seconds: int) -> list[str]:
    """The findings, a line each."""
    with Progress(target.name) as progress:
        return _fuzz_and_say(target, root, seconds, progress)


def _fuzz_and_say(target: Target, root: Path, seconds: int, progress: Progress) -> list[str]:
    corpus, seeds, found = (root / kind / target.name for kind in ("corpus", "seeds", "findings"))
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(seeds, ignore_errors=True)
    _write_inputs(seeds, list(target.seeds()))
    words = root / f"{target.name}.dict"
    words.write_text(_dictionary(target.words) or "# none\n")
    log = root / f"{target.name}.log"
    command = [
        sys.executable, "-m", "fuzz.guided", target.name, str(found),
        f"-max_total_time={seconds}", f"-max_len={target.max_bytes}", f"-timeout={_STUCK_SECONDS}",
        f"-dict={words}", f"-artifact_prefix={found}/", "-print_final_stats=1", "-len_control=0",
        # The first grows; earlier findings are tried again.
        str(corpus), str(seeds), str(found),
    ]  # fmt: skip
    if target.reached is not None:
        command = [sys.executable, "-m", "fuzz.steered", target.name, str(found), str(corpus), str(seconds)]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        progress.hear(process.stdout)
    text = log.read_text(errors="replace")
    findings = progress.findings
    if process.returncode:
        written = re.findall(r"Test unit written to (\S+)", text)
        last = " | ".join(text.splitlines()[-_LOG_LINES:])
        findings += [f"{target.name}: the process ended with {process.returncode}: {path}" for path in written] or [
            f"{target.name}: the process ended with {process.returncode} ({log}): {last}"
        ]
    runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    covered = re.findall(r" cov: (\d+) ft: (\d+)", text)
    edges = covered[-1][0] if covered else "?"
    rate = f"{int(runs[1]) / seconds:.1f}" if runs else "?"
    print(
        f"{target.name}: {runs[1] if runs else '?'} executions, {rate} a second, {edges} edges, "
        f"{len(findings)} findings", flush=True,
    )  # fmt: skip
    return findings


def _again(target: Target, path: Path) -> int:
    list(target.seeds())  # makes keys and what else is kept: that is not the input's time
    finding = examine(target, path.read_bytes())
    print(f"{target.name}: {finding.what} ({finding.place})" if finding else f"{target.name}: as it should be")
    return int(finding is not None)


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=_number, default=600, help="for all targets together (default: 600)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; several times for more")
    parser.add_argument("--again", type=Path, metavar="FILE", help="run one input, without atheris; needs --target")
    options = parser.parse_args()
    chosen = [TARGETS[name] for name in options.target or TARGETS]
    if options.again is not None:
        if len(chosen) != 1:
            parser.error("--again needs one --target")
        return _again(chosen[0], options.again)
    if importlib.util.find_spec("atheris") is None:
        print("fuzz: atheris is not installed: pip install -e '.[fuzz]' (make fuzz does)", file=sys.stderr)
        return 2
    findings: list[str] = []
    try:
        for target in chosen:
            findings += _fuzz(target, fuzz_directory(), max(1, options.seconds // len(chosen)))
    except (OSError, VeilError, SnpError) as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 2
    for line in findings:
        print(f"FINDING {line}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())

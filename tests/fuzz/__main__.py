"""`make fuzz`: targets under coverage guidance (Atheris), side by side on all cores, and what came of each.

Seconds are CPU seconds, so that a busy machine takes nothing from a run. Each target runs in turns, each a process of
its own. Corpora stay in `.cache/fuzz/NAME/`, so that the next turn begins where the last one ended; the log is
`.cache/fuzz/NAME.log`, and an input that breaks a promise `.cache/fuzz/NAME.crash-…`. A target with one stops.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from random import Random
from typing import NamedTuple

import atheris

CACHE = Path(__file__).parents[2] / ".cache" / "fuzz"
NAMES = ("openai", "anthropic", "gemini", "stream_reader", "yaml", "client_connection", "server_protocol")
SECONDS = 3600
SECONDS_PER_TURN = 300
SECONDS_PER_INPUT = 60
MEGABYTES = 2048
COLUMNS = ("target", "CPU seconds", "executions", "edges", "features", "corpus", "crashes", "super-linear")


class Result(NamedTuple):
    """What came of one target."""

    name: str
    cpu_seconds: int
    executions: int
    edges: int
    features: int
    corpus: int
    crashes: int
    super_linear: int

    @property
    def is_broken(self) -> bool:
        """Whether an input broke a promise."""
        return bool(self.crashes or self.super_linear)


def run_target(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, with libFuzzer's arguments; does not return."""
    with atheris.instrument_imports(include=["mcpmeter", "yaml"]):
        target = import_module(f"tests.fuzz.fuzz_{name}").TARGET
    from tests.fuzz.harness import mutated

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return mutated(data, random, target.words)[:most]

    begun = CACHE / name / "seeds"
    begun.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (begun / "-".join(seed.parts[-2:])).write_bytes(seed.read_bytes()[: target.max_bytes])
    found = CACHE / name / "corpus"
    found.mkdir(exist_ok=True)
    own = [f"-artifact_prefix={CACHE / name}.", f"-timeout={SECONDS_PER_INPUT}", f"-rss_limit_mb={MEGABYTES}"]
    own += [f"-max_len={target.max_bytes}", "-print_final_stats=1"]
    atheris.Setup([name, *own, *arguments, str(found), str(begun)], target.run, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz(name: str, seconds: int) -> Result:
    """Fuzz one target until it has had its time or breaks a promise."""
    result = Result(name, 0, 0, 0, 0, 0, 0, 0)
    (CACHE / f"{name}.log").unlink(missing_ok=True)
    while result.cpu_seconds < seconds and not result.is_broken:
        turn = _turn(name, min(SECONDS_PER_TURN, seconds - result.cpu_seconds))
        result = turn._replace(
            cpu_seconds=result.cpu_seconds + turn.cpu_seconds, executions=result.executions + turn.executions
        )
    print(f"mcpmeter: {result}", flush=True)
    return result


def _turn(name: str, seconds: int) -> Result:
    log = CACHE / f"{name}.log"
    command = [sys.executable, "-m", "tests.fuzz", "--run", name, f"-max_total_time={seconds}"]
    with log.open("ab") as file:
        begun = file.tell()
        process = subprocess.Popen(command, stdout=file, stderr=file)
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu_seconds = max(1, round(usage.ru_utime + usage.ru_stime))
    return result_of(name, log.read_bytes()[begun:].decode(errors="replace"), cpu_seconds, process.returncode)


def result_of(name: str, log: str, cpu_seconds: int, code: int) -> Result:
    """What a turn's log says: the last state that libFuzzer printed."""
    states = re.findall(r"^#(\d+)\s.*?cov: (\d+) ft: (\d+) corp: (\d+)", log, re.MULTILINE)
    counts = map(int, states[-1]) if states else itertools.repeat(0, 4)
    super_linear = "SuperLinear" in log
    return Result(name, cpu_seconds, *counts, int(code != 0 and not super_linear), int(super_linear))


def report(results: list[Result]) -> str:
    """The results as a table."""
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *(map(_shown, result) for result in results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _shown(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def main() -> int:
    """Run the targets that are named, or all."""
    if sys.argv[1:2] == ["--run"]:
        run_target(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of all cores together (default: an hour each)")
    chosen = parser.parse_args()
    names = chosen.targets or list(NAMES)
    if unknown := set(names) - set(NAMES):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    cores = min(os.cpu_count() or 1, len(names))
    seconds = max(1, chosen.seconds * cores // len(names))
    CACHE.mkdir(parents=True, exist_ok=True)
    print(f"mcpmeter: {len(names)} targets, {seconds} s each, {cores} at a time; logs in {CACHE}", flush=True)
    with ThreadPoolExecutor(cores) as pool:
        results = list(pool.map(lambda name: fuzz(name, seconds), names))
    text = report(results)
    (CACHE / "summary.md").write_text(f"{time.strftime('%Y-%m-%d')}\n\n{text}")
    print(text, end="")
    failed = [result.name for result in results if result.is_broken]
    if failed:
        print(
            f"mcpmeter: {', '.join(failed)}: the log names the fault, and its input is {CACHE}/NAME.*", file=sys.stderr
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

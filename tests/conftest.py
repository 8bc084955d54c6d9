"""The installed console command as a user runs it, and the report of the trials."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("mcpmeter")
SECONDS_TO_SPEAK = 40.0
SECONDS_TO_END = 40.0
KEPT_OF_THE_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "COVERAGE_PROCESS_START")


@dataclass(frozen=True)
class Finished:
    """How a command ended and all that it said."""

    code: int
    stdout: str
    stderr: str


class Running:
    """A command that runs; `says` waits for its words, `end` for its end."""

    def __init__(self, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            arguments,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C for the test run is not one for the command
        )
        self._news = threading.Condition()
        self._said = {"stdout": "", "stderr": ""}
        self._readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._said]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, name):
            self._add(name, line)
        self._add(name, "")

    def _add(self, name: str, line: str) -> None:
        with self._news:
            self._said[name] += line
            self._news.notify_all()

    def says(self, pattern: str, *, on: str = "stdout", seconds: float = SECONDS_TO_SPEAK) -> re.Match[str]:
        """Wait until a line matches; fails with everything said so far."""
        with self._news:
            self._news.wait_for(lambda: re.search(pattern, self._said[on]) or self._silent, seconds)
            found = re.search(pattern, self._said[on])
        assert found, f"never said {pattern!r} on {on}; it said: {self._said}"
        return found

    @property
    def _silent(self) -> bool:
        return not any(reader.is_alive() for reader in self._readers)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals | None = signal.SIGTERM, *, seconds: float = SECONDS_TO_END) -> Finished:
        """Send the signal (None: only wait) and wait for the end."""
        if number is not None:
            self.send(number)
        code = self.process.wait(seconds)
        for reader, pipe in zip(self._readers, (self.process.stdout, self.process.stderr), strict=True):
            reader.join(SECONDS_TO_END)
            pipe.close()
        return Finished(code, self._said["stdout"], self._said["stderr"])


Start = Callable[..., Running]
Run = Callable[..., Finished]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `mcpmeter ARGUMENTS` in an empty folder and a bare environment; what still runs at the end is killed.

    `through` goes before the command, as in `unshare -n`.
    """
    started: list[Running] = []
    home = tmp_path / "home"
    home.mkdir()

    def begin(*arguments: object, env: Mapping[str, str] | None = None, through: Sequence[str] = ()) -> Running:
        kept = {name: os.environ[name] for name in KEPT_OF_THE_ENVIRONMENT if name in os.environ}
        running = Running(
            [*through, str(COMMAND), *map(str, arguments)],
            env={**kept, "HOME": str(home), "PYTHONWARNINGS": "error", **(env or {})},
            cwd=home,
        )
        started.append(running)
        return running

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.send(signal.SIGKILL)
        running.end(None)


@pytest.fixture
def run(start: Start) -> Run:
    """Run `mcpmeter ARGUMENTS` to its end."""

    def to_the_end(*arguments: object, seconds: float = SECONDS_TO_END, **options: object) -> Finished:
        return start(*arguments, **options).end(None, seconds=seconds)

    return to_the_end


@pytest.fixture
def prometheus_is_here() -> None:
    """Fails where there is no Prometheus: a missing install must not look like a passing run."""
    if shutil.which("prometheus") is None:
        pytest.fail("no Prometheus on the PATH; on Debian: apt-get install prometheus, or run: make test")


@dataclass
class Trials:
    """How long the trials are, and what they found."""

    full: bool
    found: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)

    def record(self, title: str, what: str, figures: dict[str, object]) -> None:
        """Keep one trial's figures. To be called before they are asserted, so that a bad one is reported too."""
        self.found.append((title, what, figures))

    def report(self) -> str:
        lines = [
            "# What the trials found",
            "",
            f"Written by `make trials` on {datetime.now(UTC):%Y-%m-%d} (UTC): mcpmeter {version('mcpmeter')}, "
            f"Python {sys.version.split()[0]}, {os.cpu_count()} cores. Everything runs as the installed command in "
            "processes of its own. `make test` runs a share of each trial.",
        ]
        for title, what, figures in self.found:
            lines += ["", f"## {title}", "", what, "", "| figure | value |", "| --- | ---: |"]
            lines += [f"| {name} | {_shown(value)} |" for name, value in figures.items()]
        return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@pytest.fixture(scope="session")
def trials() -> Iterator[Trials]:
    """The trials' length (`MCPMETER_TRIALS=full`) and their report (`MCPMETER_TRIALS_REPORT`, a file)."""
    running = Trials(full=os.environ.get("MCPMETER_TRIALS") == "full")
    yield running
    path = os.environ.get("MCPMETER_TRIALS_REPORT")
    if path and running.found:
        Path(path).write_text(running.report())

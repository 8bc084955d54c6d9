"""The installed console command as a user runs it, and the report of the trials."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings

from mcpmeter.demo.stack import free_port

settings.register_profile("unhurried", deadline=None)  # a busy machine is no fault of what is tried
settings.load_profile("unhurried")

COMMAND = Path(sys.executable).with_name("mcpmeter")
SECONDS_TO_SPEAK = 180.0
SECONDS_TO_END = 180.0
KEPT_OF_THE_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "COVERAGE_PROCESS_START")


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Services in this process keep nothing in the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


_PENDING = re.compile(r"mcpmeter: the ledger (takes no settlements now|has all settlements of its pending file again)")


@dataclass(frozen=True)
class Finished:
    """How a command ended and all that it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def faults(self) -> str:
        """Stderr without the notices of a slow disk, behind which settlements wait in the pending file for a moment."""
        return "".join(line for line in self.stderr.splitlines(keepends=True) if not _PENDING.match(line))


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


class PostgresServer:
    """A PostgreSQL server of the tests' own on a free port of loopback, with a password, ended by its process id.

    `safe`: with fsync, for trials that kill it; else without, which no test of anything but its death can tell.
    """

    PASSWORD = "s3cret-of-the-test-server"

    def __init__(self, folder: Path, *, safe: bool = False) -> None:
        self.folder = folder
        self._safe = safe
        self._databases = itertools.count(1)
        # PostgreSQL refuses to run as root; Debian's package has made a user for it.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._make_cluster()
        self.port = free_port()
        self.start()

    def _make_cluster(self) -> None:
        password = self.folder / "password"
        password.write_text(self.PASSWORD)
        password.chmod(0o644)
        self._run("initdb", "--pgdata", self.data, "--username=meter", f"--pwfile={password}", "--auth=scram-sha-256",
                  "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions")  # fmt: skip

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 90,
            "shared_buffers": "32MB",
            "fsync": "on" if self._safe else "off",
            "logging_collector": "off",
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [_postgres_program("postgres"), "-D", str(self.data), *settings],
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user else None,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + SECONDS_TO_SPEAK
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether it takes connections now."""
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=60).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it: at once but orderly by SIGINT, like a crash by SIGKILL; waits until its children are gone too."""
        children = self._children()
        self.process.send_signal(number)
        self.process.wait(SECONDS_TO_END)
        # Children notice by themselves that it is gone, and answer until then. Each has a process group of its own.
        deadline = time.monotonic() + SECONDS_TO_END
        while any(map(_lives, children)):
            assert time.monotonic() < deadline, "children of PostgreSQL do not end"
            time.sleep(0.01)

    def freeze(self) -> None:
        """Stop it and all its backends, as a disk or a host that hangs does: connections stay, nothing is answered."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def _children(self) -> list[int]:
        pid = self.process.pid
        with contextlib.suppress(FileNotFoundError):  # it has ended
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def _signal_all(self, number: signal.Signals) -> None:
        children = self._children()
        os.kill(self.process.pid, number)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    def url(self, database: str) -> str:
        return f"postgresql://meter:{self.PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The address of an empty database."""
        name = f"ledger_{next(self._databases)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database that a test is done with: each takes eight megabytes."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)".encode())

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [_postgres_program(program), *map(str, arguments)],
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def _postgres_program(name: str) -> str:
    """Debian keeps PostgreSQL's own programs away from the PATH, one folder a version."""
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(newest[-1]) if newest else shutil.which(name)
    if found is None:
        pytest.fail(f"no PostgreSQL server here ({name}); on Debian: apt-get install postgresql, or run: make test")
    return found


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # dead, whether or not it was waited for


@contextlib.contextmanager
def _running_postgres(*, safe: bool) -> Iterator[PostgresServer]:
    # Not in pytest's own folder, which only its user may enter.
    with tempfile.TemporaryDirectory(prefix="mcpmeter-postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder), safe=safe)
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.thaw()
                server.stop(signal.SIGQUIT)  # what it has not written yet goes with its folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for all tests that do not harm it."""
    with _running_postgres(safe=False) as server:
        yield server


@pytest.fixture
def postgres_to_kill() -> Iterator[PostgresServer]:
    """One of the test's own, which writes as it does in production: for trials of its death."""
    with _running_postgres(safe=True) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of an empty database."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop(url)


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
            "# Results of the trials",
            "",
            f"`make trials` wrote this page on {datetime.now(UTC):%Y-%m-%d} (UTC): mcpmeter {version('mcpmeter')}, "
            f"Python {sys.version.split()[0]}, {os.cpu_count()} cores. The services and commands are the "
            "installed ones, each in its own process. `make test` runs a part of each trial.",
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
    path = os.environ.get("MCPMETER_TRIALS_REPORT")
    if path and "PYTEST_XDIST_WORKER" in os.environ:
        pytest.fail("several processes would each write a part over the report; for one process: pytest -n 0")
    yield running
    if path and running.found:
        Path(path).write_text(running.report())

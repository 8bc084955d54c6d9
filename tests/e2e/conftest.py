"""A stand: `mcpmeter simulate` behind `mcpmeter serve`, both installed commands, and ways to read their numbers."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.rows import ROW_COLUMNS, SELECT_ROWS_SQL

UPSTREAM_KEY = "sk-simulated-upstream"
KEYS = {team: f"mk_{secrets.token_urlsafe(36)}" for team in ("search", "support", "platform")}


class Sample(NamedTuple):
    """One line of an exposition."""

    labels: Mapping[str, str]
    value: float


class Stand:
    """The relay on the simulator. The configuration may be written anew, the relay started again on the same ledger."""

    def __init__(self, start: Callable[..., Any], run: Callable[..., Any], folder: Path) -> None:
        self._start = start
        self._run = run
        self.config = folder / "mcpmeter.yaml"
        self.ledger: Path | str = folder / "ledger.db"
        """A file, or the address of a PostgreSQL database."""
        self.address = ""
        self.upstream = ""
        self.relay: Any = None

    def start_simulator(self, *options: object) -> None:
        simulator = self._start("simulate", "--port", 0, *options, env={"MCPMETER_SIMULATOR_KEY": UPSTREAM_KEY})
        self.upstream = simulator.says(r"Simulator at (http://\S+)")[1]

    def configure(self, *, drain_seconds: float = 30, keys: Iterable[str] = (), extra: str = "") -> None:
        named = "".join(
            f"  - {{name: {team}-key, team: {team}, secret: '{KEYS[team]}', role: {self._role(team)}}}\n"
            for team in keys
        )
        self.config.write_text(
            f"server: {{port: 0, drain_seconds: {drain_seconds}}}\n"
            f"ledger: {self._ledger_section}\n"
            f"providers:\n"
            f"  - {{name: holysheep, base_url: '{self.upstream}/v1', api_key: '${{UPSTREAM_KEY}}'}}\n"
            + (f"keys:\n{named}" if named else "")
            + extra
        )

    @staticmethod
    def _role(team: str) -> str:
        return "admin" if team == "platform" else "caller"

    @property
    def _ledger_section(self) -> str:
        return (
            f"{{path: {self.ledger}}}"
            if isinstance(self.ledger, Path)
            else f"{{url: '{self.ledger}', lease_seconds: 2}}"
        )

    def start_relay(self) -> None:
        self.relay = self._start("serve", "--config", self.config, env={"UPSTREAM_KEY": UPSTREAM_KEY})
        self.address = self.relay.says(r"OpenAI SDKs +(http://\S+)/v1")[1]

    def samples(self) -> dict[str, list[Sample]]:
        """All of `/metrics` by name, zeros left out."""
        text = _get(f"{self.address}/metrics")
        found: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                if sample.value:
                    found.setdefault(sample.name, []).append(Sample(sample.labels, sample.value))
        return found

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series that carry these labels; 0 for none."""
        return sum(s.value for s in self.samples().get(name, ()) if labels.items() <= s.labels.items())

    def budgets(self) -> list[dict[str, Any]]:
        """`/api/budgets` as an admin sees it."""
        return json.loads(_get(f"{self.address}/api/budgets", KEYS["platform"]))["budgets"]

    def billing_log(self, calls: int = 0) -> dict[str, Any]:
        """What the simulator wrote down itself."""
        return json.loads(_get(f"{self.upstream}/simulator/books?calls={calls}", UPSTREAM_KEY))

    def report(self, *by: str) -> list[dict[str, Any]]:
        """`mcpmeter report --json`."""
        asked = [word for name in by for word in ("--by", name)]
        finished = self._run("report", "--ledger", self.ledger, "--json", *asked)
        assert finished.code == 0, finished.stderr
        return json.loads(finished.stdout)["rows"]

    def rows(self) -> list[dict[str, Any]]:
        """Every row of the ledger as it is kept."""
        with open_reader(self.ledger) as reader:
            found = reader.rows(f"{SELECT_ROWS_SQL} ORDER BY id")
            return [dict(zip(ROW_COLUMNS, row, strict=True)) for row in found]


def _get(url: str, secret: str = "") -> bytes:
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {secret}"} if secret else {})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return answer.read()


@pytest.fixture
def stand(start: Callable[..., Any], run: Callable[..., Any], tmp_path: Path) -> Stand:
    return Stand(start, run, tmp_path)


@pytest.fixture
def team_keys() -> Mapping[str, str]:
    """The key of each team."""
    return KEYS


@pytest.fixture
def ahead_of_others() -> Iterator[None]:
    """This test goes first: Prometheus's clock runs on, and a scrape that is late by a second is a gap of minutes.

    Only root may, as it may mount disks; anybody else waits for his turn.
    """
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, usual - 10)
    yield
    os.setpriority(os.PRIO_PROCESS, 0, usual)

"""`mcpmeter demo` as a new user runs it."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

import mcpmeter.cli

COMMANDS = sorted(path.stem for path in Path(mcpmeter.cli.__file__).parent.glob("[!_]*.py"))
HELLO = json.dumps({"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}).encode()
SECONDS_TO_SEE_NUMBERS = 120
SECONDS_BETWEEN_LOOKS = 0.2


@pytest.fixture
def demo(start):
    """Starts the demo with quick traffic; gives it and its address."""

    def begin(*options: object, **more: object):
        running = start("demo", "--port", 0, "--calls-per-second", 25, *options, **more)
        address = running.says(r"Metrics +(http://\S+)/metrics")[1]
        running.says(r"Stop it with Ctrl-C\.")
        return running, address

    return begin


def get_json(url: str, body: bytes | None = None):
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def by_team(address: str, metric: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{address}/metrics", timeout=120) as answer:
        text = answer.read().decode()
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == metric and sample.value:
                totals[sample.labels["team"]] = totals.get(sample.labels["team"], 0) + sample.value
    return totals


def requests_at(address: str, endpoint: str) -> float:
    with urllib.request.urlopen(f"{address}/metrics", timeout=120) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples if sample.name == "mcp_requests_total"]
    return sum(sample.value for sample in samples if sample.labels["endpoint"] == endpoint)


def eventually(what, *, holds):
    """Look until it holds; returns what was seen."""
    deadline = time.monotonic() + SECONDS_TO_SEE_NUMBERS
    while not holds(seen := what()):
        assert time.monotonic() < deadline, f"still {seen}"
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return seen


class TestDemo:
    def test_it_meters_several_teams_and_stops_cleanly(self, demo):
        running, address = demo()
        for metric in ("mcp_tokens_total", "mcp_cost_usd_total"):
            first = eventually(lambda: by_team(address, metric), holds=lambda seen: len(seen) >= 3)  # noqa: B023
            assert set(first) == {"search", "support", "research"}
            eventually(
                lambda: by_team(address, metric),  # noqa: B023
                holds=lambda seen: all(seen[team] > first[team] for team in first),  # noqa: B023
            )
        answer = get_json(f"{address}/v1/chat/completions", HELLO)
        assert answer["usage"]["completion_tokens"] == 3

        finished = running.end(signal.SIGINT)

        assert finished.code == 0
        assert finished.faults == ""
        assert re.search(r"Stopped\. \d+ calls were made, \d+ of them completed\.", finished.stdout)
        assert finished.stdout.count("Stop it with Ctrl-C.") == 1
        assert finished.stdout.count(f"{address}/v1\n") == 1
        assert len(finished.stdout.splitlines()) <= 24

    def test_its_ledger_can_be_reported_on_while_it_runs(self, demo, run, tmp_path):
        running, address = demo("--folder", tmp_path / "kept")
        command = running.says(r"mcpmeter (report --ledger \S+ --by team --by model)")[1]
        eventually(lambda: by_team(address, "mcp_tokens_total"), holds=lambda seen: len(seen) >= 3)
        eventually(lambda: requests_at(address, "/v1/embeddings"), holds=lambda seen: seen >= 1)
        reported = run(*command.split())
        assert (reported.code, reported.stderr) == (0, "")
        assert {"search", "support", "research"} <= set(reported.stdout.split())

    @pytest.mark.parametrize("loading", ["click", "mcpmeter.config", "httpx2", "mcpmeter.service"])
    def test_ctrl_c_during_startup_prints_no_traceback(self, start, loading):
        running = start("demo", "--port", 0, env={"PYTHONPROFILEIMPORTTIME": "1"})
        running.says(rf"\| +{loading}\n", on="stderr")
        finished = running.end(signal.SIGINT)
        assert finished.code == -signal.SIGINT
        assert finished.stdout == ""
        assert [line for line in finished.stderr.splitlines() if not line.startswith("import time:")] == []

    def test_a_taken_port_is_one_line(self, demo, run):
        _, address = demo()
        finished = run("demo", "--port", address.rpartition(":")[2])
        assert finished.code == 1
        assert (finished.stdout, len(finished.stderr.splitlines())) == ("", 1)
        assert "taken" in finished.stderr

    @pytest.mark.usefixtures("prometheus_is_here")
    def test_the_stack_starts_and_stops_a_prometheus_that_scrapes_it(self, demo):
        running, _ = demo("--stack")
        prometheus = running.says(r"Prometheus +(http://[\d.:]+)/")[1]
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert sorted(child.name() for child in children) == ["prometheus", "prometheus-alertmanager"]
        query = f"{prometheus}/api/v1/query?query=count(sum%20by%20(team)(mcp_tokens_total%3E0))"
        eventually(
            lambda: get_json(query)["data"]["result"],
            holds=lambda result: bool(result) and int(result[0]["value"][1]) >= 3,
        )
        finished = running.end(signal.SIGINT)
        assert (finished.code, finished.faults) == (0, "")
        assert psutil.wait_procs(children, timeout=120)[1] == []

    def test_without_prometheus_the_stack_says_how_to_install_it(self, run, tmp_path):
        finished = run("demo", "--port", 0, "--stack", env={"PATH": str(tmp_path)})
        assert finished.code == 1
        assert (finished.stdout, len(finished.stderr.splitlines())) == ("", 1)
        assert "apt-get install prometheus" in finished.stderr

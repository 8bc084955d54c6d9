"""Configurations of earlier versions load without a fault and keep their meaning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.recorded import as_recorded

from mcpmeter.config import load

CONFIGURATIONS = Path(__file__).parents[1] / "fixtures" / "ffcca79" / "configurations"
EXPECTED = json.loads((CONFIGURATIONS / "expected.json").read_text())
ENVIRON = json.loads((CONFIGURATIONS / "environment.json").read_text())

OPEN = "database.yaml"
"""It listens beyond loopback, which has needed two more lines since."""
GUARDS = (
    (("{host: 0.0.0.0}", "{host: 0.0.0.0, allowed_hosts: [meter.example.com]}"), "allowed_hosts: [meter.example.com]"),
    (("ledger:\n", "metrics: {public: true}\nledger:\n"), "metrics: {public: true}"),
)

Plain = Callable[[str], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy, because a file's relative paths start at its folder."""
    return Path(shutil.copytree(CONFIGURATIONS, tmp_path / "configurations"))


@pytest.fixture
def plain(folder: Path) -> Plain:
    """JSON with the folder's name as it was recorded."""
    return lambda text: json.loads(text.replace(str(folder), "FOLDER"))


@pytest.mark.parametrize("name", EXPECTED)
def test_check_prints_the_recorded_plan(name, folder, plain, run, request):
    environ = ENVIRON | ({"LEDGER_URL": request.getfixturevalue("postgres_url")} if name == "database.yaml" else {})
    path = folder / name
    if name == OPEN:
        refused = run("check", "--json", "--config", path, env=environ)
        assert [word in str(json.loads(refused.stdout)["problems"]) for _, word in GUARDS] == [True, True]
        path.write_text(path.read_text().replace(*GUARDS[0][0]).replace(*GUARDS[1][0]))
    finished = run("check", "--json", "--config", path, env=environ)
    assert finished.code == 0, finished.stdout
    then, now = dict(EXPECTED[name]["check"]), plain(finished.stdout)
    assert len(now.pop("warnings")) == len(then.pop("warnings"))  # their wording may change
    assert as_recorded(now, then) == then


@pytest.mark.parametrize("name", EXPECTED)
def test_settings_have_their_recorded_values(name, folder, plain):
    then = EXPECTED[name]["settings"]
    timeouts = then["relay"]["timeouts"]
    if timeouts["max_connections"] == 512:
        timeouts["max_connections"] = None  # the former default; it is derived from the file descriptors now
    now = plain(json.dumps(load(folder / name, ENVIRON).model_dump(mode="json")))
    assert as_recorded(now, then) == then


@pytest.mark.parametrize("name", ["maximal.yaml", "example-monitoring.yaml"])
def test_monitoring_files_are_written(name, folder, run, tmp_path):
    finished = run("monitoring", "write", tmp_path / "deploy", "--config", folder / name)
    assert finished.code == 0, finished.stderr
    assert (tmp_path / "deploy" / "prometheus" / "prometheus.yml").is_file()

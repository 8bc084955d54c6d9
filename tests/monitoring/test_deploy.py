"""`deploy/` is the output of `mcpmeter monitoring write deploy --config examples/monitoring.yaml`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from mcpmeter.config import load_monitoring
from mcpmeter.monitoring import MonitoringOptions, files, render

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
EXAMPLE = ROOT / "examples" / "monitoring.yaml"
OPTIONS = load_monitoring(EXAMPLE, {})


def committed() -> dict[str, str]:
    return {path.relative_to(DEPLOY).as_posix(): path.read_text() for path in DEPLOY.rglob("*") if path.is_file()}


def test_the_committed_files_are_up_to_date() -> None:
    made = files(OPTIONS)
    assert sorted(committed()) == sorted(made)
    assert [path for path, content in committed().items() if made[path] != content] == [], "run: make docs"


def test_the_same_options_give_the_same_bytes() -> None:
    assert files(OPTIONS) == files(load_monitoring(EXAMPLE, {}))


def test_the_options_hold_no_secret() -> None:
    secrets = [name for name in MonitoringOptions.__dataclass_fields__ if "secret" in name or "password" in name]
    assert secrets == []


def test_two_renderers_of_one_file_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = ModuleType("twin")
    twin.render = lambda options: {"a.yml": ""}
    monkeypatch.setattr(render, "renderers", lambda: iter((twin, twin)))
    with pytest.raises(ValueError, match=r"a\.yml"):
        files(OPTIONS)


class TestCommand:
    def test_write_then_check_is_up_to_date(self, run, tmp_path) -> None:
        written = run("monitoring", "write", tmp_path / "out", "--config", EXAMPLE)
        assert (written.code, written.stderr) == (0, "")
        assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()} == {
            *files(OPTIONS)
        }
        checked = run("monitoring", "write", tmp_path / "out", "--config", EXAMPLE, "--check")
        assert (checked.code, checked.stdout) == (0, f"{tmp_path / 'out'}: up to date.\n")

    def test_check_names_changed_and_missing_files_only(self, run, tmp_path) -> None:
        run("monitoring", "write", tmp_path)
        changed, missing = tmp_path / "prometheus/prometheus.yml", tmp_path / "prometheus/rules/mcpmeter-alerts-slo.yml"
        changed.write_text("mine")
        missing.unlink()
        checked = run("monitoring", "write", tmp_path, "--check")
        assert checked.code == 1
        assert f"{changed}: differs" in checked.stderr
        assert f"{missing}: is missing" in checked.stderr
        assert (changed.read_text(), missing.exists()) == ("mine", False)

    def test_it_needs_no_provider_key_and_names_the_faulty_line(self, run, tmp_path) -> None:
        config = tmp_path / "mcpmeter.yaml"
        config.write_text("providers: [{name: openai, api_key: '${NOT_SET}'}]\nmonitoring:\n  regoin: eu\n")
        refused = run("monitoring", "write", tmp_path / "out", "--config", config)
        assert refused.code == 1
        assert refused.stderr.splitlines()[0] == (
            f"mcpmeter: {config}:3: unknown key 'regoin' in 'monitoring'; did you mean 'region'?"
        )
        config.write_text(config.read_text().replace("regoin", "region"))
        assert run("monitoring", "write", tmp_path / "out", "--config", config).code == 0
        assert "region: eu" in (tmp_path / "out/prometheus/prometheus.yml").read_text()

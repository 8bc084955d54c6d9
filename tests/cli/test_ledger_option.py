"""Which ledger a command opens: the one `mcpmeter serve` opens with the same configuration and environment."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mcpmeter.cli._group import run as run_here
from mcpmeter.ledger.location import location_of
from mcpmeter.ledger.queries.keys import list_keys

CONFIG = """\
providers: [{name: openai, api_key: "${OPENAI_API_KEY}"}]
budgets: [{name: all, limit_usd: 100}]
ledger: {path: state/calls.db}
"""
CREATE = ("keys", "create", "--name", "notebook", "--team", "research")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a configuration; the variable and the default lead to other files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MCPMETER_CONFIG", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("MCPMETER_LEDGER", str(tmp_path / "variable.db"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "default"))
    (tmp_path / "mcpmeter.yaml").write_text(CONFIG)
    return tmp_path


def status_of(address: str, key: str) -> int:
    request = urllib.request.Request(f"{address}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_a_created_key_is_valid_for_the_service_of_the_config(start, run, tmp_path):
    (tmp_path / "home" / "mcpmeter.yaml").write_text(CONFIG)
    elsewhere = {"MCPMETER_LEDGER": str(tmp_path / "elsewhere.db")}
    created = run(*CREATE, env=elsewhere)
    assert created.code == 0, created
    service = start("serve", "--port", 0, env={**elsewhere, "OPENAI_API_KEY": "sk-not-a-real-key-0123456789"})
    address = service.says(r"OpenAI SDKs +(http://\S+)/v1")[1]
    assert [status_of(address, key) for key in ("", created.stdout.strip())] == [401, 200]


@pytest.mark.parametrize("given", ["option", "variable", "folder"])
def test_the_configuration_is_found_like_serve_does(given, folder, monkeypatch):
    config = folder / "mcpmeter.yaml"
    if given != "folder":
        config = config.rename(folder / "other.yaml")
    if given == "variable":
        monkeypatch.setenv("MCPMETER_CONFIG", str(config))
    assert run_here([*CREATE, *(["--config", str(config)] if given == "option" else [])]) == 0
    assert len(list_keys(folder / "state" / "calls.db")) == 1


@pytest.mark.parametrize(
    "command",
    [
        "keys list",
        "report",
        "report statement --month 2026-01 --csv statement.csv",
        "reconcile --inline",
        "ledger verify",
        "ledger backup copy.db",
        "ledger export --csv -",
        "ledger prune --before 2026-01-01",
        "budgets list",
        "budgets show all",
    ],
)
def test_every_command_reads_the_configured_ledger(command, folder, monkeypatch, capsys):
    assert run_here([*CREATE]) == 0
    if command.startswith(("budgets", "reconcile")):  # they read budgets and prices too, as the service does
        monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-real-key-0123456789")
    assert run_here(command.split()) == 0, capsys.readouterr().err
    assert not (folder / "variable.db").exists()


def test_without_a_configured_ledger_the_variable_counts(folder):
    (folder / "mcpmeter.yaml").write_text("server: {port: 9000}\n")
    assert run_here([*CREATE]) == 0
    assert len(list_keys(folder / "variable.db")) == 1


def test_the_option_overrides_even_a_faulty_configuration(folder):
    (folder / "mcpmeter.yaml").write_text("ledger: [\n")
    assert run_here([*CREATE, "--ledger", "mine.db"]) == 0
    assert len(list_keys(folder / "mine.db")) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ledger: {path: [\n", "mcpmeter.yaml:"),
        ("- ledger\n", "mcpmeter.yaml:1: the file must be a mapping"),
        (
            "legder: {path: calls.db}\n",
            "mcpmeter.yaml:1: unknown key 'legder' at the top level; did you mean 'ledger'?",
        ),
        ("ledger: {path: calls.db, url: 'postgresql://db/meter'}\n", "takes 'path' or 'url', not both"),
        ("ledger: {path: '${NOT_SET_ANYWHERE}/calls.db'}\n", "NOT_SET_ANYWHERE"),
    ],
    ids=["no YAML", "no mapping", "section misspelt", "two ledgers", "variable of the path not set"],
)
@pytest.mark.parametrize("command", [[*CREATE], ["report"], ["reconcile", "--inline"], ["budgets", "list"]])
def test_a_faulty_configuration_is_wrong_usage(command, text, says, folder, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-real-key-0123456789")
    (folder / "mcpmeter.yaml").write_text(text)
    assert run_here(command) == 2
    out, err = capsys.readouterr()
    assert (out, says in err) == ("", True), err
    assert [path.name for path in folder.iterdir()] == ["mcpmeter.yaml"]


def test_a_missing_configuration_is_wrong_usage(folder, capsys):
    assert run_here([*CREATE, "--config", "none.yaml"]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_a_configured_database_is_used_for_keys_and_budgets(folder, postgres_url, monkeypatch, capsys):
    (folder / "mcpmeter.yaml").write_text(CONFIG.replace("path: state/calls.db", 'url: "${LEDGER_URL}"'))
    monkeypatch.setenv("LEDGER_URL", postgres_url)
    assert run_here([*CREATE]) == 0
    assert len(list_keys(location_of(postgres_url))) == 1
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-real-key-0123456789")
    capsys.readouterr()
    assert run_here(["budgets", "list", "--json"]) == 0
    assert [budget["name"] for budget in json.loads(capsys.readouterr().out)["budgets"]] == ["all"]


def test_the_reports_currency_needs_no_provider_key(folder, capsys):
    (folder / "mcpmeter.yaml").write_text(f"{CONFIG}pricing: {{currency: {{code: CNY, rate: 7.2}}}}\n")
    assert run_here([*CREATE]) == 0
    capsys.readouterr()
    assert run_here(["report", "--config", "mcpmeter.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["currency"] == "CNY"

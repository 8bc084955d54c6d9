"""`mcpmeter check`, run as a person runs it: by the command line's own entry."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from tests.acting import BY
from tests.ledger.raw_rows import write_rows

from mcpmeter.cli._group import run
from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import Key

SECRET = "sk-very-secret-q7Zk2vXw9LtRbN4mJcHs8d"
DAY_NS = 86_400 * 10**9


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name.startswith("MCPMETER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MCPMETER_LEDGER", str(tmp_path / "state" / "ledger.db"))
    monkeypatch.chdir(tmp_path)


def write(folder: Path, text: str) -> str:
    (folder / "c.yaml").write_text(text)
    return str(folder / "c.yaml")


def test_it_prints_the_plan_without_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"""\
server: {{port: 8123}}
providers:
  - {{name: openai, api_key: {SECRET}}}
  - {{name: local, type: generic, base_url: "http://127.0.0.1:11434/v1", models: [qwen3]}}
teams: [search]
keys: [{{name: backend, team: search, secret: {SECRET}-2}}]
"""
    assert run(["check", "--config", write(tmp_path, text)]) == 0
    out, err = capsys.readouterr()
    for expected in (
        "http://127.0.0.1:8123/metrics",
        "1. openai  https://api.openai.com/v1  key: present",
        "2. local  http://127.0.0.1:11434/v1  key: none",
        "gpt-*",
        "genai-prices: openai",
        "backend (search, configuration)",
        f"{tmp_path}/state/ledger.db (writable)",
        "The configuration is valid.",
    ):
        assert expected in out
    assert "'local' has no prices" in err
    assert "deepseek-v3.2" in err
    assert SECRET not in out + err


def test_it_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert run(["check"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_object_with_ok(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOLYSHEEP_API_KEY", SECRET)
    assert run(["check", "--json"]) == 0
    out = capsys.readouterr().out
    plan = json.loads(out)
    assert plan["ok"] is True
    assert plan["source"] == "environment"
    assert plan["listens"] == "http://127.0.0.1:8000"
    assert [(entry["name"], entry["key"]) for entry in plan["providers"]] == [("holysheep", "present")]
    assert plan["problems"] == plan["warnings"] == []
    assert SECRET not in out


def test_every_fault_is_a_line_and_the_exit_code_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "server: {prot: 1}\nproviders: [{name: openia}]\n")
    assert run(["check", "--config", path]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"mcpmeter: {path}:1: unknown key 'prot' in 'server'; did you mean 'port'?"
    assert lines[1].startswith(f"mcpmeter: {path}:2: 'providers[0]': no provider is built in as 'openia'")
    assert run(["check", "--config", path, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2


def test_without_a_key_anywhere_one_line_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check"]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "mcpmeter demo" in err


def test_an_open_listener_without_a_key_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "server: {host: 0.0.0.0}\nproviders: [{name: openai, api_key: k}]"
    assert run(["check", "--config", write(tmp_path, text)]) == 1
    faults = capsys.readouterr().err
    assert "mcpmeter keys create" in faults
    assert "allowed_hosts: [meter.example.com]" in faults
    assert "metrics: {public: true}" in faults


def test_metrics_are_at_the_listener_that_serves_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for section, port in (("server: {admin: {port: 9465}}", 9465), ("metrics: {port: 9464}", 9464), ("", 8000)):
        text = f"{section}\nproviders: [{{name: openai, api_key: k}}]"
        assert run(["check", "--json", "--config", write(tmp_path, text)]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"] == f"http://127.0.0.1:{port}/metrics"


async def test_a_key_in_the_ledger_is_enough_for_an_open_listener(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqliteStore(tmp_path / "ledger.db")
    await store.start()
    await store.add_key(
        Key(id="key_000000000001", name="laptop", team="search", prefix="mm_", sha256="0" * 64, created_at_ns=1),
        BY,
    )
    await store.close()
    server = "server: {host: 0.0.0.0, allowed_hosts: [meter]}\nmetrics: {public: true}\n"
    text = f"{server}ledger: {{path: ledger.db}}\nproviders: [{{name: openai, api_key: k}}]"
    assert run(["check", "--config", write(tmp_path, text)]) == 0
    assert "laptop (search, ledger)" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["file/ledger.db", "file/deep/er/ledger.db", "."])
def test_an_unwritable_ledger_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str) -> None:
    (tmp_path / "file").write_text("")
    text = f"ledger: {{path: {path}}}\nproviders: [{{name: openai, api_key: k}}]"
    assert run(["check", "--config", write(tmp_path, text)]) == 1
    out, err = capsys.readouterr()
    assert "NOT writable" in out
    assert "ledger" in err


def test_an_unwritable_folder_of_the_pending_file_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    text = "ledger: {path: ledger.db, pending_path: file/deep}\nproviders: [{name: openai, api_key: k}]"
    assert run(["check", "--config", write(tmp_path, text)]) == 1
    out, err = capsys.readouterr()
    assert "NOT writable" not in out
    assert "ledger.pending_path" in err
    assert not (tmp_path / "ledger.db.pending").exists()


def test_a_file_that_is_no_ledger_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ledger.db").write_text("not a database")
    text = "ledger: {path: ledger.db}\nproviders: [{name: openai, api_key: k}]"
    assert run(["check", "--config", write(tmp_path, text)]) == 1
    assert "not a ledger" in capsys.readouterr().err


def test_a_faulty_price_list_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ours.toml").write_text('name = "ours"\nsurprise = 1\n')
    text = "pricing: {files: [ours.toml]}\nproviders: [{name: openai, api_key: k}]"
    assert run(["check", "--config", write(tmp_path, text)]) == 1
    assert "surprise" in capsys.readouterr().err


def test_a_key_sent_in_clear_text_causes_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "providers: [{name: far, type: openai, base_url: 'http://llm.example/v1', api_key: k}]"
    assert run(["check", "--config", write(tmp_path, text)]) == 0
    assert "'far' would cross the network in clear text" in capsys.readouterr().err


@pytest.mark.parametrize(("synchronous", "warned"), [("full", False), ("normal", True)])
def test_synchronous_normal_causes_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], synchronous: str, warned: bool
) -> None:
    text = f"ledger: {{synchronous: {synchronous}}}\nproviders: [{{name: openai, api_key: k}}]"
    assert run(["check", "--config", write(tmp_path, text)]) == 0
    line = "warning: 'ledger.synchronous' is 'normal': a power loss loses the last moments' rows."
    assert (line in capsys.readouterr().err) is warned


def test_routes_aliases_and_key_counts_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """\
providers:
  - {name: openai, api_keys: [sk-aaaaaaaa, sk-bbbbbbbb]}
  - {name: holysheep, api_key: hs-aaaaaaa}
routes: [{models: [gpt-4.1], upstreams: [openai, holysheep]}]
aliases: {cheap: holysheep/deepseek-v3.2}
"""
    assert run(["check", "--config", write(tmp_path, text)]) == 0
    printed = capsys.readouterr().out
    for line in ("key: 2 present, in turn", "gpt-4.1: openai then holysheep", "cheap: holysheep/deepseek-v3.2"):
        assert line in printed
    assert "sk-aaaaaaaa" not in printed


def test_live_checks_print_faults_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"""\
server: {{port: 9}}
providers: [{{name: local, type: generic, base_url: "http://127.0.0.1:9/v1", api_key: {SECRET}}}]
"""
    config = write(tmp_path, text)
    assert run(["check", "--live", "--config", config]) == 1
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == f"ok           configuration: {config} is valid"
    assert "failed       service: http://127.0.0.1:9 cannot be reached (Connection refused)" in lines
    assert "             -> Start it: mcpmeter serve" in lines
    assert any(line.startswith("not checked  prometheus: give its address: --prometheus") for line in lines)
    assert SECRET not in out


def test_live_checks_as_json_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, 'providers: [{name: local, type: generic, base_url: "http://127.0.0.1:9/v1"}]')
    assert run(["check", "--live", "--json", "--service", "http://127.0.0.1:9", "--config", config]) == 1
    findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = {finding["check"]: finding["state"] for finding in findings}
    assert (states["ledger"], states["service"], states["provider local"]) == ("ok", "failed", "failed")
    assert all(finding["todo"] for finding in findings if finding["state"] == "failed")


def test_addresses_of_services_need_live(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--prometheus", "http://127.0.0.1:9090"]) == 2
    assert "need --live" in capsys.readouterr().err


def test_items_without_a_price_of_recent_calls_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    ledger, now_ns = tmp_path / "state" / "ledger.db", time.time_ns()
    ledger.parent.mkdir()
    recent, old = {"id": "call_1", "started_at_ns": now_ns}, {"id": "call_2", "started_at_ns": now_ns - 8 * DAY_NS}
    with open_writer(ledger):
        pass
    write_rows(ledger, [recent, old])
    with open_writer(ledger) as writer:
        for row, item in ((recent, "web_search"), (old, "image")):
            lines = f'[["{item}",2,null]]'
            values = (row["id"], row["started_at_ns"], lines, "[]", "{}", 1, 0, 0, None)
            writer.execute(f"INSERT INTO charges VALUES ({', '.join('?' * 9)})", values)
    assert run(["check"]) == 0
    warnings = capsys.readouterr().err
    assert "items without a price: web_search (1). Add their prices" in warnings
    assert "image" not in warnings

"""A real LiteLLM proxy behind the relay and in front of it: both count the same tokens.

Its command is `MCPMETER_LITELLM`; full trials install it as the bench does. Other runs leave this out.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from benchmarks.installs import litellm

from mcpmeter.demo.stack import free_port
from mcpmeter.ledger.location import location_of
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.rows import SELECT_ROWS_SQL, row_of
from mcpmeter.records import LedgerRow

pytestmark = pytest.mark.trial

MODELS = ("gpt-4.1", "claude-sonnet-4-5", "gpt-5", "house-model")
"""The last one has no price on either side."""

ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR")
KEY = f"sk-{secrets.token_hex(32)}"
SECONDS_TO_START = 300
PRECISION = 1
"""Nano-dollars by which LiteLLM's floats may be off."""


@pytest.fixture
def command(trials) -> str:
    found = os.environ.get("MCPMETER_LITELLM") or (str(litellm()) if trials.full else "")
    if not found:
        pytest.skip("LiteLLM is large: make trials, or MCPMETER_LITELLM=its command")
    return found


@contextmanager
def proxy(command: str, folder: Path, upstream: str) -> Iterator[str]:
    """LiteLLM's proxy before an upstream that speaks OpenAI's and Anthropic's dialects."""
    port, config, log = free_port(), folder / "litellm.json", folder / "litellm.log"
    kinds = {"gpt-4.1": "openai", "gpt-5": "openai", "house-model": "openai", "claude-sonnet-4-5": "anthropic"}
    listed = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"{kind}/{model}",
                "api_base": upstream + ("/v1" if kind == "openai" else ""),
                "api_key": "sk-any",
            },
        }
        for model, kind in kinds.items()
    ]
    config.write_text(json.dumps({"model_list": listed, "litellm_settings": {"telemetry": False}}))
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    env = {**kept, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with log.open("wb") as written:
        arguments = [command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=written, stderr=written, env=env)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not is_alive(address):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def is_alive(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/health/liveliness", timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def simulator(start: Any) -> str:
    return start("simulate", "--port", 0, "--seed", 3).says(r"(http://127\.0\.0\.1:\d+)")[1]


def relay(start: Any, folder: Path, providers: list[dict[str, Any]]) -> str:
    port, config = free_port(), folder / "relay.json"
    settings = {"server": {"port": port}, "ledger": {"path": str(folder / "ledger.db")}, "providers": providers}
    config.write_text(json.dumps(settings))
    start("serve", "--config", config).says(r"MCP clients")
    return f"http://127.0.0.1:{port}"


def ask(address: str, number: int) -> tuple[int, int, str | None]:
    """One call; its tokens by the response, and LiteLLM's own cost."""
    stream = number % 3 == 2
    body: dict[str, Any] = {
        "model": MODELS[number % len(MODELS)],
        "messages": [{"role": "user", "content": f"Words {number} " * (1 + 7 * number)}],
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    }
    headers = {"authorization": f"Bearer {KEY}"}
    response = httpx2.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    data = (
        [line[6:] for line in response.text.splitlines() if line.startswith("data: {")] if stream else [response.text]
    )
    usage = next(found for text in reversed(data) if (found := json.loads(text).get("usage")))
    return usage["prompt_tokens"], usage["completion_tokens"], response.headers.get("x-litellm-response-cost")


def rows_of(folder: Path, count: int) -> list[LedgerRow]:
    deadline = time.monotonic() + 60
    while True:
        with open_reader(location_of(str(folder / "ledger.db"))) as reader:
            rows = [row_of(row) for row in reader.rows(f"{SELECT_ROWS_SQL} ORDER BY started_at_ns, id")]
        if len(rows) == count and all(row.state == "settled" for row in rows):
            return rows
        assert time.monotonic() < deadline, len(rows)
        time.sleep(0.05)


@pytest.mark.parametrize("place", ["behind the relay", "in front of the relay"])
def test_litellm_and_the_ledger_agree_on_tokens(command, start, tmp_path, trials, place):
    upstream, count = simulator(start), 120 if trials.full else 12
    if place == "behind the relay":
        with proxy(command, tmp_path, upstream) as behind:
            provider = {"name": "litellm", "type": "generic", "base_url": f"{behind}/v1", "api_key": KEY}
            address = relay(start, tmp_path, [{**provider, "models": list(MODELS)}])
            calls = [ask(address, number) for number in range(count)]
    else:
        key = "sk-simulated-provider-credential"
        openai = {"name": "openai", "base_url": f"{upstream}/v1", "api_key": key, "models": ["house-model"]}
        anthropic = {"name": "anthropic", "base_url": f"{upstream}/v1", "api_key": key}
        with proxy(command, tmp_path, relay(start, tmp_path, [openai, anthropic])) as before:
            calls = [ask(before, number) for number in range(count)]
    rows = rows_of(tmp_path, count)
    costs = [(float(cost) * 1e9, row.cost_nanousd) for (*_, cost), row in zip(calls, rows, strict=True) if cost]
    figures = {
        "calls": count,
        "tokens of LiteLLM": sum(prompt + completion for prompt, completion, _ in calls),
        "tokens of the ledger": sum(row.prompt_tokens + row.completion_tokens for row in rows),
        "calls that LiteLLM names a cost for": len(costs),
        "of these with another cost in the ledger": sum(abs(theirs - ours) > PRECISION for theirs, ours in costs),
    }
    trials.record(f"LiteLLM {place}", "Tokens and dollars of both ledgers, call by call.", figures)
    assert [(row.prompt_tokens, row.completion_tokens) for row in rows] == [call[:2] for call in calls]
    assert costs
    assert figures["of these with another cost in the ledger"] == 0
    assert {row.cost_source for row in rows if row.model == "house-model"} == {"unpriced"}

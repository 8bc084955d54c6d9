"""kill -9 while background responses are pending: each is settled once, by the provider's own usage."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from typing import Any

import httpx2
import pytest

CALLS = 40
BUDGETS = """
budgets:
  - {name: whole, limit_usd: 1000000}
"""


@pytest.mark.trial
async def test_pending_responses_are_followed_after_kill_9(stand, trials):
    stand.start_simulator("--seed", 5, "--background-ms", "uniform:500-2500")
    stand.configure(extra=BUDGETS)
    stand.config.write_text(stand.config.read_text().replace("holysheep", "openai"))
    await asyncio.to_thread(stand.start_relay)
    answered = 0
    for round_number in range(10 if trials.full else 1):
        async with httpx2.AsyncClient(timeout=60, verify=False) as http:
            calls = [_create(http, stand.address, f"{round_number} {number}") for number in range(CALLS)]
            statuses = await asyncio.gather(*calls)
        assert set(statuses) == {"queued"}
        answered += len(statuses)
        stand.relay.send(signal.SIGKILL)
        assert (await asyncio.to_thread(stand.relay.end, None)).code == -signal.SIGKILL
        assert any(row["state"] == "open" for row in await asyncio.to_thread(stand.rows))
        await asyncio.to_thread(stand.start_relay)
        async with asyncio.timeout(60):
            while any(row["state"] == "open" for row in await asyncio.to_thread(stand.rows)):
                await asyncio.sleep(0.1)

    rows, totals = stand.rows(), stand.billing_log()["totals"]
    assert len(rows) == answered
    assert {(row["outcome"], row["token_source"]) for row in rows} == {("ok", "reported")}
    assert sum(row["prompt_tokens"] for row in rows) == totals["prompt_tokens"]
    assert sum(row["completion_tokens"] for row in rows) == totals["completion_tokens"]
    async with asyncio.timeout(30):  # the gauge is read from the ledger every second
        while await asyncio.to_thread(stand.total, "mcp_budget_reserved_usd"):
            await asyncio.sleep(0.1)


async def _create(http: httpx2.AsyncClient, address: str, text: str) -> str:
    wanted: dict[str, Any] = {"model": "gpt-4.1", "background": True, "max_output_tokens": 400}
    body = wanted | {"input": hashlib.sha256(text.encode()).hexdigest()}
    response = await http.post(f"{address}/v1/responses", json=body)
    return str(response.json()["status"])

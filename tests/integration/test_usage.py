"""The command line, the API and the MCP tool answer from one query: for every grouping they say the same."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal

import mcp
import pytest

from mcpmeter.cli._group import run
from mcpmeter.ledger.queries.selection import GROUPINGS


@pytest.fixture
async def busy(relay):
    """A relay that has answered calls that end in every way."""
    for stream in (False, True):
        for simulate in ("", "", "usage=missing", "status=503"):
            await relay.chat(simulate, stream=stream)
        await relay.chat(model="a-model-without-a-price", stream=stream)
    await relay.until_idle()
    return relay


@pytest.mark.parametrize("by", GROUPINGS)
async def test_the_three_say_the_same_and_it_is_the_ledgers(busy, capsys, by):
    answer = (await busy.ask(path=f"/api/usage?by={by}", method="GET")).json
    since, until = answer["since"], answer["until"]
    asked = ["report", "--by", by, "--since", since, "--until", until, "--ledger", str(busy.ledger), "--json"]
    assert await asyncio.to_thread(run, asked) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == answer

    host, port = busy.address
    async with mcp.Client(f"http://{host}:{port}/mcp") as client:
        result = await client.call_tool("usage_report", {"by": by, "since": since, "until": until})
    told = result.structured_content
    shown = ("calls", "open_calls", "prompt_tokens", "completion_tokens", "unpriced_calls")
    shown += ("estimated_calls", "partial_calls", "missing_calls")
    assert [(row["group"], *(row[name] for name in shown), row["usd"]) for row in told["rows"]] == [
        (row[by], *(row[name] for name in shown), row["cost_usd"]) for row in answer["rows"]
    ]
    assert told["total_usd"] == answer["total"]["cost_usd"]

    rows = busy.rows()
    assert answer["total"]["calls"] == len(rows) == sum(row["calls"] for row in answer["rows"])
    assert Decimal(answer["total"]["cost_usd"]).scaleb(9) == sum(row.cost_nanousd for row in rows) > 0
    assert answer["total"]["unpriced_calls"] > 0
    assert answer["total"]["estimated_calls"] > 0

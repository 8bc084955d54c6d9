"""The provider's own books as a bill in every form, against the ledger of the relay that was before it.

Everything runs as installed commands. The exact bill is found exact; one line made false is named, and nothing else.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

PRICES = {"gpt-4.1": (Decimal("2.50"), Decimal("10.00")), "deepseek-v3.2": (Decimal("0.27"), Decimal("1.10"))}
"""Dollars per million tokens, prompt and completion, as `holysheep` lists them."""
CALLS = 24
EXACT = ("--tolerance", "0", "--floor-usd", "0", "--json")


class Billed(NamedTuple):
    """What the simulator's books say of one call."""

    request_id: str
    day: str
    model: str
    prompt: int
    completion: int

    @property
    def usd(self) -> Decimal:
        read, written = PRICES[self.model]
        return (self.prompt * read + self.completion * written) / 10**6


async def ask(address: str) -> None:
    async with httpx2.AsyncClient(timeout=120, verify=False) as http:

        async def one(place: int) -> None:
            body: dict[str, Any] = {"model": list(PRICES)[place % 2], "stream": place % 3 == 0}
            body["messages"] = [{"role": "user", "content": f"Count to {place}."}]
            assert (await http.post(f"{address}/v1/chat/completions", json=body)).status_code == 200

        await asyncio.gather(*(one(place) for place in range(CALLS)))


@pytest.fixture
async def billed(stand) -> list[Billed]:
    """Calls through the relay, as the simulator booked them; days are those of the ledger."""
    await asyncio.to_thread(stand.start_simulator, "--seed", 7)
    stand.configure()
    await asyncio.to_thread(stand.start_relay)
    await ask(stand.address)
    books = await asyncio.to_thread(stand.billing_log, 10 * CALLS)
    await asyncio.to_thread(stand.relay.end)
    day_of = {row["upstream_request_id"]: _day(row["started_at_ns"]) for row in stand.rows()}
    columns = ("model", "prompt_tokens", "completion_tokens")
    calls = [
        Billed(call["request_id"], day_of[call["request_id"]], *(call[name] for name in columns))
        for call in books["calls"]
    ]
    assert len(calls) == CALLS
    return calls


Write = Callable[[list[Billed]], str]


def openrouter_csv(calls: list[Billed]) -> str:
    heads = ("generation_id", "created_at", "cost_total", "tokens_prompt", "tokens_completion", "model_permaslug")
    return _csv(heads, ((c.request_id, c.day, f"{c.usd:f}", c.prompt, c.completion, c.model) for c in calls))


def openrouter_json(calls: list[Billed]) -> str:
    items = [
        f'{{"date": "{day}", "model": "{model}", "model_permaslug": "{model}", "usage": {usd:f}, '
        f'"requests": {number}, "prompt_tokens": {prompt}, "completion_tokens": {completion}}}'
        for (day, model), (number, prompt, completion, usd) in _days(calls).items()
    ]
    return f'{{"data": [{", ".join(items)}]}}'


def openai_usage_json(calls: list[Billed]) -> str:
    return _page(
        calls,
        lambda model, sums: [
            {
                "object": "organization.usage.completions.result", "model": f"{model}-2025-04-14",
                "num_model_requests": sums[0], "input_tokens": sums[1], "output_tokens": sums[2],
            }
        ],
    )  # fmt: skip


def openai_usage_csv(calls: list[Billed]) -> str:
    heads = ("start_time", "model", "num_model_requests", "input_tokens", "output_tokens", "project_id")
    # Halves of each sum in two projects, as a team that has two would be billed.
    rows = (
        (_seconds(day), model, f"{number}.0", (prompt + side) // 2, (completion + side) // 2, side)
        for (day, model), (number, prompt, completion, _) in _days(calls).items()
        for side in (0, 1)
    )  # fmt: skip
    return _csv(heads, rows)


def openai_costs_json(calls: list[Billed]) -> str:
    return _page(
        calls,
        lambda model, sums: [
            {
                "object": "organization.costs.result", "line_item": f"{model}-2025-04-14, {kind}",
                "amount": {"value": f"{sums[place] * PRICES[model][place - 1] / 10**6:f}", "currency": "usd"},
            }
            for place, kind in ((1, "input"), (2, "output"))
        ],
    )  # fmt: skip


def openai_costs_csv(calls: list[Billed]) -> str:
    heads = ("start_time", "amount_value", "amount_currency", "line_item")
    usd_of: dict[str, Decimal] = defaultdict(Decimal)
    for call in calls:
        usd_of[call.day] += call.usd
    return _csv(heads, ((_seconds(day), f"{usd:.30f}", "usd", "") for day, usd in usd_of.items()))


def anthropic_usage_json(calls: list[Billed]) -> str:
    buckets = [
        {
            "starting_at": f"{day}T00:00:00Z",
            "results": [{"model": model, "uncached_input_tokens": prompt, "output_tokens": completion}],
        }
        for (day, model), (_, prompt, completion, _) in _days(calls).items()
    ]
    return json.dumps({"data": buckets, "has_more": False})


def anthropic_costs_json(calls: list[Billed]) -> str:
    buckets = [
        {
            "starting_at": f"{day}T00:00:00Z",
            "results": [{"model": model, "amount": f"{usd * 100:f}", "currency": "USD", "token_type": "all"}],
        }
        for (day, model), (_, _, _, usd) in _days(calls).items()
    ]
    return json.dumps({"data": buckets, "has_more": False})


def mapped_csv(calls: list[Billed]) -> str:
    return _csv(("Id", "Day", "Name", "In", "Out", "Cents"), (
        (c.request_id, c.day, c.model, c.prompt, c.completion, f"{c.usd * 100:f}") for c in calls
    ))  # fmt: skip


MAPPING = """provider = "holysheep"
cost_multiplier = "0.01"
[columns]
request_id = "Id"
time = "Day"
model = "Name"
prompt_tokens = "In"
completion_tokens = "Out"
cost = "Cents"
"""

FORMS: dict[str, Write] = {
    "openrouter.csv": openrouter_csv, "openrouter.json": openrouter_json, "openai_usage.json": openai_usage_json,
    "openai_usage.csv": openai_usage_csv, "openai_costs.json": openai_costs_json, "openai_costs.csv": openai_costs_csv,
    "anthropic_usage.json": anthropic_usage_json, "anthropic_costs.json": anthropic_costs_json,
    "mapped.csv": mapped_csv,
}  # fmt: skip


async def test_bills_agree_in_every_format_and_a_false_line_is_named(
    billed: list[Billed], run, stand, tmp_path: Path
) -> None:
    (tmp_path / "mapping.toml").write_text(MAPPING)

    def reconcile(name: str, calls: list[Billed]) -> tuple[int, dict[str, Any]]:
        bill = tmp_path / name
        bill.write_text(FORMS[name](calls))
        mapped = ("--mapping", tmp_path / "mapping.toml") if name == "mapped.csv" else ()
        finished = run("reconcile", f"holysheep={bill}", "--ledger", stand.ledger, *mapped, *EXACT)
        assert finished.stderr == "", name
        return finished.code, json.loads(finished.stdout)

    false = billed[3]._replace(prompt=billed[3].prompt + 1000)
    changed = [*billed[:3], false, *billed[4:]]
    for name in FORMS:
        code, output = await asyncio.to_thread(reconcile, name, billed)
        assert (name, code, output["differences"]) == (name, 0, [])
        (bill,) = output["bills"]
        assert bill["found"].keys() == {"matched"}
        assert bill["found"]["matched"]["ledger_calls"] == CALLS
        if bill["billed_usd"] is not None:
            assert bill["billed_usd"] == bill["ledger_usd"]
            assert Decimal(bill["billed_usd"]) == sum(call.usd for call in billed)

        code, output = await asyncio.to_thread(reconcile, name, changed)
        (difference,) = output["differences"]
        assert (name, code, difference["day"]) == (name, 1, false.day)
        assert difference["verdict"] == ("price" if "costs" in name else "tokens")
        assert difference["model"] == ("" if name == "openai_costs.csv" else false.model)
        if name in {"openrouter.csv", "mapped.csv"}:
            assert difference["request_id"] == false.request_id
            assert difference["where"] == f"{tmp_path / name}, line 5"


async def test_unbilled_and_twice_billed_calls_are_named(billed: list[Billed], run, stand, tmp_path: Path) -> None:
    bill = tmp_path / "bill.csv"
    bill.write_text(openrouter_csv([*billed[1:], billed[5], billed[6]._replace(request_id="req_of_somebody_else")]))
    words = ("reconcile", f"holysheep={bill}", "--ledger", stand.ledger, *EXACT)
    finished = await asyncio.to_thread(run, *words)
    found = {d["verdict"]: d["request_id"] for d in json.loads(finished.stdout)["differences"]}
    assert finished.code == 1
    assert found == {
        "missing_in_bill": billed[0].request_id,
        "duplicate": billed[5].request_id,
        "missing_in_ledger": "req_of_somebody_else",
    }


def _days(calls: Iterable[Billed]) -> dict[tuple[str, str], tuple[int, int, int, Decimal]]:
    sums: dict[tuple[str, str], tuple[int, int, int, Decimal]] = defaultdict(lambda: (0, 0, 0, Decimal(0)))
    for call in calls:
        number, prompt, completion, usd = sums[call.day, call.model]
        sums[call.day, call.model] = (number + 1, prompt + call.prompt, completion + call.completion, usd + call.usd)
    return sums


def _page(calls: list[Billed], results: Callable[[str, tuple[Any, ...]], list[dict[str, Any]]]) -> str:
    buckets = [
        {"object": "bucket", "start_time": _seconds(day), "results": results(model, sums)}
        for (day, model), sums in _days(calls).items()
    ]
    return json.dumps({"object": "page", "data": buckets, "has_more": False})


def _csv(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *rows])
    return text.getvalue()


def _seconds(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


def _day(ns: int) -> str:
    return datetime.fromtimestamp(ns // 10**9, UTC).date().isoformat()

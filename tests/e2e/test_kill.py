"""kill -9 under a mixed load: every completed call is in the ledger, once, and budgets equal the sum of its rows."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import pytest
from tests.e2e.killing import (
    CLIENTS,
    MIXED,
    PACE,
    Answered,
    Load,
    changed_by_restart,
    duplicates_of,
    missing_of,
    nanousd,
    spent_of,
)

ROUNDS = 3
ROUNDS_IN_FULL = 200
ANSWERS_BEFORE_THE_KILL = (10, 80)
BUDGETS = """
pricing: {fallback: {prompt_usd_per_mtok: 1.23, completion_usd_per_mtok: 4.56}}
budgets:
  - {name: whole, limit_usd: 1000000}
  - {name: search-month, team: search, limit_usd: 100000, time_zone: Europe/Berlin}
  - {name: search-model-week, team: search, model: deepseek-v3.2, period: week, limit_usd: 100000}
  - {name: support-key-month, key: support-key, limit_usd: 100000}
  - {name: model-month, model: gpt-4.1, limit_usd: 100000}
  - {name: embeddings-day, model: text-embedding-3-small, period: day, limit_usd: 100000}
"""


def wrong_budgets(stand: Any, rows: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """Budgets for which API, gauges and the sum of rows differ, or that still reserve something."""
    found = []
    samples = stand.samples()

    def gauge(name: str, budget: str) -> int:
        return nanousd(sum(s.value for s in samples.get(name, ()) if s.labels["budget"] == budget))

    for budget in stand.budgets():
        name = budget["name"]
        spent = nanousd(budget["spent_usd"]), gauge("mcp_budget_spent_usd", name), spent_of(rows, budget)
        reserved = nanousd(budget["reserved_usd"]), gauge("mcp_budget_reserved_usd", name)
        if len(set(spent)) > 1 or any(reserved):
            found.append((name, *spent, *reserved))
    return found


@pytest.mark.trial
async def test_no_answered_call_is_lost_and_budgets_match_after_kill_9(stand, team_keys, trials):
    stand.start_simulator("--seed", 5, *PACE)
    stand.configure(keys=team_keys, extra=BUDGETS)
    random = Random(23)
    secrets = [team_keys[team] for team in sorted(team_keys)]
    answered: list[Answered] = []
    wrong: list[tuple[object, ...]] = []
    cut = left_open = recovered = missing = duplicates = changed = 0
    seconds_to_restart: list[float] = []
    rounds = ROUNDS_IN_FULL if trials.full else ROUNDS
    await asyncio.to_thread(stand.start_relay)
    for _ in range(rounds):
        load = Load(lambda: stand.address, random, MIXED, secrets)
        running = asyncio.create_task(load.run())
        aim = random.randrange(*ANSWERS_BEFORE_THE_KILL)
        await load.until(lambda load=load, aim=aim: len(load.answered) >= aim)
        stand.relay.send(signal.SIGKILL)
        load.stopping = True
        await running
        assert (await asyncio.to_thread(stand.relay.end, None)).code == -signal.SIGKILL
        answered += load.answered
        cut += load.cut
        assert not load.refused
        before = await asyncio.to_thread(stand.rows)
        began = time.monotonic()
        await asyncio.to_thread(stand.start_relay)
        seconds_to_restart.append(time.monotonic() - began)
        after = await asyncio.to_thread(stand.rows)
        open_now = sum(row["state"] == "open" for row in before)
        left_open += open_now
        recovered_now = await asyncio.to_thread(stand.total, "mcp_ledger_recovered_total")
        assert recovered_now == open_now
        recovered += int(recovered_now)
        missing += missing_of(load.answered, after)
        duplicates = max(duplicates, duplicates_of(after))
        changed += changed_by_restart(before, after)
        wrong += await asyncio.to_thread(wrong_budgets, stand, after)

    rows = stand.rows()
    missing = max(missing, missing_of(answered, rows))
    still_open = sum(row["state"] == "open" for row in rows)
    by_model = Counter(row["model"] for row in rows)
    unwritten = sum(max(0, t["calls"] - by_model[model]) for model, t in stand.billing_log()["by_model"].items())
    kinds = Counter(call.kind for call in answered)
    trials.record(
        "kill -9 under a mixed load",
        f"The service is killed while {CLIENTS} clients of three teams call, and started again on the same ledger on "
        "SQLite. A call counts as answered when a client has its whole body, or its stream's end. After every restart "
        "all rows are read, and each of six budgets (of all calls, a team, a key, a model; by day, week and month, one "
        "in another time zone) has to equal the cost of its period's rows, in `/api/budgets` and in "
        "`mcp_budget_spent_usd`, to the nano-dollar, with nothing reserved.",
        {
            "kills": rounds,
            "answered calls": len(answered),
            "of them streams": kinds["stream"],
            "of them embeddings": kinds["embeddings"],
            "of them tool calls at /mcp": kinds["tool"],
            "calls cut off by a kill": cut,
            "answered calls missing from the ledger, or with other tokens": missing,
            "duplicates": duplicates,
            "settled rows that a restart changed": changed,
            "budgets that differed from the sum of their rows": len(wrong),
            "calls of the provider's billing log without a row": unwritten,
            "rows left open by a kill": left_open,
            "of them recovered at the next start": recovered,
            "rows open at the end": still_open,
            "seconds to restart, maximum": max(seconds_to_restart),
        },
    )

    assert wrong == []
    assert (missing, duplicates, changed, unwritten, still_open) == (0, 0, 0, 0, 0)
    assert recovered == left_open == sum(row["outcome"] == "recovered" for row in rows)
    assert recovered > 0, "no kill hit an open call: the load is too small to prove anything"
    assert kinds.keys() == set(MIXED)
    assert all(nanousd(budget["spent_usd"]) > 0 for budget in stand.budgets())
    assert all(row["token_source"] == "estimated" for row in rows if row["outcome"] == "recovered")
    assert stand.total("mcp_ledger_open_rows") == 0
    finished = stand.relay.end()
    assert finished.code == 0
    # On a disk that is slow for a moment, settlements go to the pending file.
    said = ("left open were settled as recovered", "its pending file")
    assert all(any(words in line for words in said) for line in finished.stderr.splitlines())

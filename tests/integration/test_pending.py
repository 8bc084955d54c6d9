"""Known costs survive an outage of the ledger: the client gets its answer, and the ledger the row when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from tests.disks import immutable, loop_mounted, make_image
from tests.outages import moved, replaced

from mcpmeter.config import LedgerSettings
from mcpmeter.ledger.maintenance.verify import verify


@pytest.fixture
def new_place(tmp_path: Path) -> Callable[[], Path]:
    """One ledger for all services of a test."""
    return lambda: tmp_path / "state" / "ledger.db"


@contextlib.contextmanager
def locked(ledger: Path) -> Iterator[None]:
    """Another program holds the file."""
    other = apsw.Connection(str(ledger))
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def ready(relay) -> int:
    return (await relay.ask(path="/-/ready", method="GET")).status


async def calls_in_flight(relay, count: int = 4) -> list[asyncio.Task]:
    """Calls, JSON and streamed, that the provider answers in a moment."""
    tasks = [asyncio.create_task(relay.chat("latency_ms=400", stream=number % 2 == 1)) for number in range(count)]
    await relay.until(lambda: relay.service._store.open_rows == count)
    return tasks


def settled_as_reported(relay) -> int:
    return sum(
        (row.state, row.outcome, row.token_source) == ("settled", "ok", "reported") and row.cost_nanousd > 0
        for row in relay.rows()
    )


@pytest.mark.parametrize("outage", [locked, moved, replaced])
async def test_known_costs_survive_an_outage(relay, outage):
    before = relay.counts()
    tasks = await calls_in_flight(relay)
    with outage(relay.ledger):
        began = time.monotonic()
        replies = await asyncio.gather(*tasks)
        assert time.monotonic() - began < 1.5
        assert [reply.status for reply in replies] == [200] * 4
        assert (await relay.scrape()).of("mcp_settlements_pending") == 4
        assert (await relay.chat()).error["code"] == "ledger_unavailable"
    await relay.until_idle()
    assert settled_as_reported(relay) == 4
    after = await relay.scrape()
    assert after.of("mcp_settlements_pending") == 0
    assert after.since(before, "mcp_requests_total")["/v1/chat/completions", "POST", "200"] == 4
    assert after.since(before, "mcp_errors_total") == {("internal_error", "server"): 1}
    assert (await relay.chat()).status == 200


async def test_a_locked_ledger_is_not_ready_within_two_seconds_and_refuses_soon(relay):
    with locked(relay.ledger):
        async with asyncio.timeout(2.2):
            while await ready(relay) == 200:
                await asyncio.sleep(0.02)
        began = time.monotonic()
        assert (await relay.chat()).error["code"] == "ledger_unavailable"
        assert time.monotonic() - began < 2
    await relay.until(lambda: relay.service._store.healthy)
    assert await ready(relay) == 200


async def test_stopping_leaves_pending_costs_to_the_next_start(start_relay):
    relay = await start_relay()
    tasks = await calls_in_flight(relay)
    with locked(relay.ledger):
        await asyncio.gather(*tasks)
        began = time.monotonic()
        await relay.end()
        assert time.monotonic() - began < 6
    after = await start_relay(upstream=relay.simulator.base_url)
    assert settled_as_reported(relay) == 4
    assert (after.service.recovered, (await after.scrape()).of("mcp_settlements_pending")) == (0, 0)
    await after.end()
    assert verify(relay.ledger).wrong == []


@pytest.fixture
def pending_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk for the pending file, which can be made immutable there."""
    image = make_image(tmp_path / "image", 32 * 2**20)
    with loop_mounted(image, tmp_path / "disk") as disk:
        yield disk


async def test_no_call_is_taken_while_known_costs_are_only_in_memory(start_relay, pending_disk):
    relay = await start_relay(ledger_settings=LedgerSettings(pending_path=pending_disk))
    before = relay.counts()
    tasks = await calls_in_flight(relay)
    with locked(relay.ledger), immutable(pending_disk / "ledger.db.pending"):
        replies = await asyncio.gather(*tasks)
        assert {reply.status for reply in replies} == {200, 503}, (
            "a stream's headers are out, and its error is an event"
        )
        assert not any(b"[DONE]" in reply.body or b'"usage"' in reply.body for reply in replies)
        reply = await relay.ask(path="/-/ready", method="GET")
        assert (reply.status, b"settled calls wait" in reply.body or b"ledger cannot" in reply.body) == (503, True)
        made = relay.simulator.billing_log.totals.calls
        began = time.monotonic()
        assert (await relay.chat()).error["code"] == "ledger_unavailable"
        assert time.monotonic() - began < 0.2
        assert relay.simulator.billing_log.totals.calls == made
    await relay.until_idle()
    assert await ready(relay) == 200
    (rows, after) = (relay.rows(), await relay.scrape())
    assert settled_as_reported(relay) == 4
    assert sum(after.since(before, "mcp_tokens_total").values()) == sum(
        row.prompt_tokens + row.completion_tokens for row in rows
    )
    await relay.end()


async def test_what_could_be_written_nowhere_is_logged_at_the_end(start_relay, pending_disk, caplog):
    relay = await start_relay(ledger_settings=LedgerSettings(pending_path=pending_disk))
    tasks = await calls_in_flight(relay)
    with locked(relay.ledger), immutable(pending_disk / "ledger.db.pending"):
        await asyncio.gather(*tasks)
        await relay.end()
    lines = [line for line in caplog.messages if "could not be written anywhere" in line]
    assert {row.id for row in relay.rows()} == {line.split(": ")[1].split(",")[0] for line in lines}
    assert all("tokens" in line and "nano-dollars" in line for line in lines)
    assert relay.service.recorder.families["mcp_settlements_unwritten_total"].cell().value == 4

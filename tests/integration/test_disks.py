"""Real disks under a running service, full and read-only: no call passes unmetered, and it recovers by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.disks import break_file_system, immutable, loop_mounted, make_image, small_disk

from mcpmeter.ledger.location import Location
from mcpmeter.ledger.maintenance.verify import verify

MAX_ROUNDS = 200
BLOCK = bytes(16 * 1024)
MAX_BLOCKS = 10_000
"""More than the disk has."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Eight megabytes, five of which an empty ledger and its pending file use."""
    with small_disk(tmp_path / "disk", "8m") as folder:
        yield folder


@pytest.fixture
def new_place(disk: Path) -> Callable[[], Location]:
    return lambda: disk / "state" / "ledger.db"


class Traffic:
    """Concurrent calls, JSON and streamed, and which of them clients received completely."""

    def __init__(self, relay) -> None:
        self.relay = relay
        self.complete: list[str] = []
        self.failed: list[str] = []
        """Failed by 503, or by an error as the stream's last event."""

    async def calls(self, count: int = 8) -> None:
        replies = await asyncio.gather(*(self.relay.chat(stream=number % 2 == 0) for number in range(count)))
        for reply in replies:
            self._note(reply)

    def _note(self, reply) -> None:
        call_id = reply.headers["x-mcpmeter-call-id"]
        streamed = reply.headers["content-type"].startswith("text/event-stream")
        last = json.loads(reply.events[-1]) if streamed and reply.events[-1] != b"[DONE]" else {}
        if reply.status == 200 and "error" not in last:
            self.complete.append(call_id)
            return
        error = last["error"] if streamed else reply.error
        assert (reply.status, error["code"]) in ((503, "ledger_unavailable"), (200, "ledger_unavailable"))
        assert b"completion_tokens" not in reply.body
        self.failed.append(call_id)

    async def until_refused(self, ballast: Path | None = None) -> None:
        """Call until all calls of a round are refused. `ballast` takes the space that the ledger gives back between."""
        for _ in range(MAX_ROUNDS):
            complete = len(self.complete)
            await self.calls()
            if ballast is not None:
                grow(ballast, MAX_BLOCKS)
            if len(self.complete) == complete:
                return
        raise AssertionError("the service never noticed")

    async def check(self) -> None:
        """Complete responses have exactly one settled row, as soon as the ledger can be written; others have none."""
        assert self.complete
        if self.relay.service._store.healthy:
            await self.relay.until(lambda: not len(self.relay.service.pending))
        rows = {row.id: row for row in self.relay.rows()}
        waiting = {call for call in self.complete if call in self.relay.service.pending}
        settled = [row.id for row in rows.values() if row.state == "settled"]
        assert sorted([*settled, *waiting]) == sorted(self.complete)
        assert rows.keys() - set(self.complete) <= set(self.failed)
        assert all(rows[call].token_source == "reported" and rows[call].cost_nanousd > 0 for call in settled)
        assert self.relay.simulator.billing_log.totals.calls == len(rows)


async def ready(relay) -> int:
    return (await relay.ask(path="/-/ready", method="GET")).status


async def until_ready(relay) -> None:
    await relay.until(lambda: relay.service._store.healthy)
    assert await ready(relay) == 200


async def is_refused(relay) -> None:
    assert await ready(relay) == 503
    assert (await relay.ask(path="/health", method="GET")).status == 200
    assert (await relay.scrape()).of("mcp_ledger_healthy") == 0
    made = relay.simulator.billing_log.totals.calls
    reply = await relay.chat()
    assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
    assert relay.simulator.billing_log.totals.calls == made


def grow(ballast: Path, blocks: int) -> bool:
    """Append blocks to a file; returns whether the disk had space for all of them."""
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        return all(file.write(BLOCK) == len(BLOCK) for _ in range(blocks))
    return False


async def test_no_call_passes_unmetered_on_a_disk_that_fills_up(relay, disk):
    traffic, ballast = Traffic(relay), disk / "ballast"
    while grow(ballast, 20):
        await traffic.calls()
    await traffic.until_refused(ballast)
    await is_refused(relay)
    await traffic.check()

    ballast.unlink()
    await until_ready(relay)
    refused = len(traffic.failed)
    await traffic.calls()
    assert len(traffic.failed) == refused
    await traffic.check()


async def test_known_costs_survive_a_full_disk_and_a_restart(relay, start_relay, disk):
    traffic, ballast = Traffic(relay), disk / "ballast"
    while grow(ballast, 20):
        await traffic.calls()
    await traffic.until_refused()
    await traffic.check()
    await relay.end()
    ballast.unlink()

    after = await start_relay(upstream=relay.simulator.base_url)
    assert await ready(after) == 200
    rows = after.rows()
    assert sorted(row.id for row in rows if row.outcome == "ok") == sorted(traffic.complete)
    assert all(row.outcome in ("ok", "recovered") for row in rows)
    await after.end()
    assert verify(after.ledger).wrong == []


class TestOnADisk:
    """On an ext4 in a file."""

    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        return make_image(tmp_path / "image", 32 * 2**20)

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Path:
        """Where it is mounted."""
        return tmp_path / "disk"

    async def test_calls_are_refused_while_the_files_are_immutable(self, image, disk, start_relay):
        with loop_mounted(image, disk):
            relay = await start_relay()
            traffic = Traffic(relay)
            await traffic.calls()
            with immutable(relay.ledger, relay.ledger.with_name("ledger.db-wal")):
                await traffic.until_refused()
                await is_refused(relay)
                await traffic.check()
            await until_ready(relay)
            refused = len(traffic.failed)
            await traffic.calls()
            assert len(traffic.failed) == refused
            await traffic.check()
            await relay.end()

    async def test_a_disk_that_turned_read_only_keeps_completed_calls(self, image, disk, start_relay):
        with loop_mounted(image, disk):
            relay = await start_relay()
            traffic = Traffic(relay)
            await traffic.calls()
            break_file_system(disk)
            await traffic.until_refused()
            await is_refused(relay)
            await traffic.check()
            await relay.end()
        # The file system stays read-only until it is mounted again.
        with loop_mounted(image, disk):
            after = await start_relay(upstream=relay.simulator.base_url)
            assert await ready(after) == 200
            rows = after.rows()
            assert sorted(row.id for row in rows if row.outcome == "ok") == sorted(traffic.complete)
            assert all(row.outcome in ("ok", "recovered") for row in rows)
            assert (await after.chat()).status == 200
            await after.end()
            assert verify(after.ledger).wrong == []

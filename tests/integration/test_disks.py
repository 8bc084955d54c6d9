"""Real disks under a running service, full and read-only: no call passes unmetered, and it goes on by itself."""

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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Three megabytes, of which an empty ledger takes a part."""
    with small_disk(tmp_path / "disk", "3m") as folder:
        yield folder


@pytest.fixture
def new_place(disk: Path) -> Callable[[], Location]:
    return lambda: disk / "state" / "ledger.db"


class Traffic:
    """Calls at once, whole and streamed, and which of them their clients got whole."""

    def __init__(self, relay) -> None:
        self.relay = relay
        self.whole: list[str] = []
        self.failed: list[str] = []
        """Told so: 503, or the error as the stream's last event."""

    async def calls(self, count: int = 8) -> None:
        replies = await asyncio.gather(*(self.relay.chat(stream=number % 2 == 0) for number in range(count)))
        for reply in replies:
            self._note(reply)

    def _note(self, reply) -> None:
        call_id = reply.headers["x-mcpmeter-call-id"]
        streamed = reply.headers["content-type"].startswith("text/event-stream")
        told = json.loads(reply.events[-1]) if streamed and reply.events[-1] != b"[DONE]" else {}
        if reply.status == 200 and "error" not in told:
            self.whole.append(call_id)
            return
        error = told["error"] if streamed else reply.error
        assert (reply.status, error["code"]) in ((503, "ledger_unavailable"), (200, "ledger_unavailable"))
        assert b"completion_tokens" not in reply.body
        self.failed.append(call_id)

    async def until_refused(self) -> None:
        """Calls until a round of them is refused to the last."""
        for _ in range(MAX_ROUNDS):
            whole = len(self.whole)
            await self.calls()
            if len(self.whole) == whole:
                return
        raise AssertionError("the service never noticed")

    def check(self) -> None:
        """Whole answers have their one settled row; no other call has one, and each that was made has its row."""
        assert self.whole
        rows = {row.id: row for row in self.relay.rows()}
        settled = [row.id for row in rows.values() if row.state == "settled"]
        assert sorted(settled) == sorted(self.whole)
        assert rows.keys() - set(settled) <= set(self.failed)
        assert all(rows[call].token_source == "reported" and rows[call].cost_nanousd > 0 for call in self.whole)
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
    """Add to a file that takes the room away; whether there still was room for all of it."""
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        return all(file.write(BLOCK) == len(BLOCK) for _ in range(blocks))
    return False


async def test_a_disk_that_fills_under_traffic_lets_no_call_pass_unmetered_and_room_mends_it(relay, disk):
    traffic, ballast = Traffic(relay), disk / "ballast"
    while grow(ballast, 20):
        await traffic.calls()
    await traffic.until_refused()
    await is_refused(relay)
    traffic.check()

    ballast.unlink()
    await until_ready(relay)
    refused = len(traffic.failed)
    await traffic.calls()
    assert len(traffic.failed) == refused
    traffic.check()


async def test_what_a_full_disk_left_open_is_settled_by_the_next_start_and_nothing_is_doubled(relay, start_relay, disk):
    traffic, ballast = Traffic(relay), disk / "ballast"
    while grow(ballast, 20):
        await traffic.calls()
    await traffic.until_refused()
    traffic.check()
    left_open = {row.id for row in relay.rows() if row.state == "open"}
    await relay.end()
    ballast.unlink()

    after = await start_relay(upstream=relay.simulator.base_url)
    assert await ready(after) == 200
    rows = after.rows()
    assert {row.id for row in rows if row.outcome == "recovered"} == left_open
    assert sorted(row.id for row in rows if row.outcome == "ok") == sorted(traffic.whole)
    assert all(row.state == "settled" for row in rows)
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

    async def test_files_that_may_not_be_changed_refuse_calls_until_they_may_be(self, image, disk, start_relay):
        with loop_mounted(image, disk):
            relay = await start_relay()
            traffic = Traffic(relay)
            await traffic.calls()
            with immutable(relay.ledger, relay.ledger.with_name("ledger.db-wal")):
                await traffic.until_refused()
                await is_refused(relay)
                traffic.check()
            await until_ready(relay)
            refused = len(traffic.failed)
            await traffic.calls()
            assert len(traffic.failed) == refused
            traffic.check()
            await relay.end()

    async def test_a_disk_that_turned_read_only_keeps_what_was_answered_for_the_next_start(
        self, image, disk, start_relay
    ):
        with loop_mounted(image, disk):
            relay = await start_relay()
            traffic = Traffic(relay)
            await traffic.calls()
            break_file_system(disk)
            await traffic.until_refused()
            await is_refused(relay)
            traffic.check()
            await relay.end()
        # The kernel lets nobody write to it before it is mounted anew.
        with loop_mounted(image, disk):
            after = await start_relay(upstream=relay.simulator.base_url)
            assert await ready(after) == 200
            rows = after.rows()
            assert sorted(row.id for row in rows if row.outcome == "ok") == sorted(traffic.whole)
            assert all(row.outcome in ("ok", "recovered") for row in rows)
            assert (await after.chat()).status == 200
            await after.end()
            assert verify(after.ledger).wrong == []

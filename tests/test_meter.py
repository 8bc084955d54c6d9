"""A call is written down before it is sent, and settled exactly once on every path."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcpmeter.errors import (
    ClientDisconnected,
    LedgerUnavailable,
    RateLimited,
    ServiceFault,
    UpstreamDisconnected,
)
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import RowRefused, SettlementConflict, Store
from mcpmeter.ledger.write_queue import fail, resolve
from mcpmeter.meter import CallIds, CallResult, Meter, OpenCall, SettledTwice, new_call_id
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import (
    Call,
    Charge,
    Key,
    LedgerRow,
    LlmTarget,
    McpTarget,
    ObjectState,
    ProviderObject,
    Settlement,
    Usage,
)

TARGET = LlmTarget(provider="holysheep", model="gpt-4.1", stream=True, prompt_tokens_estimate=11)
USAGE = Usage(prompt_tokens=10, completion_tokens=5, source="reported")
OK = CallResult(status="200", usage=USAGE, response_model="gpt-4.1", chunks=3)


class MemoryStore:
    """`ledger.store.Store` in memory. `on_open` and `on_settle` are awaited before a row is kept."""

    def __init__(self) -> None:
        self.rows: dict[str, Call] = {}
        self.settled: dict[str, Settlement] = {}
        self.left: list[LedgerRow] = []
        self.on_open: Callable[[Call], Any] = _at_once
        self.on_settle: Callable[[Settlement], Any] = _at_once
        self.healthy = True
        self._keys: list[Key] = []
        self._writes: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        await asyncio.gather(*self._writes, return_exceptions=True)

    def open(self, call: Call) -> asyncio.Future[None]:
        return self._queued(self._open(call))

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        return self._queued(self._settle(settlement))

    def _queued(self, write: Any) -> asyncio.Future[None]:
        # As in a real ledger: ending the future does not take the row out of the queue.
        loop = asyncio.get_running_loop()
        future, task = loop.create_future(), loop.create_task(write)
        self._writes.add(task)

        def done(_: asyncio.Task[None]) -> None:
            if (error := task.exception()) is not None:
                fail(future, error)
            else:
                resolve(future, None)

        task.add_done_callback(done)
        return future

    async def ledger_id(self) -> str:
        return "memory"

    async def _open(self, call: Call) -> None:
        await self.on_open(call)
        if call.id in self.rows:
            raise RowRefused("The id is taken.")
        self.rows[call.id] = call

    async def _settle(self, settlement: Settlement) -> None:
        await self.on_settle(settlement)
        is_left = any(row.id == settlement.call.id for row in self.left)
        if settlement.call.id not in self.rows and not is_left:
            raise SettlementConflict("No such row was opened.")
        if self.settled.setdefault(settlement.call.id, settlement) != settlement:
            raise SettlementConflict("The row was settled with another payload.")

    async def add_object(self, kept: ProviderObject) -> None:
        raise NotImplementedError

    async def find_object(self, object_id: str, team: str) -> ProviderObject | None:
        raise NotImplementedError

    async def end_object(self, kept: ProviderObject, state: ObjectState, at_ns: int) -> None:
        raise NotImplementedError

    async def pending_objects(self) -> Sequence[tuple[ProviderObject, LedgerRow]]:
        raise NotImplementedError

    async def row_of_call(self, call_id: str) -> LedgerRow | None:
        raise NotImplementedError

    async def left_open(self) -> Sequence[LedgerRow]:
        return [row for row in self.left if row.id not in self.settled]

    async def keys(self) -> Sequence[Key]:
        return self._keys

    async def keys_changed(self) -> bool:
        return False

    async def add_key(self, key: Key) -> None:
        self._keys.append(key)

    async def change_key(self, key_id: str, change: Callable[[Key], Key]) -> Key | None:
        raise NotImplementedError

    async def probe(self) -> None:
        pass

    @property
    def open_rows(self) -> int:
        return len(self.rows.keys() - self.settled.keys())


async def _at_once(_: object) -> None:
    pass


class Prices:
    """One nano-dollar per token; keeps the arguments of each charge."""

    def __init__(self) -> None:
        self.charged: list[tuple[LlmTarget, str, Usage, int, int | None]] = []

    def charge_for(
        self,
        target: LlmTarget,
        response_model: str,
        usage: Usage,
        at_ns: int,
        reported_nanousd: int | None,
        *,
        reported_is_part: bool = False,
    ) -> Charge:
        self.charged.append((target, response_model, usage, at_ns, reported_nanousd))
        nanousd = usage.prompt_tokens + usage.completion_tokens
        return Charge(nanousd=nanousd, source="listed", reported_nanousd=reported_nanousd)


@pytest.fixture
def recorder() -> Recorder:
    recorder = Recorder()
    recorder.label_allowlist.register("endpoint", ["/v1/chat/completions"])
    recorder.label_allowlist.register("model", ["gpt-4.1"])
    recorder.label_allowlist.register("provider", ["holysheep"])
    recorder.label_allowlist.register("team", ["search"])
    return recorder


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def prices() -> Prices:
    return Prices()


@pytest.fixture
def meter(recorder: Recorder, store: MemoryStore, prices: Prices) -> Meter:
    typed: Store = store
    return Meter(recorder, store=typed, prices=prices)


def open_call(meter: Meter) -> OpenCall:
    return meter.open("/v1/chat/completions", "POST", team="search")


def with_target(opened: OpenCall) -> Call:
    return msgspec.structs.replace(opened.call, llm=TARGET)


async def open_with_row(meter: Meter) -> OpenCall:
    opened = open_call(meter)
    await opened.write_down(with_target(opened))
    return opened


def total(recorder: Recorder, name: str) -> int:
    return sum(cell.value for cell in recorder.families[name].cells.values())


def statuses(recorder: Recorder) -> dict[str, int]:
    return {labels[2]: cell.value for labels, cell in recorder.families["mcp_requests_total"].cells.items()}


def money_and_tokens(recorder: Recorder) -> tuple[int, int]:
    return total(recorder, "mcp_cost_usd_total"), total(recorder, "mcp_tokens_total")


class TestIds:
    @pytest.mark.parametrize("new", [CallIds().new, lambda at_ns: new_call_id()])
    def test_an_id_holds_80_random_bits_and_never_repeats(self, new: Callable[[int], str]) -> None:
        ids = {new(1) for _ in range(10_000)}
        assert len(ids) == 10_000
        assert all(re.fullmatch(r"call_[0-9a-f]{32}", made) for made in ids)
        digits = Counter("".join(made[-20:] for made in ids))
        assert min(digits.values()) > 0.9 * max(digits.values())

    def test_an_id_sorts_by_time(self) -> None:
        milliseconds = (1, 9, 10, 255, 256, 1_793_534_400_000, 1_793_534_400_001, 2**47)
        ids = [CallIds().new(at * 1_000_000) for at in milliseconds]
        assert ids == sorted(ids)

    def test_threads_never_make_the_same_id(self) -> None:
        ids = CallIds()
        with ThreadPoolExecutor(8) as threads:
            made = [
                made for batch in threads.map(lambda _: [ids.new(1) for _ in range(500)], range(16)) for made in batch
            ]
        assert len(set(made)) == len(made)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_forked_child_makes_other_ids_than_its_parent(self, recorder: Recorder) -> None:
        meter = Meter(recorder)
        open_call(meter)  # so that a block of entropy is in use
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with os.fdopen(writing, "w") as out:
                out.write("\n".join(open_call(meter).call.id for _ in range(200)))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as received:
            of_child = received.read().split()
        assert os.waitpid(child, 0)[1] == 0
        of_parent = [open_call(meter).call.id for _ in range(200)]
        # The time in front may differ anyway; the random digits must.
        assert len({made[-20:] for made in (*of_child, *of_parent)}) == 400


class TestOneSettlementManyViews:
    async def test_ledger_metrics_and_caller_get_the_same_record(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        opened = await open_with_row(meter)
        settlement = await opened.settle(OK)
        assert settlement is opened.settled
        assert store.settled == {opened.call.id: settlement}
        assert settlement.charge == Charge(nanousd=15, source="listed")
        assert money_and_tokens(recorder) == (15, 15)
        assert statuses(recorder) == {"200": 1}

    async def test_the_row_is_durable_before_write_down_returns(self, meter: Meter, store: MemoryStore) -> None:
        on_disk = asyncio.Event()
        store.on_open = lambda call: on_disk.wait()
        opened = open_call(meter)
        writing = asyncio.create_task(opened.write_down(with_target(opened)))
        await asyncio.sleep(0)
        assert not writing.done()
        on_disk.set()
        await writing
        assert store.rows == {opened.call.id: opened.call}

    async def test_nothing_is_counted_before_the_settlement_is_durable(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        reached, on_disk = asyncio.Event(), asyncio.Event()

        async def slow_disk(settlement: Settlement) -> None:
            reached.set()
            await on_disk.wait()

        store.on_settle = slow_disk
        opened = await open_with_row(meter)
        settling = asyncio.create_task(opened.settle(OK))
        await reached.wait()
        assert (statuses(recorder), settling.done()) == ({}, False)
        on_disk.set()
        await settling
        assert statuses(recorder) == {"200": 1}

    async def test_a_call_is_charged_once_by_its_own_figures(self, meter: Meter, prices: Prices) -> None:
        opened = await open_with_row(meter)
        await opened.settle(msgspec.structs.replace(OK, reported_nanousd=12))
        assert prices.charged == [(TARGET, "gpt-4.1", USAGE, opened.call.started_at_ns, 12)]

    @pytest.mark.parametrize("usage", [None, USAGE])
    async def test_a_call_without_model_or_usage_is_not_charged(
        self, meter: Meter, prices: Prices, recorder: Recorder, usage: Usage | None
    ) -> None:
        opened = open_call(meter)
        settlement = opened.count(CallResult(status="400", usage=usage, error=RateLimited("Too many.")))
        assert (settlement.charge, prices.charged, money_and_tokens(recorder)) == (None, [], (0, 0))

    async def test_without_prices_only_the_reported_cost_is_kept(self, recorder: Recorder) -> None:
        opened = await open_with_row(Meter(recorder))
        settlement = await opened.settle(msgspec.structs.replace(OK, reported_nanousd=12))
        assert settlement.charge == Charge(source="unpriced", reported_nanousd=12)

    async def test_the_librarys_meter_needs_neither_store_nor_prices(self, recorder: Recorder) -> None:
        opened = Meter(recorder).open("/v1/chat/completions", "tools/call", mcp=McpTarget(method="tools/call"))
        opened.count(CallResult(status="ok"))
        assert statuses(recorder) == {"ok": 1}

    async def test_a_result_may_override_what_its_error_says(self, meter: Meter) -> None:
        plain = open_call(meter).count(CallResult(status="502", outcome="error", error=UpstreamDisconnected("Gone.")))
        assert (plain.error_type, plain.error_side, plain.error_id) == ("upstream_error", "upstream", "upstream_broke")
        assert plain.otel_error_type == "upstream_error"
        result = CallResult(
            status="502", error=UpstreamDisconnected("Gone."), error_side="client", otel_error_type="timeout"
        )
        overridden = open_call(meter).count(result)
        assert (overridden.error_side, overridden.otel_error_type) == ("client", "timeout")

    async def test_times_are_monotonic_and_add_up(self, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mcpmeter.meter.time.time_ns", lambda: 1_000)
        monkeypatch.setattr("mcpmeter.meter.time.monotonic_ns", lambda: 50)
        opened = open_call(meter)
        monkeypatch.setattr("mcpmeter.meter.time.time_ns", lambda: 0)  # the clock is set back meanwhile
        monkeypatch.setattr("mcpmeter.meter.time.monotonic_ns", lambda: 75)
        settlement = opened.count(CallResult(status="200"))
        assert (settlement.duration_ns, settlement.ended_at_ns) == (25, 1_025)


class TestExactlyOnce:
    async def test_a_second_settlement_is_refused_and_changes_nothing(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        opened = await open_with_row(meter)
        first = await opened.settle(OK)
        for again in (opened.settle(OK), opened.settle(CallResult(status="500"))):
            with pytest.raises(SettledTwice):
                await again
        assert store.settled == {opened.call.id: first}
        assert statuses(recorder) == {"200": 1}

    async def test_a_counted_call_cannot_be_counted_or_settled_again(self, meter: Meter, recorder: Recorder) -> None:
        opened = open_call(meter)
        opened.count(CallResult(status="401"))
        with pytest.raises(SettledTwice):
            opened.count(CallResult(status="401"))
        with pytest.raises(SettledTwice):
            await opened.settle(CallResult(status="401"))
        assert statuses(recorder) == {"401": 1}

    async def test_one_of_many_concurrent_settlements_wins(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        opened = await open_with_row(meter)
        ends = await asyncio.gather(*(opened.settle(OK) for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(end, Settlement) for end in ends) == 1
        assert sum(isinstance(end, SettledTwice) for end in ends) == 19
        assert statuses(recorder) == {"200": 1}
        assert len(store.settled) == 1

    async def test_a_call_with_a_row_is_never_only_counted(self, meter: Meter, recorder: Recorder) -> None:
        opened = await open_with_row(meter)
        with pytest.raises(ServiceFault, match="has to be settled"):
            opened.count(OK)
        assert not opened.is_settled
        await opened.settle(OK)
        assert statuses(recorder) == {"200": 1}

    async def test_an_open_call_has_no_settlement_to_read(self, meter: Meter) -> None:
        opened = await open_with_row(meter)
        with pytest.raises(ServiceFault, match="not settled yet"):
            assert opened.settled
        await opened.settle(OK)

    async def test_end_settles_a_row_or_counts_without_one(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        opened = await open_with_row(meter)
        await opened.end(OK)
        refused = open_call(meter)
        await refused.end(CallResult(status="401"))
        assert set(store.settled) == {opened.call.id}
        assert statuses(recorder) == {"200": 1, "401": 1}


class TestBrokenLedger:
    @pytest.mark.parametrize("fault", [LedgerUnavailable("The disk is full."), RowRefused("Out of 64 bits.")])
    async def test_a_call_that_cannot_be_written_down_is_counted_only(
        self, meter: Meter, store: MemoryStore, recorder: Recorder, fault: ServiceFault
    ) -> None:
        store.on_open = raising(fault)
        opened = open_call(meter)
        with pytest.raises(type(fault)):
            await opened.write_down(with_target(opened))
        settlement = opened.count(CallResult(status="503", outcome="error", error=fault))
        assert settlement.error_id == fault.id
        assert (store.rows, store.settled, money_and_tokens(recorder)) == ({}, {}, (0, 0))
        assert statuses(recorder) == {"503": 1}

    @pytest.mark.parametrize(
        "fault",
        [
            LedgerUnavailable("The disk is full.", hint="Free some."),
            SettlementConflict("Another payload."),
            OSError(28),
        ],
        ids=["unavailable", "conflict", "the store's own fault"],
    )
    async def test_a_failed_settlement_is_our_error_without_cost(
        self, meter: Meter, store: MemoryStore, recorder: Recorder, fault: Exception
    ) -> None:
        opened = await open_with_row(meter)
        store.on_settle = raising(fault)
        with pytest.raises(LedgerUnavailable) as caught:
            await opened.settle(OK)
        assert caught.value.__cause__ is fault
        assert store.open_rows == 1
        assert statuses(recorder) == {"503": 1}
        assert money_and_tokens(recorder) == (0, 0)
        assert (opened.settled.status, opened.settled.usage, opened.settled.charge) == ("503", None, None)
        assert opened.settled.error_id == "ledger_unavailable"
        with pytest.raises(SettledTwice):
            await opened.settle(OK)

    async def test_an_unknown_fault_of_the_store_hides_its_text(self, meter: Meter, store: MemoryStore) -> None:
        opened = await open_with_row(meter)
        store.on_settle = raising(RuntimeError("row with a secret"))
        with pytest.raises(LedgerUnavailable) as caught:
            await opened.settle(OK)
        assert "secret" not in str(caught.value)
        assert "RuntimeError" in str(caught.value)


class KeptInMemory(dict[str, Settlement]):
    """Pending settlements without a file; `fault` is why the next one is not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.unwritten: set[str] = set()
        self.fault: Exception | None = None
        self.counted: set[str] = set()

    def keep(self, settlement: Settlement, *, is_counted: bool = False) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self[settlement.call.id] = settlement
        if is_counted:
            self.counted.add(settlement.call.id)
        if self.fault is None:
            future.set_result(None)
        else:
            future.set_exception(self.fault)
        return future


class TestPending:
    @pytest.fixture
    def pending(self) -> KeptInMemory:
        return KeptInMemory()

    @pytest.fixture
    def meter(self, recorder: Recorder, store: MemoryStore, prices: Prices, pending: KeptInMemory) -> Meter:
        return Meter(recorder, store=store, prices=prices, pending=pending, settle_seconds=0.05)

    async def test_a_settlement_the_ledger_does_not_answer_is_kept_and_counted_once(
        self, meter: Meter, store: MemoryStore, pending: KeptInMemory, recorder: Recorder
    ) -> None:
        on_disk = asyncio.Event()
        store.on_settle = lambda settlement: on_disk.wait()
        calls = [await open_with_row(meter) for _ in range(3)]
        settlements = await asyncio.gather(*(opened.settle(OK) for opened in calls))
        assert list(pending.values()) == settlements
        assert (statuses(recorder), money_and_tokens(recorder)) == ({"200": 3}, (45, 45))
        on_disk.set()  # the ledger answers after all
        await store.close()
        assert list(store.settled.values()) == settlements
        assert statuses(recorder) == {"200": 3}

    async def test_an_answer_in_time_keeps_nothing(self, meter: Meter, pending: KeptInMemory) -> None:
        for _ in range(5):
            await (await open_with_row(meter)).settle(OK)
            await asyncio.sleep(0.03)
        assert not pending

    @pytest.mark.parametrize("fault", [LedgerUnavailable("The disk is full."), OSError(28)], ids=type)
    async def test_what_an_outage_fails_is_kept(
        self, meter: Meter, store: MemoryStore, pending: KeptInMemory, recorder: Recorder, fault: Exception
    ) -> None:
        store.on_settle = raising(fault)
        opened = await open_with_row(meter)
        settlement = await opened.settle(OK)
        assert pending == {opened.call.id: settlement}
        assert statuses(recorder) == {"200": 1}

    async def test_a_ledger_known_to_fail_is_not_waited_for(
        self, meter: Meter, store: MemoryStore, pending: KeptInMemory
    ) -> None:
        opened = await open_with_row(meter)
        store.healthy = False
        await opened.settle(OK)
        assert list(pending) == [opened.call.id]
        assert not store.settled

    @pytest.mark.parametrize("fault", [RowRefused("No."), SettlementConflict("No.")], ids=lambda fault: fault.id)
    async def test_a_refused_row_is_not_kept(
        self, meter: Meter, store: MemoryStore, pending: KeptInMemory, fault: ServiceFault
    ) -> None:
        store.on_settle = raising(fault)
        opened = await open_with_row(meter)
        with pytest.raises(LedgerUnavailable):
            await opened.settle(OK)
        assert not pending

    async def test_a_cancelled_wait_keeps_the_settlement(
        self, meter: Meter, store: MemoryStore, pending: KeptInMemory, recorder: Recorder
    ) -> None:
        reached = asyncio.Event()

        async def failing(settlement: Settlement) -> None:
            reached.set()
            await asyncio.sleep(0)
            raise LedgerUnavailable("The disk is full.")

        store.on_settle = failing
        opened = await open_with_row(meter)
        settling = asyncio.create_task(opened.settle(OK))
        await reached.wait()
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        assert pending == {opened.call.id: opened.settled}
        assert pending.counted == {opened.call.id}
        assert money_and_tokens(recorder) == (15, 15)

    async def test_what_can_be_kept_nowhere_is_counted_when_it_is_durable(
        self, meter: Meter, store: MemoryStore, pending: KeptInMemory, recorder: Recorder
    ) -> None:
        store.on_settle = raising(LedgerUnavailable("The disk is full."))
        pending.fault = LedgerUnavailable("The file is full.")
        opened = await open_with_row(meter)
        with pytest.raises(LedgerUnavailable, match="The file is full"):
            await opened.settle(OK)
        assert (statuses(recorder), money_and_tokens(recorder)) == ({"503": 1}, (0, 0))
        meter.count_late(pending[opened.call.id])
        assert (statuses(recorder), money_and_tokens(recorder)) == ({"503": 1}, (15, 15))
        assert not meter.requests_counted

    async def test_no_call_is_opened_while_one_is_kept_nowhere(
        self, meter: Meter, store: MemoryStore, pending: KeptInMemory
    ) -> None:
        pending.unwritten.add("call_a")
        opened = open_call(meter)
        with pytest.raises(LedgerUnavailable, match="wait to be written"):
            await opened.write_down(with_target(opened))
        assert not store.rows
        pending.unwritten.clear()
        await opened.write_down(with_target(opened))

    async def test_a_pending_call_is_not_recovered(
        self, meter: Meter, store: MemoryStore, pending: KeptInMemory
    ) -> None:
        store.left = [row_left_open("call_a"), row_left_open("call_b")]
        pending["call_a"] = (await open_with_row(meter)).settlement
        assert await meter.recover() == 1
        assert list(store.settled) == ["call_b"]


def raising(fault: Exception) -> Callable[[object], Any]:
    async def fail(_: object) -> None:
        raise fault

    return fail


class TestCancellation:
    async def test_a_cancelled_settlement_is_written_and_counted_once(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        reached, on_disk = asyncio.Event(), asyncio.Event()

        async def slow_disk(settlement: Settlement) -> None:
            reached.set()
            await on_disk.wait()

        store.on_settle = slow_disk
        opened = await open_with_row(meter)
        settling = asyncio.create_task(opened.settle(OK))
        await reached.wait()
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        on_disk.set()
        await store.close()
        assert store.settled == {opened.call.id: opened.settled}
        assert statuses(recorder) == {"200": 1}
        assert money_and_tokens(recorder) == (15, 15)

    async def test_a_cancelled_opening_leaves_a_row_to_settle(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        reached, on_disk = asyncio.Event(), asyncio.Event()

        async def slow_disk(call: Call) -> None:
            reached.set()
            await on_disk.wait()

        store.on_open = slow_disk
        opened = open_call(meter)
        writing = asyncio.create_task(opened.write_down(with_target(opened)))
        await reached.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        on_disk.set()
        await asyncio.gather(*store._writes)
        await opened.end(CallResult(status="499", outcome="partial", error=ClientDisconnected("The client left.")))
        assert store.settled == {opened.call.id: opened.settled}
        assert store.open_rows == 0
        assert statuses(recorder) == {"499": 1}


def row_left_open(call_id: str, **changes: Any) -> LedgerRow:
    texts = dict.fromkeys(
        ("key_id", "parent_id", "trace_id", "response_model", "status", "outcome", "error_type", "error_id",
         "token_source", "cost_source", "price_list", "finish_reason", "upstream_request_id"),
        "",
    )  # fmt: skip
    numbers = dict.fromkeys(
        ("prompt_tokens", "completion_tokens", "cached_read_tokens", "cache_write_tokens", "reasoning_tokens",
         "audio_tokens", "cost_nanousd", "duration_ns", "time_to_first_chunk_ns", "chunks", "upstream_status"),
        0,
    )  # fmt: skip
    known: dict[str, Any] = {
        "id": call_id, "state": "open", "started_at_ns": 5, "ended_at_ns": None, "endpoint": "/v1/chat/completions",
        "method": "POST", "team": "search", "provider": "holysheep", "model": "gpt-4.1", "operation": "chat",
        "stream": True, "prompt_tokens_estimate": 11, "reported_cost_nanousd": None,
    }  # fmt: skip
    return LedgerRow(**{**texts, **numbers, **known, **changes})


class TestRecovery:
    async def test_rows_left_open_are_settled_once_and_counted(
        self, meter: Meter, store: MemoryStore, recorder: Recorder, prices: Prices
    ) -> None:
        store.left = [row_left_open("call_a"), row_left_open("call_b", prompt_tokens_estimate=4)]
        assert await meter.recover() == 2
        assert await meter.recover() == 0
        assert total(recorder, "mcp_ledger_recovered_total") == 2
        assert statuses(recorder) == {"500": 2}
        assert money_and_tokens(recorder) == (15, 15)
        assert len(prices.charged) == 2

    async def test_a_recovered_row_has_an_estimated_prompt(self, meter: Meter, store: MemoryStore) -> None:
        store.left = [row_left_open("call_a", key_id="key_1", trace_id="t")]
        await meter.recover()
        settlement = store.settled["call_a"]
        assert settlement.outcome == "recovered"
        assert settlement.usage == Usage(prompt_tokens=11, source="estimated")
        assert (settlement.missing_reason, settlement.error_id) == ("crash", "internal_error")
        assert (settlement.call.started_at_ns, settlement.call.key_id, settlement.call.trace_id) == (5, "key_1", "t")
        assert settlement.call.llm == TARGET

    async def test_a_failed_recovery_is_retried_at_the_next_start(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        store.left = [row_left_open("call_a")]
        store.on_settle = raising(LedgerUnavailable("The disk is full."))
        with pytest.raises(LedgerUnavailable):
            await meter.recover()
        assert (total(recorder, "mcp_ledger_recovered_total"), statuses(recorder)) == (0, {})
        store.on_settle = _at_once
        assert await meter.recover() == 1

    async def test_a_row_settled_by_a_slow_replica_is_not_recovered(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        store.left = [row_left_open("call_a"), row_left_open("call_b")]

        async def taken(settlement: Settlement) -> None:
            if settlement.call.id == "call_a":
                raise SettlementConflict("This call was settled already, with other figures.")

        store.on_settle = taken
        meter.requests_counted.add("call_a")
        assert await meter.recover() == 1
        assert total(recorder, "mcp_ledger_recovered_total") == 1
        assert not meter.requests_counted

    async def test_a_recovery_in_the_same_process_counts_no_new_request(
        self, meter: Meter, store: MemoryStore, recorder: Recorder
    ) -> None:
        opened = await open_with_row(meter)
        store.on_settle = raising(LedgerUnavailable("The database is away."))
        with pytest.raises(LedgerUnavailable):
            await opened.settle(OK)
        store.on_settle = _at_once
        store.left = [row_left_open(opened.call.id), row_left_open("call_of_another_replica")]
        assert await meter.recover() == 2
        assert statuses(recorder) == {"503": 1, "500": 1}
        assert total(recorder, "mcp_errors_total") == 2
        assert money_and_tokens(recorder) == (22, 22)
        assert not meter.requests_counted

    async def test_nothing_is_recovered_without_a_ledger(self, recorder: Recorder) -> None:
        assert await Meter(recorder).recover() == 0


async def test_a_sqlite_ledger_and_metrics_agree_after_a_restart(
    tmp_path: Path, recorder: Recorder, prices: Prices
) -> None:
    first = SqliteStore(tmp_path / "ledger.db")
    await first.start()
    meter = Meter(recorder, store=first, prices=prices)
    calls = [await open_with_row(meter) for _ in range(20)]
    await asyncio.gather(*(opened.settle(OK) for opened in calls[:15]))
    settling = asyncio.create_task(calls[15].settle(OK))
    await asyncio.sleep(0)
    settling.cancel()
    assert isinstance((await asyncio.gather(settling, return_exceptions=True))[0], asyncio.CancelledError | Settlement)
    await first.close()

    second = SqliteStore(tmp_path / "ledger.db")
    await second.start()
    later = Recorder(recorder.label_allowlist)
    assert {row.id for row in await second.left_open()} == {opened.call.id for opened in calls[16:]}
    assert await Meter(later, store=second, prices=prices).recover() == 4
    assert await second.left_open() == []
    await second.close()
    assert statuses(recorder) == {"200": 16}
    assert money_and_tokens(recorder) == (16 * 15, 16 * 15)
    assert statuses(later) == {"500": 4}
    assert money_and_tokens(later) == (4 * 11, 4 * 11)
